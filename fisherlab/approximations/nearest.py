"""The nearest Kronecker product: the least error that any A ⊗ B can have."""

from typing import ClassVar

import torch
from torch import Tensor

from fisherlab.approximations.base import Approximation, register_approximation
from fisherlab.base.memory import at_most
from fisherlab.layers import BlockShape
from fisherlab.linalg.numerics import symmetric_eigh, symmetrised
from fisherlab.operators import KroneckerOperator, LinearOperator
from fisherlab.operators.rearranged import Rearranged, rearranged
from fisherlab.statistics import LayerSums, Statistic

_RESTARTS = 60  # a choice: eight vectors each; what has not converged by then is close to a tie, and taken
_SPACE, _SPACE_BYTES = 8, 2**29  # vectors of a Krylov space, fewer where they are large: half a GiB, a choice
_CONVERGED, _CONVERGED_LARGE = 1e-12, 1e-5  # residual by eigenvalue; the singular value's error is its square
_LARGE = 4096  # size of a block from which on the products are dear: the error is then right to 1e-10
_ROUNDINGS = 16  # no residual is asked to be below so many roundings
# Blocks whose R(F) is decomposed, by size and work: a choice, some milliseconds.
_SMALL, _SMALL_OPERATIONS = 1024, 2**26
_STEPS = 2.0**40  # of the power iteration that a decomposition stands for


@register_approximation
class NearestKronecker(Approximation):
    """argmin over A, B of ‖F − A ⊗ B‖_F: the yardstick of every Kronecker approximation.

    Van Loan and Pitsianis 1993: the leading singular pair of the rearrangement R(F). Of a small block it is
    decomposed; else the pair is found by restarted Lanczos iterations on R(F)ᵀR(F), with
    R(F)·B = E[Σ_c VᵀB V] and R(F)ᵀ·A = E[Σ_c V A Vᵀ]. F maps positive semidefinite matrices to such, so the
    pair is one of them (Perron and Frobenius).
    """

    name: ClassVar[str] = "nearest-kronecker"
    label: ClassVar[str] = "nearest A⊗B"
    colour: ClassVar[str | None] = "#4d4d4d"
    formula: ClassVar[str] = "argmin ‖F − A ⊗ B‖_F"
    source: ClassVar[str] = "Van Loan and Pitsianis 1993, Approximation with Kronecker products"
    from_exact = True

    def statistics(self, layer: BlockShape, kind: str) -> tuple[Statistic, ...]:
        """None: it is made from the exact block."""
        return ()

    def build(self, layer: BlockShape, sums: LayerSums, kind: str) -> LinearOperator:
        """Not possible from sums; see `from_block`."""
        raise NotImplementedError("nearest-kronecker is made from the exact block")

    def from_block(self, exact: LinearOperator) -> KroneckerOperator:
        """The leading singular pair of R(F)."""
        if isinstance(exact, KroneckerOperator):
            return exact
        R = rearranged(exact)
        start, _ = R.inputs(torch.eye(exact.outputs, dtype=exact.dtype, device=exact.device))
        B = R.outputs(start)
        if _is_small(exact) and 0 < float(torch.linalg.norm(B)) < float("inf"):
            B = _leading_of_small(exact.dense(), B)
        else:
            enough = _CONVERGED if exact.shape[0] <= _LARGE else _CONVERGED_LARGE
            B = _leading(R, B, max(enough, _ROUNDINGS * torch.finfo(B.dtype).eps))
        B = _positive(B)
        A, _ = R.inputs(B)
        return KroneckerOperator(R.matrix(A), B)


def _is_small(exact: LinearOperator) -> bool:
    """Whether a decomposition of R(F) [d², m²] takes little time."""
    size = exact.shape[0]
    return size <= _SMALL and size**2 * min(exact.outputs, exact.inputs) ** 2 <= _SMALL_OPERATIONS


def _leading_of_small(F: Tensor, B: Tensor) -> Tensor:
    """As `_leading`, from the singular values and vectors of R(F).

    It is what power iteration from B comes to, so that B stays positive semidefinite where singular values
    are equal, and their vectors any rotation of one another.

    Args:
        F: [D, D].
        B: the first guess [m, m].
    """
    m = len(B)
    d = len(F) // m
    R = F.view(d, m, d, m).transpose(1, 2).reshape(d * d, m * m)
    _, values, vectors = torch.linalg.svd(R, full_matrices=False)
    B = (((values / values[0]) ** _STEPS * (vectors @ B.flatten())) @ vectors).view(m, m)
    return B / torch.linalg.norm(B)


def _leading(R: Rearranged, B: Tensor, enough: float) -> Tensor:
    """The leading eigenvector of R(F)ᵀR(F), [m, m] of norm 1, from a first guess; zero for F = 0."""
    for _ in range(_RESTARTS):
        B, converged = _ritz_vector(R, B, enough)
        if converged:
            break
    return B


def _ritz_vector(R: Rearranged, B: Tensor, enough: float) -> tuple[Tensor, bool]:
    """The best vector of the Krylov space of B, and whether its residual is at most `enough` · eigenvalue.

    Lanczos with full orthogonalisation, which ends where the vector is good enough or the space is full.
    """
    norm = float(torch.linalg.norm(B))
    if not norm > 0:
        return B, True
    basis = (B / norm).flatten()[None]
    space = max(2, min(_SPACE, at_most(_SPACE_BYTES, 8) // basis.nbytes))
    projected = basis.new_zeros(space, space)
    while True:
        size = len(basis)
        image = R.outputs(R.inputs(basis[-1].view_as(B))[0]).flatten()
        projected[:size, size - 1] = basis @ image
        image = image - projected[:size, size - 1] @ basis
        image = image - (basis @ image) @ basis
        values, vectors = torch.linalg.eigh(projected[:size, :size], UPLO="U")
        left = float(torch.linalg.norm(image))
        converged = left * abs(float(vectors[-1, -1])) <= enough * float(values[-1])
        if converged or size == space:
            return (vectors[:, -1] @ basis).view_as(B), converged
        basis = torch.cat([basis, (image / left)[None]])


def _positive(B: Tensor) -> Tensor:
    """The nearest positive semidefinite matrix to B or −B, whichever of them has the positive trace."""
    values, vectors = symmetric_eigh(symmetrised(B * B.trace().sign()))
    return (vectors * values.clamp(min=0)) @ vectors.mT
