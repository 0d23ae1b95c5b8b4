"""Options: their names, types and defaults, said once; their checks; and which layers have which."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from fisherlab.approximations import Approximation, create, registered
from fisherlab.errors import InputError, InputTypeError, unknown
from fisherlab.layers import Layers, LayerView, find_layers, match_names
from fisherlab.layers.discovery import check_not_compiled
from fisherlab.likelihoods import Likelihood

Bounds = tuple[float, float]
P = ParamSpec("P")
O = TypeVar("O")  # noqa: E741
S = TypeVar("S")

_OF_GROUPS = ("lr", "momentum", "weight_decay", "damping", "rate_damping", "max_rate")
_CHOICES = {
    "rate": ("layerwise", "fixed"),
    "source": ("layerwise", "predictive", "empirical"),
    "momentum_on": ("update", "gradient"),
    "loss_reduction": ("mean", "sum"),
    "weight_decay_mode": ("decoupled", "coupled"),
}
_COUNTS = ("statistics_every", "inverse_every", "rate_samples")
_RANGES: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("lr", "other_lr", "max_rate"), ("above 0", lambda value: value > 0)),
    **dict.fromkeys(("weight_decay", "rate_damping"), ("0 or above", lambda value: value >= 0)),
    "kl_clip": ("above 0, or inf for none", lambda value: value > 0),
    **dict.fromkeys(("momentum", "decay"), ("from 0 to below 1", lambda value: 0 <= value < 1)),
}
_ENDLESS = ("kl_clip",)  # may be infinite: what None is in a file
_OLDER = ("method", "options")  # by which classes named their approximation before
_ALIKE = 0.8  # of difflib: one or two letters of a name of ten: a choice
_WHOLE = "a layer's weight must be whole in every process: use DistributedDataParallel"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every optimizer here is made with, see `LNGD`; the order is that of the arguments."""

    model: nn.Module = field(kw_only=False)
    lr: float = 0.03
    momentum: float = 0.9
    weight_decay: float = 0.004
    weight_decay_mode: str = "decoupled"
    decay: float = 0.95
    statistics_every: int = 10
    inverse_every: int = 10
    damping: Any = 0.03
    rate: str = "fixed"
    rate_damping: float = 1e-3
    max_rate: float | None = None
    rate_samples: int | None = None
    kl_clip: float | None = None
    scaler: Any = None
    source: str | None = "predictive"
    momentum_on: str = "update"
    loss_reduction: str = "mean"
    likelihood: str | Likelihood = "categorical"
    other_lr: float | None = None
    include: Iterable[str] = ("*",)
    exclude: Iterable[str] = ()
    groups: Sequence[Mapping[str, Any]] = ()
    batch_dim: int | Mapping[str, int] = 0
    seed: int = 0

    @property
    def settings(self) -> dict[str, Any]:
        """Those that a group may have of its own."""
        return {name: getattr(self, name) for name in _OF_GROUPS}

    @cached_property
    def clip(self) -> float:
        """κ of the KL-clip; infinite: none."""
        return math.inf if self.kl_clip is None else self.kl_clip

    @cached_property
    def layerwise(self) -> bool:
        """Whether every layer has a rate of its own."""
        return self.rate == "layerwise"

    @cached_property
    def of_mean(self) -> bool:
        """Whether the user's loss is a mean over the batch."""
        return self.loss_reduction == "mean"

    @cached_property
    def eager(self) -> bool:
        """Whether D depends on the gradient and the inverse alone, so that it can be made as they come."""
        return self.weight_decay_mode == "decoupled" and self.momentum_on == "update"


