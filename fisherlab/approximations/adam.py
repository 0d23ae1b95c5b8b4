"""Adam and Adafactor: the diagonal of F, and the best diagonal of rank one."""

from typing import ClassVar

from torch import Tensor

from fisherlab.approximations.base import Approximation, register_approximation
from fisherlab.approximations.batches import batch_size, remark_of
from fisherlab.approximations.simple import Diagonal
from fisherlab.layers import BlockShape
from fisherlab.operators import DiagonalOperator, LinearOperator
from fisherlab.statistics import LayerSums, Statistic


class _SecondMoments(Approximation):
    """diag(S), S made of the second moments E[V∘V]."""

    of_gradients = True

    def __init__(self, gradients: str = "sample") -> None:
        self.batch = batch_size(gradients)
        self.from_exact = self.batch is not None

    def statistics(self, layer: BlockShape, kind: str) -> tuple[Statistic, ...]:
        """E[V∘V]."""
        return () if self.from_exact else Diagonal().statistics(layer, kind)

    def build(self, layer: BlockShape, sums: LayerSums, kind: str) -> DiagonalOperator:
        """F̂ from the second moments."""
        return self._of(sums.mean(*self.statistics(layer, kind)))

    def from_block(self, exact: LinearOperator) -> DiagonalOperator:
        """F̂ from the block's diagonal."""
        return self._of(exact.diagonal_matrix())

    def second_moments(self, squares: Tensor) -> Tensor:
        """S [m, d] from E[V∘V] [m, d]."""
        return squares

    def _of(self, squares: Tensor) -> DiagonalOperator:
        operator = DiagonalOperator(self.second_moments(squares))
        operator.remark = remark_of(self.batch)
        return operator


@register_approximation
class Adam(_SecondMoments):
    """diag(F): what Adam's second moment estimates; its step uses the square root, the root step.

    Kingma and Ba 2015 (arXiv 1412.6980). It is `diagonal`.

    Args:
        gradients: `sample`, or `batch:B`: Adam itself squares the gradients of batches.
    """

    name: ClassVar[str] = "adam"
    label: ClassVar[str] = "Adam"
    colour: ClassVar[str | None] = "#cc3399"
    formula: ClassVar[str] = "diag(F), F_jj = E[Σ_c V∘V]"
    source: ClassVar[str] = "Kingma and Ba 2015, arXiv 1412.6980"
    for_vectors: ClassVar[bool] = True


@register_approximation
class Adafactor(_SecondMoments):
    """diag(r cᵀ/Σ), r and c the sums of the rows and columns of diag F as [m, d], Σ their total.

    Shazeer and Stern 2018 (arXiv 1804.04235): of all non-negative S of rank one the best in generalised
    Kullback-Leibler divergence, which is the von Neumann divergence of diagonal matrices.

    Args:
        gradients: `sample`, or `batch:B`.
    """

    name: ClassVar[str] = "adafactor"
    label: ClassVar[str] = "Adafactor"
    colour: ClassVar[str | None] = "#b5651d"
    formula: ClassVar[str] = "diag(r cᵀ/Σ_j r_j), r and c the row and column sums of E[Σ_c V∘V]"
    source: ClassVar[str] = "Shazeer and Stern 2018, arXiv 1804.04235"

    def second_moments(self, squares: Tensor) -> Tensor:
        """R cᵀ/Σ; zeros where there is nothing."""
        rows, columns = squares.sum(1), squares.sum(0)
        total = rows.sum()
        return rows.outer(columns / total) if float(total) > 0 else squares
