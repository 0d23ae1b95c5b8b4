"""Which parameters have a Fisher block, under which name, and why the others have none."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from torch import nn

from fisherlab.errors import InputError, InputTypeError, unknown
from fisherlab.layers.activation import ACTIVATIONS
from fisherlab.layers.view import LayerView

if TYPE_CHECKING:
    import pandas

BIAS_MODES = ("joint", "separate", "ignore")


@dataclass(frozen=True)
class _Covered:
    parameter: str
    layer: str
    reason: str


class Layers(Mapping[str, LayerView]):
    """The layers of a model that have a Fisher block, by name, in the order of the modules."""

    def __init__(self, views: Iterable[LayerView], parameters: Iterable[_Covered]) -> None:
        self._views = {view.name: view for view in views}
        self._parameters = tuple(parameters)

    def __getitem__(self, name: str) -> LayerView:
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def __repr__(self) -> str:
        rows = [f"  {v.name}: {v.family} {v.outputs}×{v.inputs}" for v in self.values()]
        return "\n".join(["Layers(", *rows, ")"])

    def select(self, names: Iterable[str]) -> "Layers":
        """The layers with these names only; coverage still speaks of every parameter."""
        keep = set(names)
        parameters = [
            _Covered(p.parameter, "", "not selected") if p.layer and p.layer not in keep else p
            for p in self._parameters
        ]
        return Layers((view for name, view in self.items() if name in keep), parameters)

    def with_activations(self, names: Mapping[str, str], reasons: Mapping[str, str]) -> "Layers":
        """The layers with their activations named, and a remark on each in the coverage."""
        views = [v.with_activation(names[v.name]) if v.name in names else v for v in self.values()]
        parameters = [
            _Covered(p.parameter, p.layer, p.reason or reasons.get(p.layer, "")) for p in self._parameters
        ]
        return Layers(views, parameters)

    def coverage(self) -> "pandas.DataFrame":
        """A row a parameter: `parameter, layer, activation, covered, reason`.

        `reason` says why a parameter is in no block, or why a layer's activation is the identity.
        `activation` is empty until it is named or a forward pass has found it
        (`compare(...).layers.coverage()`).
        """
        import pandas

        rows = [
            (p.parameter, p.layer, self._activation(p.layer), p.layer in self._views, p.reason)
            for p in self._parameters
        ]
        return pandas.DataFrame(rows, columns=["parameter", "layer", "activation", "covered", "reason"])

    def _activation(self, layer: str) -> str:
        return (self._views[layer].activation or "") if layer in self._views else ""


def find_layers(
    model: nn.Module,
    include: Iterable[str] = ("*",),
    exclude: Iterable[str] = (),
    *,
    bias: str = "joint",
    activations: Mapping[str, str] | None = None,
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

    Returns:
        A mapping from layer name to its view, with `.coverage()`.

    Raises:
        InputError: for a glob that matches no layer (near names are suggested), an unknown layer or
            activation, or a model without any layer that has a block.
    """
    _check_arguments(model, bias)
    include, exclude = _globs("include", include), _globs("exclude", exclude)
    views: list[LayerView] = []
    parameters: list[_Covered] = []
    owners = _owners(model)
    for module_name, module in model.named_modules():
        own = dict(module.named_parameters(module_name, recurse=False))
        tied = {name for name, parameter in own.items() if len(owners[id(parameter)]) > 1}
        parameters += [
            _Covered(name, "", "tied: also " + ", ".join(owners[id(own[name])] - {name}))
            for name in own
            if name in tied
        ]
        own = {name: parameter for name, parameter in own.items() if name not in tied}
        found, covered = _views_of(module_name, module, own, bias)
        views += found
        parameters += covered
    everything = Layers(views, parameters)
    names = match_names(everything, include)
    names = [n for n in names if not any(fnmatchcase(n, glob) for glob in exclude)]
    chosen = _named_activations(everything.select(names), activations or {})
    if not chosen:
        raise _no_layers(chosen)
    return chosen


def select_layers(
    model: nn.Module,
    layers: "Layers | Iterable[str] | str | None",
    *,
    bias: str = "joint",
    activations: Mapping[str, str] | None = None,
) -> Layers:
    """The `layers=` argument of the public functions: None, names, globs, or layers found before."""
    if isinstance(layers, Layers):
        return _named_activations(layers, activations or {})
    include = ("*",) if layers is None else layers
    return find_layers(model, include, bias=bias, activations=activations)


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


def _check_arguments(model: nn.Module, bias: str) -> None:
    if not isinstance(model, nn.Module):
        raise InputTypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    if bias not in BIAS_MODES:
        raise unknown("bias mode", bias, BIAS_MODES)


def _globs(argument: str, globs: Iterable[str]) -> tuple[str, ...]:
    globs = (globs,) if isinstance(globs, str) else tuple(globs)
    for glob in globs:
        if not isinstance(glob, str):
            raise InputTypeError(f"{argument} takes layer names or globs, not {type(glob).__name__} objects")
    return globs


def _owners(model: nn.Module) -> dict[int, set[str]]:
    """For each parameter, by identity, all of its names."""
    owners: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), set()).add(name)
    return owners


def _views_of(
    module_name: str, module: nn.Module, own: Mapping[str, nn.Parameter], bias: str
) -> tuple[list[LayerView], list[_Covered]]:
    """The blocks of one module and a line on each of its parameters."""
    frozen = {name for name, parameter in own.items() if not parameter.requires_grad}
    covered = [_Covered(name, "", "frozen (requires_grad is False)") for name in sorted(frozen)]
    free = {name.rpartition(".")[2]: name for name in own if name not in frozen}
    # A subclass with a forward of its own may compute anything.
    if not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
        reason = f"{type(module).__name__} is not supported"
        return [], covered + [_Covered(name, "", reason) for name in free.values()]
    extra = [name for short, name in free.items() if short not in ("weight", "bias")]
    covered += [_Covered(name, "", "neither weight nor bias") for name in extra]
    weight, offset = free.get("weight"), free.get("bias")
    if offset is not None and bias == "ignore":
        covered.append(_Covered(offset, "", "biases are ignored"))
        offset = None
    blocks: list[tuple[str, str | None, str | None]] = []
    if bias == "joint" and weight is not None:
        blocks.append((module_name, weight, offset))
    else:
        if weight is not None:
            blocks.append((module_name, weight, None))
        if offset is not None:
            blocks.append((f"{module_name}.bias".lstrip("."), None, offset))
    views = [
        LayerView(
            name=name,
            module_name=module_name,
            module=module,
            weight=w,
            bias=b,
            outputs=module.out_features,
            inputs=(module.in_features if w else 0) + (1 if b else 0),
        )
        for name, w, b in blocks
    ]
    covered += [_Covered(p, view.name, "") for view in views for p in view.parameters]
    return views, covered


def _named_activations(layers: Layers, activations: Mapping[str, str]) -> Layers:
    for layer, activation in activations.items():
        if layer not in layers:
            raise unknown("layer", layer, layers)
        if activation not in ACTIVATIONS:
            raise unknown("activation", activation, ACTIVATIONS)
    return layers.with_activations(activations, dict.fromkeys(activations, "named by the user"))


def _no_layers(chosen: Layers) -> InputError:
    table = chosen.coverage()
    if table.empty:
        return InputError("the model has no parameters; give a model with trainable layers")
    reasons = "; ".join(sorted(set(table["reason"]) - {""}))
    return InputError(f"no layer of the model has a Fisher block ({reasons})")
