"""Which layers and parameters step with which settings."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from fisherlab.errors import InputError, unknown
from fisherlab.layers import Layers, LayerView, match_names


def grouped(
    model: nn.Module,
    layers: Layers,
    groups: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    other_lr: float,
) -> list[dict[str, Any]]:
    """Layers with settings of their own, the other layers, and the parameters in no block.

    Raises:
        InputError: for a group without layers, unknown layers or settings, a layer in two groups, or layers
            of one parameter that are not together.
    """
    parameters = dict(model.named_parameters())
    left = dict(layers)
    made: list[dict[str, Any]] = []
    for own in groups:
        if "layers" not in own:
            raise InputError("a group names its layers: {'layers': 'encoder.*', 'lr': 0.01}")
        globs = own["layers"]
        names = match_names(layers, [globs] if isinstance(globs, str) else globs)
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
    covered: dict[str, set[int]] = {}
    for group in made:
        rows = _rows([layers[name] for name in group["layers"]], parameters)
        for name in rows:
            if name in covered or len(rows[name]) < len(parameters[name]):
                raise InputError(
                    f"layers that share the parameter {name!r} are in different groups, or some of them are "
                    "left out; keep them together"
                )
        group["params"] = [parameters[name] for name in rows]
        covered |= rows
    others = [p for name, p in parameters.items() if name not in covered]
    if others:
        made.append({"layers": [], "params": others, "lr": other_lr, "weight_decay": 0.0})
    return made


def _rows(views: Iterable[LayerView], parameters: Mapping[str, nn.Parameter]) -> dict[str, set[int]]:
    """The parameters of some layers, and which of their rows are in a block."""
    found: dict[str, set[int]] = {}
    for view in views:
        for name, rows in ((view.weight, view.rows), (view.bias, view.bias_rows)):
            if name is not None:
                every = range(len(parameters[name]))
                found.setdefault(name, set()).update(every if rows is None else every[rows])
    return found
