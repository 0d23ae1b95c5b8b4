"""Divergences and calibration against dense formulas, and the theorems about them, in float64."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from operator_cases import BUILDERS, tensor

from fisherlab import metrics
from fisherlab.divergences import BANDS, Curvature, Divergences
from fisherlab.errors import NotSupportedError, NumericalError
from fisherlab.operators import (
    DenseOperator,
    DiagonalOperator,
    EigenKroneckerOperator,
    GramOperator,
    KroneckerOperator,
    joined,
)

M, D, DAMPING = 3, 4, 0.1
TIGHT = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def gradients(rng, samples, m=M, d=D):
    """Inputs and gradients of two positions whose V are no products and have unequal rows and columns."""
    a = rng.standard_normal((samples, 2, d)) * np.arange(1, d + 1)
    g = rng.standard_normal((2, samples, 2, m)) * np.arange(1, m + 1) * a[None, :, :, :1]
    return tensor(a), tensor(g)


def block(rng, samples, m=M, d=D):
    return GramOperator(*gradients(rng, samples, m, d))


def as_dense(F):
    return DenseOperator(F.dense(), F.outputs, F.inputs)


def function(matrix, f):
    """f of the eigenvalues above rounding; zero on the kernel."""
    values, vectors = np.linalg.eigh(matrix)
    inside = values > 1e-12 * values.max()
    return (vectors * np.where(inside, f(np.where(inside, values, 1.0)), 0.0)) @ vectors.T


def log_det(F, approximation, damping=0.0):
    X = np.linalg.solve(approximation + damping * np.eye(len(F)), F + damping * np.eye(len(F)))
    return (np.trace(X) - np.linalg.slogdet(X)[1] - len(F)) / (2 * len(F))


def von_neumann(F, approximation):
    logs = function(F, np.log) - function(approximation, np.log)
    return (np.trace(F @ logs) - np.trace(F) + np.trace(approximation)) / np.trace(F)


def frobenius(F, approximation):
    return np.linalg.norm(F - approximation) / np.linalg.norm(F)


DIVERGENCES = {"Frobenius": frobenius, "von Neumann": von_neumann, "log-det": log_det}


# --- the metrics are the dense formulas


@pytest.mark.parametrize("exact", ["dense", "packed", "gram-1", "gram-3", "unit-block", "grouped-gram"])
@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_every_operator_gives_what_dense_matrices_give(name, exact):
    F = BUILDERS[exact](np.random.default_rng(1), M, D, torch.float64).operator
    made = BUILDERS[name](np.random.default_rng(2), M, D, torch.float64).operator
    scale = float(F.trace() / made.trace())
    own, other = F.dense().numpy(), scale * made.dense().numpy()
    expected = log_det(own, other, DAMPING)
    assert_allclose(metrics.logdet_divergence(F, made, DAMPING), expected, **TIGHT)
    X = np.linalg.eigvals(
        np.linalg.solve(other + DAMPING * np.eye(M * D), own + DAMPING * np.eye(M * D))
    ).real
    scaled = (np.log(X.mean()) - np.log(X).mean()) / 2
    assert_allclose(metrics.logdet_divergence_scaled(F, made, DAMPING), scaled, **TIGHT)
    assert scaled <= expected
    assert_allclose(metrics.von_neumann_divergence(F, made), von_neumann(own, other), **TIGHT)
    found = metrics.calibration(F, made)
    values, vectors = np.linalg.eigh(own)
    ratios = np.einsum("ij,ik,kj->j", vectors, other, vectors)[::-1] / values[::-1]
    assert_allclose(found.ratios, ratios[: len(found.ratios)], rtol=1e-8)


@pytest.mark.parametrize("samples", [2, 3, 20])
def test_gram_form_gives_what_the_dense_block_gives(samples, rng):
    """Fewer columns than D, and more; groups too."""
    F, other = block(rng, samples), block(rng, 40)
    R, L = other.contract_output(torch.eye(M).double()), other.contract_input(torch.eye(D).double())
    tkfac = KroneckerOperator(R, L / float(other.trace()))
    for exact, dense, made in (
        (F, as_dense(F), tkfac),
        (joined([F, other]), joined([as_dense(F), as_dense(other)]), joined([tkfac, tkfac * 3.0])),
    ):
        for metric in (metrics.logdet_divergence, metrics.logdet_divergence_scaled):
            assert_allclose(metric(exact, made, DAMPING), metric(dense, made, DAMPING), **TIGHT)
        vn = metrics.von_neumann_divergence
        assert_allclose(vn(exact, made), vn(dense, made), **TIGHT)
        one, two = metrics.calibration(exact, made), metrics.calibration(dense, made)
        assert_allclose(one.ratios, two.ratios, **TIGHT)
        assert_allclose(one.overlap, two.overlap, **TIGHT)
        assert all(
            a == b or a == pytest.approx(b, rel=1e-9) for a, b in zip(one.bands, two.bands, strict=True)
        )


def test_an_approximation_in_gram_form(rng):
    """Its kernel counts: with damping in the log-det divergence, without it von Neumann's is infinite."""
    F, few = block(rng, 20), block(rng, 2)
    found = metrics.logdet_divergence(F, few, DAMPING)
    assert_allclose(found, metrics.logdet_divergence(as_dense(F), as_dense(few), DAMPING), **TIGHT)
    for approximation in (few, as_dense(few)):
        with pytest.raises(NumericalError, match="infinite: F̂ is zero where F has 0"):
            metrics.von_neumann_divergence(F, approximation)
    assert_allclose(metrics.von_neumann_divergence(few, as_dense(few)), 0, atol=1e-12)
    assert metrics.von_neumann_divergence(few, F) > 0


