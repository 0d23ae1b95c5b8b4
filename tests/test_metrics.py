"""Identities of the numbers between two operators."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_cases import BUILDERS, positive, tensor
from reference import Case

import fisherlab as fl
from fisherlab import metrics
from fisherlab.errors import InputError, NotSupportedError, NumericalError
from fisherlab.operators import (
    DenseOperator,
    DiagonalOperator,
    GramOperator,
    KroneckerOperator,
    LinearOperator,
)

NAMES = ("kfac", "ekfac", "tkfac", "lngd", "diagonal", "foof")


@pytest.fixture(scope="module")
def blocks(categorical) -> list[tuple[LinearOperator, LinearOperator]]:
    """(F, F̂) of every layer, F̂ and form of F."""
    found = []
    for method in ("kronecker", "gram", "per-sample"):
        F = fl.exact_fisher(categorical.model, categorical.data, method=method)
        for name in NAMES:
            for layer, operator in fl.approximate(name, categorical.model, categorical.data).items():
                found.append((F[layer], operator))
    return found


def pair(number: int) -> tuple[DenseOperator, KroneckerOperator]:
    """A random dense block and a random Kronecker product."""
    rng = np.random.default_rng(number)
    F = DenseOperator(tensor(positive(rng, 6)), 2, 3)
    return F, KroneckerOperator(tensor(positive(rng, 3)), tensor(positive(rng, 2)))


numbers = st.integers(0, 10**6)


# --- an approximation that is exact -------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILDERS)
def test_an_exact_approximation_has_no_error(name):
    F = BUILDERS[name](np.random.default_rng(0), 2, 3, torch.float64).operator
    assert metrics.relative_error(F, F) == pytest.approx(0, abs=1e-7)
    error, scale = metrics.scaled_error(F, F * 0.25)
    assert error == pytest.approx(0, abs=1e-7)
    assert scale == pytest.approx(4)
    assert metrics.cosine(F, F) == pytest.approx(1)
    assert metrics.trace_ratio(F, F) == pytest.approx(1)
    assert metrics.diagonal_error(F, F) == pytest.approx(0, abs=1e-12)
    found = metrics.direction(F, DenseOperator(F.dense(), 2, 3), torch.randn(2, 3).double(), 0.1)
    assert found.cosine == pytest.approx(1)
    assert found.decrease_share == pytest.approx(1)


# --- definitions ----------------------------------------------------------------------------------------


def test_numbers_are_those_of_dense_matrices(blocks):
    for F, approximation in blocks:
        A, B = F.dense(), approximation.dense()
        assert metrics.relative_error(F, approximation) == pytest.approx(float((A - B).norm() / A.norm()))
        inner = float((A * B).sum())
        assert metrics.cosine(F, approximation) == pytest.approx(inner / float(A.norm() * B.norm()))
        error, scale = metrics.scaled_error(F, approximation)
        assert scale == pytest.approx(inner / float(B.norm() ** 2))
        assert error == pytest.approx(float((A - scale * B).norm() / A.norm()))
        assert metrics.trace_ratio(F, approximation) == pytest.approx(float(B.trace() / A.trace()))
        a, b = A.diagonal(), B.diagonal()
        assert metrics.diagonal_error(F, approximation) == pytest.approx(
            float((a - b).norm() / a.norm()), abs=1e-12
        )


def test_the_scaled_error_is_the_sine_of_the_angle(blocks):
    for F, approximation in blocks:
        error = metrics.scaled_error(F, approximation).error
        assert error**2 == pytest.approx(1 - metrics.cosine(F, approximation) ** 2, abs=1e-10)
        assert error <= metrics.relative_error(F, approximation) + 1e-12


@settings(max_examples=20)
@given(number=numbers, scale=st.floats(1e-3, 1e3))
def test_scaling_the_approximation(number, scale):
    F, approximation = pair(number)
    error, best = metrics.scaled_error(F, approximation)
    scaled_error, scaled_best = metrics.scaled_error(F, approximation * scale)
    assert scaled_error == pytest.approx(error)
    assert scaled_best * scale == pytest.approx(best)
    assert metrics.cosine(F, approximation * scale) == pytest.approx(metrics.cosine(F, approximation))
    ratio = metrics.trace_ratio(F, approximation)
    assert metrics.trace_ratio(F, approximation * scale) == pytest.approx(scale * ratio)
    one, two = (metrics.diagonal_error(F, a, scaled=True) for a in (approximation, approximation * scale))
    assert one == pytest.approx(two)
    assert one <= metrics.diagonal_error(F, approximation) + 1e-12


@settings(max_examples=20)
@given(number=numbers, scale=st.floats(1e-3, 1e3))
def test_no_other_scale_is_better(number, scale):
    F, approximation = pair(number)
    assert (
        metrics.scaled_error(F, approximation).error
        <= metrics.relative_error(F, approximation * scale) + 1e-9
    )


def test_an_opposite_approximation_has_scale_zero():
    F, approximation = pair(0)
    assert metrics.scaled_error(F, approximation * -1.0) == (pytest.approx(1.0), 0.0)
    assert metrics.scaled_error(F, approximation * 0.0) == (1.0, 0.0)


# --- directions -----------------------------------------------------------------------------------------


def gamma(F: torch.Tensor, step: torch.Tensor, gradient: torch.Tensor) -> float:
    return float((step @ F @ step).sqrt() / (step @ gradient).abs())


@settings(max_examples=30)
@given(number=numbers, damping=st.floats(1e-3, 10))
def test_directions_are_those_of_dense_matrices(number, damping):
    F, approximation = pair(number)
    gradient = torch.randn(2, 3, generator=torch.Generator().manual_seed(number)).double()
    found = metrics.direction(F, approximation, gradient, damping)
    A, h, eye = F.dense(), gradient.T.flatten(), torch.eye(6).double()
    B = approximation.dense() * A.trace() / approximation.dense().trace()
    best, step = torch.linalg.solve(A + damping * eye, h), torch.linalg.solve(B + damping * eye, h)
    assert found.cosine == pytest.approx(float(best @ step / (best.norm() * step.norm())), abs=1e-9)
    damped = A + damping * eye
    share = (gamma(damped, best, h) / gamma(damped, step, h)) ** 2
    assert found.decrease_share == pytest.approx(share, rel=1e-8)
    assert 0 <= found.decrease_share <= 1 + 1e-12


def test_directions_do_not_depend_on_the_scale_of_the_approximation():
    F, approximation = pair(3)
    gradient = torch.randn(2, 3).double()
    one, two = (metrics.direction(F, a, gradient, 0.1) for a in (approximation, approximation * 50))
    assert one.cosine == pytest.approx(two.cosine)
    assert one.decrease_share == pytest.approx(two.decrease_share)


def test_a_large_damping_makes_every_direction_the_gradient():
    F, approximation = pair(4)
    found = metrics.direction(F, approximation, torch.randn(2, 3).double(), 1e8)
    assert found.cosine == pytest.approx(1, abs=1e-9)
    assert found.decrease_share == pytest.approx(1, abs=1e-9)


def test_gram_and_dense_blocks_give_one_direction(categorical):
    gradient = torch.randn(5, 7).double()
    K = fl.approximate("kfac", categorical.model, categorical.data)["0"]
    found = [
        metrics.direction(
            fl.exact_fisher(categorical.model, categorical.data, method=method)["0"], K, gradient, 0.05
        )
        for method in ("gram", "kronecker")
    ]
    assert found[0].cosine == pytest.approx(found[1].cosine, rel=1e-9)
    assert found[0].decrease_share == pytest.approx(found[1].decrease_share, rel=1e-9)


def test_directions_refuse_what_makes_no_sense():
    F, approximation = pair(5)
    with pytest.raises(InputError, match=r"shape \[3, 2\]; the block's is \[2, 3\]"):
        metrics.direction(F, approximation, torch.ones(3, 2).double(), 0.1)
    for damping in (0, -1.0):
        with pytest.raises(InputError, match="must be finite and above 0"):
            metrics.direction(F, approximation, torch.ones(2, 3).double(), damping)
    with pytest.raises(NumericalError, match="the gradient is zero"):
        metrics.direction(F, approximation, torch.zeros(2, 3).double(), 0.1)
    with pytest.raises(NumericalError, match="cannot be matched"):
        metrics.direction(F, approximation * 0.0, torch.ones(2, 3).double(), 0.1)


# --- spectra --------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(number=numbers, damping=st.floats(1e-2, 10))
def test_the_preconditioned_spectrum_is_that_of_the_product(number, damping):
    F, approximation = pair(number)
    eye = torch.eye(6).double()
    product = torch.linalg.solve(approximation.dense() + damping * eye, F.dense())
    expected = torch.linalg.eigvals(product).real.sort().values
    found = metrics.preconditioned_spectrum(F, approximation, damping)
    assert torch.allclose(found, expected, rtol=1e-8)
    both = torch.linalg.solve(approximation.dense() + damping * eye, F.dense() + damping * eye)
    values = torch.linalg.eigvals(both).real.sort().values
    condition = metrics.preconditioned_condition(F, approximation, damping)
    assert condition == pytest.approx(float(values[-1] / values[0]), rel=1e-5)


def test_the_block_itself_is_the_best_preconditioner(categorical):
    F = fl.exact_fisher(categorical.model, categorical.data)["2"]
    itself = DenseOperator(F.dense(), 4, 5)
    assert metrics.preconditioned_condition(F, itself, 0.1) == pytest.approx(1, abs=1e-9)
    found = metrics.preconditioned_spectrum(F, itself, 0.1)
    values = F.eigenvalues()
    assert torch.allclose(found, (values / (values + 0.1))[-len(found) :])


def test_a_gram_block_has_the_same_nonzero_preconditioned_spectrum(categorical):
    case = categorical.take(slice(0, 6))
    gram, dense = (
        fl.exact_fisher(case.model, case.data, method=method)["0"] for method in ("gram", "kronecker")
    )
    K = fl.approximate("kfac", case.model, case.data)["0"]
    one, two = (metrics.preconditioned_spectrum(F, K, 0.1) for F in (gram, dense))
    assert len(one) == len(two) == 12
    assert torch.allclose(one, two, rtol=1e-9)
    conditions = [metrics.preconditioned_condition(F, K, 0.1) for F in (gram, dense)]
    assert conditions[0] == pytest.approx(conditions[1], rel=1e-5)


def test_spectrum():
    values = torch.tensor([[1.0, 2.0], [3.0, 2.0]]).double()
    found = metrics.spectrum(DiagonalOperator(values), 1.0)
    assert torch.equal(found.eigenvalues, torch.tensor([1.0, 2.0, 2.0, 3.0]).double())
    shares = torch.tensor([1, 2, 2, 3]) / 8
    assert found.effective_rank == pytest.approx(math.exp(-float((shares * shares.log()).sum())), rel=1e-6)
    assert found.condition == pytest.approx(4 / 2)
    assert metrics.spectrum(DiagonalOperator(torch.ones(2, 3).double())).effective_rank == pytest.approx(6)
    assert metrics.spectrum(DiagonalOperator(torch.eye(2).double())).condition == math.inf


def test_a_gram_spectrum_counts_the_zeros_it_does_not_hold(categorical):
    case = categorical.take(slice(0, 5))
    gram, dense = (
        fl.exact_fisher(case.model, case.data, method=method)["0"] for method in ("gram", "kronecker")
    )
    one, two = metrics.spectrum(gram, 0.1), metrics.spectrum(dense, 0.1)
    assert len(one.eigenvalues) == 10
    assert torch.allclose(one.eigenvalues, two.eigenvalues[-10:], atol=1e-13)
    assert one.condition == pytest.approx(two.condition)
    assert one.effective_rank == pytest.approx(two.effective_rank)


def test_large_blocks_have_no_spectrum_here():
    large = KroneckerOperator(torch.eye(70).double(), torch.eye(70).double())
    with pytest.raises(NotSupportedError, match=r"4900.*are not computed above 4096"):
        metrics.spectrum(large)
    with pytest.raises(NotSupportedError, match="4900"):
        metrics.preconditioned_spectrum(large, large, 0.1)


def test_the_preconditioned_spectrum_of_much_data_is_refused():
    shapes = torch.empty(1, 1, 1).expand(4000, 1, 3000), torch.empty(1, 1, 1, 1).expand(2, 4000, 1, 3000)
    F = GramOperator(*shapes)
    identity = KroneckerOperator(torch.eye(3000), torch.eye(3000))
    with pytest.raises(NotSupportedError, match="operations; use fewer samples"):
        metrics.preconditioned_spectrum(F, identity, 0.1)


# --- zero ---------------------------------------------------------------------------------------------


def test_a_zero_block_has_no_relative_numbers():
    zero = DiagonalOperator(torch.zeros(2, 3).double())
    _, other = pair(0)
    for function in (metrics.relative_error, metrics.cosine, metrics.trace_ratio, metrics.diagonal_error):
        with pytest.raises(NumericalError, match="zero"):
            function(zero, other)


def test_blocks_of_other_shapes_are_refused(categorical: Case):
    F = fl.exact_fisher(categorical.model, categorical.data)
    with pytest.raises(InputError, match="different shapes"):
        metrics.relative_error(F["0"], F["2"])
