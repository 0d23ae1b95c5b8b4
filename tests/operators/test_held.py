"""Products of vectors that are held, solutions for many dampings, and what is done once."""

import pytest
import torch

from fisherlab.approximations import NearestKronecker
from fisherlab.gradients import contractions as of
from fisherlab.gradients.inputs import sample_gradients
from fisherlab.linalg.numerics import (
    eigenvectors_kept,
    symmetric_eigh,
    symmetric_product,
    symmetrised,
)
from fisherlab.operators import DenseOperator, EigenKroneckerOperator, GramOperator, KroneckerOperator
from fisherlab.operators.rearranged import _ByEntries, _ByPositions

SHAPES = [(5, 2, 2, 4, 3), (4, 3, 7, 3, 2), (3, 1, 30, 2, 3)]  # n, c, t, d, m


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parts(shape):
    n, c, t, d, m = shape
    return normal(n, t, d), normal(c, n, t, m, seed=1)


def factor(k, rank, seed=2):
    root = normal(k, rank, seed=seed)
    return root @ root.T


@pytest.fixture(params=[0.0, 50.0, 1e12])
def cost(request, monkeypatch):
    for module in ("gradients.contractions", "gradients.pairs", "operators.gram"):
        monkeypatch.setattr(f"fisherlab.{module}.ENTRY_COST", request.param)


@pytest.mark.usefixtures("cost")
@pytest.mark.parametrize("shape", SHAPES)
def test_contractions_of_vectors_that_are_held(shape):
    d, m = shape[3:]
    a, g = parts(shape)
    V = sample_gradients(a, g)
    kept = V.clone()
    A, B, S = factor(d, d), factor(m, m), normal(m, d).square()
    U_A, U_B = torch.linalg.eigh(A)[1], torch.linalg.eigh(B)[1]
    pairs = [
        (of.squared_gradients(a, g, V), V.square().sum((0, 1))),
        (of.weighted_squares(a, g, S, V), (V.square() * S).sum((1, 2, 3))),
        (of.kronecker_quadratics(a, g, A, B, V), (V * (B @ V @ A)).sum((1, 2, 3))),
        (of.input_contraction(a, g, B, V), (V.mT @ B @ V).sum((0, 1))),
        (of.input_contraction(a, g, None, V), (V.mT @ V).sum((0, 1))),
        (of.output_contraction(a, g, A, V), (V @ A @ V.mT).sum((0, 1))),
    ]
    for left, right in [(None, None), (U_B, None), (None, U_A), (U_B, U_A)]:
        R = V if left is None else left.T @ V
        R = (R if right is None else R @ right).square()
        for held in (None, V):
            pairs.append((of.rotated_squares(a, g, right, left, held), R.sum((0, 1))))
            weighted = of.rotated_weighted_squares(a, g, right, left, S, held)
            pairs.append((weighted, (R * S).sum((1, 2, 3))))
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    assert torch.equal(V, kept)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_gram_operator_is_the_same_with_and_without_its_vectors(shape, monkeypatch):
    d, m = shape[3:]
    a, g = parts(shape)
    held = GramOperator(a, g)
    assert held.held is not None
    monkeypatch.setattr("fisherlab.operators.gram._HELD_BYTES", 0)
    free = GramOperator(a, g)
    assert free.held is None
    basis = torch.linalg.eigh(factor(d, d))[1]
    G = EigenKroneckerOperator(basis, None, normal(m, d).square())
    X = normal(2, m, d)
    for function in (
        lambda F: F.apply(X),
        lambda F: F.rows(X),
        lambda F: F.gram(),
        lambda F: F.frobenius_norm(),
        lambda F: F.sample_quadratics(G),
        lambda F: F.sample_quadratics(F),
        lambda F: G.gram_products(F),
        lambda F: torch.stack(list(F.solves(X[0], [0.1, 2.0]))),
    ):
        torch.testing.assert_close(function(held), function(free), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(held.sample_quadratics(held), held.quadratics(a, g))


@pytest.mark.parametrize(("rank", "outputs"), [(3, 4), (12, 4), (3, None)])
def test_solutions_for_many_dampings(rank, outputs):
    m, d = 4, 12
    A, M = factor(d, rank), normal(m, d, seed=5)
    F = KroneckerOperator(A, factor(m, m) if outputs else torch.rand(m).double())
    dense = DenseOperator(F.dense(), m, d)
    dampings = [1e-3, 1.0, 10.0]
    for damping, found in zip(dampings, F.solves(M, dampings), strict=True):
        torch.testing.assert_close(found, dense.solve(M, damping), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found, F.solve(M, damping), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(5, 2, 3, 6, 4), (4, 1, 2, 5, 3)])
def test_nearest_product_by_entries_and_by_positions(shape):
    a, g = parts(shape)
    F = GramOperator(a, g)
    entries, positions = _ByEntries(F), _ByPositions(F)
    B = factor(shape[4], 2)
    (A, norm), (W, same) = entries.inputs(B), positions.inputs(B)
    torch.testing.assert_close(norm, same)
    torch.testing.assert_close(positions.matrix(W), A)
    torch.testing.assert_close(positions.outputs(W), entries.outputs(A))


def test_the_nearest_product_of_a_product_is_itself():
    F = KroneckerOperator(factor(4, 4), factor(3, 3))
    assert float(F.difference_norm(NearestKronecker().from_block(F))) == 0


def test_equal_matrices_are_decomposed_once():
    A, other = factor(9, 9), factor(9, 4)
    with eigenvectors_kept():
        first = symmetric_eigh(A)
        assert symmetric_eigh(A.clone())[1] is first[1]
        assert symmetric_eigh(other)[1] is not first[1]
    assert symmetric_eigh(A)[1] is not first[1]
    F = KroneckerOperator(A, other)
    scaled = F.scaled(2.0).scaled(3.0)
    assert scaled.inverse(0.1).U_A is F.inverse(0.1).U_A
    dense = DenseOperator(scaled.dense(), 9, 9)
    torch.testing.assert_close(scaled.inverse(0.1).dense(), dense.inverse(0.1).dense(), rtol=1e-8, atol=1e-8)


def test_a_range_is_used_again_only_where_it_holds_the_matrix():
    root = normal(600, 30)
    inside, outside = root @ factor(30, 30) @ root.T, factor(600, 20, seed=3)
    with eigenvectors_kept():
        for F in (root @ root.T, inside, outside, inside + 1e-9 * outside):
            values, vectors = symmetric_eigh(F)
            scale = float(torch.linalg.norm(F))
            torch.testing.assert_close((vectors * values) @ vectors.T, F, rtol=0, atol=1e-12 * scale)
            torch.testing.assert_close(vectors.T @ vectors, torch.eye(600).double(), rtol=0, atol=1e-11)


def test_symmetric_products_and_parts_of_large_matrices():
    X = normal(7, 600)
    torch.testing.assert_close(symmetric_product(X, 3 * X), 3 * X.T @ X)
    Y = normal(600, 600, seed=4)
    assert torch.equal(symmetrised(Y), (Y + Y.T) / 2)
