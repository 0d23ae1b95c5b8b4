"""Which layers of a model have a Fisher block, by name or glob, and why its other parameters have none."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Annotated

from torch import nn
from torch.nn.parameter import is_lazy

from fisherlab.arguments import OneOf, check, checked
from fisherlab.errors import InputError, InputTypeError, known_name, unknown
from fisherlab.layers.activation import ACTIVATIONS
from fisherlab.layers.adapter import (
    Adapter,
    adapter_of,
    class_name,
    why_no_gradient,
    why_replaced,
    why_unknown,
)
from fisherlab.layers.checks import check_not_compiled, check_whole, parametrizations_at_rest
from fisherlab.layers.coverage import Covered, Layers
from fisherlab.layers.fused import FusedAdapter, Part, fused_adapter
from fisherlab.layers.linear import EmbeddingAdapter
from fisherlab.layers.norm import NormAdapter
from fisherlab.layers.parameters import made_of, parameter_view, why_no_block
from fisherlab.layers.uses import uses_of
from fisherlab.layers.view import LayerView, Mask

BIAS_MODES = ("joint", "separate", "ignore")
Bias = Annotated[str, OneOf(BIAS_MODES)]


@checked
def find_layers(
    model: nn.Module,
    include: Iterable[str] = ("*",),
    exclude: Iterable[str] = (),
    *,
    bias: Bias = "joint",
    activations: Mapping[str, str] | None = None,
    masks: Mapping[str, Mask] | None = None,
) -> Layers:
    """The layers of a model that have a Fisher block.

    Args:
        model: any module.
        include: names or globs of `named_modules()` names, and of parameters that are blocks by themselves.
        exclude: names or globs to leave out, of layers or of modules with all layers inside.
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
    with parametrizations_at_rest(model):
        views, parameters = _Walk(model, bias).find()
    everything = _with_masks(Layers(views, parameters), masks or {})
    chosen = everything.select(match_names(everything, include))
    if not chosen:
        raise _no_layers(chosen)
    return _named_activations(_without(model, chosen, exclude, everything), activations or {})


def select_layers(
    model: nn.Module,
    layers: Layers | Iterable[str] | str | None,
    exclude: Iterable[str] | str = (),
    *,
    bias: str = "joint",
    activations: Mapping[str, str] | None = None,
    masks: Mapping[str, Mask] | None = None,
) -> Layers:
    """The `layers=` and `exclude=` of the public functions: None, names, globs, or layers found before.

    Raises:
        InputError: as `find_layers`; for layers that were found on another model.
    """
    if isinstance(layers, Layers):
        _check_arguments(model, bias)
        _check_own(model, layers)
        if not layers:
            raise _no_layers(layers)
        chosen = _without(model, layers, _globs("exclude", exclude), layers)
        return _named_activations(chosen, activations or {})
    include = ("*",) if layers is None else layers
    return find_layers(model, include, exclude, bias=bias, activations=activations, masks=masks)


def _without(model: nn.Module, chosen: Layers, exclude: Sequence[str], known: Layers) -> Layers:
    """The layers that `exclude` names neither by themselves nor by a module that they are inside of.

    Raises:
        InputError: for a glob that matches nothing, and where no layer is left.
    """
    in_blocks = {parameter for view in known.values() for parameter in view.parameters}
    others = [name for name, _ in model.named_modules() if name and name not in known]
    free = [name for name, _ in model.named_parameters() if name not in in_blocks]
    named = set(match_names([*known, *others, *free], exclude))
    inside = tuple(f"{name}." for name in others if name in named)
    kept = [name for name in chosen if name not in named and not name.startswith(inside)]
    if not kept:
        raise InputError(
            f"exclude={tuple(exclude)!r} leaves out all of the {len(chosen)} layers; name fewer with exclude="
        )
    return chosen.select(kept, "excluded")


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
    check_not_compiled(model)
    check_whole(model)
    check("bias", bias, Bias)


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


@dataclass(frozen=True)
class _Owned:
    """A parameter of a module that an adapter sees, or a part of one."""

    module_name: str
    module: nn.Module
    adapter: Adapter
    role: str  # "weight" or "bias"
    part: Part | None = None

    @property
    def part_name(self) -> str | None:
        """That of the part; None: the module itself."""
        return None if self.part is None else self.part.name

    @property
    def way(self) -> tuple[object, ...]:
        """How the parameter is seen; those that share it must see it alike."""
        if self.part is None:
            return type(self.adapter), self.adapter.groups(self.module)
        return type(self.adapter), self.part.name, str(self.part.rows), str(self.part.bias_rows)


