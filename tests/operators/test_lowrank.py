"""Eigendecompositions of large matrices, of low rank and of full rank."""

import pytest
import torch

from fisherlab.errors import NumericalError
from fisherlab.linalg.lowrank import find_range
from fisherlab.linalg.numerics import symmetric_eigenvalues, symmetric_eigh

K = 600


def matrix(rank, dtype=torch.float64, power=0.0):
    generator = torch.Generator().manual_seed(rank)
    root = torch.randn(K, rank, generator=generator, dtype=torch.float64)
    root *= torch.arange(1, rank + 1).double() ** -power
    return (root @ root.T / rank).to(dtype)


CASES = {
    "rank 1": matrix(1),
    "rank 40": matrix(40),
    "rank 40, decaying": matrix(40, power=2.0),
    "rank 130, too high to be sought": matrix(130),
    "full": matrix(K),
    "full, decaying": matrix(K, power=2.0),
    "dead rows": torch.diag((torch.arange(K) < 30).double()),
    "zero": torch.zeros(K, K, dtype=torch.float64),
    "indefinite": matrix(20) - matrix(21),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_vectors_of_large_matrices(name):
    F = CASES[name]
    values, vectors = symmetric_eigh(F)
    scale = float(torch.linalg.matrix_norm(F)) + 1e-300
    exact = torch.linalg.eigvalsh(F)
    assert float((values - exact).abs().max()) < 2e-13 * scale + 1e-300
    assert float((symmetric_eigenvalues(F) - exact).abs().max()) < 2e-13 * scale + 1e-300
    assert float(torch.linalg.matrix_norm((vectors * values) @ vectors.T - F)) < 1e-12 * scale + 1e-300
    assert float((vectors.T @ vectors - torch.eye(K)).abs().max()) < 1e-12
    assert bool((values.diff() >= 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_low_rank_is_seen_and_only_that(dtype):
    assert len(find_range(matrix(40, dtype)).scales) == 56
    assert find_range(matrix(K, dtype)) is None
    assert find_range(matrix(130, dtype)) is None
    assert find_range(matrix(40, dtype)[:500, :500]) is None


def test_a_small_eigenvalue_above_rounding_is_no_rounding():
    F = matrix(40)
    F.diagonal().add_(1e-9)
    assert find_range(F) is None


def test_the_rank_is_seen_as_zeros():
    assert int((symmetric_eigh(matrix(40))[0] == 0).sum()) == K - 40


def test_the_global_random_state_is_not_touched():
    before = torch.get_rng_state()
    find_range(matrix(40))
    assert torch.equal(before, torch.get_rng_state())


def test_eigenvectors_that_come_out_as_nan_are_made_in_float64(monkeypatch):
    """LAPACK says nothing of it, which it does for some singular matrices in float32."""
    A = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    A = A @ A.T
    real = torch.linalg.eigh

    def broken(matrix, *rest):
        values, vectors = real(matrix, *rest)
        return values, vectors if matrix.dtype == torch.float64 else vectors * float("nan")

    monkeypatch.setattr(torch.linalg, "eigh", broken)
    values, vectors = symmetric_eigh(A)
    assert values.dtype == vectors.dtype == torch.float32
    torch.testing.assert_close((vectors * values) @ vectors.T, A)
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: (matrix[0], matrix * float("nan")))
    with pytest.raises(NumericalError, match="did not converge"):
        symmetric_eigh(A)
