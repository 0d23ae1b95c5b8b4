"""The scale and shift of normalisation layers: y = γ∘x̂ + β."""

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fisherlab.layers.adapter import Adapter, register_layer


class NormAdapter(Adapter):
    """The scale γ and shift β of a norm: y = γ∘x̂ + β, with γ the module's `weight` and β its `bias`.

    A sample's gradients are vectors, Σ_t g_t∘x̂_t for γ and Σ_t g_t for β. One for a norm of your own says
    what x̂ is, and along which dimensions the entries of γ lie:

        class ScaledAdapter(fisherlab.NormAdapter):
            modules = ("mypackage.norms.Scaled",)  # or the type itself

            def normalised(self, module, x):
                return x / x.norm(dim=-1, keepdim=True)

        fisherlab.register_layer(ScaledAdapter())

    Attributes:
        channels: whether γ has an entry a channel, the second dimension of the output; else it has one for
            each place of the last dimensions, as many as γ has dimensions.
    """

    channels: ClassVar[bool] = False

    @abstractmethod
    def normalised(self, module: Any, x: Tensor) -> Tensor:
        """x̂, shaped as the output: the output with scale 1 and shift 0."""

    def shape(self, module: nn.Module) -> tuple[int, int]:
        """[p, 1], p the entries of the scale."""
        return module.get_parameter("weight").numel(), 1

    def inputs(self, module: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        """Ones [l, 1, 1]: as s = W a a norm has one position and the input 1."""
        return output.new_ones(len(x), 1, 1)

    def outputs(self, module: nn.Module, g: Tensor) -> Tensor:
        """Sums over all positions, [c, l, …] as [c, l, 1, p]: the gradients of the shift."""
        return self.summed(module, g)

    def matrix(self, module: nn.Module, weight: Tensor) -> Tensor:
        """[..., p, 1]."""
        return weight.flatten(weight.dim() - module.get_parameter("weight").dim()).unsqueeze(-1)

    def gradients(self, module: nn.Module, g: Tensor, x: Tensor | None, shift: bool) -> Tensor:
        """Those of the scale, for an input x, and of the shift, one after the other: [c, l, 1, p or 2 p]."""
        parts = [] if x is None else [self.summed(module, g * self.normalised(module, x))]
        return torch.cat([*parts, self.summed(module, g)] if shift else parts, dim=-1)

    def root(self, module: nn.Module, slope: Tensor, x: Tensor | None, shift: bool) -> Tensor:
        """What outputs with independent ε∘slope at every place give: columns with the same second moments.

        Those of an entry are [Σ φ'²x̂², Σ φ'²x̂; Σ φ'²x̂, Σ φ'²] over the places that share it.

        Args:
            module: the norm.
            slope: φ', shaped as the output [1, l, …].
            x: the input; None: the shift alone.
            shift: whether there is one.

        Returns:
            [1, l, 1, p]; of scale and shift a Cholesky factor's two columns, [2, l, 1, 2 p].
        """
        squares = slope.square()
        shifts = self.summed(module, squares)
        if x is None:
            return shifts.sqrt()
        normalised = self.normalised(module, x)
        scales = self.summed(module, squares * normalised.square()).sqrt()
        if not shift:
            return scales
        below = self.summed(module, squares * normalised) / scales.masked_fill(scales == 0, 1)
        rest = (shifts - below.square()).clamp(min=0).sqrt()
        return torch.cat(
            [torch.cat([scales, below], -1), torch.cat([torch.zeros_like(scales), rest], -1)], dim=0
        )

    def summed(self, module: nn.Module, g: Tensor) -> Tensor:
        """[c, l, …] summed over the dimensions that share the scale: [c, l, 1, p]."""
        if self.channels:
            return g.flatten(3).sum(3).unsqueeze(2) if g.dim() > 3 else g.unsqueeze(2)
        entries = g.flatten(g.dim() - module.get_parameter("weight").dim())
        return entries.reshape(*entries.shape[:2], -1, entries.shape[-1]).sum(2, keepdim=True)


class ChannelNormAdapter(NormAdapter):
    """Batch, group and instance norm: an entry a channel, the second dimension."""

    modules: ClassVar[tuple[type[nn.Module], ...]] = (
        nn.BatchNorm1d,
        nn.BatchNorm2d,
        nn.BatchNorm3d,
        nn.GroupNorm,
        nn.InstanceNorm1d,
        nn.InstanceNorm2d,
        nn.InstanceNorm3d,
    )
    sample_first: ClassVar[bool] = True
    channels: ClassVar[bool] = True

    def normalised(self, module: Any, x: Tensor) -> Tensor:
        """By the running moments, or those of each sample."""
        if isinstance(module, nn.GroupNorm):
            return functional.group_norm(x, module.num_groups, eps=module.eps)
        moments = module.running_mean, module.running_var
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            return functional.batch_norm(x, *moments, training=moments[0] is None, eps=module.eps)
        return functional.instance_norm(x, *moments, use_input_stats=moments[0] is None, eps=module.eps)


class LastNormAdapter(NormAdapter):
    """Layer and RMS norm: an entry for each of the last dimensions, `normalized_shape`."""

    modules: ClassVar[tuple[type[nn.Module], ...]] = (nn.LayerNorm, nn.RMSNorm)

    def normalised(self, module: Any, x: Tensor) -> Tensor:
        """By the moments of each position."""
        if isinstance(module, nn.RMSNorm):
            return functional.rms_norm(x, module.normalized_shape, eps=module.eps)
        return functional.layer_norm(x, module.normalized_shape, eps=module.eps)


for _adapter in (ChannelNormAdapter(), LastNormAdapter()):
    register_layer(_adapter)
