"""The optimizers that `train` knows by name: those of fisherlab, and those of torch.optim."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fisherlab import optim
from fisherlab.errors import InputError, unknown
from fisherlab.optim.methods import OPTIMIZERS, NamedOptimizer

_NO = ("LBFGS", "SparseAdam")  # one needs closures, the other sparse gradients


def named_optimizer(name: str) -> NamedOptimizer:
    """The optimizer of that name.

    Raises:
        InputError: where there is none.
    """
    known = named_optimizers()
    if name not in known:
        raise unknown("optimizer", name, known)
    return known[name]


def named_optimizers() -> dict[str, NamedOptimizer]:
    """All optimizers by name, fisherlab's own first."""
    return {**OPTIMIZERS, **_of_torch()}


def _of_torch() -> dict[str, NamedOptimizer]:
    found = {}
    for name in sorted(dir(torch.optim)):
        kind = getattr(torch.optim, name)
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and name not in _NO:
            if kind is torch.optim.Optimizer:
                continue
            found[name.lower()] = NamedOptimizer(name.lower(), kind, {}, "of PyTorch", f"torch.optim.{name}")
    return found


def all_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an optimizer: those given, and its own defaults.

    Raises:
        InputError: for an option that the optimizer does not have.
    """
    options = named_optimizer(name).options()
    for option in given:
        if option not in options:
            raise unknown(f"option of {name}", option, options)
    return options | dict(given)


def create(
    name: str,
    model: nn.Module,
    options: Mapping[str, Any],
    *,
    likelihood: Any,
    seed: int,
    output: str | None = None,
) -> torch.optim.Optimizer:
    """The optimizer of a model.

    Raises:
        InputError: for a value that it refuses.
    """
    chosen = named_optimizer(name)
    arguments = {**chosen.fixed, **options}
    if chosen.own and output is not None:
        arguments["output"] = output
    try:
        if chosen.own:
            return chosen.make(model, likelihood=likelihood, seed=seed, **arguments)
        parameters = [p for p in model.parameters() if p.requires_grad]
        return chosen.make(parameters, **arguments)
    except (ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the optimizer {name} refuses its options: {error}") from error


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
