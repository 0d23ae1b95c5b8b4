"""The steps of all layers taken together, in the quadratic model with F between layers too.

With J = [J_1, J_2, …] the gradients of all layers side by side for the samples of the coupling, F = JᵀJ/N and
Λ each layer's damping on its own parameters, the decrease share of a step Δ is
(Δᵀ∇h)² / (Δᵀ(F + Λ)Δ · ∇hᵀ(F + Λ)⁻¹∇h).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fisherlab.errors import NumericalError
from fisherlab.linalg.numerics import cholesky_apply, damped_cholesky
from fisherlab.operators import GramOperator, LinearOperator, blocks_of


@dataclass(frozen=True)
class StepPart:
    """What a direction of one layer adds to that of all: J Δ/√N [C·n], ⟨Δ, ∇h⟩ and ‖Δ‖²."""

    image: Tensor
    gain: float
    square: float


@dataclass(frozen=True)
class LayerParts:
    """One layer's part of the joint quadratic model.

    Attributes:
        damping: λ.
        gram: J_l J_lᵀ/N.
        gradient: ∇h itself as a direction.
        steps: by approximation.
    """

    damping: float
    gram: Tensor
    gradient: StepPart
    steps: Mapping[str, StepPart]


def step_part(between: LinearOperator, step: Tensor, gradient: Tensor) -> StepPart:
    """The part of a step [m, d].

    Args:
        between: the layer's F of the samples of the coupling, in Gram form.
        step: Δ.
        gradient: ∇h.
    """
    step = step.double()
    blocks = blocks_of(between)
    images = [
        block.rows(own).flatten() * block.weight**0.5
        for block, own in zip(blocks, step.chunk(len(blocks)), strict=True)
        if isinstance(block, GramOperator)
    ]
    gain = float((step * gradient).sum())
    return StepPart(torch.stack(images).sum(0), gain, float(step.square().sum()))


class JointModel:
    """The quadratic model of the layers that are given; the best decrease of some of them is found once."""

    def __init__(self, layers: Mapping[str, LayerParts]) -> None:
        self._layers = layers
        self._best: dict[frozenset[str], float] = {}

    def share(self, approximation: str) -> tuple[float, int]:
        """The decrease share of an approximation's joint step, and of how many layers it is.

        Raises:
            NumericalError: where it is not defined: the gradient is zero.
        """
        own = {name: layer for name, layer in self._layers.items() if approximation in layer.steps}
        parts = {name: layer.steps[approximation] for name, layer in own.items()}
        gain = sum(part.gain for part in parts.values())
        image = torch.stack([part.image for part in parts.values()]).sum(0)
        damped = sum(own[name].damping * part.square for name, part in parts.items())
        curvature = damped + float(image.square().sum())
        best = self._decrease(own)
        if not (best > 0 and curvature > 0):
            raise NumericalError("joint step: the gradient is zero")
        return gain**2 / curvature / best, len(own)

    def _decrease(self, names: Collection[str]) -> float:
        """∇hᵀ(F + Λ)⁻¹∇h = Σ ‖∇_l‖²/λ_l − bᵀ(I + Σ K_l/λ_l)⁻¹b with b = Σ J_l∇_l/(λ_l√N)."""
        chosen = frozenset(names)
        if chosen not in self._best:
            layers = [self._layers[name] for name in sorted(chosen)]
            image = torch.stack([layer.gradient.image / layer.damping for layer in layers]).sum(0)
            gram = torch.stack([layer.gram / layer.damping for layer in layers]).sum(0)
            solved = cholesky_apply(damped_cholesky(gram, 1.0), image[:, None])[:, 0]
            whole = sum(layer.gradient.square / layer.damping for layer in layers)
            self._best[chosen] = whole - float(image @ solved)
        return self._best[chosen]
