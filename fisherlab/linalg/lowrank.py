"""Large symmetric matrices of exactly low rank: decomposed in their range."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

SMALLEST = 512  # matrices up to this size are decomposed as they are: a choice, there is little to gain
_SHARE = 4  # the rank that is looked for is at most size/4: a choice, a small share of an eigh
_ROUNDING = 10.0  # times √k·ε·‖A‖, the rounding of a product: a choice, an order of magnitude to spare
_EXTRA = 16  # columns beyond the rank that are kept, and as many at least that show that nothing is left


class Range(NamedTuple):
    """A space of dimension r that holds the range of a matrix [k, k], as Householder reflections.

    Attributes:
        reflectors: [k, r], as `torch.geqrf` gives them.
        scales: [r].
    """

    reflectors: Tensor
    scales: Tensor

    def basis(self) -> Tensor:
        """An orthonormal basis of the space, [k, r]."""
        return torch.linalg.householder_product(self.reflectors, self.scales)

    def whole_basis(self) -> Tensor:
        """An orthogonal [k, k] whose first r columns are `basis`.

        I − V T Vᵀ with T⁻¹ the upper triangle of VᵀV and the inverse scales on the diagonal (the compact
        WY form, Schreiber and Van Loan 1989): matrix products alone.
        """
        V = self.reflectors.tril(-1)
        V.diagonal().fill_(1)
        V *= self.scales != 0  # a scale of zero is no reflection
        inverse = (V.T @ V).triu(1)
        inverse.diagonal().copy_(torch.where(self.scales != 0, self.scales, 1.0).reciprocal())
        basis = torch.eye(len(V), dtype=V.dtype, device=V.device)
        return basis.addmm_(V, torch.linalg.solve_triangular(inverse, V.T, upper=True), alpha=-1)


def holds(basis: Tensor, matrix: Tensor) -> bool:
    """Whether the range of a symmetric matrix lies, to rounding, in the span of orthonormal columns [k, r].

    As in `find_range`, what is left of the matrix outside is estimated by 16 Gaussian probes.
    """
    images = matrix @ _probes(matrix, _EXTRA)
    left = torch.linalg.norm(images - basis @ (basis.T @ images)) / math.sqrt(_EXTRA)
    return bool(left <= _rounding(matrix))


def _probes(matrix: Tensor, columns: int) -> Tensor:
    """Gaussian vectors [k, columns] for a matrix [k, k], the same on every device and each time."""
    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(len(matrix), columns, generator=generator, dtype=matrix.dtype, device="cpu")
    return probes.to(matrix.device)


def _rounding(matrix: Tensor) -> Tensor:
    """10·√k·ε·‖A‖."""
    return _ROUNDING * math.sqrt(len(matrix)) * torch.finfo(matrix.dtype).eps * torch.linalg.norm(matrix)


def find_range(matrix: Tensor) -> Range | None:
    """The range of a symmetric matrix [k, k], if its rank is numerically far below k; else None.

    A random range finder (Halko, Martinsson and Tropp 2011, algorithm 4.1) with k/4 Gaussian columns from
    a generator of its own: with A Ω = Q R, what is left of A outside the first r columns of Q is estimated
    without bias by the columns of R beyond r, E‖R[r:, r:]‖²/(k/4 − r) ≈ ‖A − Q_r Q_rᵀ A‖². The rank is
    the first r where that is rounding, 10·√k·ε·‖A‖; 16 more columns make the range accurate.
    """
    k = matrix.shape[-1]
    if matrix.ndim != 2 or k <= SMALLEST:
        return None
    columns = k // _SHARE
    reflectors, scales = torch.geqrf(matrix @ _probes(matrix, columns))
    row_norms = reflectors[:columns].triu().double().square().sum(1)
    left = row_norms.flip(0).cumsum(0).flip(0) / torch.arange(columns, 0, -1, device=matrix.device)
    rank = int((left.sqrt() > _rounding(matrix).double()).sum())
    kept = rank + _EXTRA
    if kept > columns - _EXTRA:
        return None
    return Range(reflectors[:, :kept], scales[:kept])


def range_eigenvalues(matrix: Tensor, found: Range) -> Tensor:
    """All eigenvalues, ascending, [k]."""
    rank = len(found.scales)
    values = torch.linalg.eigvalsh(_inside(matrix, found.basis()))
    return torch.cat([values, values.new_zeros(len(matrix) - rank)]).sort().values


def range_eigh(matrix: Tensor, basis: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors; those of zero complete the basis.

    Args:
        matrix: [k, k], symmetric.
        basis: orthogonal [k, k]; the first columns, as many as `rank`, hold the range.
        rank: how many.
    """
    values, vectors = torch.linalg.eigh(_inside(matrix, basis[:, :rank]))
    zeros = values.new_zeros(len(matrix) - rank)
    negative = int((values < 0).sum())
    ascending = torch.cat([values[:negative], zeros, values[negative:]])
    whole = torch.empty_like(basis)
    after = negative + len(zeros)
    whole[:, :negative] = basis[:, :rank] @ vectors[:, :negative]
    whole[:, negative:after] = basis[:, rank:]
    whole[:, after:] = basis[:, :rank] @ vectors[:, negative:]
    return ascending, whole


def _inside(matrix: Tensor, basis: Tensor) -> Tensor:
    inside = basis.T @ (matrix @ basis)
    return (inside + inside.T) / 2
