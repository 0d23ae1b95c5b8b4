"""Every method of the contract, for every operator class, against the dense matrix."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from operator_cases import BUILDERS, Case, loop_svec, positive, tensor

from fisherlab.errors import InputError, InputTypeError, NumericalError
from fisherlab.operators import GramOperator

M, D = 3, 4
DAMPING = 0.3
NAMES = sorted(BUILDERS)
SPECTRAL = [name for name in NAMES if "gram" not in name]
close = {"rtol": 1e-10, "atol": 1e-10}


def build(name, seed=0, m=M, d=D, dtype=torch.float64) -> Case:
    return BUILDERS[name](np.random.default_rng(seed), m, d, dtype)


@pytest.fixture(params=NAMES)
def case(request) -> Case:
    return build(request.param)


@pytest.fixture(params=SPECTRAL)
def spectral_case(request) -> Case:
    return build(request.param)


@pytest.fixture
def rng():
    return np.random.default_rng(99)


def vec(X):
    return X.mT.flatten(-2)


def matrix_log(matrix):
    """Zero on the kernel."""
    values, vectors = np.linalg.eigh(matrix)
    inside = values > len(values) * np.finfo(float).eps * values.max()
    return (vectors * np.log(np.where(inside, values, 1.0))) @ vectors.T


def matrix_power(matrix, p):
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * values**p) @ vectors.T


def damped(matrix, damping=DAMPING):
    return matrix + damping * np.eye(len(matrix))


# --- shape and products


def test_sizes_and_type(case):
    op = case.operator
    assert (op.outputs, op.inputs, op.shape) == (M, D, (M * D, M * D))
    assert op.dtype == torch.float64
    assert op.device.type == "cpu"


def test_apply_is_the_dense_product(case, rng):
    X = rng.standard_normal((M, D))
    assert_allclose(vec(case.operator.apply(tensor(X))), case.matrix @ vec(tensor(X)).numpy(), **close)


def test_apply_takes_leading_dimensions(case, rng):
    X = tensor(rng.standard_normal((2, 3, M, D)))
    result = case.operator.apply(X)
    assert result.shape == X.shape
    assert_allclose(vec(result), vec(X).numpy() @ case.matrix.T, **close)


def test_matmul_of_vectors_and_columns(case, rng):
    v, columns = rng.standard_normal(M * D), rng.standard_normal((M * D, 5))
    assert_allclose(case.operator @ tensor(v), case.matrix @ v, **close)
    assert_allclose(case.operator @ tensor(columns), case.matrix @ columns, **close)


@pytest.mark.parametrize("shape", [(M * D + 1,), (M * D - 1, 2), (2, M * D, 3), ()])
def test_matmul_refuses_other_sizes(case, shape):
    with pytest.raises(InputError, match="12"):
        case.operator @ torch.ones(shape, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(D, M), (1, D), (M, 1), (M,)])
def test_apply_and_solve_refuse_other_shapes(case, shape):
    X = torch.ones(shape, dtype=torch.float64)
    with pytest.raises(InputError):
        case.operator.apply(X)
    with pytest.raises(InputError):
        case.operator.solve(X, DAMPING)


@pytest.mark.parametrize("factor", [2, -0.5, np.float64(3.0), torch.tensor(1.5)])
def test_multiples(case, factor):
    case.operator.frobenius_norm()
    for multiple in (case.operator * factor, factor * case.operator):
        assert type(multiple) is type(case.operator)
        assert_allclose(multiple.dense(), float(factor) * case.matrix, **close)
        assert_allclose(multiple.trace(), float(factor) * np.trace(case.matrix), **close)
        assert_allclose(multiple.frobenius_norm(), abs(float(factor)) * np.linalg.norm(case.matrix), **close)


def test_a_multiple_forgets_what_the_original_kept(case):
    case.operator.eigenvalues()
    expected = 2 * np.linalg.eigvalsh(case.matrix)
    assert_allclose((case.operator * 2).eigenvalues(), expected, **close)


def test_multiplication_by_something_else_is_refused(case):
    with pytest.raises(InputTypeError, match="number"):
        case.operator * "two"


# --- dense forms


def row_order(matrix, m, d):
    order = [i * m + j for j in range(m) for i in range(d)]
    return matrix[np.ix_(order, order)]


def test_dense_in_both_orders(case):
    assert_allclose(case.operator.dense(), case.matrix, **close)
    assert_allclose(case.operator.dense("column"), case.matrix, **close)
    assert_allclose(case.operator.dense(vec="row"), row_order(case.matrix, M, D), **close)


def test_diagonal_in_both_orders(case):
    assert_allclose(case.operator.diagonal(), np.diag(case.matrix), **close)
    assert_allclose(case.operator.diagonal(vec="row"), np.diag(row_order(case.matrix, M, D)), **close)
    assert_allclose(vec(case.operator.diagonal_matrix()), np.diag(case.matrix), **close)


def test_row_order_is_the_order_of_flattened_weights(case, rng):
    weight = tensor(rng.standard_normal((M, D)))
    expected = case.operator.apply(weight).flatten()
    assert_allclose(case.operator.dense(vec="row") @ weight.flatten(), expected, **close)


def test_an_unknown_order_is_refused(case):
    with pytest.raises(InputError, match="row"):
        case.operator.dense(vec="rows")
    with pytest.raises(InputError, match="column"):
        case.operator.diagonal(vec="col")


def test_scipy_operator(case, rng):
    v, columns = rng.standard_normal(M * D), rng.standard_normal((M * D, 2))
    converted = case.operator.to_scipy()
    assert converted.shape == case.operator.shape
    assert converted.dtype == np.float64
    assert_allclose(converted @ v, case.matrix @ v, **close)
    assert_allclose(converted @ columns, case.matrix @ columns, **close)
    assert_allclose(converted.rmatvec(v), case.matrix @ v, **close)


def test_packed_form_is_an_isometric_image(case):
    if not case.operator.pair_symmetric:
        with pytest.raises(NotImplementedError, match="dense"):
            case.operator.packed()
        return
    packed = case.operator.packed()
    assert_allclose(torch.linalg.norm(packed), np.linalg.norm(case.matrix), **close)
    A, B = positive(np.random.default_rng(5), D), positive(np.random.default_rng(6), M)
    product = loop_svec(A) @ packed.numpy() @ loop_svec(B)
    assert_allclose(product, np.sum(case.matrix * np.kron(A, B)), **close)


def test_packed_rows_are_rows_of_the_packed_form(case):
    if case.operator.pair_symmetric:
        packed = case.operator.packed()
        for start, stop in [(0, 3), (2, 7), (9, 10)]:
            assert_allclose(case.operator.packed_rows(start, stop), packed[start:stop], **close)


def test_pair_symmetry_is_true_of_the_matrix(case):
    if case.operator.pair_symmetric:
        by_entry = case.matrix.reshape(D, M, D, M)
        assert_allclose(by_entry, by_entry.transpose(2, 1, 0, 3), **close)


# --- numbers


def test_trace_norm_and_their_types(case):
    for number, expected in [
        (case.operator.trace(), np.trace(case.matrix)),
        (case.operator.frobenius_norm(), np.linalg.norm(case.matrix)),
        (case.operator.inner(case.operator), np.sum(case.matrix**2)),
    ]:
        assert number.shape == ()
        assert number.dtype == torch.float64
        assert_allclose(number, expected, **close)


def test_eigenvalues_ascend(case):
    assert_allclose(case.operator.eigenvalues(), np.linalg.eigvalsh(case.matrix), **close)


@pytest.mark.parametrize("damping", [0.0, DAMPING])
def test_logdet(case, damping):
    expected = np.linalg.slogdet(damped(case.matrix, damping))[1]
    assert_allclose(case.operator.logdet(damping), expected, **close)


# --- functions


@pytest.mark.parametrize("damping", [0.0, DAMPING])
def test_inverse(spectral_case, damping):
    expected = np.linalg.inv(damped(spectral_case.matrix, damping))
    assert_allclose(spectral_case.operator.inverse(damping).dense(), expected, rtol=1e-8, atol=1e-8)


def test_inverse_of_every_class_undoes_the_damped_operator(case):
    inverse = case.operator.inverse(DAMPING)
    assert_allclose(inverse.dense() @ tensor(damped(case.matrix)), np.eye(M * D), **close)
    assert_allclose((2 * inverse).trace(), 2 * np.trace(np.linalg.inv(damped(case.matrix))), **close)


@pytest.mark.parametrize("p", [2, 0.5, -0.5, -1, 0, 1.7])
def test_power(case, p):
    expected = matrix_power(damped(case.matrix), p)
    assert_allclose(case.operator.power(p, DAMPING).dense(), expected, **close)


@pytest.mark.parametrize("damping", [0.0, DAMPING])
def test_log(case, damping):
    """Of every class, a Gram operator with it; it undoes the exponential."""
    expected = matrix_log(damped(case.matrix, damping))
    found = case.operator.log(damping)
    assert_allclose(found.dense(), expected, rtol=1e-9, atol=1e-9)
    assert_allclose((2 * found).diagonal(), 2 * expected.diagonal(), rtol=1e-9, atol=1e-9)
    if damping:
        assert_allclose(torch.linalg.matrix_exp(found.dense()), damped(case.matrix), **close)


def test_eigenbasis(case, rng):
    """Orthonormal eigenvectors, the eigenvalues that are not zero, and what other matrices are in them."""
    basis = case.operator.eigenbasis()
    order = basis.leading()
    U = vec(basis.matrices(order)).T
    values = basis.values[order].numpy()
    assert (np.diff(values) <= 0).all()
    assert_allclose(U.T @ U, np.eye(U.shape[1]), **close)
    assert_allclose((U * values) @ U.T, case.matrix, **close)
    X = tensor(rng.standard_normal((2, M, D)))
    assert_allclose(basis.coefficients(X)[:, order], vec(X) @ U, **close)
    assert_allclose(basis.matrices(order[[2, 0]]), basis.matrices(order)[[2, 0]], **close)
    for name in ("dense", "packed", "gram-3", "unit-block", "kronecker", "grouped-gram"):
        other = build(name, seed=7)
        expected = np.einsum("ij,ik,kj->j", U, other.matrix, U)
        assert_allclose(basis.masses(other.operator)[order], expected, **close)


def test_solve(case, rng):
    gradient = tensor(rng.standard_normal((2, M, D)))
    expected = np.linalg.solve(damped(case.matrix), vec(gradient).numpy().T).T
    solution = case.operator.solve(gradient, DAMPING)
    assert solution.shape == gradient.shape
    assert_allclose(vec(solution), expected, **close)
    assert_allclose(case.operator.solve(gradient[1], DAMPING), solution[1], **close)


@pytest.mark.parametrize("damping", [-1.0, math.nan, math.inf])
def test_impossible_damping_is_refused(case, damping):
    with pytest.raises(InputError, match="damping"):
        case.operator.solve(torch.ones(M, D, dtype=torch.float64), damping)


def test_damping_of_a_wrong_type_is_refused(case):
    with pytest.raises(InputTypeError, match="damping"):
        case.operator.inverse("0.1")


# --- contractions


def test_diagonal_in_a_basis(case, rng):
    U_A, U_B = rng.standard_normal((D, D)), rng.standard_normal((M, M))
    expected = np.empty((M, D))
    for j in range(M):
        for i in range(D):
            v = np.kron(U_A[:, i], U_B[:, j])
            expected[j, i] = v @ case.matrix @ v
    assert_allclose(case.operator.diagonal_in_basis(tensor(U_A), tensor(U_B)), expected, **close)


@pytest.mark.parametrize("sides", ["A", "B", "AB"])
def test_no_basis_is_the_identity(case, rng, sides):
    bases = {"A": tensor(rng.standard_normal((D, D))), "B": tensor(rng.standard_normal((M, M)))}
    identities = {"A": torch.eye(D, dtype=torch.float64), "B": torch.eye(M, dtype=torch.float64)}
    plain = [None if side in sides else bases[side] for side in "AB"]
    given = [identities[side] if side in sides else bases[side] for side in "AB"]
    expected = case.operator.diagonal_in_basis(*given)
    assert_allclose(case.operator.diagonal_in_basis(*plain), expected, **close)


def test_contractions_with_diagonal_factors(case, rng):
    A, B = tensor(rng.uniform(0.1, 2.0, D)), tensor(rng.uniform(0.1, 2.0, M))
    op = case.operator
    assert_allclose(op.contract_output(B), op.contract_output(torch.diag(B)), **close)
    assert_allclose(op.contract_input(A), op.contract_input(torch.diag(A)), **close)
    by_matrix = np.sum(case.matrix * np.kron(np.diag(A), np.diag(B)))
    assert_allclose(op.inner_kronecker(A, B), by_matrix, **close)


def test_contractions_are_partial_products(case):
    A, B = positive(np.random.default_rng(1), D), positive(np.random.default_rng(2), M)
    by_entry = case.matrix.reshape(D, M, D, M)
    to_input = np.einsum("ijkl,jl->ik", by_entry, B)
    to_output = np.einsum("ijkl,ik->jl", by_entry, A)
    assert_allclose(case.operator.contract_output(tensor(B)), to_input, **close)
    assert_allclose(case.operator.contract_input(tensor(A)), to_output, **close)
    assert_allclose(np.sum(to_input * A), np.sum(case.matrix * np.kron(A, B)), **close)


def test_unit_blocks(case):
    expected = np.stack([case.matrix[j::M, j::M] for j in range(M)])
    assert_allclose(case.operator.unit_blocks(), expected, **close)


def test_quadratic_forms(case, rng):
    V = rng.standard_normal((5, M, D))
    vectors = vec(tensor(V)).numpy()
    expected = np.einsum("nx,xy,ny->n", vectors, case.matrix, vectors)
    assert_allclose(case.operator.quadratic(tensor(V)), expected, **close)


@pytest.mark.parametrize("positions", [1, 3])
def test_sample_quadratics(case, rng, positions):
    a = rng.standard_normal((5, positions, D))
    g = rng.standard_normal((2, 5, positions, M))
    vectors = vec(tensor(np.einsum("cntm,ntd->cnmd", g, a))).numpy()
    expected = np.einsum("cnx,xy,cny->n", vectors, case.matrix, vectors)
    data = GramOperator(tensor(a), tensor(g))
    result = data.sample_quadratics(case.operator)
    assert result.dtype == torch.float64
    assert_allclose(result, expected, **close)
    assert_allclose(data.inner(case.operator), expected.mean(), **close)


@pytest.mark.parametrize("positions", [1, 3])
def test_quadratics_of_no_samples(case, positions):
    a, g = torch.zeros(0, positions, D).double(), torch.zeros(2, 0, positions, M).double()
    assert case.operator.quadratics(a, g).shape == (0,)


# --- pairs


@pytest.mark.parametrize("first", NAMES)
@pytest.mark.parametrize("second", NAMES)
def test_inner_and_difference_of_every_pair(first, second):
    F, G = build(first, seed=1), build(second, seed=2)
    inner, difference = F.operator.inner(G.operator), F.operator.difference_norm(G.operator)
    assert inner.dtype == difference.dtype == torch.float64
    assert_allclose(inner, np.sum(F.matrix * G.matrix), **close)
    assert_allclose(difference, np.linalg.norm(F.matrix - G.matrix), **close)


@pytest.mark.parametrize("first", NAMES)
@pytest.mark.parametrize("second", NAMES)
def test_difference_by_norms_agrees(first, second, monkeypatch):
    monkeypatch.setattr("fisherlab.operators.base._DENSE_DIFFERENCE", 0)
    monkeypatch.setattr("fisherlab.operators.base._PACKED_DIFFERENCE", 0)
    F, G = build(first, seed=1), build(second, seed=2)
    expected = np.linalg.norm(F.matrix - G.matrix)
    assert_allclose(F.operator.difference_norm(G.operator), expected, **close)


def test_difference_of_nearly_equal_operators_keeps_its_digits(case):
    close_by = case.operator * (1 + 1e-12)
    expected = 1e-12 * np.linalg.norm(case.matrix)
    assert_allclose(case.operator.difference_norm(close_by), expected, rtol=1e-3)


def test_operators_of_different_layers_are_refused(case):
    other = build("kronecker", m=D, d=M).operator
    for method in (case.operator.inner, case.operator.difference_norm):
        with pytest.raises(InputError, match="one layer"):
            method(other)


# --- sizes, precision, failures


@settings(max_examples=60)
@given(
    name=st.sampled_from(NAMES),
    m=st.integers(1, 5),
    d=st.integers(1, 5),
    seed=st.integers(0, 2**16),
)
def test_every_shape(name, m, d, seed):
    op, matrix = build(name, seed, m, d)
    X = np.random.default_rng(seed + 1).standard_normal((m, d))
    right = vec(tensor(X)).numpy()
    assert_allclose(op.dense(), matrix, **close)
    assert_allclose(op @ tensor(right), matrix @ right, **close)
    assert_allclose(op.diagonal(), np.diag(matrix), **close)
    assert_allclose(op.frobenius_norm(), np.linalg.norm(matrix), **close)
    assert_allclose(vec(op.solve(tensor(X), 0.5)), np.linalg.solve(damped(matrix, 0.5), right), **close)
    other = build("eigenkronecker", seed + 2, m, d)
    assert_allclose(op.inner(other.operator), np.sum(matrix * other.matrix), **close)


@pytest.mark.parametrize("name", NAMES)
def test_single_precision(name):
    op, matrix = build(name, dtype=torch.float32)
    X = torch.ones(M, D)
    assert op.apply(X).dtype == op.solve(X, DAMPING).dtype == op.dense().dtype == torch.float32
    assert_allclose(op.dense(), matrix, rtol=1e-4, atol=1e-4)
    expected = np.linalg.solve(damped(matrix), np.ones(M * D))
    assert_allclose(vec(op.solve(X, DAMPING)), expected, rtol=1e-3, atol=1e-3)
    assert op.trace().dtype == op.frobenius_norm().dtype == op.inner(op).dtype == torch.float64
    assert_allclose(op.frobenius_norm(), np.linalg.norm(matrix), rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_singular_operator_needs_damping(name):
    zero = 0.0 * build(name).operator
    gradient = torch.ones(M, D, dtype=torch.float64)
    for call in (lambda: zero.solve(gradient, 0.0), lambda: zero.inverse(0.0).dense()):
        with pytest.raises(NumericalError, match="λ"):
            call()
    assert_allclose(zero.solve(gradient, 0.5), 2 * gradient, **close)


@pytest.mark.parametrize("name", NAMES)
def test_entries_that_are_not_finite_are_an_error(name):
    broken = math.nan * build(name).operator
    with pytest.raises(NumericalError):
        broken.solve(torch.ones(M, D, dtype=torch.float64), DAMPING)


@pytest.mark.parametrize("name", NAMES)
def test_small_pieces_give_the_same_numbers(name, monkeypatch):
    monkeypatch.setattr("fisherlab.linalg.numerics.CHUNK_BYTES", 100)
    monkeypatch.setattr("fisherlab.linalg.numerics._REDUCTION_ELEMENTS", 5)
    monkeypatch.setattr("fisherlab.linalg.packing._EXPANSION_BYTES", 100)
    op, matrix = build(name)
    X = tensor(np.random.default_rng(3).standard_normal((3, M, D)))
    U_A, U_B = torch.eye(D, dtype=torch.float64), torch.eye(M, dtype=torch.float64)
    assert_allclose(vec(op.apply(X)), vec(X).numpy() @ matrix, **close)
    assert_allclose(op.dense(), matrix, **close)
    assert_allclose(op.frobenius_norm(), np.linalg.norm(matrix), **close)
    assert_allclose(op.trace(), np.trace(matrix), **close)
    assert_allclose(vec(op.diagonal_in_basis(U_A, U_B)), np.diag(matrix), **close)
    assert_allclose(op.unit_blocks()[1], matrix[1::M, 1::M], **close)
    for other_name in NAMES:
        other = build(other_name, seed=4)
        assert_allclose(op.inner(other.operator), np.sum(matrix * other.matrix), **close)
        difference = op.difference_norm(other.operator)
        assert_allclose(difference, np.linalg.norm(matrix - other.matrix), **close)
