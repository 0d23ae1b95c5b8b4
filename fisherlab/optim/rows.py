"""Which rows of a layer's inputs and gradients belong to one sample, found from a few samples of a batch.

Before a module runs with a batch it is called twice with a few of its samples, without a trace: as they
are, and with the first of them replaced by the second; a random column of outputs, zero for some of the
samples, comes back through the first of the two calls. The dimension that counts samples is as long as
there are samples; along it only the rows of the replaced sample change, and nothing comes back to the
silent ones. The same backward says whether Σ_n V_n is the gradient of the layer's parameters.
"""

import copy
import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from fisherlab.base.precision import reference
from fisherlab.collect.agreement import (
    USED_ELSEWHERE,
    agree,
    came_back,
    random_column,
    reaches_silent,
    silent_samples,
)
from fisherlab.collect.batches import is_finite
from fisherlab.collect.hooks import capture, inputs_of, outputs_of, unchanged
from fisherlab.collect.look import random_states
from fisherlab.collect.own_forwards import NOT_OWN, fused_modules, why_not_own
from fisherlab.collect.refusals import node_names, numbers_of
from fisherlab.errors import InputError
from fisherlab.gradients.inputs import Inputs
from fisherlab.gradients.patches import Patches
from fisherlab.layers import LayerCall, LayerView, as_long, evaluated_with_gradients, is_fused, longer
from fisherlab.optim.passes import ForwardPass, tensors_in

ACT_ON_EACH_OTHER = (
    "what it sees of one sample, or what comes back to it, belongs to others too: the samples act on each "
    "other, or lie along none of its dimensions"
)
_MOST = 8  # samples that are looked at
_BY_DATA = re.compile("^(Index|Gather|Scatter|Masked(Scatter|Select)|Sort|Take|PackPadded)")


@dataclass(frozen=True)
class Found:
    """What a look says of a layer.

    Attributes:
        dim: the dimension that counts samples.
        sure: whether anything was seen that tells it from others.
        reason: why the layer's a and g are not those of samples, or of its weight; else empty.
    """

    dim: int
    sure: bool
    reason: str = ""


@dataclass(frozen=True)
class _Calls:
    """A layer's calls, the gradients at their outputs, and those of its parameters."""

    uses: list[LayerCall]
    g: list[Tensor | None]
    by_parameter: dict[str, Tensor | None]

    @property
    def shapes(self) -> list[torch.Size]:
        """Of the outputs."""
        return [use.output.shape for use in self.uses]

    def alike(self, other: "_Calls") -> "tuple[_Calls, _Calls]":
        """Both with as many rows a sample, where calls say which count."""
        pairs = zip((self, other), as_long(self.uses, other.uses), strict=True)
        first, second = (
            replace(
                own,
                uses=uses,
                g=[
                    g if g is None or g.shape == use.output.shape else longer(g, use.output.shape[1])
                    for g, use in zip(own.g, uses, strict=True)
                ],
            )
            for own, uses in pairs
        )
        return first, second


@dataclass(frozen=True)
class _Passes:
    """Both calls of the module in one mode; `silent`: the samples without a column, None: unknown."""

    first: dict[str, _Calls]
    second: dict[str, _Calls]
    silent: Tensor | None
    mixes: bool


@dataclass(frozen=True)
class SampleLook:
    """A look at a few samples of a batch.

    Attributes:
        few: how many.
        samples: N of the batch.
        passes: in evaluation mode, then, for layers that took no part in it, in training mode.
        moves: whether the model moves rows about by what is in them.
        error: what the model raised, in words.
    """

    few: int
    samples: int
    passes: Sequence[_Passes] = ()
    moves: bool = False
    error: str = ""

    def judge(
        self, view: LayerView, declared: int, shapes: Sequence[torch.Size], *, trusted: bool = False
    ) -> Found | None:
        """What it says of a layer; None where the layer took no part.

        Args:
            view: the layer.
            declared: the dimension that is taken to count samples.
            shapes: of its outputs for the whole batch.
            trusted: whether the dimension is not looked at, only the weight.
        """
        passes = next(
            (one for one in self.passes if view.name in one.first and view.name in one.second), None
        )
        if passes is None:
            return None
        first, second = passes.first[view.name].alike(passes.second[view.name])
        if trusted:
            rows = LayerRows(view, first, second, view.sample_dim(declared), self.few, passes.silent)
            return Found(rows.dim, True, self._elsewhere(view, first, rows) if rows.read else "")
        every = _dims(view, first, declared)
        dims = [dim for dim in every if self._counts(first.shapes, shapes, dim)]
        if not dims or (first.shapes != second.shapes):
            texts = _texts([*first.shapes, *second.shapes, *shapes])
            return Found(
                every[0],
                True,
                f"no dimension of its outputs counts samples: {self.few} and {self.samples} of them give the "
                f"shapes {texts}",
            )
        alike = [LayerRows(view, first, second, dim, self.few, passes.silent) for dim in dims]
        fitting = [rows for rows in alike if passes.mixes or rows.fit]
        if not fitting:
            return Found(dims[0], True, ACT_ON_EACH_OTHER)
        telling = [rows for rows in fitting if rows.tell]
        chosen = (telling or fitting)[0]
        reason = self._elsewhere(view, first, chosen)
        return Found(chosen.dim, bool(telling or reason), reason)

    def _elsewhere(self, view: LayerView, first: _Calls, rows: "LayerRows") -> str:
        """Whether the weight acts through other ways than the layer's calls, in words."""
        told = came_back(first.g, first.by_parameter)
        frozen = any(first.by_parameter[p] is None for p in view.parameters)
        return USED_ELSEWHERE if told and not frozen and not rows.give(first.by_parameter) else ""

    def _counts(self, few: Sequence[torch.Size], every: Sequence[torch.Size], dim: int) -> bool:
        """Whether a dimension is as many times as long for the batch as there are samples."""
        if len(few) != len(every):
            return True
        pairs = [(a, b) for a, b in zip(few, every, strict=True) if len(a) > dim and len(b) > dim]
        return all(a[dim] * self.samples == b[dim] * self.few for a, b in pairs)