def _owned_by(module_name: str, module: nn.Module) -> list[tuple[str, _Owned]]:
    """The short names of a module's parameters that have a place in a block."""
    adapter = adapter_of(module)
    if adapter is None or adapter.refusal(module):
        return []
    if isinstance(adapter, Adapter):
        return [(role, _Owned(module_name, module, adapter, role)) for role in ("weight", "bias")]
    parts = adapter.parts(module) if isinstance(adapter, FusedAdapter) else ()
    return [
        (short, _Owned(module_name, module, part.adapter, role, part))
        for part in parts
        for role, short in (("weight", part.weight), ("bias", part.bias))
        if short is not None
    ]


class _Walk:
    """A walk over a model that says of every parameter in which layer's block it is, or why in none."""

    def __init__(self, model: nn.Module, bias: str) -> None:
        self._bias = bias
        self._modules = list(model.named_modules())
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if is_lazy(tensor):
                raise InputError(
                    f"{name!r} has no shape yet, as in torch's lazy modules; run the model once on a batch "
                    "first"
                )
        self._names = {id(p): name for name, p in model.named_parameters()}
        # the fused module of its own name and of those of the modules inside that only it calls
        self._fused: dict[str, nn.Module] = {}
        self._owners: dict[tuple[int, str | None], list[_Owned]] = {}
        self._strangers: set[int] = set()
        self._holders: dict[int, list[tuple[str, nn.Module]]] = {}
        for module_name, module in self._modules:
            fused = fused_adapter(module)
            if fused is not None and not fused.refusal(module):
                inside = (None, *fused.children)
                self._fused |= dict.fromkeys((_joined(module_name, child) for child in inside), module)
            owned: dict[str, list[_Owned]] = {}
            for short, owner in _owned_by(module_name, module):
                owned.setdefault(short, []).append(owner)
            for short, parameter in module._parameters.items():
                if parameter is None:
                    continue
                place = _joined(module_name, short), module
                self._holders.setdefault(id(parameter), []).append(place)
                for owner in owned.get(short, []):
                    self._owners.setdefault((id(parameter), owner.part_name), []).append(owner)
                if short not in owned:
                    self._strangers.add(id(parameter))
        self.views: list[LayerView] = []
        self._reasons: dict[str, str] = {}
        self._layers: dict[str, list[str]] = {}

    def find(self) -> tuple[list[LayerView], list[Covered]]:
        """The blocks in the order of the modules, and a line a parameter."""
        done: set[tuple[int, str | None]] = set()
        for module_name, module in self._modules:
            owned = _owned_by(module_name, module)
            for part in dict.fromkeys(owner.part_name for _, owner in owned):
                own = {o.role: (short, o) for short, o in owned if o.part_name == part}
                self._visit(module_name, module, part, own, done)
            for short, parameter in module._parameters.items():
                if parameter is not None:
                    self._by_itself(module_name, module, short, parameter)
        covered = [
            Covered(name, layer, self._reasons.get(name, ""))
            for name in self._names.values()
            for layer in self._layers.get(name, [""])
        ]
        return self.views, covered

    def _visit(
        self,
        module_name: str,
        module: nn.Module,
        part: str | None,
        own: Mapping[str, tuple[str, _Owned]],
        done: set[tuple[int, str | None]],
    ) -> None:
        usable: dict[str, tuple[nn.Parameter, list[_Owned]]] = {}
        for role, (short, _) in own.items():
            parameter = module._parameters.get(short)
            if parameter is not None and (id(parameter), part) not in done and self._free(parameter, part):
                usable[role] = parameter, self._owners[id(parameter), part]
        if self._bias == "ignore" and "bias" in usable:
            self._reasons[self._names[id(usable.pop("bias")[0])]] = "biases are ignored"
        done |= {(id(parameter), part) for parameter, _ in usable.values()}
        base = _joined(module_name, part)
        modules = [[id(owner.module) for owner in owners] for _, owners in usable.values()]
        if self._bias == "joint" and len(usable) == 2 and modules[0] == modules[1]:
            self._add(base, usable)
            return
        for role, found in usable.items():
            self._add(base if role == "weight" else _joined(base, "bias"), {role: found})

    def _free(self, parameter: nn.Parameter, part: str | None) -> bool:
        """Whether a parameter can be in a block that calls tell of; why it is in none at all is noted."""
        if reason := why_no_block(parameter):
            self._reasons[self._names[id(parameter)]] = reason
        ways = {owner.way for owner in self._owners[id(parameter), part]}
        return not reason and len(ways) == 1 and id(parameter) not in self._strangers

    def _add(self, name: str, found: dict[str, tuple[nn.Parameter, list[_Owned]]]) -> None:
        owners = next(iter(found.values()))[1]
        parameters = {role: self._names[id(p)] for role, (p, _) in found.items()}
        self.views.append(_view(name, owners, parameters, self._fused.get(owners[0].module_name)))
        for parameter, _ in found.values():
            parameter_name = self._names[id(parameter)]
            self._layers.setdefault(parameter_name, []).append(name)
            if len(owners) > 1:
                others = ", ".join(owner.module_name for owner in owners[1:])
                self._reasons[parameter_name] = f"tied: summed over {others} too"

    def _by_itself(self, module_name: str, module: nn.Module, short: str, parameter: nn.Parameter) -> None:
        """The block of a parameter that no calls tell of, by the samples' gradients; or why it has none."""
        name = self._names[id(parameter)]
        if name in self._reasons or name in self._layers:
            return
        holders = self._holders[id(parameter)]
        no_gradient = next(filter(None, (why_no_gradient(holder) for _, holder in holders)), "")
        if reason := why_no_block(parameter) or no_gradient or why_replaced(module):
            self._reasons[name] = reason
            return
        owners = self._owners.get((id(parameter), None), [])
        if owners:
            role, base = owners[0].role, owners[0].module_name
            if role == "bias" and self._bias == "ignore":
                self._reasons[name] = "biases are ignored"
                return
            # of the ways to see it the one of fewest inputs, each of which is a position
            owners = sorted(owners, key=lambda owner: owner.adapter.shape(owner.module)[1])
            view = _view(base if role == "weight" else _joined(base, role), owners, {role: name}, None)
        else:
            view = parameter_view(name, parameter, module_name, module)
        if len(holders) > 1:
            reason = "tied between " + " and ".join(f"{n} ({class_name(type(m))})" for n, m in holders)
        self._reasons[name] = reason or self._why_by_itself(module, short)
        view = replace(view.made_of_gradients(), why_by_gradients=self._reasons[name])
        if len(holders) == len(owners) > 1:
            own = [_view(view.name, [owner], {owner.role: name}, None) for owner in owners]
            view = replace(view, uses=uses_of(view, parameter, own))
        self.views.append(view)
        self._layers[name] = [view.name]

    def _why_by_itself(self, module: nn.Module, short: str) -> str:
        """Why a parameter of one module is in a block by itself."""
        adapter = adapter_of(module)
        reason = made_of(module, short) or ("" if adapter is None else adapter.refusal(module))
        if not reason and adapter is None:
            reason = why_unknown(module)
        return reason or "neither weight nor bias"


def _view(
    name: str,
    owners: Sequence[_Owned],
    parameters: Mapping[str, str],
    fused: nn.Module | None,
) -> LayerView:
    owner = owners[0]
    module, part = owner.module, owner.part
    weight, bias = parameters.get("weight"), parameters.get("bias")
    if part is None:
        outputs, inputs = owner.adapter.shape(module)
        groups = owner.adapter.groups(module) if weight else 1
    else:
        (outputs, inputs), groups = part.shape(module), 1
    adapter = None if fused is None else fused_adapter(fused)
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
        modules=tuple(each.module for each in owners),
        adapter=owner.adapter,
        weight=weight,
        bias=bias,
        rows=None if part is None else part.rows,
        bias_rows=None if part is None else part.bias_rows,
        part=owner.part_name,
        fused=fused,
        batch_dim=None if adapter is None or fused is None else adapter.batch_dim(fused),
    )


def _joined(name: str, last: str | None) -> str:
    return f"{name}.{last}".lstrip(".") if last else name
