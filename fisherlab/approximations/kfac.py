"""KFAC: one Kronecker product of the layer's input and output-gradient covariances."""

from typing import Annotated, ClassVar

from torch import Tensor

from fisherlab.approximations.base import Approximation, register_approximation
from fisherlab.arguments import OneOf, checked
from fisherlab.layers import BlockShape
from fisherlab.operators import KroneckerOperator
from fisherlab.statistics import LayerSums, Statistic, moments


@register_approximation
class KFAC(Approximation):
    """A ⊗ B with A = E[Σ_t a aᵀ] and B = (1/(N·T)) Σ_n Σ_c Σ_t g gᵀ.

    Martens and Grosse 2015 (arXiv 1503.05671), eq. 1; for positions that share the weight "expand" as in
    Grosse and Martens 2016 (1602.01407), and "reduce" as in Eschenhagen et al. 2023 (2311.00636): the mean
    of a and the sum of g over the positions of a sample.

    Args:
        sharing: `expand` or `reduce`; the same where T = 1.
    """

    name: ClassVar[str] = "kfac"
    label: ClassVar[str] = "KFAC"
    colour: ClassVar[str | None] = "#0072b2"
    formula: ClassVar[str] = "A ⊗ B, A = E[Σ_t a aᵀ], B = E[Σ_c Σ_t g gᵀ]/T"
    source: ClassVar[str] = "Martens and Grosse 2015, arXiv 1503.05671, eq. 1"

    @checked
    def __init__(self, sharing: Annotated[str, OneOf(("expand", "reduce"))] = "expand") -> None:
        self.sharing = sharing

    def statistics(self, layer: BlockShape, kind: str) -> tuple[Statistic, ...]:
        """The two covariances."""
        if self.sharing == "reduce":
            return (
                Statistic("input-moment-reduced", moments.input_moment_reduced),
                Statistic("output-moment-reduced", moments.output_moment_reduced, kind, inputs=False),
            )
        return (
            Statistic("input-moment", moments.input_moment),
            Statistic("output-moment", moments.output_moment, kind, inputs=False),
        )

    def factors(self, layer: BlockShape, sums: LayerSums, kind: str) -> tuple[Tensor, Tensor]:
        """(A, B)."""
        inputs, outputs = self.statistics(layer, kind)
        count = sums.positions if self.sharing == "expand" else sums.samples
        return sums.mean(inputs), sums.sum(outputs) / (count or 1)  # none: an expert that saw no token

    def build(self, layer: BlockShape, sums: LayerSums, kind: str) -> KroneckerOperator:
        """A ⊗ B."""
        return KroneckerOperator(*self.factors(layer, sums, kind))
