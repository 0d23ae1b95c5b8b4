"""Approximations with little structure: the diagonal, FOOF and NG+."""

from typing import ClassVar

from fisherlab.approximations.base import Approximation, register_approximation
from fisherlab.layers import BlockShape
from fisherlab.likelihoods.labels import EMPIRICAL
from fisherlab.operators import DiagonalOperator, KroneckerOperator
from fisherlab.statistics import LayerSums, Statistic, moments


@register_approximation
class Diagonal(Approximation):
    """diag(F): the second moments of the single entries of V."""

    name: ClassVar[str] = "diagonal"
    colour: ClassVar[str | None] = "#9c9c9c"
    formula: ClassVar[str] = "diag(F), F_jj = E[Σ_c V∘V]"
    source: ClassVar[str] = "the diagonal of F itself"
    for_vectors: ClassVar[bool] = True
    of_gradients = True

    def statistics(self, layer: BlockShape, kind: str) -> tuple[Statistic, ...]:
        """E[V∘V]."""
        return (Statistic("squared-gradient", moments.squared_gradient, kind),)

    def build(self, layer: BlockShape, sums: LayerSums, kind: str) -> DiagonalOperator:
        """The diagonal operator."""
        return DiagonalOperator(sums.mean(*self.statistics(layer, kind)))


@register_approximation
class FOOF(Approximation):
    """A ⊗ I with A = E[Σ_t a aᵀ]: the input covariance alone.

    Benzing 2022 (arXiv 2201.12250), section 3. No labels are used, so it has no common scale with F.
    """

    name: ClassVar[str] = "foof"
    label: ClassVar[str] = "FOOF"
    colour: ClassVar[str | None] = "#8b6b4a"
    own_scale: ClassVar[bool] = True
    formula: ClassVar[str] = "A ⊗ I, A = E[Σ_t a aᵀ]"
    source: ClassVar[str] = "Benzing 2022, arXiv 2201.12250, section 3"

    def statistics(self, layer: BlockShape, kind: str) -> tuple[Statistic, ...]:
        """The input covariance."""
        return (Statistic("input-moment", moments.input_moment),)

    def build(self, layer: BlockShape, sums: LayerSums, kind: str) -> KroneckerOperator:
        """A ⊗ I."""
        A = sums.mean(*self.statistics(layer, kind))
        return KroneckerOperator(A, A.new_ones(layer.outputs))


@register_approximation
class NGPlus(Approximation):
    """I_d ⊗ E[V Vᵀ] where m ≤ d, else E[VᵀV] ⊗ I_m, with the data's labels.

    Yang et al. 2021 (arXiv 2106.07454), section 2. Its trace is d, or m, times that of the empirical Fisher:
    only the scaled error compares.
    """

    name: ClassVar[str] = "ngplus"
    label: ClassVar[str] = "NG+"
    colour: ClassVar[str | None] = "#7a5aa6"
    own_scale: ClassVar[bool] = True
    formula: ClassVar[str] = "I ⊗ E[V Vᵀ] (m ≤ d), else E[VᵀV] ⊗ I; empirical labels"
    source: ClassVar[str] = "Yang et al. 2021, arXiv 2106.07454, section 2"
    own_kind: ClassVar[str | None] = EMPIRICAL
    of_gradients = True

    def statistics(self, layer: BlockShape, kind: str) -> tuple[Statistic, ...]:
        """The smaller of the two partial traces."""
        if layer.outputs <= layer.inputs:
            return (Statistic("output-trace", moments.output_trace, kind),)
        return (Statistic("input-trace", moments.input_trace, kind),)

    def build(self, layer: BlockShape, sums: LayerSums, kind: str) -> KroneckerOperator:
        """The partial trace beside an identity."""
        trace = sums.mean(*self.statistics(layer, kind))
        small = layer.outputs <= layer.inputs
        other = layer.inputs if small else layer.outputs
        identity = trace.new_ones(other)
        return KroneckerOperator(identity, trace) if small else KroneckerOperator(trace, identity)
