"""Layers of which an optimizer can make nothing: they take the step of other parameters, the rest goes on."""

import warnings
from collections.abc import Mapping

from torch import nn

from fisherlab.errors import InputError
from fisherlab.layers import LayerView
from fisherlab.optim.rows import ACT_ON_EACH_OTHER


class PlainLayers:
    """The layers that are left out while training goes on; each stays so for good.

    Args:
        layers: those with a block.
        parameters: of the model by name.
        reasons: by layer why it is left out; it is added to.
    """

    def __init__(
        self,
        layers: Mapping[str, LayerView],
        parameters: Mapping[str, nn.Parameter],
        reasons: dict[str, str],
    ) -> None:
        self._layers, self._parameters, self.reasons = layers, parameters, reasons

    def __contains__(self, name: str) -> bool:
        return name in self.reasons

    def add(self, reasons: Mapping[str, str]) -> list[str]:
        """Leaves layers out, with those that share a parameter with them, and says so in one warning.

        Returns:
            All that are new.

        Raises:
            InputError: where no layer would be left that is trained.
        """
        new = self._with_sharing(reasons)
        every = self.reasons | new
        trained = [
            name
            for name, view in self._layers.items()
            if any(self._parameters[p].requires_grad for p in view.parameters)
        ]
        if every.keys() >= set(trained):
            raise InputError(
                f"no layer is left to be preconditioned: {_said(every)}; use an optimizer of "
                f"torch.optim{_declared(every)}"
            )
        self.reasons.update(new)
        warnings.warn(
            f"{_said(new)}; from now on this is left to the step of other parameters (SGD with momentum), "
            f"as exclude={tuple(new)!r} does from the start{_declared(new)}",
            stacklevel=2,
        )
        return list(new)

    def _with_sharing(self, reasons: Mapping[str, str]) -> dict[str, str]:
        """A parameter takes one step: the layers that share one go together."""
        found = {name: reason for name, reason in reasons.items() if name not in self.reasons}
        waiting = list(found)
        for name in waiting:
            own = set(self._layers[name].parameters)
            for other, view in self._layers.items():
                if other not in found and other not in self.reasons and own & set(view.parameters):
                    found[other] = f"it shares a parameter with {name!r}"
                    waiting.append(other)
        return found


def _said(reasons: Mapping[str, str]) -> str:
    """Every reason once, after the layers that have it."""
    layers: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        layers.setdefault(reason, []).append(repr(name))
    return "; ".join(
        f"layer{'s' * (len(names) > 1)} {', '.join(names)}: {reason}" for reason, names in layers.items()
    )


def _declared(reasons: Mapping[str, str]) -> str:
    """The way to keep layers whose samples act on each other."""
    if ACT_ON_EACH_OTHER not in reasons.values():
        return ""
    return (
        ", or batch_dim={'*': 0}, which takes the first dimension of every layer for that of samples, "
        "untested, where samples act on each other by design"
    )