class LayerRows:
    """A layer's rows in both calls, read along one dimension."""

    def __init__(
        self, view: LayerView, first: _Calls, second: _Calls, dim: int, few: int, silent: Tensor | None
    ) -> None:
        self.dim, self._view, self._calls = dim, view, first
        self.fit = self.tell = self.read = False
        try:
            self._a, self._g = _read(view, first, dim, few)
            other = _read(view, second, dim, few)[0]
            values = _values(view, self._a, first, dim, few), _values(view, other, second, dim, few)
        except (RuntimeError, ValueError, IndexError, TypeError):
            return
        if self._a.shape[:2] != self._g.shape[:2]:
            return
        self.read = True
        changed = _changed(*values)
        self.fit, self.tell = not bool(changed[1:].any()), bool(changed[0])
        if silent is not None:
            self.fit = self.fit and not comes_to_others(self._g, silent)
            self.tell = self.tell or _largest(self._g) > 0

    def give(self, by_parameter: Mapping[str, Tensor | None]) -> bool:
        """Whether Σ g aᵀ is the gradient of the parameters, in the digits of the fewest."""
        gradients = {name: g for name, g in by_parameter.items() if g is not None}
        expected = self._view.to_matrix(gradients)
        outputs = [use.output.dtype for use in self._calls.uses] + [self._g.dtype]
        least = max([*outputs, expected.dtype], key=lambda dtype: torch.finfo(dtype).eps)
        return agree(self._view, self._a, self._g.to(least), expected.to(least))


def look_at(
    module: nn.Module,
    args: tuple[Any, ...],
    keywords: Mapping[str, Any],
    samples: int,
    start: int,
    batch_dim: int,
    layers: Mapping[str, LayerView],
    parameters: Mapping[str, nn.Parameter],
) -> SampleLook:
    """Calls a module twice with a few samples of a batch; nothing is changed by it.

    Args:
        module: the module, with the arguments that it is called with.
        args: its arguments.
        keywords: its keyword arguments.
        samples: N.
        start: the first of the few.
        batch_dim: the dimension of the arguments that counts samples.
        layers: to be looked at.
        parameters: of the model by name.
    """
    few = min(_MOST, max(2, samples - 1))
    chosen = [(start + place) % samples for place in range(few)]
    given = args, dict(keywords)
    as_they_are = _cut(given, samples, batch_dim, chosen)
    replaced = _cut(given, samples, batch_dim, [chosen[1], *chosen[1:]])
    passes: list[_Passes] = []
    moves = False
    seen: set[str] = set()
    for training in (False, True) if module.training else (False,):
        left = {name: view for name, view in layers.items() if name not in seen}
        if not left:
            break
        found = []
        for inputs in (as_they_are, replaced):
            with unchanged(module, full=False):  # both start from one random state
                _prepare(module, training)
                try:
                    found.append(_called(module, inputs, few, left, parameters, batch_dim))
                except Exception as error:  # in words: the exception would hold what it was made of
                    return SampleLook(few, samples, error=f"{type(error).__name__}: {error}")
        if any(one is None for one in found):
            break
        (first, silent, moved), (second, _, _) = (one for one in found if one is not None)
        passes.append(_Passes(first, second, silent, training and has_batch_norm(module)))
        moves = moves or moved
        seen |= first.keys()
    return SampleLook(few, samples, passes, moves)


