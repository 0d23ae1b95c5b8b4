"""TKFAC: one Kronecker product whose factors are the exact partial traces of the block."""

from typing import Annotated, ClassVar

from torch import Tensor

from fisherlab.approximations.base import Approximation, register_approximation
from fisherlab.arguments import OneOf, checked
from fisherlab.layers import BlockShape
from fisherlab.operators import KroneckerOperator
from fisherlab.statistics import LayerSums, Statistic, moments


@register_approximation
class TKFAC(Approximation):
    """δ P ⊗ Q with δ = tr F, P = E[VᵀV]/δ, Q = E[V Vᵀ]/δ.

    Gao et al. 2021 (arXiv 2011.10741), eqs. 4.2 to 4.4. The published form drops the products of different
    positions (its assumption 4.1): `positions="independent"`; the default keeps them.

    Args:
        positions: `exact` or `independent`; the same where T = 1.
    """

    name: ClassVar[str] = "tkfac"
    label: ClassVar[str] = "TKFAC"
    colour: ClassVar[str | None] = "#e69f00"
    formula: ClassVar[str] = "δ P ⊗ Q, δ = tr F, P = E[VᵀV]/δ, Q = E[V Vᵀ]/δ"
    source: ClassVar[str] = "Gao et al. 2021, arXiv 2011.10741, eqs. 4.2 to 4.4"

    @checked
    def __init__(self, positions: Annotated[str, OneOf(("exact", "independent"))] = "exact") -> None:
        self.positions = positions
        self.of_gradients = positions == "exact"

    def statistics(self, layer: BlockShape, kind: str) -> tuple[Statistic, ...]:
        """The two partial traces."""
        if self.positions == "independent":
            return (
                Statistic("input-trace-independent", moments.input_trace_independent, kind),
                Statistic("output-trace-independent", moments.output_trace_independent, kind),
            )
        return (
            Statistic("input-trace", moments.input_trace, kind),
            Statistic("output-trace", moments.output_trace, kind),
        )

    def factors(self, layer: BlockShape, sums: LayerSums, kind: str) -> tuple[Tensor, Tensor]:
        """(δP, Q); a block of zeros gives zeros and Q = I/m."""
        inputs, outputs = self.statistics(layer, kind)
        return normalised(sums.mean(inputs), sums.mean(outputs))

    def build(self, layer: BlockShape, sums: LayerSums, kind: str) -> KroneckerOperator:
        """(δP) ⊗ Q."""
        return KroneckerOperator(*self.factors(layer, sums, kind))


def normalised(inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """(E[VᵀV], E[V Vᵀ]/tr): the output factor with trace 1, I/m where the trace is zero."""
    trace = outputs.trace()
    if float(trace) > 0:
        return inputs, outputs / trace
    return inputs, outputs.new_ones(len(outputs)).div(len(outputs)).diag()
