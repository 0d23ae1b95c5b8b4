"""The optimizers that `train` knows by name: those of fisherlab, and those of torch.optim."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fisherlab import optim
from fisherlab.errors import InputError, unknown

_NO = ("LBFGS", "SparseAdam")  # one needs closures, the other sparse gradients
_OF_THE_LOOP = ("model", "params", "scaler", "likelihood", "loss_reduction", "seed", "groups", "batch_dim")


@dataclass(frozen=True)
class NamedOptimizer:
    """A named optimizer.

    Attributes:
        name: as given to `--optimizer`.
        make: the class.
        fixed: arguments that belong to the name.
        description: one line for listings.
        source: a paper, or where it comes from.
    """

    name: str
    make: Callable[..., torch.optim.Optimizer]
    fixed: Mapping[str, Any]
    description: str
    source: str

    @property
    def own(self) -> bool:
        """Whether it is one of fisherlab, which takes the model and its likelihood."""
        return isinstance(self.make, type) and issubclass(self.make, optim.NaturalGradient)

    @property
    def layerwise(self) -> bool:
        """Whether it has a rate a layer by default."""
        return self.options().get("rate") == "layerwise" and "rate" not in self.fixed

    def options(self) -> dict[str, Any]:
        """Its options with their defaults."""
        found = inspect.signature(self.make).parameters
        return {
            name: parameter.default
            for name, parameter in found.items()
            if name not in (*_OF_THE_LOOP, *self.fixed) and parameter.kind != parameter.VAR_KEYWORD
        }


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
    lngd = "Liu et al. 2024 (NeurIPS)"
    own = [
        NamedOptimizer("lngd", optim.LNGD, {}, "layer-wise sampling and rates", f"{lngd}, algorithm 1"),
        NamedOptimizer(
            "lngd-lr", optim.LNGD, {"source": "predictive"}, "rates, gradients of the loss", f"{lngd}, t. 5"
        ),
        NamedOptimizer(
            "lngd-sample", optim.LNGD, {"rate": "fixed"}, "layer-wise sampling, one rate", f"{lngd}, t. 5"
        ),
        NamedOptimizer("kfac", optim.KFAC, {}, "A ⊗ B", "Martens and Grosse 2015 (1503.05671)"),
        NamedOptimizer(
            "ekfac", optim.EKFAC, {}, "rescaled in KFAC's eigenbasis", "George et al. 2018 (1806.03884)"
        ),
        NamedOptimizer(
            "tkfac", optim.TKFAC, {}, "factors that keep the trace", "Gao et al. 2021 (2011.10741)"
        ),
        NamedOptimizer(
            "ngplus", optim.NGPlus, {}, "second moments of gradients", "Yang et al. 2021 (2106.07454)"
        ),
    ]
    return {one.name: one for one in own} | _of_torch()


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
    name: str, model: nn.Module, options: Mapping[str, Any], *, likelihood: Any, seed: int
) -> torch.optim.Optimizer:
    """The optimizer of a model.

    Raises:
        InputError: for a value that it refuses.
    """
    chosen = named_optimizer(name)
    arguments = {**chosen.fixed, **options}
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
