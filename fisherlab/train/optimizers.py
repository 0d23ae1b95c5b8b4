"""The optimizers of `train`: those of fisherlab and of torch.optim by name, any other by its import name."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fisherlab import optim
from fisherlab.arguments import Positive, check
from fisherlab.errors import InputError, unknown
from fisherlab.optim.methods import OPTIMIZERS, NamedOptimizer
from fisherlab.train.foreign import ForeignOptimizer, foreign, is_foreign, origin_of
from fisherlab.train.matrices import OTHER_LR, MatricesBesideAdamW, split

log = logging.getLogger("fisherlab")

_NO = ("LBFGS", "SparseAdam")  # one needs closures, the other sparse gradients
_DESCRIPTIONS = {"Muon": "of PyTorch; matrices of hidden layers, AdamW for all else"}
_SHOWN = 4  # names of parameters in a message


def named_optimizer(name: str) -> NamedOptimizer:
    """The optimizer of that name, or of that import name.

    Raises:
        InputError: where there is none.
    """
    known = named_optimizers()
    if is_foreign(name):
        return foreign(name)
    if name not in known:
        raise unknown("optimizer", name, known)
    return known[name]


def named_optimizers() -> dict[str, NamedOptimizer]:
    """All optimizers by name, fisherlab's own first; a name that PyTorch has too means PyTorch's."""
    return {**OPTIMIZERS, **_of_torch()}


def _of_torch() -> dict[str, NamedOptimizer]:
    found: dict[str, NamedOptimizer] = {}
    for name in sorted(dir(torch.optim)):
        kind = getattr(torch.optim, name)
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and name not in _NO:
            if kind is torch.optim.Optimizer:
                continue
            full = f"torch.optim.{name}"
            found[name.lower()] = ForeignOptimizer(
                name.lower(), kind, {}, _DESCRIPTIONS.get(name, "of PyTorch"), full
            )
    return found


def all_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an optimizer: those given, and its own defaults.

    Raises:
        InputError: for an option that the optimizer does not have, or lacks, or a value that it cannot have.
        InputTypeError: for a value of another type.
    """
    chosen = named_optimizer(name)
    options = chosen.options()
    if isinstance(chosen, ForeignOptimizer) and chosen.takes_matrices_only(_known(given, options)):
        options[OTHER_LR] = None
    for option in given:
        if option not in options:
            raise unknown(f"option of {name}", option, options)
    if isinstance(chosen, ForeignOptimizer):
        given = chosen.typed(given)
        if OTHER_LR in given:
            check(OTHER_LR, given[OTHER_LR], Positive)
    return options | dict(given)


def _known(given: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name in options}


def create(
    name: str,
    model: nn.Module,
    options: Mapping[str, Any],
    *,
    likelihood: Any,
    seed: int,
    output: str | None = None,
    inputs: Any = None,
) -> torch.optim.Optimizer:
    """The optimizer of a model.

    Args:
        name: of the optimizer.
        model: on its device.
        options: by name.
        likelihood: for an optimizer of fisherlab.
        seed: likewise.
        output: which of the model's results it reads; likewise.
        inputs: of a few samples; what takes matrices only finds the first and the last layer by them.

    Raises:
        InputError: for a value that it refuses, or an optimizer that cannot train as `train` does.
    """
    chosen = named_optimizer(name)
    if isinstance(chosen, ForeignOptimizer):
        return _foreign(chosen, model, chosen.typed(options), inputs)
    arguments = {**chosen.fixed, **options}
    if output is not None:
        arguments["output"] = output
    try:
        return chosen.make(model, likelihood=likelihood, seed=seed, **arguments)
    except (ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the optimizer {name} refuses its options: {error}") from error


def _foreign(
    chosen: ForeignOptimizer, model: nn.Module, options: Mapping[str, Any], inputs: Any
) -> torch.optim.Optimizer:
    """One that takes parameters, tried first on parameters like those of the model."""
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise InputError("the model has no parameter that is trained")
    device = next(iter(trained.values())).device
    own = _known(options, chosen.options())
    if not chosen.takes_matrices_only(own):
        chosen.check_steps((p.dim() for p in trained.values()), own, device)
        return chosen.make(list(trained.values()), **own)
    chosen.check_steps([2], own, device)
    matrices, others = split(model, inputs, chosen.name)
    log.info("%s takes matrices only: %s by it, %s by AdamW", chosen.name, _listed(matrices), _listed(others))
    first, rest = ([trained[key] for key in keys] for keys in (matrices, others))
    return MatricesBesideAdamW(chosen.make, own, first, rest, options.get(OTHER_LR))


def _listed(names: list[str]) -> str:
    """The first of some names, and how many they are."""
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown


def origin(name: str) -> dict[str, Any]:
    """The class of an optimizer, and where it comes from, as `summary.json` says it."""
    return origin_of(named_optimizer(name).make)


def groups(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[dict[str, Any]]:
    """What each group of parameters gets: the class, its plain settings, and the names of the parameters."""
    names = {id(p): key for key, p in model.named_parameters()}
    parts = optimizer.parts if isinstance(optimizer, MatricesBesideAdamW) else (optimizer,)
    return [
        {"optimizer": type(part).__name__}
        | {key: one for key, one in group.items() if isinstance(one, bool | int | float | str | tuple)}
        | {"parameters": [names[id(p)] for p in group["params"]]}
        for part in parts
        for group in part.param_groups
    ]


def layer_rows(optimizer: torch.optim.Optimizer, *, whole: bool) -> list[dict[str, Any]]:
    """The rates of a fisherlab optimizer, or its whole diagnostics, a row a layer; none of another."""
    if not isinstance(optimizer, optim.NaturalGradient):
        return []
    frame = optimizer.diagnostics() if whole else optimizer.rates()
    return [dict(zip(frame.columns, row, strict=True)) for row in frame.itertuples(index=False)]


def widest(optimizer: torch.optim.Optimizer) -> int:
    """The most rows or columns of a parameter's matrix [m, d]."""
    sizes = [
        size
        for group in optimizer.param_groups
        for p in group["params"]
        if p.dim() > 1
        for size in (p.shape[0], p[0].numel())
    ]
    return max(sizes, default=0)
