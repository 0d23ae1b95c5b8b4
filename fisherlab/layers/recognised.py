"""Norms that no adapter names: recognised by their parameters and, once they are called, by their output.

A module with nothing but a vector `weight` (and `bias`) is taken for y = weight∘u + v + bias, with u and v
functions of x alone, and with the entries of the weight along the last dimension of y or along its second.
That holds for norms of all kinds, for those whose scale is 1 + weight, and for activations with a slope a
channel.
The first calls, and later ones, are compared with it (`RecognisedNormAdapter.why_not`).
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fisherlab.errors import InputError
from fisherlab.layers.adapter import Adapter, recognise_by
from fisherlab.layers.norm import NormAdapter

NO_SCALE = "its output is not its weight times something that does not depend on the weight, plus its bias"


class RecognisedNormAdapter(NormAdapter):
    """u is what a weight of ones adds to the output with a weight of zeros."""

    modules: ClassVar[tuple[type[nn.Module], ...]] = ()

    def normalised(self, module: Any, x: Tensor) -> Tensor:
        """u, shaped as the output."""
        ones = torch.ones_like(module.weight)
        return _called(module, x, ones) - _called(module, x, torch.zeros_like(ones))

    def summed(self, module: nn.Module, g: Tensor) -> Tensor:
        """Over all dimensions but that of the scale."""
        scale = module.get_parameter("weight")
        if len(scale) == 1:
            return g.flatten(2).sum(2).view(*g.shape[:2], 1, 1)
        dim = _dim_of(scale, g.shape[1:]) + 1
        return g.movedim(dim, -1).reshape(*g.shape[:2], -1, len(scale)).sum(2, keepdim=True)

    def why_not(self, module: Any, x: Tensor, output: Tensor) -> str:
        """Whether the output of x with random numbers as weight and bias is weight∘u + v + bias."""
        generator = torch.Generator().manual_seed(0)
        scale, shift = (
            torch.empty(len(module.weight), device="cpu").uniform_(0.5, 2.0, generator=generator).to(output)
            for _ in range(2)
        )
        try:
            u, v = self.normalised(module, x), _called(module, x, torch.zeros_like(scale))
            found = _called(module, x, scale, shift)
            expected = u * _along(scale, output.shape) + v
            if module._parameters.get("bias") is not None:
                expected = expected + _along(shift, output.shape)
            return "" if _close(found, expected) else NO_SCALE
        except Exception:  # somebody else's forward, which may need more than its first argument
            return NO_SCALE


def _norm_of(module: nn.Module) -> Adapter | None:
    """The adapter of a module whose parameters are a vector `weight` and perhaps a `bias` of its size."""
    if "weight" not in module._parameters:
        return None
    own = dict(module.named_parameters())
    if own.keys() not in ({"weight"}, {"weight", "bias"}):
        return None
    sizes = {() if is_lazy(p) else tuple(p.shape) for p in own.values()}
    return _RECOGNISED if len(sizes) == 1 and len(sizes.pop()) == 1 else None


def _called(module: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The module's output with these numbers; None: a bias of zeros. Neither it nor its hooks take notice."""
    twin = object.__new__(type(module))
    own = {"weight": weight, "bias": torch.zeros_like(weight) if bias is None else bias}
    parameters = {n: p if p is None else own[n] for n, p in module._parameters.items()}
    vars(twin).update(vars(module), _parameters=parameters)
    with torch.no_grad():
        return twin.forward(x)


def _dim_of(scale: Tensor, shape: Sequence[int]) -> int:
    """The dimension of an output of this shape [l, …] along which the scale lies."""
    found = next((dim for dim in (len(shape) - 1, 1) if dim and shape[dim] == len(scale)), None)
    if found is None:
        raise InputError(f"a weight of {len(scale)} entries lies along no dimension of {list(shape)}")
    return found


def _along(scale: Tensor, shape: Sequence[int]) -> Tensor:
    """A scale so that it is broadcast to an output of this shape."""
    return scale if len(scale) == 1 else scale.view(-1, *[1] * (len(shape) - 1 - _dim_of(scale, shape)))


def _close(found: Tensor, expected: Tensor) -> bool:
    """Whether two outputs are one, up to the rounding of half of their digits."""
    tolerance = torch.finfo(expected.dtype).eps ** 0.5 * float(expected.abs().max())
    return found.shape == expected.shape and bool((found - expected).abs().max() <= tolerance)


_RECOGNISED = RecognisedNormAdapter()
recognise_by(_norm_of)