def require_own_forwards(
    root: nn.Module,
    module: nn.Module,
    args: tuple[Any, ...],
    keywords: Mapping[str, Any],
    layers: Mapping[str, LayerView],
) -> None:
    """Calls a module with its fused modules spelled out, and as they are.

    In training mode too where it is in that; where both draw random numbers then, other outputs tell nothing:
    an adapter may draw its dropout in another order.

    Args:
        root: the model, which names modules.
        module: what is called, with the arguments that follow; nothing is changed by it.
        args: its arguments.
        keywords: its keyword arguments.
        layers: inside.

    Raises:
        InputError: where an adapter gives something else than its module.
    """
    draws: list[dict[nn.Module, bool]] = []
    inside = dict.fromkeys(fused for view in layers.values() for fused in fused_modules(view))

    @contextmanager
    def called(training: bool, full: bool) -> Iterator[list[Tensor]]:
        with unchanged(module, full=full):
            _prepare(module, training, fused=training)
            with _draws_of((module, *inside)) as drawn:
                found = tensors_in(module(*args, **keywords))
            draws.append(drawn)
            yield [t for t in found if t.requires_grad and t.is_floating_point()]

    for training in (False, True) if module.training else (False,):
        for full in (True, False):
            draws.clear()
            try:
                wrong = why_not_own(root, layers, partial(called, training, full))
            except torch.OutOfMemoryError:
                raise
            except Exception:  # it needs the autocast that it is called under, or cannot be evaluated
                continue
            # an adapter may draw in another order than its module, but draws where that does
            if wrong and not (training and draws[0][module] and all(one == draws[0] for one in draws)):
                raise InputError(f"{wrong}: {NOT_OWN}")
            break


@contextmanager
def _draws_of(modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, bool]]:
    """Which of these modules draw random numbers in their calls."""
    drawn = dict.fromkeys(modules, False)
    before: list[list[Any]] = []

    def begins(module: nn.Module, _: Any) -> None:
        before.append(random_states(reference(module).device))

    def ends(module: nn.Module, _: Any, __: Any) -> None:
        drawn[module] |= random_states(reference(module).device) != before.pop()

    with ExitStack() as open_hooks:
        for module in drawn:
            open_hooks.callback(module.register_forward_pre_hook(begins).remove)
            open_hooks.callback(module.register_forward_hook(ends).remove)
        yield drawn


