"""What single operator classes promise beyond the contract."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from operator_cases import CLOSE, column_vec, positive, tensor

from fisherlab.damping import Clip, Constant, Pi
from fisherlab.errors import InputError, NotSupportedError, NumericalError
from fisherlab.operators import (
    DenseOperator,
    DiagonalOperator,
    EigenKroneckerOperator,
    GramOperator,
    KroneckerOperator,
    PackedOperator,
    UnitBlockOperator,
)

M, D = 3, 4


@pytest.fixture
def product(rng):
    return KroneckerOperator(tensor(positive(rng, D)), tensor(positive(rng, M)))


def gram(rng, classes=2, samples=5, positions=1, m=M, d=D, **options):
    a = tensor(rng.standard_normal((samples, positions, d)))
    g = tensor(rng.standard_normal((classes, samples, positions, m)))
    return GramOperator(a, g, **options)


def jacobian(F):
    """J [C·n, D] by loops."""
    rows = []
    for c in range(F.g.shape[0]):
        for n in range(F.a.shape[0]):
            V = sum(torch.outer(F.g[c, n, t], F.a[n, t]) for t in range(F.a.shape[1]))
            rows.append(column_vec(V.numpy()))
    return np.stack(rows)


# --- Kronecker and its damping


def test_factors_are_given_back(product):
    A, B = product.factors
    assert A.shape == (D, D)
    assert B.shape == (M, M)
    assert_allclose(product.dense(), np.kron(A, B), **CLOSE)
    assert_allclose(product.dense(vec="row"), np.kron(B, A), **CLOSE)


def test_the_exact_inverse_is_not_the_factored_one(product):
    exact, factored = product.inverse(0.3), product.inverse(Pi(0.3))
    assert isinstance(exact, EigenKroneckerOperator)
    assert isinstance(factored, KroneckerOperator)
    assert float(exact.difference_norm(factored)) > 1e-2


@pytest.mark.parametrize("damping", [Pi(0.3), Clip(0.1, 0.5), Clip(0.1, 0.5, output=(1.0, 2.0))])
def test_factored_damping(product, damping, rng):
    A, B = (factor.numpy() for factor in product.factors)
    shifts = damping.factors(product.A.trace(), D, product.B.trace(), M)
    A_hat, B_hat = (X + float(shift) * np.eye(len(X)) for X, shift in zip((A, B), shifts, strict=True))
    expected = np.kron(A_hat, B_hat)
    gradient = rng.standard_normal((M, D))
    direction = np.linalg.inv(B_hat) @ gradient @ np.linalg.inv(A_hat)
    assert_allclose(product.damped(damping).dense(), expected, **CLOSE)
    assert_allclose(product.inverse(damping).dense(), np.linalg.inv(expected), **CLOSE)
    assert_allclose(product.solve(tensor(gradient), damping), direction, **CLOSE)
    assert_allclose(product.logdet(damping), np.linalg.slogdet(expected)[1], **CLOSE)
    root = product.power(0.5, damping).dense()
    assert_allclose(root @ root, expected, **CLOSE)


def test_a_constant_damping_object_is_its_number(product):
    assert_allclose(product.inverse(Constant(0.3)).dense(), product.inverse(0.3).dense(), **CLOSE)


def test_factored_damping_needs_factors(rng):
    for op in (
        DenseOperator(torch.eye(M * D), M, D),
        DiagonalOperator(torch.ones(M, D)),
        UnitBlockOperator(torch.eye(D).expand(M, D, D)),
        gram(rng),
    ):
        with pytest.raises(NotSupportedError, match="give a number"):
            op.solve(torch.ones(M, D), Pi(0.1))


def test_zero_factors_are_inverted_with_damping():
    zero = KroneckerOperator(torch.zeros(D, D), torch.zeros(M, M))
    direction = zero.solve(torch.ones(M, D), Pi(0.25))
    assert_allclose(direction, 4.0, rtol=1e-6)


# --- rank and precision


def test_rank_deficiency_is_seen_and_damping_cures_it(rng):
    root = rng.standard_normal((M * D, 4))
    F = DenseOperator(tensor(root @ root.T), M, D)
    assert int((F.eigenvalues() == 0).sum()) == M * D - 4
    gradient = tensor(rng.standard_normal((M, D)))
    for call in (F.inverse, F.logdet, lambda x: F.power(-1, x), lambda x: F.solve(gradient, x)):
        with pytest.raises(NumericalError, match="larger damping"):
            call(0.0)
    expected = np.linalg.solve(root @ root.T + 1e-3 * np.eye(M * D), gradient.T.flatten())
    assert_allclose(F.solve(gradient, 1e-3).T.flatten(), expected, rtol=1e-8)
    square_root = F.power(0.5).dense()
    assert_allclose(square_root @ square_root, F.dense(), atol=1e-10)


def test_rank_deficient_factors(rng):
    a, g = rng.standard_normal((D, 1)), rng.standard_normal((M, 2))
    F = KroneckerOperator(tensor(a @ a.T), tensor(g @ g.T))
    assert int((F.eigenvalues() > 0).sum()) == 2
    with pytest.raises(NumericalError, match="larger damping"):
        F.inverse(0.0)
    expected = np.linalg.inv(np.kron(a @ a.T, g @ g.T) + 0.1 * np.eye(M * D))
    assert_allclose(F.inverse(0.1).dense(), expected, **CLOSE)


def test_single_precision_cholesky_is_repeated_in_double():
    ones = DenseOperator(torch.ones(4, 4), 2, 2)  # 1 + 1e-9 is 1 in float32: singular there
    solution = ones.solve(torch.ones(2, 2), 1e-9)
    assert solution.dtype == torch.float32
    assert_allclose(solution, 0.25, rtol=1e-5)
    blocks = UnitBlockOperator(torch.ones(3, 4, 4))
    assert_allclose(blocks.solve(torch.ones(3, 4), 1e-9), 0.25, rtol=1e-5)


def test_an_indefinite_matrix_is_refused():
    F = DenseOperator(-torch.eye(4), 2, 2)
    with pytest.raises(NumericalError, match="larger damping"):
        F.solve(torch.ones(2, 2), 0.5)


def test_a_fractional_power_of_negative_eigenvalues_is_refused():
    F = DiagonalOperator(torch.tensor([[1.0, -1.0]]))
    with pytest.raises(NumericalError, match="larger damping"):
        F.power(0.5)
    assert_allclose(F.power(2).dense(), np.eye(2))


def test_dense_accepts_the_row_order(product):
    by_rows = DenseOperator(product.dense(vec="row"), M, D, vec="row")
    assert_allclose(by_rows.dense(), product.dense(), **CLOSE)
    assert_allclose(by_rows.dense(vec="row"), product.dense(vec="row"), **CLOSE)


@pytest.mark.parametrize(
    "make",
    [
        lambda: DenseOperator(torch.eye(5), 2, 3),
        lambda: DenseOperator(torch.eye(6), 2, 3, vec="rows"),
        lambda: DiagonalOperator(torch.ones(3)),
        lambda: KroneckerOperator(torch.ones(2, 3), torch.eye(2)),
        lambda: KroneckerOperator(torch.ones(2, 2, 2), torch.eye(2)),
        lambda: EigenKroneckerOperator(None, torch.eye(3), torch.ones(2, 3)),
        lambda: EigenKroneckerOperator(torch.eye(2), torch.eye(3), torch.ones(2, 3)),
        lambda: UnitBlockOperator(torch.ones(2, 3, 4)),
        lambda: PackedOperator(torch.ones(3, 3), 2, 3),
        lambda: GramOperator(torch.ones(5, 1, 2), torch.ones(2, 4, 1, 3)),
        lambda: GramOperator(torch.ones(5, 2), torch.ones(5, 3)),
        lambda: GramOperator(torch.ones(0, 1, 2), torch.ones(2, 0, 1, 3)),
        lambda: GramOperator(torch.ones(5, 1, 2), torch.ones(2, 5, 1, 3), samples=0),
    ],
)
def test_shapes_that_do_not_fit_are_refused(make):
    with pytest.raises(InputError):
        make()


# --- Gram


@pytest.mark.parametrize("positions", [1, 2, 9])
@pytest.mark.parametrize("budget", [None, 64])
def test_gram_matrix_rows_and_combinations(rng, positions, budget, monkeypatch):
    if budget is not None:
        monkeypatch.setattr("fisherlab.gradients.pairs.CHUNK_BYTES", budget)
        monkeypatch.setattr("fisherlab.gradients.pairs._BLOCK_BYTES", budget)
        monkeypatch.setattr("fisherlab.gradients.contractions._VECTOR_BYTES", budget)
        monkeypatch.setattr("fisherlab.gradients.contractions._PAIR_BYTES", budget)
    F = gram(rng, positions=positions, samples=5)
    J = jacobian(F)
    assert F.columns == 10
    assert_allclose(F.frobenius_norm(), np.linalg.norm(J @ J.T / 5), **CLOSE)
    assert F.gram().dtype == torch.float64
    assert_allclose(F.gram(), J @ J.T / 5, **CLOSE)
    assert_allclose(F.frobenius_norm(), np.linalg.norm(J @ J.T / 5), **CLOSE)
    X, w = rng.standard_normal((2, M, D)), rng.standard_normal((2, 2, 5))
    assert_allclose(F.rows(tensor(X)).flatten(1), X.transpose(0, 2, 1).reshape(2, -1) @ J.T, **CLOSE)
    combined = F.combine(tensor(w)).mT.flatten(1)
    assert_allclose(combined, w.reshape(2, -1) @ J, **CLOSE)
    assert_allclose(F.vectors(3, 8).mT.flatten(1), J[3:8], **CLOSE)


@pytest.mark.parametrize("positions", [1, 3])
def test_combination_keeps_its_digits_at_a_tiny_damping(rng, positions):
    F = gram(rng, classes=1, samples=4, positions=positions)
    w = rng.standard_normal((1, 4))
    J = jacobian(F)
    pseudo = np.linalg.pinv(J.T @ J / 4) @ J.T @ w.flatten()
    direction = F.solve_combination(tensor(w), 1e-13)
    assert_allclose(direction.T.flatten(), pseudo, rtol=1e-8)
    damped = np.linalg.solve(J.T @ J / 4 + 0.1 * np.eye(M * D), J.T @ w.flatten())
    assert_allclose(F.solve_combination(tensor(w), 0.1).T.flatten(), damped, **CLOSE)
    assert_allclose(F.solve(F.combine(tensor(w)), 0.1).T.flatten(), damped, **CLOSE)


def test_eigenvalues_of_few_columns_are_the_nonzero_ones(rng):
    F = gram(rng, classes=1, samples=5)
    expected = np.linalg.eigvalsh(jacobian(F).T @ jacobian(F) / 5)
    assert F.eigenvalues().shape == (5,)
    assert_allclose(F.eigenvalues(), expected[-5:], **CLOSE)


def test_the_number_of_samples_sets_the_scale(rng):
    F = gram(rng, samples=5)
    scaled = GramOperator(F.a, F.g, samples=20)
    for method in ("dense", "trace", "frobenius_norm", "gram", "eigenvalues"):
        assert_allclose(getattr(scaled, method)(), getattr(F, method)() / 4, **CLOSE)


def test_gram_refuses_what_it_cannot_do(rng):
    F = gram(rng, memory=M * D * M * D * 8 - 1)
    with pytest.raises(NotSupportedError, match="memory="):
        F.dense()
    with pytest.raises(NumericalError, match="above zero"):
        F.solve(torch.ones(M, D, dtype=torch.float64), 0.0)
    for call in (F.combine, lambda w: F.solve_combination(w, 0.1)):
        with pytest.raises(InputError, match="columns, samples"):
            call(torch.ones(5, 2, dtype=torch.float64))


def test_gram_works_without_a_dense_matrix(rng, monkeypatch):
    F, G = gram(rng, positions=3, memory=0), gram(rng, positions=2, memory=0)
    others = [
        G,
        KroneckerOperator(tensor(positive(rng, D)), tensor(positive(rng, M))),
        DiagonalOperator(torch.ones(M, D, dtype=torch.float64)),
        UnitBlockOperator(torch.eye(D, dtype=torch.float64).repeat(M, 1, 1)),
    ]
    matrix = jacobian(F).T @ jacobian(F) / 5
    monkeypatch.setattr("fisherlab.operators.base._DENSE_DIFFERENCE", 0)
    for other in others:
        expected = matrix - (jacobian(G).T @ jacobian(G) / 5 if other is G else other.dense().numpy())
        assert_allclose(F.difference_norm(other), np.linalg.norm(expected), rtol=1e-9)


def test_packed_never_expands_for_its_numbers(rng, monkeypatch):
    source = gram(rng)
    F = PackedOperator(source.packed(), M, D)

    def refuse(*_):
        raise AssertionError("expanded")

    monkeypatch.setattr("fisherlab.operators.packed.unpack_rows", refuse)
    monkeypatch.setattr("fisherlab.operators.base.unpack", refuse)
    U_A, U_B = torch.eye(D, dtype=torch.float64), torch.eye(M, dtype=torch.float64)
    assert_allclose(F.trace(), source.trace(), **CLOSE)
    assert_allclose(F.frobenius_norm(), source.frobenius_norm(), **CLOSE)
    assert_allclose(F.diagonal(), source.diagonal(), **CLOSE)
    assert_allclose(F.contract_output(U_B), source.contract_output(U_B), **CLOSE)
    assert_allclose(F.contract_input(U_A), source.contract_input(U_A), **CLOSE)
    assert_allclose(F.unit_blocks(), source.unit_blocks(), **CLOSE)
    assert_allclose(F.inner(source), source.frobenius_norm() ** 2, **CLOSE)
    assert_allclose(F.diagonal_in_basis(U_A, U_B), source.diagonal_matrix(), **CLOSE)
    assert float(F.difference_norm(source)) < 1e-12


def test_negative_rounding_of_single_precision_does_not_stop_an_inverse():
    A = torch.diag(torch.tensor([1.0, 0.5, -1e-8], dtype=torch.float64))
    operator = KroneckerOperator(A, torch.eye(2, dtype=torch.float64))
    X = torch.ones(2, 3, dtype=torch.float64)
    expected = X / (torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64) + 1e-9)
    torch.testing.assert_close(operator.solve(X, 1e-9), expected)
    truly_indefinite = KroneckerOperator(A - 0.1 * torch.eye(3), torch.eye(2, dtype=torch.float64))
    with pytest.raises(NumericalError):
        truly_indefinite.inverse(1e-9)
