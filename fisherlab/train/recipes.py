"""Settings that belong together: of the paper, and what LNGD needs on networks without norms."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fisherlab.errors import unknown
from fisherlab.train.config import DEFAULT_EPOCHS, TrainConfig

if TYPE_CHECKING:
    from torch import nn

    from fisherlab.train.prepare import Task

log = logging.getLogger("fisherlab")

RECIPES: Mapping[str, Mapping[str, Any]] = {
    "paper-cifar10": {
        "model": "cifar-resnet18",
        "data": "cifar10",
        "batch": 256,
        "epochs": 200,
        "schedule": "step",
        "step_every": 40.0,
        "augment": ("crop", "flip"),
        "momentum": 0.9,
        "weight_decay": 0.004,
    }
}
"""Liu et al. 2024, appendix E: CIFAR-10. Learning rates and KFAC's damping are from a grid there."""

_FISHER: Mapping[str, Mapping[str, Any]] = {
    "paper-cifar10": {"statistics_every": 100, "inverse_every": 100, "options": {"decay": 0.95}}
}
_NO_NORMS: Mapping[str, Any] = {"lr": 0.3, "damping": (1e-5, 1.0), "warm_up": 100}


def with_recipe(name: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, and what the recipe says of everything else.

    Raises:
        InputError: for an unknown recipe or optimizer.
    """
    if name is None:
        return dict(given)
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    from fisherlab.train.optimizers import choice

    chosen = choice(given.get("optimizer", TrainConfig(model="").optimizer))
    known = {"model", "data", "batch", "epochs", "schedule", "step_every", "augment", *chosen.options()}
    values = {key: value for key, value in RECIPES[name].items() if key in known}
    if chosen.own:
        values |= _FISHER[name]
    if "steps" in given:
        values.pop("epochs")
    return {**values, **given, "options": {**values.get("options", {}), **given.get("options", {})}}


def fitted(config: TrainConfig, task: "Task") -> TrainConfig:
    """The configuration with LNGD's settings for a network without norms, where none of them is given.

    Args:
        config: not yet resolved.
        task: the network, with the settings of its own recipe, which take the place of the usual ones.
    """
    from fisherlab.train.optimizers import choice

    plain = all(getattr(config, name) is None for name in (*_NO_NORMS, "warm_up_epochs"))
    if not plain or "max_rate" in config.options:
        return config
    if not choice(config.optimizer).layerwise or _has_norms(task.model):
        return config
    settings = {**_NO_NORMS, **task.recipe}
    epochs = config.epochs or DEFAULT_EPOCHS
    steps = config.steps or epochs * -(-len(task.train.targets) // config.batch)
    if steps < settings["warm_up"]:  # the same slope
        settings |= {"lr": settings["lr"] * steps / settings["warm_up"], "warm_up": steps}
    log.info(
        "the network has no norm layers, so %s starts slowly and with a wide damping: lr %g, damping %s, "
        "warm-up %d steps",
        config.optimizer,
        settings["lr"],
        settings["damping"],
        settings["warm_up"],
    )
    return replace(config, **settings)


def _has_norms(model: "nn.Module") -> bool:
    return any("norm" in type(module).__name__.lower() for module in model.modules())
