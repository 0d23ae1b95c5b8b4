"""Gradients and weights of layers as matrices, and what became of gradients before the step."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fisherlab.errors import InputError, NumericalError
from fisherlab.layers import LayerView

_APART = 1e-2  # share of a gradient that is no multiple of what came
_REDUCED = 1e-2  # of a factor from that of a reduction: rounding, down to bfloat16's


class ParameterMatrices:
    """Reads what the user's backward passes left in the parameters.

    Args:
        parameters: of the model by name, and those added later.
        layers: the layers with a block.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], layers: Mapping[str, LayerView]) -> None:
        self.parameters, self._layers = parameters, layers
        self.names = {name: view.parameters for name, view in layers.items()}

    def dtype_of(self, name: str) -> torch.dtype:
        """That of a layer's statistics, direction and momentum: float32, or its weights' with more digits."""
        return torch.promote_types(self.parameters[self.names[name][0]].dtype, torch.float32)

    def trained(self, name: str) -> list[str]:
        """The parameters of a block that are not frozen."""
        return [p for p in self.names[name] if self.parameters[p].requires_grad]

    def device(self, name: str) -> torch.device:
        """Where a layer is."""
        return self.parameters[self.names[name][0]].device

    def has_come(self, name: str, came: Collection[str]) -> bool:
        """Whether one of the gradients that came is a layer's, or one is there and not zero."""
        there = [p for p in self.trained(name) if self.parameters[p].grad is not None]
        return any(p in came for p in there) or self.is_any(name)

    def are_cleared(self) -> bool:
        """Whether there is none."""
        return all(p.grad is None for p in self.parameters.values())

    def were_zeroed(self, versions: Mapping[str, int]) -> bool:
        """Whether gradients with these versions were written since, and are zero now."""
        grads = {name: self.parameters[name].grad for name in versions}
        written = [g for n, g in grads.items() if g is not None and g._version != versions[n]]
        return bool(written) and not any(bool(grad.any()) for grad in written)

    def with_any(self) -> list[str]:
        """The layers that have a gradient."""
        return [
            name
            for name in self.names
            if any(self.parameters[p].grad is not None for p in self.trained(name))
        ]

    def is_any(self, name: str) -> bool:
        """Whether a layer's gradient is not zero."""
        grads = [self.parameters[p].grad for p in self.trained(name)]
        return any(grad is not None and bool(grad.any()) for grad in grads)

    def check_finite(self) -> None:
        """Looks at all of them with one synchronisation.

        Raises:
            NumericalError: where one is not finite; names the layer.
        """
        named = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        largest = torch._foreach_norm(list(named.values()), math.inf)
        by_device = torch.stack([value.float().to(largest[0].device) for value in largest])  # norms are real
        if bool(by_device.isfinite().all()):
            return
        bad = [name for name, fine in zip(named, by_device.isfinite().tolist(), strict=True) if not fine]
        layers = [name for name, view in self._layers.items() if set(view.parameters) & set(bad)]
        where = f"layer {layers[0]!r}" if layers else f"parameter {bad[0]!r}"
        raise NumericalError(
            f"the gradient of {where} is not finite; no weight was changed: lower the learning rate, clip "
            "the gradient, or look at the batch"
        )

    def matrix(self, name: str) -> Tensor:
        """A layer's gradient [m, d]; zero where a parameter has none or is frozen."""
        view = self._layers[name]
        gradients = {}
        for parameter in self.names[name]:
            p = self.parameters[parameter]
            gradients[parameter] = p.grad if p.grad is not None and p.requires_grad else torch.zeros_like(p)
        return view.to_matrix(gradients).to(self.dtype_of(name))

    def weights(self, name: str) -> Tensor:
        """A layer's W [m, d]."""
        view = self._layers[name]
        weights = view.to_matrix({p: self.parameters[p].detach() for p in view.parameters})
        return weights.to(self.dtype_of(name))

    def version(self, name: str) -> list[tuple[Tensor | None, int]]:
        """What changes where a layer's gradients do: the tensors, and how often they were written."""
        grads = [self.parameters[p].grad for p in self.trained(name)]
        return [(grad, -1 if grad is None else grad._version) for grad in grads]

    def of_trained(self, name: str, direction: Tensor) -> Tensor:
        """D, zero for parameters that are frozen."""
        view = self._layers[name]
        if len(self.trained(name)) == len(view.parameters):
            return direction
        trains = {
            p: torch.full_like(self.parameters[p], self.parameters[p].requires_grad) for p in view.parameters
        }
        return direction * view.to_matrix(trains).to(direction.dtype)


