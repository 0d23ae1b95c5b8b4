"""Which layers of a model have a Fisher block: by name or glob, with their activations and masks."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from torch import nn

from fisherlab.errors import InputError, InputTypeError, known_name, unknown
from fisherlab.layers.activation import ACTIVATIONS
from fisherlab.layers.coverage import Layers
from fisherlab.layers.finder import Finder
from fisherlab.layers.view import Mask

BIAS_MODES = ("joint", "separate", "ignore")


def find_layers(
    model: nn.Module,
    include: Iterable[str] = ("*",),
    exclude: Iterable[str] = (),
    *,
    bias: str = "joint",
    activations: Mapping[str, str] | None = None,
    masks: Mapping[str, Mask] | None = None,
) -> Layers:
    """The layers of a model that have a Fisher block.

    Args:
        model: any module.
        include: names or globs of `named_modules()` names.
        exclude: names or globs to leave out.
        bias: `joint`: the bias is the last column of the layer's matrix; `separate`: a block of
            its own, named `<layer>.bias`; `ignore`: in no block.
        activations: the activation that follows a layer, by layer name, where the graph is not to be
            asked.
        masks: for names or globs of layers a function from the model's inputs to a bool [n, t], True where
            a position is valid; others, on which the loss does not depend, leave every sum and count.

    Returns:
        A mapping from layer name to its view, with `.coverage()`.

    Raises:
        InputError: for a glob that matches no layer (near names are suggested), an unknown layer or
            activation, or a model without any layer that has a block.
    """
    _check_arguments(model, bias)
    include, exclude = _globs("include", include), _globs("exclude", exclude)
    views, parameters = Finder(model, bias).find()
    everything = _with_masks(Layers(views, parameters), masks or {})
    names = match_names(everything, include)
    names = [n for n in names if not any(fnmatchcase(n, glob) for glob in exclude)]
    chosen = _named_activations(everything.select(names), activations or {})
    if not chosen:
        raise _no_layers(chosen)
    return chosen


def select_layers(
    model: nn.Module,
    layers: Layers | Iterable[str] | str | None,
    *,
    bias: str = "joint",
    activations: Mapping[str, str] | None = None,
    masks: Mapping[str, Mask] | None = None,
) -> Layers:
    """The `layers=` argument of the public functions: None, names, globs, or layers found before.

    Raises:
        InputError: as `find_layers`; for layers that were found on another model.
    """
    if isinstance(layers, Layers):
        _check_arguments(model, bias)
        _check_own(model, layers)
        return _named_activations(layers, activations or {})
    include = ("*",) if layers is None else layers
    return find_layers(model, include, bias=bias, activations=activations, masks=masks)


def match_names(names: Iterable[str], globs: Iterable[str]) -> list[str]:
    """The names that match any glob, in their own order.

    Raises:
        InputError: for a glob that matches none.
    """
    names = list(names)
    for glob in globs:
        if glob != "*" and not any(fnmatchcase(name, glob) for name in names):
            raise unknown("layer", glob, names)
    return [name for name in names if any(fnmatchcase(name, glob) for glob in globs)]


def check_not_compiled(model: nn.Module) -> None:
    """Refuse a model with a compiled module, named in the error (`InputError`)."""
    for name, module in model.named_modules():
        if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            where = f"module {name!r}" if name else "the model"
            raise InputError(f"{where} is compiled, which hides its layers; give it without torch.compile")


def _check_arguments(model: nn.Module, bias: str) -> None:
    if not isinstance(model, nn.Module):
        raise InputTypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    check_not_compiled(model)
    known_name("bias mode", bias, BIAS_MODES)


def _check_own(model: nn.Module, layers: Layers) -> None:
    """Refuses layers of another model (`InputError`): nothing would be seen of their modules' calls."""
    modules, parameters = set(model.modules()), dict(model.named_parameters())
    for name, view in layers.items():
        if not modules.issuperset(view.modules) or not parameters.keys() >= set(view.parameters):
            raise InputError(
                f"layer {name!r} was found on another model; give layers=find_layers(model) of this one"
            )


def _globs(argument: str, globs: Iterable[str]) -> tuple[str, ...]:
    if not isinstance(globs, Iterable):
        raise InputTypeError(f"{argument} takes layer names or globs, not {type(globs).__name__}")
    globs = (globs,) if isinstance(globs, str) else tuple(globs)
    for glob in globs:
        if not isinstance(glob, str):
            raise InputTypeError(f"{argument} takes layer names or globs, not {type(glob).__name__} objects")
    return globs


def _named_activations(layers: Layers, activations: Mapping[str, str]) -> Layers:
    _check_mapping("activations", activations)
    for layer, activation in activations.items():
        if layer not in layers:
            raise unknown("layer", layer, layers)
        known_name("activation", activation, ACTIVATIONS)
    return layers.with_activations(activations, dict.fromkeys(activations, "named by the user"))


def _check_mapping(argument: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise InputTypeError(f"{argument} maps layer names to values, as a dict; not {type(value).__name__}")


def _with_masks(layers: Layers, masks: Mapping[str, Mask]) -> Layers:
    _check_mapping("masks", masks)
    for glob, mask in masks.items():
        if not callable(mask):
            raise InputTypeError(
                f"the mask of {glob!r} is a function of the inputs, not {type(mask).__name__}"
            )
        layers = layers.with_mask(match_names(layers, [glob]), mask)
    return layers


def _no_layers(chosen: Layers) -> InputError:
    table = chosen.coverage()
    if table.empty:
        return InputError("the model has no parameters; give a model with trainable layers")
    reasons = "; ".join(sorted(set(table["reason"]) - {""}))
    return InputError(f"no layer of the model has a Fisher block ({reasons})")
