"""What an optimizer looks for in a state before it takes it over."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from fisherlab.errors import InputError
from fisherlab.optim.preconditioner import LayerPreconditioner

OWN = "fisherlab"  # the key of what belongs to no parameter


def own_of(state_dict: Any, method: str) -> Mapping[str, Any]:
    """What a state says of the optimizer itself, whose approximation and labels `method` names.

    Raises:
        InputError: where it is no whole state of such an optimizer.
    """
    found = state_dict if isinstance(state_dict, Mapping) else {}
    groups = found.get("param_groups") or [{}]
    own = found.get(OWN) or (groups[0].get(OWN, {}) if isinstance(groups[0], Mapping) else {})
    if own.get("method") != method:
        raise InputError(f"this is the state of another optimizer; one of {method} is needed")
    whole = isinstance(own.get("steps"), int) and isinstance(own.get("generator"), Tensor)
    if not whole or not isinstance(found.get("state"), Mapping):
        raise InputError("this state is damaged: its steps, random state or statistics are missing")
    return own


def left_in(own: Mapping[str, Any], layers: Collection[str]) -> dict[str, str]:
    """The layers that a state says are left out, with the reason.

    Raises:
        InputError: where they are not among these layers.
    """
    left = own.get("left_out", {})
    if not isinstance(left, Mapping) or not all(isinstance(reason, str) for reason in left.values()):
        raise InputError("this state is damaged: the layers that are left out are missing")
    unknown = set(left).difference(layers)
    if unknown:
        raise InputError(f"this is the state of a model with another layer, {min(unknown)!r}")
    return dict(left)


def check_shapes(
    saved: Mapping[Tensor, Mapping[str, Any]], blocks: Mapping[str, LayerPreconditioner], steps: int
) -> None:
    """Whether a state after so many steps is that of these parameters and blocks.

    Raises:
        InputError: names the layer that is missing, damaged, or of another shape.
    """
    seen = set()
    for p, values in saved.items():
        for name, kept in values.get("layers", {}).items():
            block, momentum = blocks.get(name), kept.get("momentum")
            shape = None if block is None else (block.view.outputs, block.view.inputs)
            if block is None or momentum is None or momentum.shape != shape:
                raise InputError(f"layer {name!r} has another shape in this state; load that of this model")
            reason = block.why_not(kept)
            if reason:
                raise InputError(f"the state of layer {name!r} is damaged: {reason}")
            seen.add(name)
        if "momentum" in values and values["momentum"].shape != p.shape:
            raise InputError("a parameter has another shape in this state; load that of this model")
    missing = set(blocks) - seen
    if missing and (seen or steps):
        raise InputError(f"the state has nothing of layer {min(missing)!r}; load a whole one")


def moved_to(value: Any, device: torch.device) -> Any:
    """A copy of a nested state on a device."""
    if isinstance(value, Tensor):
        return value.to(device, copy=True)
    if isinstance(value, dict):
        return {key: moved_to(one, device) for key, one in value.items()}
    return [moved_to(one, device) for one in value] if isinstance(value, list) else value