def _cut(value: Any, samples: int, batch_dim: int, rows: list[int]) -> Any:
    """The arguments with these samples; tensors of another size are left as they are."""
    again: Callable[[Any], Any] = lambda part: _cut(part, samples, batch_dim, rows)  # noqa: E731
    if isinstance(value, Tensor):
        chosen = value.detach()
        if value.dim() > batch_dim and value.shape[batch_dim] == samples:
            chosen = chosen.index_select(batch_dim, torch.tensor(rows, device=value.device))
        return chosen.requires_grad_(value.requires_grad)
    if isinstance(value, Mapping):
        found = copy.copy(value)
        for key, part in value.items():
            found[key] = again(part)  # type: ignore[index]
        return found
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(again, value))
    if type(value) in (tuple, list):
        return type(value)(map(again, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found: Any = copy.copy(value)  # type: ignore[no-redef]
        for field in dataclasses.fields(value):
            object.__setattr__(found, field.name, again(getattr(value, field.name)))
        return found
    return value


def _prepare(module: nn.Module, training: bool, *, fused: bool = False) -> None:
    """Training mode where asked for, but without dropout; fused modules keep theirs if said so."""
    module.train(training)
    own = {part for one in module.modules() if is_fused(one) for part in one.modules()}
    for part in module.modules():
        if fused and part in own:
            continue
        if isinstance(part, nn.modules.dropout._DropoutNd) or part in own:
            part.eval()
    evaluated_with_gradients(module)


def has_batch_norm(module: nn.Module) -> bool:
    """Whether samples act on each other in training."""
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())


def _called(
    module: nn.Module,
    given: tuple[tuple[Any, ...], dict[str, Any]],
    few: int,
    layers: Mapping[str, LayerView],
    parameters: Mapping[str, nn.Parameter],
    batch_dim: int,
) -> tuple[dict[str, _Calls], Tensor | None, bool] | None:
    """The layers' calls with what a column comes back as; None where there is nothing to send back."""
    args, keywords = given
    with capture(layers, outputs=False) as seen:
        output = module(*args, **keywords)
    outputs = [t for t in tensors_in(output) if t.requires_grad and t.is_floating_point() and t.numel()]
    seen = {name: calls for name, calls in seen.items() if calls and all(c.output.numel() for c in calls)}
    if not outputs or not seen or not all(map(is_finite, outputs)):
        return None
    silent = silent_samples(few)
    generator = torch.Generator().manual_seed(0)
    ends = [t for t in outputs if _place(t, few, batch_dim) is not None]
    columns = [random_column(t, silent, generator, _place(t, few, batch_dim)) for t in ends or outputs]
    edges = [call.edge for calls in seen.values() for call in calls]
    used = dict.fromkeys(p for name in seen for p in layers[name].parameters)
    trained = [p for p in used if parameters[p].requires_grad]
    places = [*edges, *(parameters[p] for p in trained)]
    # the graph may reach beyond this call, into one that the user still needs
    found = torch.autograd.grad(ends or outputs, places, columns, allow_unused=True, retain_graph=True)
    gradients, by_parameter = iter(found[: len(edges)]), dict(zip(trained, found[len(edges) :], strict=True))
    calls = {
        name: _Calls(
            [call.without_graph() for call in own],
            [next(gradients) for _ in own],
            {p: by_parameter.get(p) for p in layers[name].parameters},
        )
        for name, own in seen.items()
    }
    moves = any(_BY_DATA.search(name) for tensor in outputs for name in node_names(tensor))
    return calls, silent if ends else None, moves


def check_joint(
    name: str, before: Sequence[tuple[ForwardPass, GradientEdge]], outputs: Sequence[Tensor]
) -> None:
    """Whether what comes back from a sample's outputs belongs to its outputs before.

    Args:
        name: of the module that gives the outputs.
        before: the passes that it was called with, and the places of their outputs.
        outputs: those whose first dimension counts samples.

    Raises:
        InputError: where rows are in another order, or lie along another dimension.
    """
    silent = silent_samples(len(outputs[0]))
    generator = torch.Generator().manual_seed(0)
    columns = [random_column(t, silent, generator) for t in outputs]
    edges = [edge for _, edge in before]
    found = torch.autograd.grad(outputs, edges, columns, allow_unused=True, retain_graph=True)
    for (one, _), g in zip(before, found, strict=True):
        if g is not None and g.dim() and len(g) == len(silent) and comes_to_others(g, silent):
            raise InputError(
                f"what module {name!r} makes of one sample comes back to others at the output of "
                f"module {one.end!r}: the rows are in another order or along another dimension; call "
                "both inside one module's forward"
            )


def _place(output: Tensor, few: int, batch_dim: int) -> int | None:
    """The dimension of an output that counts samples, if any does."""
    own = batch_dim if output.dim() > batch_dim + 1 else 0  # [t, n, …], or [n, c] where t is gone
    return own if output.dim() > own and output.shape[own] == few else None


def _dims(view: LayerView, calls: _Calls, declared: int) -> list[int]:
    """The dimensions that may count samples, the one in use first."""
    own = view.sample_dim(declared)
    if view.batch_dim is not None or view.adapter.sample_first:
        return [own]
    most = min(len(shape) for shape in calls.shapes) - 1
    return [own, *(dim for dim in range(most) if dim != own)]


def _read(view: LayerView, calls: _Calls, dim: int, few: int) -> tuple[Inputs | Patches, Tensor]:
    """Inputs a and g [n, t, …] of a few samples."""
    pairs = [
        (use, (use.output.new_zeros(use.output.shape) if g is None else g).unsqueeze(0))
        for use, g in zip(calls.uses, calls.g, strict=True)
    ]
    return inputs_of(view, calls.uses, few, dim), outputs_of(view, pairs, few, dim)[0]


def _values(view: LayerView, a: Inputs | Patches, calls: _Calls, dim: int, few: int) -> Tensor:
    """What tells samples apart in a layer's inputs [n, …]; those of a lone bias are ones."""
    if view.weight is None:
        return torch.cat([view.sample_rows(use.input, few, dim) for use in calls.uses], 1)
    return numbers_of(a)


def _changed(before: Tensor, after: Tensor) -> Tensor:
    """For each sample whether its numbers differ, a bool [n]."""
    if before.shape != after.shape:
        return torch.ones(len(before), dtype=torch.bool)
    if not before.numel():
        return torch.zeros(1, dtype=torch.bool)
    apart = (before.double() - after.double()).abs().flatten(1).amax(1)
    eps = torch.finfo(before.dtype).eps if before.is_floating_point() else 0.0
    return (apart > math.sqrt(eps) * _largest(before)).cpu()


def comes_to_others(g: Tensor, silent: Tensor) -> bool:
    """Whether something comes back to silent samples; g [n, …].

    With more room than in `fisherlab.collect`, for the pass is in the user's precision: g may have come
    through fewer digits (autocast, TF32) than its dtype has.
    """
    return reaches_silent(g, silent, math.sqrt(torch.finfo(g.dtype).eps))


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


def _texts(shapes: Iterable[torch.Size]) -> str:
    return ", ".join(dict.fromkeys(str(list(shape)) for shape in shapes))
