"""Settings that belong together: of the paper, those measured here, and LNGD's on networks without norms."""

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fisherlab.errors import InputError, unknown
from fisherlab.train.config import DEFAULT_EPOCHS, SETTINGS, TrainConfig

if TYPE_CHECKING:
    from torch import nn

    from fisherlab.optim.methods import NamedOptimizer
    from fisherlab.train.task.prepare import Task

log = logging.getLogger("fisherlab")

_COMMON: Mapping[str, Any] = {"batch": 256, "momentum": 0.9, "weight_decay": 0.004}
_POLYNOMIAL: Mapping[str, Any] = {"schedule": "polynomial"}
_SCHEDULES: Mapping[str, Mapping[str, Any]] = {
    "sgd": {"schedule": "cosine", "warm_up_epochs": 5.0},
    "adam": {**_POLYNOMIAL, "warm_up_epochs": 5.0},
    "kfac": {**_POLYNOMIAL, "warm_up_epochs": 5.0},
    "lngd": _POLYNOMIAL,
}
_IMAGENET_EPOCHS = {"sgd": 80, "adam": 80, "kfac": 50, "lngd": 50}

RECIPES: Mapping[str, Mapping[str, Any]] = {
    "paper-cifar10": {
        **_COMMON,
        "model": "cifar-resnet18",
        "data": "cifar10",
        "epochs": 200,
        "schedule": "step",
        "step_every": 40.0,
        "augment": ("crop", "flip"),
    },
    "paper-imagenet": {**_COMMON, "model": "resnet50", "data": "imagenet"},
    "paper-wmt": {**_COMMON, "model": "transformer-small", "data": "wmt"},
    "tuned": {
        "model": "mnist-mlp",
        "batch": 256,
        "epochs": 5,
        "schedule": "polynomial",
        "power": 1.0,
        "warm_up": 118,
        "momentum": 0.9,
        "weight_decay": 0.0,
    },
}
"""What a recipe sets for all optimizers.

`paper-…`: Liu et al. 2024, section 4 and appendix E. Learning rates, KFAC's damping and E of the polynomial
are from grids there and not set here; the paper's model for WMT is Transformer-Big. `tuned`: the protocol of
benchmarks/training.py on MNIST, without weight decay; its linear decay begins at the warm-up's end.
"""

_BY_KIND: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "paper-imagenet": {kind: {**_SCHEDULES[kind], "epochs": _IMAGENET_EPOCHS[kind]} for kind in _SCHEDULES},
    "paper-wmt": _SCHEDULES,
}
"""What else it sets for SGD, for KFAC and its kin, for LNGD and its ablations, and (Adam) for all others."""

IMPORTED: Mapping[str, Mapping[str, Any]] = {
    "muon": {"optimizer": "torch.optim.Muon", "options": {"adjust_lr_fn": "match_rms_adamw"}},
    "soap": {"optimizer": "pytorch_optimizer:SOAP", "options": {"precondition_frequency": 10}},
}
"""How rivals from elsewhere are named and set: Muon's steps with the size of AdamW's (Liu et al. 2025,
2502.16982), so that one learning rate is of both parts; SOAP's basis is new as often as KFAC's inverse."""

_NO_CLIP: Mapping[str, Any] = {"kl_clip": math.inf}
_DECAY: Mapping[str, Any] = {"options": {"decay": 0.95, **_NO_CLIP}}
_FISHER: Mapping[str, Mapping[str, Any]] = {
    "paper-cifar10": {**_DECAY, "statistics_every": 100, "inverse_every": 100},
    "paper-imagenet": {**_DECAY, "statistics_every": 500, "inverse_every": 500},
    "paper-wmt": _DECAY,
    "tuned": {"options": _NO_CLIP},
}
"""What else it sets for the optimizers of fisherlab: T_FIM, T_INV, the moving average, and no KL-clip."""

