"""Which layers and parameters step with which settings."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from fisherlab.errors import InputError, unknown
from fisherlab.layers import Layers, match_names


def grouped(
    model: nn.Module,
    layers: Layers,
    groups: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    other_lr: float,
) -> list[dict[str, Any]]:
    """Layers with settings of their own, the other layers, and the parameters in no block.

    Raises:
        InputError: for a group without layers, unknown layers or settings, or a layer in two groups.
    """
    parameters = dict(model.named_parameters())
    left = dict(layers)
    made: list[dict[str, Any]] = []
    for own in groups:
        if "layers" not in own:
            raise InputError("a group names its layers: {'layers': 'encoder.*', 'lr': 0.01}")
        names = match_names(layers, own["layers"])
        for option in own:
            if option not in (*settings, "layers"):
                raise unknown("group option", option, settings)
        taken = [name for name in names if name not in left]
        if taken:
            raise InputError(f"layer {taken[0]!r} is in two groups")
        made.append({**own, "layers": names})
        left = {name: view for name, view in left.items() if name not in names}
    if left:
        made.append({"layers": list(left)})
    for group in made:
        names_of = dict.fromkeys(p for name in group["layers"] for p in layers[name].parameters)
        group["params"] = [parameters[name] for name in names_of]
    covered = {p for view in layers.values() for p in view.parameters}
    others = [p for n, p in parameters.items() if n not in covered and p.requires_grad]
    if others:
        made.append({"layers": [], "params": others, "lr": other_lr, "weight_decay": 0.0})
    return made
