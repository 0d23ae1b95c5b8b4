"""The nearest Kronecker product: the least error that any A ⊗ B can have."""

from typing import ClassVar

import torch
from torch import Tensor

from fisherlab.approximations.base import Approximation, register_approximation
from fisherlab.layers import BlockShape
from fisherlab.operators import KroneckerOperator, LinearOperator
from fisherlab.operators.numerics import symmetric_eigh, symmetrised
from fisherlab.operators.rearranged import Rearranged, rearranged
from fisherlab.statistics import LayerSums, Statistic

_RESTARTS = 60
_SPACE, _SPACE_BYTES = 8, 2**29  # vectors of a Krylov space, fewer where they are large
_CONVERGED, _CONVERGED_LARGE = 1e-7, 1e-5  # residual by eigenvalue; the singular value's error is its square
_LARGE = 4096


@register_approximation
class NearestKronecker(Approximation):
    """argmin over A, B of ‖F − A ⊗ B‖_F: the yardstick of every Kronecker approximation.

    Van Loan and Pitsianis 1993: the leading singular pair of the rearrangement R(F), found by restarted
    Lanczos iterations on R(F)ᵀR(F), with R(F)·B = E[Σ_c VᵀB V] and R(F)ᵀ·A = E[Σ_c V A Vᵀ]. F maps positive
    semidefinite matrices to such, so the pair is one of them (Perron and Frobenius).
    """

    name: ClassVar[str] = "nearest-kronecker"
    formula: ClassVar[str] = "argmin ‖F − A ⊗ B‖_F"
    source: ClassVar[str] = "Van Loan and Pitsianis 1993, Approximation with Kronecker products"
    from_exact: ClassVar[bool] = True

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
        enough = _CONVERGED if exact.shape[0] <= _LARGE else _CONVERGED_LARGE
        start, _ = R.inputs(torch.eye(exact.outputs, dtype=exact.dtype, device=exact.device))
        B = _positive(_leading(R, R.outputs(start), enough))
        A, _ = R.inputs(B)
        return KroneckerOperator(R.matrix(A), B)


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
    space = max(2, min(_SPACE, _SPACE_BYTES // basis.nbytes))
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