def test_an_exact_approximation_has_no_divergence_and_sees_all(rng):
    F = block(rng, 20)
    for exact in (F, as_dense(F)):
        assert metrics.logdet_divergence(exact, as_dense(F) * 5.0, DAMPING) == pytest.approx(0, abs=1e-12)
        assert metrics.von_neumann_divergence(exact, as_dense(F) * 5.0) == pytest.approx(0, abs=1e-12)
        found = metrics.calibration(exact, as_dense(F) * 5.0)
        assert_allclose(found.ratios, 1, rtol=1e-9)
        assert_allclose(found.overlap, 1, rtol=1e-9)
        assert found.bands == pytest.approx((1, 1, 1))


def test_what_cannot_be_had_is_said(rng, monkeypatch):
    zero = DiagonalOperator(torch.zeros(M, D, dtype=torch.float64))
    F = block(rng, 20)
    for metric in (metrics.von_neumann_divergence, metrics.calibration):
        with pytest.raises(NumericalError, match="zero"):
            metric(F, zero)
        with pytest.raises(NumericalError, match="zero"):
            metric(zero, F)
    monkeypatch.setattr("fisherlab.divergences.LARGEST_DENSE", M * D - 1)
    for metric in (metrics.von_neumann_divergence, metrics.calibration):
        with pytest.raises(NotSupportedError, match="use a Gram operator"):
            metric(as_dense(F), F)
        metric(F, as_dense(F))
    monkeypatch.setattr("fisherlab.divergences._MOST_OPERATIONS", 10)
    with pytest.raises(NotSupportedError, match="operations; use fewer samples"):
        metrics.calibration(F, as_dense(F))


# --- bands and subspaces


def test_bands_are_cut_where_their_share_is_reached():
    values = np.array([40.0, 30.0, 20.0, 9.0, 0.95, 0.04, 0.01, 0.0])
    F = DiagonalOperator(tensor(values[::-1].reshape(2, 4)))
    curvature = Curvature(F)
    assert curvature.directions == [2, 1, 2]  # 70 %, 90 %, 99.95 %
    assert_allclose(curvature.eigenvalues, values[:5])
    assert BANDS == (0.5, 0.9, 0.999)
    twice = DiagonalOperator(tensor((values * [2, 1, 1, 3, 1 / 3, 1, 1, 0])[::-1].reshape(2, 4)))
    found = Divergences(F, twice).calibration(curvature)
    scale = float(F.trace() / twice.trace())
    assert found.bands == pytest.approx((2**0.5 * scale, scale, scale))
    alone = Curvature(DiagonalOperator(tensor(np.array([[1e6, 1.0]]))))
    assert alone.directions == [1, 0, 0]
    assert Divergences(alone.F, alone.F).calibration(alone).bands == (1, None, None)
    unseen = DiagonalOperator(tensor(np.array([[0.0, 1.0]])))
    assert Divergences(alone.F, unseen).calibration(alone).top == 0


