"""The nearest Kronecker product against the singular value decomposition of the rearranged block."""

import pytest
import torch
from torch import Tensor

from fisherlab.approximations import nearest
from fisherlab.approximations.nearest import NearestKronecker
from fisherlab.errors import NumericalError
from fisherlab.operators import DenseOperator, GramOperator, KroneckerOperator, LinearOperator

SHAPES = [
    (1, 1, 4, 1),
    (1, 6, 9, 2),
    (6, 1, 9, 1),
    (3, 4, 20, 1),
    (5, 4, 7, 3),
    (16, 12, 40, 2),
    (2, 60, 30, 1),
]


def block(m: int, d: int, samples: int, positions: int, seed: int = 0) -> GramOperator:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(samples, positions, d, generator=generator, dtype=torch.float64)
    return GramOperator(a, torch.randn(2, samples, positions, m, generator=generator, dtype=torch.float64))


def rearranged(F: LinearOperator) -> Tensor:
    d, m = F.inputs, F.outputs
    return F.dense().view(d, m, d, m).transpose(1, 2).reshape(d * d, m * m)


def expected(F: LinearOperator) -> Tensor:
    U, S, V = torch.linalg.svd(rearranged(F), full_matrices=False)
    return torch.kron((S[0] * U[:, 0]).view(F.inputs, F.inputs), V[0].view(F.outputs, F.outputs))


def found(F: LinearOperator) -> KroneckerOperator:
    return NearestKronecker().from_block(F)


def assert_near(X: Tensor, Y: Tensor, within: float) -> None:
    assert float(torch.linalg.norm(X - Y) / torch.linalg.norm(Y)) < within


def assert_positive(K: KroneckerOperator) -> None:
    for factor in K.factors:
        values = torch.linalg.eigvalsh(factor)
        assert float(values[0]) >= -1e-13 * float(values[-1])
        assert float(values[-1]) > 0


@pytest.mark.parametrize("kind", ["gram", "dense", "float32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_small_blocks_are_good_to_rounding(shape, kind):
    F = block(*shape)
    within = 1e-13
    if kind != "gram":
        dtype, within = (torch.float32, 1e-5) if kind == "float32" else (torch.float64, 1e-13)
        F = DenseOperator(F.dense().to(dtype), F.outputs, F.inputs)
    K = found(F)
    assert_near(K.dense(), expected(F), within)
    if kind != "float32":
        assert_positive(K)


@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_that_are_iterated_are_good_to_eleven_digits(shape, monkeypatch):
    monkeypatch.setattr(nearest, "_SMALL", 0)
    F = block(*shape)
    K = found(F)
    assert_near(K.dense(), expected(F), 1e-11)
    assert_positive(K)


def test_a_block_of_size_1024_by_iteration():
    F = block(32, 32, 60, 1)
    assert not nearest._is_small(F)
    assert_near(found(F).dense(), expected(F), 1e-11)


@pytest.mark.parametrize("noise", [1e-3, 1e-7, 1e-11])
def test_a_small_change_of_the_block_is_a_small_change_of_the_product(noise):
    F, other = block(4, 5, 30, 1), block(4, 5, 30, 1, seed=1)
    before = found(F).dense()
    after = found(DenseOperator(F.dense() + noise * other.dense(), 4, 5)).dense()
    S = torch.linalg.svdvals(rearranged(F))
    change = noise * float(torch.linalg.norm(other.dense()))
    assert 0 < float(torch.linalg.norm(after - before)) < 4 * change / float(1 - S[1] / S[0])


@pytest.mark.parametrize("noise", [0.0, 1e-9, 1e-3])
def test_a_product_with_noise_is_found_again(noise):
    A, B = (block(1, k, 20, 1).contract_output(torch.eye(1)) for k in (5, 3))
    F = torch.kron(A, B) + noise * block(3, 5, 30, 1).dense()
    assert_near(found(DenseOperator(F, 3, 5)).dense(), torch.kron(A, B), 100 * noise + 1e-13)


@pytest.mark.parametrize("gap", [0.0, 1e-15, 1e-12, 1e-9, 1e-6])
@pytest.mark.parametrize("small", [True, False])
def test_equal_singular_values_leave_a_positive_product_of_least_error(gap, small, monkeypatch):
    """Of E₁⊗E₁ + E₂⊗E₂ any rotation of the two pairs is a singular pair, most of them indefinite."""
    if not small:
        monkeypatch.setattr(nearest, "_SMALL", 0)
    rotations = [torch.linalg.qr(block(1, k, 9, 1).contract_output(torch.eye(1)))[0] for k in (4, 3)]
    first, second = (torch.kron(*(torch.outer(U[:, i], U[:, i]) for U in rotations)) for i in (0, 1))
    F = DenseOperator(first * (1 + gap) + second, 3, 4)
    K = found(F)
    assert_positive(K)
    left = float(torch.linalg.norm(F.dense() - K.dense()))
    assert left == pytest.approx(1.0, abs=1e-10 if small else 1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_scale_of_the_block_is_that_of_the_product(scale):
    F = block(3, 4, 20, 1)
    assert_near(found(F * scale).dense() / scale, expected(F), 1e-13)


def test_a_block_of_zeros_and_one_that_is_not_finite():
    assert float(found(DenseOperator(torch.zeros(6, 6), 2, 3)).frobenius_norm()) == 0
    for bad in (torch.nan, torch.inf):
        with pytest.raises(NumericalError, match="not finite"):
            found(DenseOperator(torch.full((6, 6), bad), 2, 3))
