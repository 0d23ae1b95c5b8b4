"""Options: their names, types and defaults, said once; their checks; and which layers have which."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property, wraps
from typing import Annotated, Any, Concatenate, ParamSpec, TypeVar

import torch
from annotated_types import Ge, Gt, Le
from torch import nn

from fisherlab.approximations import Approximation, create, registered, without_matrix
from fisherlab.arguments import (
    Count,
    NotNegative,
    OneOf,
    Positive,
    Seed,
    Share,
    check,
    check_fields,
    expected_fields,
)
from fisherlab.errors import InputError, unknown
from fisherlab.layers import Layers, LayerView, find_layers, match_names
from fisherlab.layers.checks import check_has_numbers, check_not_compiled, check_whole
from fisherlab.likelihoods import Likelihood

Bounds = tuple[float, float] | list[float]
P = ParamSpec("P")
O = TypeVar("O")  # noqa: E741
S = TypeVar("S")

_OF_GROUPS = ("lr", "momentum", "weight_decay", "damping", "rate_damping", "max_rate")
_SOURCES = ("layerwise", "predictive", "empirical")
_PRECISE = (torch.float64, torch.float32, torch.bfloat16)
KLClip = Annotated[float, Gt(0)]  # infinite: what None is in a file
_OLDER = ("method", "options")  # by which classes named their approximation before
_ALIKE = 0.8  # of difflib: one or two letters of a name of ten: a choice
_ITSELF = "a fisherlab optimizer takes the model itself, not its parameters: LNGD(model, lr=0.1)"
_PAIR = "the damping of LNGD is a pair (lowest, highest), or {'input': pair, 'output': pair}"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every optimizer here is made with, see `LNGD`; the order is that of the arguments.

    Raises:
        InputError: for a value out of its range.
        InputTypeError: for a value of another type.
    """

    model: Annotated[nn.Module, _ITSELF] = field(kw_only=False)
    lr: Positive = 0.03
    momentum: Share = 0.9
    weight_decay: NotNegative = 0.004
    weight_decay_mode: Annotated[str, OneOf(("decoupled", "coupled"))] = "decoupled"
    decay: Share = 0.95
    statistics_every: Count = 10
    inverse_every: Count = 10
    damping: Any = 0.03
    root: Annotated[int, Ge(1), Le(2)] = 1
    rate: Annotated[str, OneOf(("layerwise", "fixed"))] = "fixed"
    rate_damping: NotNegative = 1e-3
    max_rate: Positive | None = None
    rate_samples: Count | None = None
    kl_clip: KLClip | None = None
    scaler: Any = None
    source: Annotated[str, OneOf(_SOURCES)] | None = "predictive"
    momentum_on: Annotated[str, OneOf(("update", "gradient"))] = "update"
    loss_reduction: Annotated[str, OneOf(("mean", "sum"))] = "mean"
    likelihood: str | Likelihood = "categorical"
    other_lr: Positive | None = None
    include: Iterable[str] = ("*",)
    exclude: Iterable[str] = ()
    groups: Sequence[Mapping[str, Any]] = ()
    batch_dim: int | Mapping[str, int] = 0
    output: "str | int | Callable[[Any], torch.Tensor] | None" = None
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.root > 1 and not math.isinf(self.clip):
            raise InputError("kl_clip bounds what F̂ says of a step F̂⁻¹∇h; with root=2 give kl_clip=None")

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

    lr: Positive = field(default=0.03, kw_only=False)
    damping: Annotated[float, "it is λ"] = 0.03
    kl_clip: KLClip | None = 1e-3
    source: Annotated[str, OneOf(_SOURCES)] | None = None


@dataclass(frozen=True, kw_only=True)
class LNGDOptions(Options):
    """With layer-wise sampling."""

    lr: Positive = field(default=0.1, kw_only=False)
    damping: Annotated[Bounds | Mapping[str, Bounds], _PAIR] = (1e-5, 1e-2)
    rate: Annotated[str, OneOf(("layerwise", "fixed"))] = "layerwise"
    kl_clip: KLClip | None = 1e-2
    source: Annotated[str, OneOf(_SOURCES)] | None = "layerwise"
    sampling: str | Count = "expected"
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
    if not method.matrix:
        raise InputError(f"{without_matrix(method)}; a preconditioner needs one of: {able}")
    if method.batch:
        raise InputError(
            f"{method.name} with gradients='batch:{method.batch}' is made of whole passes over data; in "
            "training give gradients='sample'"
        )
    if method.from_exact:
        raise InputError(
            f"{method.name} is made from the exact Fisher block, which no training keeps; use another "
            f"approximation: {able}"
        )
    return method


def check_model(model: nn.Module) -> nn.Module:
    """The model itself, taken out of DistributedDataParallel.

    Raises:
        InputError: for a compiled or sharded model, or parameters with sparse gradients.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    check_not_compiled(model)
    check_has_numbers(model)
    check_whole(model)
    for name, module in model.named_modules():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse:
            raise InputError(f"embedding {name!r} has sparse gradients; set sparse=False")
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype not in _PRECISE:
            dtype = str(parameter.dtype).removeprefix("torch.")
            raise InputError(
                f"parameter {name!r} is in {dtype}, which has too few digits for statistics and steps; use "
                "bfloat16, or float32 weights under torch.autocast"
            )
        if parameter.layout != torch.strided:
            raise InputError(f"parameter {name!r} is sparse; make it dense")
    return model


def layers_of(
    model: nn.Module, include: Iterable[str], exclude: Iterable[str], activations: Mapping[str, str] | None
) -> Layers:
    """The layers with a weight matrix that their calls tell of.

    Norms, embeddings and parameters by themselves are left to the step of other parameters.
    """
    found = find_layers(model, include, exclude, activations=activations)
    names = [name for name, view in found.items() if not (view.vector or view.one_hot or view.by_gradients)]
    if not names:
        first = next(iter(found))
        raise InputError(
            "no layer of the model is a matrix that a module's call applies (norms, embeddings and "
            f"parameters by themselves, as {first!r}, are none); use an optimizer of torch.optim"
        )
    return found.select(names)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Compares settings of a group with what an optimizer takes; raises as `Options`."""
    for name in _OF_GROUPS:
        if name in settings:
            check(name, settings[name], expected_fields(Options)[name])


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
                    f"layers that share the parameter {name!r} are in different groups, left out in part, or "
                    "some of its rows are in no layer; keep them together"
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
                own = every[slice(None) if rows is None else rows]
                found.setdefault(name, set()).update((own,) if isinstance(own, int) else own)
    return found