def test_the_overlap_is_that_of_the_leading_subspaces(rng):
    F, other = block(rng, 30), block(rng, 30)
    sides = other.contract_output(torch.eye(M).double()), other.contract_input(torch.eye(D).double())
    for made in (KroneckerOperator(*sides), as_dense(other), other):
        curvature = Curvature(F)
        found = Divergences(F, made).calibration(curvature)
        U, V = (np.linalg.eigh(op.dense().numpy())[1][:, ::-1] for op in (F, made))
        for k, overlap in zip(curvature.sizes.tolist(), found.overlap, strict=True):
            assert_allclose(overlap, np.linalg.norm(U[:, :k].T @ V[:, :k]) ** 2 / k, rtol=1e-9)


def test_equal_eigenvalues_share_their_overlap(rng):
    """A ⊗ I: what any basis of each of its eigenspaces gives on average, whatever their order."""
    F = block(rng, 30)
    made = KroneckerOperator(tensor(np.array([4.0, 3.0, 2.0, 1.0])), torch.ones(M).double())
    curvature = Curvature(F)
    found = Divergences(F, made).calibration(curvature).overlap
    U = np.linalg.eigh(F.dense().numpy())[1][:, ::-1]
    for k, overlap in zip(curvature.sizes.tolist(), found, strict=True):
        weights = np.clip((k - M * np.arange(D)) / M, 0, 1)  # of the projectors on each input
        inside = (U[:, :k] ** 2).reshape(D, M, k).sum((1, 2))
        assert_allclose(overlap, inside @ weights / k, rtol=1e-9)


def test_pieces_give_what_one_piece_gives(rng, monkeypatch):
    F, made = block(rng, 30), as_dense(block(rng, 30))
    whole = metrics.calibration(F, made)
    monkeypatch.setattr("fisherlab.divergences.spans", lambda total, *_: ((k, k + 1) for k in range(total)))
    parts = metrics.calibration(F, made)
    assert_allclose(parts.ratios, whole.ratios, rtol=1e-12)
    assert_allclose(parts.overlap, whole.overlap, rtol=1e-12)


# --- theorems


def fixed_point(F, m, d):
    """A and B of the least log-det divergence (the matrix normal's maximum likelihood)."""
    by_entry = F.reshape(d, m, d, m)
    A, B = np.eye(d), np.eye(m)
    for _ in range(2000):
        A = np.einsum("ijkl,jl->ik", by_entry, np.linalg.inv(B)) / m
        B = np.einsum("ijkl,ik->jl", by_entry, np.linalg.inv(A)) / d
    return A, B


def products(F):
    """The factors of three Kronecker products, each named by the divergence in which it is best."""
    m, d = F.outputs, F.inputs
    matrix = F.dense().numpy()
    rearranged = matrix.reshape(d, m, d, m).transpose(0, 2, 1, 3).reshape(d * d, m * m)
    left, values, right = np.linalg.svd(rearranged)
    sign = np.sign(np.trace(left[:, 0].reshape(d, d)))
    nearest = sign * values[0] * left[:, 0].reshape(d, d), sign * right[0].reshape(m, m)
    R, L = (F.contract_output(torch.eye(m).double()), F.contract_input(torch.eye(d).double()))
    return {
        "Frobenius": nearest,
        "von Neumann": (R.numpy(), L.numpy() / np.trace(matrix)),
        "log-det": fixed_point(matrix, m, d),
    }


