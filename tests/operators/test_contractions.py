"""The ways of a contraction give one number, whichever the costs choose; and large cases stay in bounds."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from operator_cases import CLOSE, column_vec, positive, tensor

from fisherlab.gradients.contractions import rotated_squares
from fisherlab.operators import (
    DiagonalOperator,
    EigenKroneckerOperator,
    GramOperator,
    KroneckerOperator,
    OneHot,
)

SHAPES = [(5, 2, 2, 4, 3), (4, 3, 7, 3, 2), (3, 1, 30, 2, 3)]  # n, c, t, d, m
COSTS = [0.0, 50.0, 1e12]  # V free, as they are, V never made


@pytest.fixture(params=COSTS)
def cost(request, monkeypatch):
    for module in ("gradients.contractions", "gradients.pairs", "operators.gram"):
        monkeypatch.setattr(f"fisherlab.{module}.ENTRY_COST", request.param)


def parts(shape, seed=0, one_hot=False):
    n, c, t, d, m = shape
    rng = np.random.default_rng(seed)
    g = tensor(rng.standard_normal((c, n, t, m)))
    if one_hot:
        return OneHot(torch.from_numpy(rng.integers(-1, d, (n, t))), d, torch.float64), g
    return tensor(rng.standard_normal((n, t, d))), g


def jacobian(a, g):
    rows = a.dense() if isinstance(a, OneHot) else a
    V = torch.einsum("cntm,ntd->cnmd", g, rows).numpy()
    return np.stack([[column_vec(v) for v in of_class] for of_class in V])


@pytest.mark.usefixtures("cost")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize("diagonal", ["", "A", "B", "AB"])
def test_kronecker_and_eigenkronecker_forms(shape, one_hot, diagonal):
    n, _, _, d, m = shape
    rng = np.random.default_rng(1)
    a, g = parts(shape, one_hot=one_hot)
    J = jacobian(a, g)
    A, B = (
        torch.diag(tensor(positive(rng, k))) if s in diagonal else tensor(positive(rng, k))
        for s, k in (("A", d), ("B", m))
    )
    gram = GramOperator(a, g)
    F = J.reshape(-1, m * d).T @ J.reshape(-1, m * d) / n
    kronecker = KroneckerOperator(A, B)
    for op in (kronecker, kronecker.inverse(0.1), kronecker.power(0.5, 0.1)):
        matrix = op.dense().numpy()
        assert_allclose(op.quadratics(a, g), np.einsum("cnx,xy,cny->n", J, matrix, J), **CLOSE)
        assert_allclose(gram.inner(op), np.sum(F * matrix), **CLOSE)
        flat = J.reshape(-1, m * d)
        assert_allclose(op.gram_products(gram), flat @ matrix @ flat.T / n, **CLOSE)


@pytest.mark.usefixtures("cost")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("one_hot", [False, True])
def test_gram_operators(shape, one_hot):
    n, _, _, d, m = shape
    rng = np.random.default_rng(2)
    a, g = parts(shape, one_hot=one_hot)
    J = jacobian(a, g).reshape(-1, m * d)
    F = J.T @ J / n
    gram = GramOperator(a, g)
    A, B, S = positive(rng, d), positive(rng, m), rng.uniform(0.1, 2.0, (m, d))
    by_entry = F.reshape(d, m, d, m)
    assert_allclose(gram.trace(), np.trace(F), **CLOSE)
    assert_allclose(gram.diagonal(), np.diag(F), **CLOSE)
    assert_allclose(gram.gram(), J @ J.T / n, **CLOSE)
    assert_allclose(gram.contract_output(tensor(B)), np.einsum("ijkl,jl->ik", by_entry, B), **CLOSE)
    assert_allclose(gram.contract_input(tensor(A)), np.einsum("ijkl,ik->jl", by_entry, A), **CLOSE)
    assert_allclose(gram.inner(DiagonalOperator(tensor(S))), np.diag(F) @ column_vec(S), **CLOSE)
    X = rng.standard_normal((40, m, d))
    flat = X.transpose(0, 2, 1).reshape(40, -1)
    assert_allclose(gram.rows(tensor(X)).flatten(1), flat @ J.T, **CLOSE)
    w = rng.standard_normal((40, *g.shape[:2]))
    assert_allclose(gram.combine(tensor(w)).mT.flatten(1), w.reshape(40, -1) @ J, **CLOSE)
    other = parts((6, 2, 4, d, m), seed=3)
    V = jacobian(*other)
    assert_allclose(gram.quadratics(*other), np.einsum("cnx,xy,cny->n", V, F, V), **CLOSE)


def test_a_diagonal_factor_of_a_large_vocabulary_makes_no_matrix():
    """[d, d] would take 20 GB."""
    d, m = 50_000, 3
    rng = np.random.default_rng(0)
    indices = torch.from_numpy(rng.integers(0, d, (6, 4)))
    indices[0, 0], indices[1, 1] = -1, indices[1, 0]
    g = tensor(rng.standard_normal((2, 6, 4, m)))
    gram = GramOperator(OneHot(indices, d, torch.float64), g)
    F = KroneckerOperator(torch.rand(d).double(), tensor(positive(rng, m)))
    rotated = EigenKroneckerOperator(None, torch.linalg.eigh(F.B)[1], torch.rand(m, d).double())
    few = torch.zeros(6, 4, len(indices.unique()) - 1, dtype=torch.float64)
    known = indices.unique()[1:]
    few.scatter_(
        2, torch.searchsorted(known, indices.clamp(min=0))[..., None], (indices >= 0).double()[..., None]
    )
    dense = GramOperator(few, g)
    small = KroneckerOperator(F.A[known], F.B)
    small_rotated = EigenKroneckerOperator(None, rotated.U_B, rotated.S[:, known])
    assert_allclose(gram.inner(F), dense.inner(small), **CLOSE)
    assert_allclose(gram.inner(rotated), dense.inner(small_rotated), **CLOSE)
    assert_allclose(gram.frobenius_norm(), dense.frobenius_norm(), **CLOSE)
    assert_allclose(gram.trace(), dense.trace(), **CLOSE)
    assert_allclose(gram.diagonal_matrix()[:, known], dense.diagonal_matrix(), **CLOSE)
    assert_allclose(F.inverse(0.1).gram_products(gram), small.inverse(0.1).gram_products(dense), **CLOSE)
    assert_allclose(F.inner(rotated), (F.diagonal_in_basis(None, rotated.U_B) * rotated.S).sum(), **CLOSE)
    assert F.inverse(0.1).solve(torch.ones(m, d).double()).shape == (m, d)


def test_kept_numbers_survive_many_pieces(monkeypatch):
    monkeypatch.setattr("fisherlab.gradients.contractions._VECTOR_BYTES", 64)
    monkeypatch.setattr("fisherlab.gradients.contractions._PAIR_BYTES", 64)
    monkeypatch.setattr("fisherlab.gradients.pairs.CHUNK_BYTES", 4096)
    monkeypatch.setattr("fisherlab.gradients.pairs._BLOCK_BYTES", 64)
    monkeypatch.setattr("fisherlab.linalg.numerics.CHUNK_BYTES", 64)
    a, g = parts((5, 2, 30, 4, 3))
    J = jacobian(a, g).reshape(-1, 12)
    F = GramOperator(a, g)
    assert_allclose(F.gram(), J @ J.T / 5, **CLOSE)
    assert_allclose(F.diagonal(), np.diag(J.T @ J / 5), **CLOSE)
    assert_allclose(
        F.contract_output(torch.eye(3).double()), F.contract_output(torch.ones(3).double()), **CLOSE
    )
    assert_allclose(F.dense(), J.T @ J / 5, **CLOSE)


@pytest.mark.usefixtures("cost")
@pytest.mark.parametrize("shape", [*SHAPES, (2, 1, 9, 8, 3), (2, 4, 9, 8, 3)])
@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize("identity", ["", "A", "B"])
@pytest.mark.parametrize("large", [0, 2**40])
def test_squares_of_rotated_gradients(shape, one_hot, identity, large, monkeypatch):
    monkeypatch.setattr("fisherlab.gradients.inputs._LARGE_PRODUCT", large)
    a, g = parts(shape, one_hot=one_hot)
    _, _, _, d, m = shape
    torch.manual_seed(0)
    U_A, U_B = (torch.linalg.qr(torch.randn(k, k).double()).Q for k in (d, m))
    V = torch.einsum("cntm,ntd->cnmd", g, a.dense() if one_hot else a)
    rotated = V if "A" in identity else V @ U_A
    rotated = rotated if "B" in identity else U_B.T @ rotated
    found = rotated_squares(a, g, None if "A" in identity else U_A, None if "B" in identity else U_B)
    assert_allclose(found, rotated.square().sum((0, 1)), **CLOSE)
