"""By which factor gradients were changed between their backward pass and the step: clipping, unscaling."""

import torch
from torch import Tensor

from fisherlab.errors import InputError
from fisherlab.optim.checks import check_factor
from fisherlab.optim.gradients import ParameterMatrices

_APART = 1e-2  # share of a gradient that is no multiple of what came


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
        values = list(self._apart.values())
        read = torch.stack([value.to(values[0].device) for value in values]).tolist() if values else []
        bad = {name: apart for name, apart in zip(self._apart, read, strict=True) if apart > _APART}
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