@pytest.mark.parametrize("seed", range(3))
def test_each_divergence_has_its_own_best_product(seed):
    rng = np.random.default_rng(seed)
    F = block(rng, 40)
    matrix, best = F.dense().numpy(), products(F)
    for name, divergence in DIVERGENCES.items():
        least = divergence(matrix, np.kron(*best[name]))
        for other, factors in best.items():
            assert other == name or divergence(matrix, np.kron(*factors)) > least * (1 + 1e-6), (name, other)
        for size in (1e-3, 1e-2, 0.1):
            for _ in range(20):
                A, B = (perturbed(rng, factor, size) for factor in best[name])
                assert divergence(matrix, np.kron(A, B)) > least, (name, size)


def perturbed(rng, factor, size):
    """Another positive definite factor near this one."""
    change = rng.standard_normal(factor.shape)
    values, vectors = np.linalg.eigh(size * (change + change.T))
    root = function(factor, np.sqrt)
    return root @ (vectors * np.exp(values)) @ vectors.T @ root


def test_von_neumanns_best_scale_is_the_equal_trace(rng):
    F = block(rng, 40)
    for factors in products(F).values():
        matrix = F.dense().numpy()
        matched = np.kron(*factors) * np.trace(matrix) / np.trace(np.kron(*factors))
        least = von_neumann(matrix, matched)
        assert min(von_neumann(matrix, c * matched) for c in (0.5, 0.9, 0.99, 1.01, 1.1, 2.0)) > least
        made = KroneckerOperator(*map(tensor, factors))
        for c in (1e-3, 1.0, 1e3):
            assert_allclose(metrics.von_neumann_divergence(F, made * c), least, **TIGHT)


def test_the_scaled_divergence_needs_no_scale(rng):
    """It is that of the best scale of F̂_λ, the same of all scales, and never above the other."""
    F, made = block(rng, 40), as_dense(block(rng, 40))
    matrix = F.dense().numpy() + DAMPING * np.eye(M * D)
    other = metrics.trace_matched(F, made).dense().numpy() + DAMPING * np.eye(M * D)
    found = metrics.logdet_divergence_scaled(F, made, DAMPING)
    scales = np.exp(np.linspace(-1, 1, 2001))
    assert_allclose(found, min(log_det(matrix, c * other) for c in scales), atol=1e-6)
    assert found <= metrics.logdet_divergence(F, made, DAMPING)
    for c in (1e-3, 1e3):
        assert_allclose(metrics.logdet_divergence_scaled(F, made * c, DAMPING), found, **TIGHT)


def test_the_diagonal_of_F_is_best_in_a_fixed_basis(rng):
    """In all three divergences; so EKFAC ≤ KFAC and TEKFAC ≤ TKFAC, in Frobenius and von Neumann."""
    F = block(rng, 40)
    matrix = F.dense().numpy()
    for A, B in (*products(F).values(), kfac(F)):
        U_A, U_B = (tensor(np.linalg.eigh(factor)[1]) for factor in (A, B))
        best = EigenKroneckerOperator(U_A, U_B, F.diagonal_in_basis(U_A, U_B))
        for name, divergence in DIVERGENCES.items():
            least = divergence(matrix, best.dense().numpy())
            assert least <= divergence(matrix, np.kron(A, B)) * (1 + 1e-12), name
            for size in (1e-3, 0.1):
                changed = best.S * (1 + size * tensor(rng.standard_normal((M, D)))).abs()
                other = EigenKroneckerOperator(U_A, U_B, changed).dense().numpy()
                assert divergence(matrix, other) > least, name
        made = KroneckerOperator(tensor(A), tensor(B))
        least, own = (metrics.von_neumann_divergence(F, one) for one in (best, made))
        assert least < own
        assert metrics.relative_error(F, best) < metrics.relative_error(F, made)


def kfac(F):
    """E[a aᵀ] ⊗ E[g gᵀ] of all positions."""
    a, g = F.a.flatten(0, 1).numpy(), F.g.flatten(0, 2).numpy()
    return a.T @ a / len(F.a), g.T @ g / len(a)
