"""A walk over a model that says of every parameter in which layer's block it is, or why in none."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from fisherlab.errors import InputError
from fisherlab.layers.adapter import Adapter, adapter_of, class_name, why_unknown
from fisherlab.layers.attention import PARTS, projection
from fisherlab.layers.coverage import Covered
from fisherlab.layers.linear import LINEAR, EmbeddingAdapter
from fisherlab.layers.norm import NormAdapter
from fisherlab.layers.view import LayerView


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


class Finder:
    """Walks a model once and says of every parameter where it belongs."""

    def __init__(self, model: nn.Module, bias: str) -> None:
        self._bias = bias
        self._modules = list(model.named_modules())
        _check_initialised(model)
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

    def find(self) -> tuple[list[LayerView], list[Covered]]:
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
            Covered(name, layer, self._reasons.get(name, ""))
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
        elif parameter.layout != torch.strided:
            self._reasons[name] = "sparse parameters are not supported"
        elif not _alike(owners):
            kinds = " and ".join(dict.fromkeys(class_name(type(o.module)) for o in owners))
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
        elif adapter is None and not _owned_by("", module):
            self._reasons[name] = why_unknown(module, nn.MultiheadAttention)
        else:
            self._reasons[name] = "neither weight nor bias"


def _check_initialised(model: nn.Module) -> None:
    """Refuses a parameter or buffer without a shape (`InputError`)."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise InputError(
                f"{name!r} has no shape yet, as in torch's lazy modules; run the model once on a batch first"
            )


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
