"""Directions without a matrix: what SGD, sign descent and Muon make of the gradient."""

from typing import ClassVar

import torch
from torch import Tensor

from fisherlab.approximations.base import Approximation, register_approximation, without_matrix
from fisherlab.errors import InputError
from fisherlab.layers import BlockShape
from fisherlab.operators import LinearOperator
from fisherlab.statistics import LayerSums, Statistic


class _Direction(Approximation):
    """A step Δ of ∇h that no F̂ stands behind; it is measured by its direction alone."""

    matrix: ClassVar[bool] = False
    for_vectors: ClassVar[bool] = True
    from_exact = True

    def statistics(self, layer: BlockShape, kind: str) -> tuple[Statistic, ...]:
        """None."""
        return ()

    def build(self, layer: BlockShape, sums: LayerSums, kind: str) -> LinearOperator:
        """There is no F̂."""
        raise InputError(without_matrix(self))


@register_approximation
class SGD(_Direction):
    """Δ = ∇h."""

    name: ClassVar[str] = "sgd"
    label: ClassVar[str] = "SGD"
    colour: ClassVar[str | None] = "#444444"
    formula: ClassVar[str] = "no F̂: Δ = ∇h"
    source: ClassVar[str] = "the gradient itself"

    def step(self, gradient: Tensor, rounding: float) -> Tensor:
        """∇h."""
        return gradient


@register_approximation
class Sign(_Direction):
    """Δ = sign(∇h), entry by entry."""

    name: ClassVar[str] = "sign"
    label: ClassVar[str] = "sign"
    colour: ClassVar[str | None] = "#6c8e23"
    formula: ClassVar[str] = "no F̂: Δ = sign(∇h)"
    source: ClassVar[str] = "Bernstein et al. 2018, arXiv 1802.04434 (signSGD)"

    def step(self, gradient: Tensor, rounding: float) -> Tensor:
        """The signs."""
        return gradient.sign()


@register_approximation
class Muon(_Direction):
    """Δ = U Vᵀ of the thin singular value decomposition ∇h = U Σ Vᵀ, over the singular values above rounding.

    Jordan et al. 2024; without their Newton-Schulz iteration, which approximates it.
    """

    name: ClassVar[str] = "muon"
    label: ClassVar[str] = "Muon"
    colour: ClassVar[str | None] = "#00838f"
    formula: ClassVar[str] = "no F̂: Δ = U Vᵀ, ∇h = U Σ Vᵀ"
    source: ClassVar[str] = "Jordan et al. 2024, github.com/KellerJordan/Muon"

    def step(self, gradient: Tensor, rounding: float) -> Tensor:
        """The polar factor of every matrix [..., m, d]."""
        U, values, Vh = torch.linalg.svd(gradient, full_matrices=False)
        seen = values > max(gradient.shape[-2:]) * rounding * values[..., :1]
        return (U * seen.unsqueeze(-2)) @ Vh
