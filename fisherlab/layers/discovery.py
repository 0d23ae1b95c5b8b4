"""Which parameters have a Fisher block, under which name, and why the others have none."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING

from torch import nn

from fisherlab.errors import InputError, InputTypeError, unknown
from fisherlab.layers.activation import ACTIVATIONS
from fisherlab.layers.adapter import Adapter, adapter_of
from fisherlab.layers.attention import PARTS, projection
from fisherlab.layers.linear import LINEAR, EmbeddingAdapter
from fisherlab.layers.norm import NormAdapter
from fisherlab.layers.view import LayerView, Mask

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

    def with_mask(self, names: Iterable[str], mask: Mask) -> "Layers":
        """The layers with a mask of the positions of those named."""
        masked = set(names)
        views = [v.with_mask(mask) if v.name in masked else v for v in self.values()]
        return Layers(views, self._parameters)

    def coverage(self) -> "pandas.DataFrame":
        """A row a parameter and layer: `parameter, layer, activation, covered, reason`.

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
    views, parameters = _Finder(model, bias).find()
    everything = _with_masks(Layers(views, parameters), masks or {})
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
    masks: Mapping[str, Mask] | None = None,
) -> Layers:
    """The `layers=` argument of the public functions: None, names, globs, or layers found before."""
    if isinstance(layers, Layers):
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
    if bias not in BIAS_MODES:
        raise unknown("bias mode", bias, BIAS_MODES)


def _globs(argument: str, globs: Iterable[str]) -> tuple[str, ...]:
    globs = (globs,) if isinstance(globs, str) else tuple(globs)
    for glob in globs:
        if not isinstance(glob, str):
            raise InputTypeError(f"{argument} takes layer names or globs, not {type(glob).__name__} objects")
    return globs


@dataclass(frozen=True)
class _Owned:
    """A parameter of a module that an adapter sees, or a part of one."""

    module_name: str
    module: nn.Module
    adapter: Adapter
    role: str  # "weight" or "bias"
    part: str | None = None


def _owned_by(module_name: str, module: nn.Module) -> list[tuple[str, _Owned]]:
    """The short names of a module's parameters that have a place in a block."""
    if isinstance(module, nn.MultiheadAttention) and "forward" not in vars(module):
        found = []
        for part in PARTS if type(module).forward is nn.MultiheadAttention.forward else ():
            weight = projection(module, part)[0]
            owner = partial(_Owned, module_name, module, LINEAR, part=part)
            found += [(weight, owner(role="weight")), ("in_proj_bias", owner(role="bias"))]
        return found
    adapter = adapter_of(module)
    if adapter is None or adapter.refusal(module):
        return []
    return [(role, _Owned(module_name, module, adapter, role)) for role in ("weight", "bias")]


class _Finder:
    """Walks a model once and says of every parameter where it belongs."""

    def __init__(self, model: nn.Module, bias: str) -> None:
        self._bias = bias
        self._modules = list(model.named_modules())
        self._names = {id(p): name for name, p in model.named_parameters()}
        self._attention = _children_of_attention(self._modules)
        self._owners: dict[tuple[int, str | None], list[_Owned]] = {}
        self._strangers: dict[int, list[str]] = {}
        for module_name, module in self._modules:
            owned: dict[str, list[_Owned]] = {}
            for short, owner in _owned_by(module_name, module):
                owned.setdefault(short, []).append(owner)
            for short, parameter in module._parameters.items():
                if parameter is None:
                    continue
                for owner in owned.get(short, []):
                    self._owners.setdefault((id(parameter), owner.part), []).append(owner)
                if short not in owned:
                    self._strangers.setdefault(id(parameter), []).append(_joined(module_name, short))
        self.views: list[LayerView] = []
        self._reasons: dict[str, str] = {}
        self._layers: dict[str, list[str]] = {}

    def find(self) -> tuple[list[LayerView], list[_Covered]]:
        """The blocks in the order of the modules, and a line a parameter."""
        done: set[tuple[int, str | None]] = set()
        for module_name, module in self._modules:
            parts = PARTS if isinstance(module, nn.MultiheadAttention) else (None,)
            for part in parts:
                self._visit(module_name, module, part, done)
            for short, parameter in module._parameters.items():
                if parameter is not None:
                    self._explain(module, short, parameter)
        covered = [
            _Covered(name, layer, self._reasons.get(name, ""))
            for name in self._names.values()
            for layer in self._layers.get(name, [""])
        ]
        return self.views, covered

    def _visit(
        self, module_name: str, module: nn.Module, part: str | None, done: set[tuple[int, str | None]]
    ) -> None:
        own = {o.role: (short, o) for short, o in _owned_by(module_name, module) if o.part == part}
        usable: dict[str, tuple[nn.Parameter, list[_Owned]]] = {}
        for role, (short, _) in own.items():
            parameter = module._parameters.get(short)
            if parameter is not None and (id(parameter), part) not in done and self._free(parameter, part):
                usable[role] = parameter, self._owners[id(parameter), part]
        if self._bias == "ignore" and "bias" in usable:
            self._reasons[self._names[id(usable.pop("bias")[0])]] = "biases are ignored"
        done |= {(id(parameter), part) for parameter, _ in usable.values()}
        base = _joined(module_name, part)
        together = len(usable) == 2 and _modules_of(usable["weight"][1]) == _modules_of(usable["bias"][1])
        if self._bias == "joint" and together:
            self._add(base, part, usable)
            return
        for role, found in usable.items():
            self._add(base if role == "weight" else _joined(base, "bias"), part, {role: found})

    def _free(self, parameter: nn.Parameter, part: str | None) -> bool:
        """Whether a parameter can be in a block; else the reason is noted."""
        name = self._names[id(parameter)]
        owners = self._owners[id(parameter), part]
        strangers = self._strangers.get(id(parameter), [])
        if not parameter.requires_grad:
            self._reasons[name] = "frozen (requires_grad is False)"
        elif strangers:
            self._reasons[name] = "tied: also " + ", ".join(strangers)
        elif parameter.is_complex():
            self._reasons[name] = "complex parameters are not supported"
        elif not _alike(owners):
            kinds = " and ".join(dict.fromkeys(type(o.module).__name__ for o in owners))
            self._reasons[name] = f"tied between {kinds}, which see it in different ways"
        return name not in self._reasons

    def _add(self, name: str, part: str | None, found: dict[str, tuple[nn.Parameter, list[_Owned]]]) -> None:
        owners = next(iter(found.values()))[1]
        first = owners[0]
        view = _view(name, first, {role: self._names[id(p)] for role, (p, _) in found.items()})
        attention = self._attention.get(first.module_name)
        self.views.append(
            replace(
                view,
                modules=tuple(owner.module for owner in owners),
                attention=attention,
                batch_dim=None if attention is None else int(not attention.batch_first),
            )
        )
        for parameter, _ in found.values():
            parameter_name = self._names[id(parameter)]
            self._layers.setdefault(parameter_name, []).append(name)
            if len(owners) > 1:
                others = ", ".join(owner.module_name for owner in owners[1:])
                self._reasons[parameter_name] = f"tied: summed over {others} too"

    def _explain(self, module: nn.Module, short: str, parameter: nn.Parameter) -> None:
        """Why a parameter that no adapter sees is in no block."""
        name = self._names[id(parameter)]
        if name in self._reasons or name in self._layers:
            return
        if not parameter.requires_grad:
            self._reasons[name] = "frozen (requires_grad is False)"
            return
        adapter = adapter_of(module)
        refusal = "" if adapter is None else adapter.refusal(module)
        if refusal:
            self._reasons[name] = refusal
        elif adapter is None and not isinstance(module, nn.MultiheadAttention):
            self._reasons[name] = f"{type(module).__name__} is not supported"
        else:
            self._reasons[name] = "neither weight nor bias"


