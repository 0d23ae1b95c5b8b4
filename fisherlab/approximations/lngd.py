"""LNGD: the layer-wise Fisher's partial trace and a diagonal; and its ablation with real gradients."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from fisherlab.approximations.base import Approximation, register_approximation
from fisherlab.arguments import Count, OneOf, checked
from fisherlab.layers import BlockShape
from fisherlab.likelihoods.labels import LabelKind
from fisherlab.operators import KroneckerOperator
from fisherlab.statistics import LayerSums, Statistic, moments


class _DiagonalOutput(Approximation):
    """Φ ⊗ Ψ with a diagonal Ψ of trace 1."""

    def factors(self, layer: BlockShape, sums: LayerSums, kind: str) -> tuple[Tensor, Tensor]:
        """(Φ [d, d], the diagonal of Ψ [m]); a layer whose units are all dead has Ψ = I/m."""
        inputs, outputs = self.statistics(layer, kind)
        return sums.mean(inputs), unit_trace(sums.mean(outputs))

    def build(self, layer: BlockShape, sums: LayerSums, kind: str) -> KroneckerOperator:
        """Φ ⊗ Ψ."""
        return KroneckerOperator(*self.factors(layer, sums, kind))


@register_approximation
class LNGD(_DiagonalOutput):
    """Φ ⊗ Ψ with Φ = E[VᵀV] and Ψ = diag(E[V Vᵀ])/tr Φ under layer-wise sampling.

    Liu et al. 2024 (NeurIPS, "the paper"), eq. 5. A label y = φ(s) + ε is drawn at the layer's own output, so
    g = −φ'(s)∘ε; the expectation over ε is in closed form:

        Φ = E[Σ_t ‖φ'(s_t)‖² a_t a_tᵀ],  Ψ_jj = E[Σ_t ‖a_t‖² φ'(s_tj)²]/tr Φ.

    tr(Φ ⊗ Ψ) = tr Φ is the trace of the layer-wise Fisher, which has no common scale with the Fisher of the
    loss.

    Args:
        sampling: `expected` (the closed form), or the number of draws of ε a sample.
        activations: the activation that follows a layer, by layer name; else the graph's.
        last: slope at the network's output: `identity` (1), or `categorical` (√(p(1 − p))).
    """

    name: ClassVar[str] = "lngd"
    label: ClassVar[str] = "LNGD"
    colour: ClassVar[str | None] = "#d55e00"
    own_scale: ClassVar[bool] = True
    formula: ClassVar[str] = "Φ ⊗ Ψ, Φ = E[Σ_t ‖φ'‖² a aᵀ], Ψ = diag(E[Σ_t ‖a‖² φ'∘φ'])/tr Φ"
    source: ClassVar[str] = "Liu et al. 2024, NeurIPS, eq. 5"
    layerwise: ClassVar[bool] = True

    @checked
    def __init__(
        self,
        sampling: Annotated[str, OneOf(("expected",))] | Count = "expected",
        activations: Mapping[str, str] | None = None,
        last: Annotated[str, OneOf(("identity", "categorical"))] = "identity",
    ) -> None:
        self.sampling, self.activations, self.last = sampling, dict(activations or {}), last

    def label_kind(self, kind: str) -> LabelKind:
        """Layer-wise sampling, whatever the Fisher it is compared with."""
        draws = 0 if isinstance(self.sampling, str) else self.sampling
        return LabelKind.sampled(draws, categorical=self.last == "categorical")

    def statistics(self, layer: BlockShape, kind: str) -> tuple[Statistic, ...]:
        """The partial trace and the diagonal; of the slope, or of the drawn g."""
        if self.sampling == "expected":
            return (
                Statistic("input-trace-independent", moments.input_trace_independent, kind, patches=True),
                Statistic("output-trace-diagonal", moments.output_trace_diagonal, kind, patches=True),
            )
        return (
            Statistic("input-trace", moments.input_trace, kind),
            Statistic("output-squares", moments.output_squares, kind),
        )


@register_approximation
class LNGDRealGradients(_DiagonalOutput):
    """LNGD's form with the gradients of the loss: Φ = E[Σ_t ‖g_t‖² a_t a_tᵀ], a diagonal Ψ.

    The ablation "LNGD-lr" of the paper (section 4.4, table 5): the step from here to LNGD is layer-wise
    sampling alone.
    """

    name: ClassVar[str] = "lngd-lr"
    label: ClassVar[str] = "LNGD-lr"
    colour: ClassVar[str | None] = "#f0a27a"
    formula: ClassVar[str] = "Φ ⊗ Ψ, Φ = E[Σ_c Σ_t ‖g‖² a aᵀ], Ψ = diag(E[Σ_c Σ_t ‖a‖² g∘g])/tr Φ"
    source: ClassVar[str] = "Liu et al. 2024, NeurIPS, section 4.4 (LNGD-lr)"

    def statistics(self, layer: BlockShape, kind: str) -> tuple[Statistic, ...]:
        """The partial trace and the diagonal, positions independent."""
        return (
            Statistic("input-trace-independent", moments.input_trace_independent, kind),
            Statistic("output-trace-diagonal", moments.output_trace_diagonal, kind),
        )


def unit_trace(diagonal: Tensor) -> Tensor:
    """A non-negative vector by its sum; uniform where that is zero."""
    total = diagonal.sum()
    if float(total) > 0:
        return diagonal / total
    return torch.full_like(diagonal, 1 / len(diagonal))