_NO_NORMS: Mapping[str, Any] = {"lr": 0.3, "damping": (1e-5, 1.0), "warm_up": 100}
_TUNED: Mapping[str, Mapping[str, Any]] = {
    **{name: {"lr": lr} for name, lr in {"sgd": 0.3, "adam": 0.03, "kfac": 0.03, "ekfac": 0.01}.items()},
    **{name: {"lr": 0.03} for name in ("tkfac", "ngplus")},
    "shampoo": {"lr": 0.01},
    **{
        name: {"lr": lr, "damping": (1e-5, 1.0)}
        for name, lr in {"lngd": 0.3, "lngd-lr": 0.1, "lngd-sample": 0.03}.items()
    },
    **{
        name: {"lr": 0.03, "momentum": 0.95, "options": IMPORTED[key]["options"]}
        for name, key in {"muon": "muon", **{one["optimizer"]: key for key, one in IMPORTED.items()}}.items()
    },
}
"""The best learning rates on mnist-mlp: benchmarks/results/training.md, first table."""


def with_recipe(name: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, and what the recipe says of everything else.

    Raises:
        InputError: for an unknown recipe or optimizer, or a model or optimizer that the recipe does not know.
    """
    if name is None:
        return dict(given)
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    from fisherlab.train.optimizers import named_optimizer

    chosen = named_optimizer(given.get("optimizer", TrainConfig(model="").optimizer))
    values = {**RECIPES[name], **_BY_KIND.get(name, {}).get(_kind(chosen), {})}
    if name == "tuned":
        values |= _tuned(chosen.name, given.get("model", values["model"]))
    if chosen.own:
        values |= _FISHER.get(name, {})
    values = {key: value for key, value in values.items() if key not in SETTINGS or key in chosen.options()}
    for one, other in (("steps", "epochs"), ("warm_up", "warm_up_epochs"), ("warm_up_epochs", "warm_up")):
        if one in given:
            values.pop(other, None)
    return {**values, **given, "options": {**values.get("options", {}), **given.get("options", {})}}


def _kind(chosen: "NamedOptimizer") -> str:
    if not chosen.own:
        return "sgd" if chosen.name == "sgd" else "adam"
    return "lngd" if chosen.name.startswith("lngd") else "kfac"


def _tuned(optimizer: str, model: str) -> Mapping[str, Any]:
    if model != RECIPES["tuned"]["model"]:
        raise InputError(
            f"the recipe tuned has been measured on {RECIPES['tuned']['model']} only, not on {model}; find "
            "settings with `fisherlab sweep`"
        )
    if optimizer not in _TUNED:
        raise InputError(
            f"the recipe tuned has been measured with {', '.join(_TUNED)} only, not with {optimizer}; find "
            "settings with `fisherlab sweep`"
        )
    return _TUNED[optimizer]


def fitted(config: TrainConfig, task: "Task") -> TrainConfig:
    """The configuration with LNGD's settings for a network without norms, where none of them is given.

    Args:
        config: not yet resolved.
        task: the network, with the settings of its own recipe, which take the place of the usual ones.
    """
    from fisherlab.base import distributed
    from fisherlab.loop.order import steps_per_epoch
    from fisherlab.train.optimizers import named_optimizer

    plain = all(getattr(config, name) is None for name in (*_NO_NORMS, "warm_up_epochs"))
    if not plain or "max_rate" in config.options:
        return config
    if not named_optimizer(config.optimizer).layerwise or _has_norms(task.model):
        return config
    settings = {**_NO_NORMS, **task.recipe}
    epochs = config.epochs or DEFAULT_EPOCHS
    parts = distributed.size() * config.accumulation
    steps = config.steps or epochs * steps_per_epoch(len(task.train.targets), config.batch, parts)
    if steps < settings["warm_up"]:  # the same slope
        settings |= {"lr": settings["lr"] * steps / settings["warm_up"], "warm_up": steps}
    return replace(config, **settings)


def explain(config: TrainConfig) -> None:
    """Says what `fitted` has set."""
    log.info(
        "the network has no norm layers, so %s starts slowly and with a wide damping: lr %g, damping %s, "
        "warm-up %d steps",
        config.optimizer,
        config.lr,
        config.damping,
        config.warm_up,
    )


def _has_norms(model: "nn.Module") -> bool:
    return any("norm" in type(module).__name__.lower() for module in model.modules())