@dataclass(frozen=True, kw_only=True)
class AnyOptions(Options):
    """With any approximation, by name or as an instance."""

    approximation: str | Approximation | None = field(default=None, kw_only=False)
    activations: Mapping[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class LossOptions(Options):
    """With labels of the loss; `source` None: the first of those that the method takes."""

    lr: float = field(default=0.03, kw_only=False)
    damping: float = 0.03
    kl_clip: float | None = 1e-3
    source: str | None = None


@dataclass(frozen=True, kw_only=True)
class LNGDOptions(Options):
    """With layer-wise sampling."""

    lr: float = field(default=0.1, kw_only=False)
    damping: Bounds | Mapping[str, Bounds] = (1e-5, 1e-2)
    rate: str = "layerwise"
    kl_clip: float | None = 1e-2
    source: str | None = "layerwise"
    sampling: str | int = "expected"
    activations: Mapping[str, str] | None = None
    last: str = "identity"


def made_with(
    options: Callable[P, O],
) -> Callable[[Callable[[S, O], None]], Callable[Concatenate[S, P], None]]:
    """An `__init__` whose arguments are the fields of a structure of options, which it is given.

    A class attribute with an option's name is its default in the class and those derived from it.
    """

    def decorate(init: Callable[[S, O], None]) -> Callable[Concatenate[S, P], None]:
        @wraps(init)
        def with_options(self: S, *args: P.args, **keywords: P.kwargs) -> None:
            try:
                given = signature_of(type(self), options).bind(*args, **keywords)
            except TypeError as error:
                raise TypeError(f"{type(self).__name__}.__init__() {error}") from None
            given.apply_defaults()
            init(self, options(*given.args, **given.kwargs))

        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        shown = inspect.Signature([own, *inspect.signature(options).parameters.values()])
        vars(with_options).update(__signature__=shown, options=options)
        return with_options

    return decorate


def signature_of(optimizer: type, options: Callable[..., Any]) -> inspect.Signature:
    """The arguments of a class that is made with these options."""
    known = inspect.signature(options)
    parameters = [
        one.replace(default=getattr(optimizer, name, one.default)) for name, one in known.parameters.items()
    ]
    return inspect.Signature(parameters)


def check_attributes(cls: type, options: Callable[..., Any]) -> None:
    """Refuses attributes of a class that look like an option and are none: they would change nothing.

    Raises:
        InputError: with the option that is meant.
    """
    known = inspect.signature(options).parameters
    for name, value in vars(cls).items():
        if name.startswith("_") or name in known or callable(value) or isinstance(value, property):
            continue
        meant = ["approximation"] if name in _OLDER else get_close_matches(name, known, 1, _ALIKE)
        if meant:
            raise InputError(f"{cls.__name__}.{name} is no option of an optimizer; write {meant[0]} = …")


def trainable() -> list[str]:
    """The names of the approximations that training can keep the statistics of."""
    return sorted(name for name, one in registered().items() if not one.from_exact)


def approximation_of(given: str | Approximation | None) -> Approximation:
    """The approximation of a name, or the instance itself, that training can keep the statistics of.

    Raises:
        InputError: where there is none, or one that is made from the exact block.
    """
    able = ", ".join(trainable())
    if given is None:
        raise InputError(
            "NaturalGradient takes an approximation, as its second argument or an attribute of a class that "
            f"derives from it; known: {able}"
        )
    method = create(given)
    if method.from_exact:
        raise InputError(
            f"{method.name} is made from the exact Fisher block, which no training keeps; use another "
            f"approximation: {able}"
        )
    return method


def check_model(model: Any) -> nn.Module:
    """The model itself, taken out of DistributedDataParallel.

    Raises:
        InputTypeError: for parameters, or anything else that is no module.
        InputError: for a compiled or sharded model, or complex parameters or ones with sparse gradients.
    """
    if not isinstance(model, nn.Module):
        raise InputTypeError(
            "a fisherlab optimizer takes the model itself, not its parameters: LNGD(model, lr=0.1)"
        )
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    check_not_compiled(model)
    for name, module in model.named_modules():
        if hasattr(module, "_fsdp_wrapped_module"):
            raise InputError(f"the model is sharded by FullyShardedDataParallel; {_WHOLE}")
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse:
            raise InputError(f"embedding {name!r} has sparse gradients; set sparse=False")
    for name, parameter in model.named_parameters():
        if parameter.is_complex():
            raise InputError(f"parameter {name!r} is complex; split it into real and imaginary parts")
        if hasattr(parameter, "full_tensor"):
            raise InputError(f"parameter {name!r} is a DTensor; {_WHOLE}")
        if parameter.dtype == torch.float16:
            raise InputError(
                f"parameter {name!r} is in float16, which has too few digits for statistics and steps; use "
                "bfloat16, or float32 weights under torch.autocast"
            )
        if parameter.layout != torch.strided:
            raise InputError(f"parameter {name!r} is sparse; make it dense")
    return model


def layers_of(
    model: nn.Module, include: Iterable[str], exclude: Iterable[str], activations: Mapping[str, str] | None
) -> Layers:
    """The layers with a weight matrix; norms and embeddings are left to the step of other parameters."""
    exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)
    match_names([*find_layers(model), *dict(model.named_modules())], exclude)
    found = find_layers(model, include, exclude, activations=activations)
    names = [name for name, view in found.items() if not (view.vector or view.one_hot)]
    if not names:
        raise InputError("no layer of the model has a weight matrix; use an optimizer of torch.optim")
    return found.select(names)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raises `InputError` for a value out of its range."""
    for name, known in _CHOICES.items():
        if name in settings and settings[name] not in known:
            raise unknown(name, str(settings[name]), known)
    for name in _COUNTS:
        value = settings.get(name)
        if value is not None and not (type(value) is int and value > 0):
            raise InputError(f"{name} is {value!r}; give a whole number from 1 on")
    for name, (words, fits) in _RANGES.items():
        value = settings.get(name)
        number = isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)
        finite = number and (math.isfinite(value) or (name in _ENDLESS and value == math.inf))  # type: ignore[arg-type]
        fine = finite and not isinstance(value, bool) and fits(value)
        if value is not None and not fine:
            raise InputError(f"{name} is {value!r}; give a finite number {words}")


def check_batch_dim(batch_dim: Any, layers: Layers) -> int | dict[str, int]:
    """The dimension that counts samples, or those of layers by name and glob, the model's under "".

    Raises:
        InputError: for anything but whole numbers from 0 on, or an unknown layer.
    """
    given = dict(batch_dim) if isinstance(batch_dim, Mapping) else {"": batch_dim}
    for name, dim in given.items():
        if type(dim) is not int or dim < 0 or not isinstance(name, str):
            raise InputError(
                f"batch_dim is {batch_dim!r}; give a whole number from 0 on, or one by layer, as "
                "{'encoder.*': 1}"
            )
    match_names(layers, [name for name in given if name])
    return given if isinstance(batch_dim, Mapping) else batch_dim


def grouped(model: nn.Module, layers: Layers, options: Options) -> list[dict[str, Any]]:
    """Layers with settings of their own, the other layers, and the parameters in no block.

    Raises:
        InputError: for a group without layers, unknown layers or settings, a layer in two groups, or layers
            of one parameter that are not together.
    """
    parameters = dict(model.named_parameters())
    left = dict(layers)
    made: list[dict[str, Any]] = []
    for own in options.groups:
        if "layers" not in own:
            raise InputError("a group names its layers: {'layers': 'encoder.*', 'lr': 0.01}")
        globs = own["layers"]
        names = match_names(layers, [globs] if isinstance(globs, str) else globs)
        for option in own:
            if option not in (*_OF_GROUPS, "layers"):
                raise unknown("group option", option, _OF_GROUPS)
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
        lr = options.lr if options.other_lr is None else options.other_lr
        made.append({"layers": [], "params": others, "lr": lr, "weight_decay": 0.0})
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