class GradientEdits:
    """Remembers gradients as they came; a layer-wise rate stays right under a factor, and only under one.

    Args:
        gradients: reads the gradients of layers.
    """

    def __init__(self, gradients: ParameterMatrices) -> None:
        self._gradients = gradients
        self.forget()

    def forget(self) -> None:
        """The gradients of the last step."""
        self._versions: dict[str, list[tuple[Tensor | None, int]]] = {}
        self._norms: dict[str, Tensor] = {}
        self._factors: dict[str, Tensor] = {}
        self._apart: dict[str, Tensor] = {}

    def keep_version(self, name: str) -> None:
        """Remembers how often a layer's gradients have been written."""
        self._versions[name] = self._gradients.version(name)

    def keep_norms(self, name: str, gradient: Tensor) -> None:
        """Remembers the norms of a layer's ∇h [m, d]."""
        self._norms[name] = _norms(gradient)

    def is_unchanged(self, name: str) -> bool:
        """Whether the gradients are those of `keep_version`."""
        pairs = zip(self._versions.get(name, []), self._gradients.version(name), strict=False)
        same = [then is now and old == new for (then, old), (now, new) in pairs]
        return bool(same) and all(same)

    def factor(self, name: str, gradient: Tensor) -> Tensor | None:
        """From the norms that were kept to those of ∇h now; None where none were."""
        if name not in self._norms:
            return None
        then, now = self._norms[name], _norms(gradient)
        factor = (now[1] / then[1]).nan_to_num(nan=1.0)
        self._note(name, factor, (now[0] / (factor * then[0]) - 1).abs().nan_to_num())
        return factor

    def note_factor(self, name: str, gradient: Tensor) -> None:
        """Takes the factor from the norms that were kept to those of ∇h now, whatever else has changed."""
        if name in self._norms:
            self.note(name, (_norms(gradient)[1] / self._norms[name][1]).nan_to_num(nan=1.0))

    def ratio(self, name: str, then: Tensor, now: Tensor) -> Tensor:
        """From the direction D [m, d] of the gradient that came to that of the gradient now."""
        ratio = (now * then).sum() / then.square().sum()
        apart = (now - ratio * then).norm() / now.norm()
        self._note(name, ratio, torch.where(now.norm() > 0, apart, 0.0))
        return ratio

    def note(self, name: str, factor: Tensor) -> None:
        """Takes a factor for `check`."""
        self._factors[name] = factor

    def _note(self, name: str, factor: Tensor, apart: Tensor) -> None:
        self._factors[name], self._apart[name] = factor, apart

    def check(self, *, unscaled: bool) -> None:
        """Whether all gradients were changed by a factor, if at all.

        Args:
            unscaled: whether factors of a `GradScaler` are refused too.

        Raises:
            InputError: names the layer, or the way out.
        """
        read = zip(self._apart, numbers_in(list(self._apart.values())), strict=True)
        bad = {name: apart for name, apart in read if apart > _APART}
        if bad:
            layer = max(bad, key=lambda name: bad[name])
            raise InputError(
                f"the gradient of layer {layer!r} was changed after its backward pass by more than a factor, "
                "so that the layer-wise rate no longer belongs to it; clip by norm, or use rate='fixed'"
            )
        for factor in self._factors.values() if unscaled else ():
            check_factor(float(factor))


def _norms(gradient: Tensor) -> Tensor:
    """(‖∇h‖₁, ‖∇h‖₂): a factor changes both alike."""
    return torch.stack([gradient.abs().sum(), gradient.norm()])


def check_reduction(factor: float, samples: int, reduction: str) -> None:
    """Finds a loss whose reduction is the other one, from the factor of `loss_factor`: 1/N for a mean.

    Raises:
        InputError: where it fits the other reduction and not the one named.
    """
    factors = {"mean": factor * samples, "sum": factor}
    other = "sum" if reduction == "mean" else "mean"
    if abs(factors[other] - 1) < _REDUCED and abs(factors[reduction] - 1) >= _REDUCED:
        raise InputError(
            f"the loss is the {other} over the batch; give loss_reduction={other!r}, or take its {reduction}"
        )


def check_contributions(
    layer: str, total: Any, whole: Any, size: Any, tolerance: float, least: float
) -> None:
    """Whether Σ_n ⟨D, contribution of sample n⟩ is ⟨D, ∇h⟩, to a tolerance in units of Σ_n |…| + |⟨D, ∇h⟩|.

    Sums below `least` are not looked at.

    Raises:
        InputError: names the layer.
    """
    total, whole, size = float(total), float(whole), float(size)
    if size + abs(whole) < least:  # products that lost their digits, of gradients that are next to nothing
        return
    if abs(total - whole) > tolerance * (size + abs(whole)):
        raise InputError(
            f"the gradient of layer {layer!r} is not made of what came back to its output ({total:.3g} of "
            f"{whole:.3g}): it was kept from an earlier backward pass (call zero_grad() in every step) or "
            "changed since; the loss has a penalty on weights (use weight_decay=) or derivatives of the "
            "model (use rate='fixed' with drawn labels); the weight is used outside its module "
            f"(exclude=({layer!r},)); or a GradScaler was not given as scaler="
        )


def check_factor(factor: float) -> None:
    """Whether gradients were divided by a large power of two since they came, as a `GradScaler` does.

    Raises:
        InputError: with the way out.
    """
    power = -math.log2(factor) if factor > 0 else 0.0
    if power > 6 and abs(power - round(power)) < 1e-4:
        raise InputError(
            f"the gradients were divided by {2 ** round(power)} after their backward pass; give the "
            "GradScaler in use as scaler="
        )


def numbers_in(values: Sequence[Tensor | float]) -> list[float]:
    """The numbers, those of all tensors with one transfer."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    read = iter(torch.stack([t.to(tensors[0].device) for t in tensors]).tolist() if tensors else ())
    return [next(read) if isinstance(value, Tensor) else value for value in values]