def _view(name: str, owner: _Owned, parameters: Mapping[str, str]) -> LayerView:
    module, part = owner.module, owner.part
    weight, bias = parameters.get("weight"), parameters.get("bias")
    rows = bias_rows = None
    if part is None:
        outputs, inputs = owner.adapter.shape(module)
        groups = owner.adapter.groups(module) if weight else 1
    else:
        weight_name, rows, bias_rows = projection(module, part)
        outputs, groups = module.embed_dim, 1  # type: ignore[assignment]
        inputs = module.get_parameter(weight_name).shape[1]
    vector = isinstance(owner.adapter, NormAdapter)
    if vector:
        outputs, inputs = outputs * len(parameters), 1
    else:
        inputs = (inputs if weight else 0) + (1 if bias else 0)
    return LayerView(
        name=name,
        outputs=outputs,
        inputs=inputs,
        groups=groups,
        vector=vector,
        one_hot=isinstance(owner.adapter, EmbeddingAdapter),
        module_name=owner.module_name,
        adapter=owner.adapter,
        weight=weight,
        bias=bias,
        rows=rows,
        bias_rows=bias_rows,
        part=part,
    )


def _children_of_attention(modules: Iterable[tuple[str, nn.Module]]) -> dict[str, nn.MultiheadAttention]:
    """The attention module of its own name and of that of its out-projection."""
    found: dict[str, nn.MultiheadAttention] = {}
    for name, module in modules:
        if isinstance(module, nn.MultiheadAttention):
            found[name] = found[_joined(name, "out_proj")] = module
    return found


def _alike(owners: Iterable[_Owned]) -> bool:
    """Whether all of them see the parameter as the same matrix."""
    return len({(type(o.adapter), o.part, o.adapter.groups(o.module)) for o in owners}) == 1


def _modules_of(owners: Iterable[_Owned]) -> list[int]:
    return [id(owner.module) for owner in owners]


def _joined(name: str, last: str | None) -> str:
    return name if last is None else f"{name}.{last}".lstrip(".")


def _named_activations(layers: Layers, activations: Mapping[str, str]) -> Layers:
    for layer, activation in activations.items():
        if layer not in layers:
            raise unknown("layer", layer, layers)
        if activation not in ACTIVATIONS:
            raise unknown("activation", activation, ACTIVATIONS)
    return layers.with_activations(activations, dict.fromkeys(activations, "named by the user"))


def _with_masks(layers: Layers, masks: Mapping[str, Mask]) -> Layers:
    for glob, mask in masks.items():
        layers = layers.with_mask(match_names(layers, [glob]), mask)
    return layers


def _no_layers(chosen: Layers) -> InputError:
    table = chosen.coverage()
    if table.empty:
        return InputError("the model has no parameters; give a model with trainable layers")
    reasons = "; ".join(sorted(set(table["reason"]) - {""}))
    return InputError(f"no layer of the model has a Fisher block ({reasons})")
