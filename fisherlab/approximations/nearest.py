"""The nearest Kronecker product: the least error that any A ⊗ B can have."""

from typing import ClassVar

import torch
from torch import Tensor

from fisherlab.approximations.base import Approximation, register_approximation
from fisherlab.layers import BlockShape
from fisherlab.operators import KroneckerOperator, LinearOperator
from fisherlab.operators.rearranged import rearranged
from fisherlab.statistics import LayerSums, Statistic

_ITERATIONS = 500
_CONVERGED, _CONVERGED_LARGE = 1e-14, 1e-10  # relative change of the singular value
_LARGE = 4096


@register_approximation
class NearestKronecker(Approximation):
    """argmin over A, B of ‖F − A ⊗ B‖_F: the yardstick of every Kronecker approximation.

    Van Loan and Pitsianis 1993: the leading singular pair of the rearrangement R(F), found by power iteration
    with R(F)·B = E[Σ_c VᵀB V] and R(F)ᵀ·A = E[Σ_c V A Vᵀ]. F maps positive semidefinite
    matrices to such, so the iteration stays among them (Perron and Frobenius).
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
        A, scale = R.inputs(torch.eye(exact.outputs, dtype=exact.dtype, device=exact.device))
        enough = _CONVERGED if exact.shape[0] <= _LARGE else _CONVERGED_LARGE
        for _ in range(_ITERATIONS):
            before = scale
            B = R.outputs(_scaled(A, scale))
            B = _scaled(B, torch.linalg.norm(B))
            A, scale = R.inputs(B)
            if float((scale - before).abs()) <= enough * float(scale):
                break
        return KroneckerOperator(R.matrix(A), B)


def _scaled(factor: Tensor, norm: Tensor) -> Tensor:
    """A factor by its norm; zero stays as it is."""
    return factor / norm if float(norm) > 0 else factor
