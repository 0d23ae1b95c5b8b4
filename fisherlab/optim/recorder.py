"""What an optimizer sees of training: the inputs and gradients of layers, from the passes that happen anyway.

Every module with layers in it may be the one that is called: the outermost opens the hooks of its layers
while it runs with gradients enabled, in training or evaluation mode. Calls under no_grad, those inside a
backward pass (the second forward of activation checkpointing) and those under a transform of torch.func add
nothing. Modules that are called one after another, each with what the other gave, are one pass. Gradients
come to the outputs by hooks on the graph, with the user's own backward; a pass counts when gradients of
parameters arrive in a backward pass through it.
"""

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from fisherlab.base import distributed
from fisherlab.collect.hooks import (
    backward_one_by_one,
    capture,
    drawn_layerwise,
    inputs_of,
    is_looked_at,
    layerwise_slope,
    outputs_of,
)
from fisherlab.collect.layer_batch import LayerBatch
from fisherlab.errors import InputError
from fisherlab.layers import LayerCall, Layers, activations_from, nodes_behind
from fisherlab.likelihoods import Likelihood, label_columns
from fisherlab.likelihoods.draws import normal
from fisherlab.likelihoods.labels import LabelKind
from fisherlab.optim.block import KeptCall, Observation
from fisherlab.optim.dims import SampleDims
from fisherlab.optim.hooks import Hook, removed_with, weakly
from fisherlab.optim.passes import (
    ForwardPass,
    Mark,
    current_backward,
    identity,
    is_compiled,
    is_transformed,
    listen,
    metadata,
    situation,
)
from fisherlab.optim.rows import Look, column_at, has_batch_norm, is_any, silent_samples, tensors_in

_NO_TENSOR = "the model is called without a tensor whose first dimension could count samples"


class TrainingTap:
    """Follows a model through training.

    Args:
        model: the root module.
        layers: the layers with a block.
        likelihood: what the output means.
        batch_dim: the dimension that counts samples, of the model's inputs and of layers'; or by layer (names
            and globs), which is taken as it is, the model's own under the empty name.
        kind: the labels of the statistics.
        generator: source of drawn labels.
        scaled: whether a `GradScaler` is known.
        due: whether the next step refreshes statistics of one of these layers.
        listens: whether gradients of outputs are wanted, given `due`.
        opened: is told when a forward pass begins.
        observe: is given a layer's `LayerBatch` where statistics are due, and what other passes observed.
        began: is told when a backward pass through a forward pass begins.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers,
        likelihood: Likelihood,
        batch_dim: int | Mapping[str, int],
        kind: LabelKind,
        generator: torch.Generator,
        scaled: bool,
        due: Callable[[Iterable[str]], bool],
        listens: Callable[[bool], bool],
        opened: Callable[[], None],
        observe: Callable[[str, LayerBatch, Iterable[Observation]], Observation],
        began: Callable[[], None],
    ) -> None:
        self._layers, self._likelihood = layers, likelihood
        self._kind, self._generator = kind, generator
        self._due, self._listens, self._opened = due, listens, opened
        self._observe, self._began = observe, began
        self._passes: list[weakref.ref[ForwardPass]] = []
        self._begun: list[weakref.ref[ForwardPass]] = []
        self.checks = True
        self._owned = {
            name: [model.get_parameter(p) for p in view.parameters] for name, view in layers.items()
        }
        self._dims = SampleDims(layers, dict(model.named_parameters()), batch_dim)
        self.dims = self._dims.by_layer
        self._scaled = scaled
        self._key = f"fisherlab {id(self)}"
        self._open_now = False
        self._ends: dict[str, str] = {}
        self._drawn_from: Tensor | None = None
        self._joints: set[tuple[str, ...]] = set()
        self._groups = 0
        self._kin: dict[int, dict[tuple[int, ...], weakref.ref[Tensor]]] = {}
        self._marks = 0
        self._met: dict[int, str] = {}
        self._follow(model)

    def _follow(self, model: nn.Module) -> None:
        """Hooks on every module with layers in it."""
        self._inside: dict[int, list[str]] = {}
        self._names: dict[int, str] = {}
        self._is_layer = {
            id(module)
            for view in self._layers.values()
            for module in (*view.modules, view.attention)
            if module is not None
        }
        parts = {name: {id(m) for m in view.modules} for name, view in self._layers.items()}
        handles = []
        for path, module in model.named_modules():
            own = {id(part) for part in module.modules()}
            names = [name for name, modules in parts.items() if modules & own]
            if names:
                self._inside[id(module)], self._names[id(module)] = names, path
                handles.append(module.register_forward_pre_hook(Hook(self._open), with_kwargs=True))
        removed_with(self, handles)

    # --- what came ----------------------------------------------------------------------------------

    def begun(self, backward: int) -> "list[ForwardPass]":
        """The passes that a backward pass has reached and that were not asked for yet."""
        if not self._begun:
            return []
        alive = [one for one in (ref() for ref in self._begun) if one is not None]
        self._begun = [weakref.ref(one) for one in alive if one.backward != backward]
        return [one for one in alive if one.backward == backward]

    def came_back(self, name: str, backward: int) -> "list[ForwardPass]":
        """The passes whose gradients came to a layer in this backward pass and were not used yet."""
        return [
            one
            for one in self._alive()
            if one.counted is not None and any(call.came_in(backward) for call in one.layers.get(name, ()))
        ]

    def count(self, one: ForwardPass) -> dict[str, list[Observation]]:
        """What a pass that counts says of statistics; the random state goes on from it.

        Raises:
            InputError: where labels of a layer are drawn at the outputs of different modules.
        """
        if one.samples is None:
            raise InputError(_NO_TENSOR)
        if self._kind == "drawn":
            for name in one.observed:
                end = self._ends.setdefault(name, one.end)
                if end != one.end:
                    raise InputError(
                        f"layer {name!r} is part of passes that end in module {end!r} and in {one.end!r}: "
                        "labels can be drawn from one output only; use source='empirical', or call the "
                        "whole model"
                    )
        if one.after is not None:
            self._drawn_from = self._generator.get_state() if self._drawn_from is None else self._drawn_from
            self._generator.set_state(one.after)
        one.let_go()
        return {name: [observation for _, observation in kept] for name, kept in one.observed.items()}

    def take_back(self) -> None:
        """The random state as it was before the passes that counted since the last step."""
        if self._drawn_from is not None:
            self._generator.set_state(self._drawn_from)
        self._drawn_from = None

    def forget(self) -> None:
        """Every pass so far; one that comes back later has no statistics any more."""
        for one in self._alive():
            one.spent = one.spent or bool(one.observed)
            one.observed, one.counted = {}, None
            one.layers.clear()
            one.let_go()
        self._passes.clear()
        self._begun.clear()
        self._met.clear()
        self._kin.clear()
        self._drawn_from = None

    def why_unseen(self, name: str) -> str:
        """Why a layer's gradient came without a call that was seen."""
        view = self._layers[name]
        met = [self._met[id(m)] for m in (*view.modules, view.attention) if id(m) in self._met]
        if "backward" in met:
            return (
                "its module was called without gradients and again in the backward pass, as reentrant "
                "activation checkpointing does: give checkpoint(..., use_reentrant=False)"
            )
        if "no_grad" in met:
            return "its module was called under no_grad"
        if view.attention is not None and met:
            return "its attention module was called by itself: call a module that has it inside"
        if met:
            return "the call of its module was not part of the pass that the gradient came through"
        return (
            "its module was not called since the last step: its weight is used outside the module, which has "
            "to be called itself, or the module was replaced or compiled after the optimizer was made"
        )

    def dtype_of(self, name: str) -> torch.dtype:
        """That of a layer's statistics: float32, or its weights' where they have more digits."""
        return torch.promote_types(self._owned[name][0].dtype, torch.float32)

    def batch(self, name: str, calls: list[KeptCall], samples: int, g: Mapping[str, Tensor]) -> LayerBatch:
        """A layer's inputs, made when they are asked for, with g."""
        view, dtype, dim = self._layers[name], self.dtype_of(name), self.dims[name]
        uses = [LayerCall(call.use.input.to(dtype), call.use.output) for call in calls]
        return LayerBatch(0, lambda: inputs_of(view, uses, samples, dim), g, view.groups)

    def gradients(self, name: str, calls: list[KeptCall], samples: int, scale: float) -> Tensor:
        """What came back to a layer's outputs, times a number, as g [1, n, t, m]."""
        view, dtype = self._layers[name], self.dtype_of(name)
        pairs = [(call.use, call.g.unsqueeze(0).to(dtype)) for call in calls if call.g is not None]
        g = outputs_of(view, pairs, samples, self.dims[name])
        return g if scale == 1 else g * scale

    def _alive(self) -> "list[ForwardPass]":
        return [one for one in (ref() for ref in self._passes) if one is not None]

    # --- a forward pass ---------------------------------------------------------------------------

    def _open(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if is_compiled():
            raise InputError(
                "the model was compiled after the optimizer was made, which hides its layers; train it "
                "without torch.compile"
            )
        if is_transformed() or is_looked_at():
            return
        if id(module) in self._is_layer:
            self._met[id(module)] = situation()
        if self._open_now or situation() != "seen":
            return
        first = next(module.parameters())
        if first.dtype == torch.float16:
            raise InputError(
                "the model has weights in float16 now, too few digits for statistics and steps; use "
                "bfloat16, or float32 weights under torch.autocast"
            )
        if not self._scaled and _half_precision(first.device.type):
            raise InputError(
                "the model runs in float16, whose gradients are scaled; give the GradScaler in use as "
                "scaler=, or use bfloat16"
            )
        self._opened()
        self._open_now = True
        look = self._dims.look(module, self._inside[id(module)], args, kwargs)
        stack = ExitStack()
        seen = stack.enter_context(capture(self._trained(module), outputs=False))
        finish = weakly(self._finish)

        def done(module: nn.Module, args: tuple[Any, ...], *rest: Any) -> None:
            kwargs, output = rest if len(rest) == 2 else ({}, rest[0])  # after a failure, without them
            if is_looked_at():  # another optimizer's look in the middle of this pass
                return
            handle.remove()
            stack.close()
            try:
                if output is not None:
                    finish(module, args, kwargs, seen, output, look)
            finally:
                self._open_now = False

        handle = module.register_forward_hook(done, always_call=True, with_kwargs=True)

    def _trained(self, module: nn.Module) -> Layers:
        """The layers in a module that are not frozen now."""
        inside = self._inside[id(module)]
        names = [name for name in inside if any(p.requires_grad for p in self._owned[name])]
        return self._layers if len(names) == len(self._layers) else self._layers.select(names)

    def _finish(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        seen: Mapping[str, list[LayerCall]],
        output: Any,
        look: Look | None,
    ) -> None:
        outputs = [t for t in tensors_in(output) if t.requires_grad]
        if not outputs:
            return
        used = {name: [call for call in calls if call.output.numel()] for name, calls in seen.items()}
        taken = {name: calls for name, calls in used.items() if calls}
        given = tensors_in((args, kwargs))
        samples = self._dims.count(given, outputs)
        if samples is not None:
            self._dims.settle(module, args, kwargs, samples, taken, look)
        before = self._earlier(given)
        earlier = list(dict.fromkeys(one for one, _ in before))
        refresh = self._due(taken) or any(one.refresh for one in earlier)
        layers = {name: [KeptCall(call.without_graph()) for call in calls] for name, calls in taken.items()}
        kin = [t for t in (*given, *outputs) if t.dim() and len(t) == samples] or outputs
        record = ForwardPass(
            samples,
            frozenset(layers),
            layers,
            refresh,
            self._names[id(module)],
            self._group_of(kin),
            before=self._random_state(),
        )
        listens, forward = self._listens(refresh), refresh and self._kind != "empirical"
        for name, calls in taken.items():
            for call, kept in zip(calls, layers[name], strict=True):
                if listens:
                    listen(call.edge, kept.slot)
                if forward:
                    record.marks.append(self._mark(name, call, kept))
        if earlier:
            self._check_joint(module, before, outputs)
            record = self._joined(record, earlier)
        if forward and record.samples is not None:
            if earlier:
                taken, layers = self._marked(outputs)
                self._drop_observed(record, layers)
            with torch.autocast(outputs[0].device.type, enabled=False):
                if self._kind.layerwise:
                    self._layerwise(record, taken, layers, outputs)
                else:
                    self._drawn(record, taken, layers, output)
        if not listens:
            record.layers.clear()
        if self.checks and isinstance(output, Tensor):
            record.outputs = output.detach()
        for tensor in outputs:
            tensor.register_hook(Hook(self._begins, record))
            metadata(tensor.grad_fn).setdefault(self._key, {})[tensor.output_nr] = record
        self._passes = [ref for ref in self._passes if ref() is not None and ref() is not record]
        self._passes.append(weakref.ref(record))

    def _begins(self, record: ForwardPass, g: Tensor) -> None:
        """A backward pass has reached the outputs of a forward pass."""
        record, backward = record.whole, current_backward()
        if record.outputs is not None and record.outputs.shape == g.shape:
            record.output_gradient = g.detach()
        if record.backward != backward:
            record.backward = backward
            if all(ref() is not record for ref in self._begun):
                self._begun.append(weakref.ref(record))
            self._began()

    # --- passes of several modules --------------------------------------------------------------------

    def _group_of(self, kin: Sequence[Tensor]) -> int:
        """That of a pass that came in, or gave, one of these tensors or an alias of it; else a new one."""
        own = {identity(t): weakref.ref(t) for t in kin if t.dim() and t.numel()}
        alive = {
            group: {key: ref for key, ref in known.items() if ref() is not None}
            for group, known in self._kin.items()
        }
        self._kin = {group: known for group, known in alive.items() if known}
        found = next((group for group, known in self._kin.items() if known.keys() & own.keys()), None)
        if found is None:
            self._groups += 1
            found = self._groups
        self._kin.setdefault(found, {}).update(own)
        return found

    def _earlier(self, given: list[Tensor]) -> "list[tuple[ForwardPass, GradientEdge]]":
        """The passes that have not come back whose outputs these arguments were made of, with the places."""
        waiting = {id(one) for one in self._alive() if one.counted is None}
        found: list[tuple[ForwardPass, GradientEdge]] = []

        def ends(node: Any) -> list[tuple[ForwardPass, GradientEdge]]:
            known = metadata(node).get(self._key, {}).items()
            return [
                (one.whole, GradientEdge(node, place)) for place, one in known if id(one.whole) in waiting
            ]

        for node in nodes_behind(
            (t.grad_fn for t in given) if waiting else (), lambda node: bool(ends(node))
        ):
            found += ends(node)
        return found

    def _check_joint(
        self,
        module: nn.Module,
        before: "Sequence[tuple[ForwardPass, GradientEdge]]",
        outputs: Sequence[Tensor],
    ) -> None:
        """Whether what comes back from a sample's outputs belongs to its outputs before; looked at once.

        Batch norm in training spreads it over all of them, and tells nothing.

        Raises:
            InputError: where rows are in another order, or lie along another dimension.
        """
        joint = (self._names[id(module)], *(one.end for one, _ in before))
        samples = before[0][0].samples
        ends = [t for t in outputs if t.dim() and len(t) == samples and t.is_floating_point()]
        blind = module.training and has_batch_norm(module)
        if joint in self._joints or blind or not ends or len(ends[0]) < 2:
            return
        self._joints.add(joint)
        silent = silent_samples(len(ends[0]))
        generator = torch.Generator().manual_seed(0)
        columns = [column_at(t, 0, silent, generator) for t in ends]
        edges = [edge for _, edge in before]
        found = torch.autograd.grad(ends, edges, columns, allow_unused=True, retain_graph=True)
        for (one, _), g in zip(before, found, strict=True):
            if g is not None and g.dim() and len(g) == len(silent) and is_any(g, silent):
                raise InputError(
                    f"what module {joint[0]!r} makes of one sample comes back to others at the output of "
                    f"module {one.end!r}: the rows are in another order or along another dimension; call "
                    "both inside one module's forward"
                )

    def _joined(self, record: ForwardPass, earlier: "list[ForwardPass]") -> ForwardPass:
        """One pass of a record and those before it, of the same samples."""
        first, *others = sorted(earlier, key=lambda one: [ref() for ref in self._passes].index(one))
        for one in (record, *others):
            if one.samples != first.samples:
                raise InputError(
                    f"modules {first.end!r} and {one.end!r} are called one after the other with "
                    f"{first.samples} and {one.samples} samples, so that it cannot be said which rows are of "
                    "which sample; call them inside one module's forward"
                )
            for name, calls in one.layers.items():
                first.layers.setdefault(name, []).extend(calls)
            for name, kept in one.observed.items():
                first.observed.setdefault(name, []).extend(kept)
            first.marks += one.marks
            first.names |= one.names
            one.into = first
        first.end, first.refresh, first.spent = record.end, record.refresh, False
        return first

    def _drop_observed(self, record: ForwardPass, layers: Mapping[str, list[KeptCall]]) -> None:
        """Forgets what was observed of calls that are now seen as a part of more.

        Raises:
            InputError: where labels would be drawn at two outputs, or calls are seen in part.
        """
        for name, kept in record.observed.items():
            now = {id(call) for call in layers.get(name, ())}
            if any(now & calls and not calls <= now for calls, _ in kept):
                raise InputError(
                    f"layer {name!r} is called for several modules that are called one after another, in a "
                    "way that cannot be taken apart; call them inside one module's forward"
                )
            record.observed[name] = [one for one in kept if not one[0] <= now]
        record.observed = {name: kept for name, kept in record.observed.items() if kept}
        record.after = record.after if record.observed else None
        if self._kind == "drawn" and record.observed:
            raise InputError(
                f"modules with {min(record.observed)!r} and {record.end!r} both give outputs of the same "
                "samples, and labels can be drawn at one output only; use source='empirical'"
            )

    def _mark(self, name: str, call: LayerCall, kept: KeptCall) -> Mark:
        """Leaves a call on its node, for a module that is called with the output of this one."""
        self._marks += 1
        mark = Mark(
            self._marks,
            name,
            call.edge.output_nr,
            (LayerCall(call.input, call.output, None, call.slope), kept),
        )
        metadata(call.edge.node).setdefault(f"{self._key} calls", []).append(mark)
        return mark

    def _marked(self, outputs: list[Tensor]) -> tuple[dict[str, list[LayerCall]], dict[str, list[KeptCall]]]:
        """The calls of all modules behind these outputs, with their edges."""
        found: list[tuple[int, str, LayerCall, KeptCall]] = []
        for node in nodes_behind(t.grad_fn for t in outputs):
            for mark in metadata(node).get(f"{self._key} calls", ()):
                if mark.call is not None:
                    bare, kept = mark.call
                    call = LayerCall(bare.input, bare.output, GradientEdge(node, mark.place), bare.slope)
                    found.append((mark.order, mark.name, call, kept))
        taken: dict[str, list[LayerCall]] = {name: [] for name in self._layers}
        layers: dict[str, list[KeptCall]] = {name: [] for name in self._layers}
        for _, name, call, kept in sorted(found, key=lambda one: one[0]):
            taken[name].append(call)
            layers[name].append(kept)
        return {n: calls for n, calls in taken.items() if calls}, {n: c for n, c in layers.items() if c}

    # --- statistics -----------------------------------------------------------------------------------

    def _random_state(self) -> Tensor:
        """The generator's state after the passes that may still count, or that did."""
        states = [one.after for one in self._alive() if one.after is not None and one.counted is None]
        return states[-1] if states else self._generator.get_state()

    def _keep(self, record: ForwardPass, name: str, calls: list[KeptCall], g: Tensor) -> None:
        """What the g [c, n, t, m] of calls of a layer says of its statistics."""
        assert record.samples is not None
        waiting = [
            observation
            for one in self._alive()
            if one.counted is None
            for _, observation in one.observed.get(name, ())
        ]
        batch = self.batch(name, calls, record.samples, {self._kind: g})
        found = self._observe(name, batch, waiting)
        record.observed.setdefault(name, []).append((frozenset(map(id, calls)), found))

    def _layerwise(
        self,
        record: ForwardPass,
        taken: Mapping[str, list[LayerCall]],
        layers: Mapping[str, list[KeptCall]],
        outputs: list[Tensor],
    ) -> None:
        """Statistics under layer-wise sampling: of the slope φ'(s), or of draws −φ'(s)∘ε/√k."""
        assert record.samples is not None
        assert record.before is not None
        edges = {
            (name, place): call.edge for name, calls in taken.items() for place, call in enumerate(calls)
        }
        found = activations_from(outputs, edges)
        draws = self._kind.draws
        generator = torch.Generator().set_state(record.before)
        ends = {(output.grad_fn, output.output_nr): output for output in outputs}
        for name, calls in taken.items():
            pairs = []
            for place, call in enumerate(calls):
                activation = found[name, place]
                if activation is None:  # a call whose output is not used
                    slope = torch.zeros_like(call.output)
                else:
                    output = ends.get((call.edge.node, call.edge.output_nr), call.output)
                    call = LayerCall(call.input, output.detach(), call.edge, call.slope)
                    slope = layerwise_slope(call, activation, self._kind)
                pairs.append((call, slope.detach().unsqueeze(0).to(self.dtype_of(name))))
            g = outputs_of(self._layers[name], pairs, record.samples, self.dims[name])
            if draws:
                own, rows = _among_processes(g[0])
                noise = normal(rows, draws, tuple(g.shape[2:]), generator)[:, own]
                g = drawn_layerwise(g, noise)
                record.after = generator.get_state()
            self._keep(record, name, layers[name], g)

    def _drawn(
        self,
        record: ForwardPass,
        taken: Mapping[str, list[LayerCall]],
        layers: Mapping[str, list[KeptCall]],
        output: Any,
    ) -> None:
        """Statistics with one drawn label a sample, by a backward pass of their own."""
        assert record.samples is not None
        assert record.before is not None
        if not isinstance(output, Tensor):
            raise InputError(
                "source='predictive' draws labels from the model's output, which must be one tensor; use "
                "source='empirical'"
            )
        scores = output.detach().to(torch.promote_types(output.dtype, torch.float32))
        self._likelihood.count(scores)  # refuses outputs of another form
        own, rows = _among_processes(scores)
        generator = torch.Generator().set_state(record.before)
        column = label_columns(self._likelihood, "monte-carlo", rows, None, 1, generator)[0, own]
        record.after = generator.get_state()
        calls = [(name, place) for name, calls in taken.items() for place in range(len(calls))]
        missing = {name: len(taken[name]) for name in taken}

        def take(index: int, g: Tensor | None) -> None:
            name, place = calls[index]
            one, kept = taken[name][place], layers[name]
            kept[place].slot[:] = [(torch.zeros_like(one.output) if g is None else g.detach(), -1)]
            missing[name] -= 1
            if missing[name]:
                return
            assert record.samples is not None
            g = self.gradients(name, kept, record.samples, 1.0)
            for call in kept:
                call.slot.clear()
            self._keep(record, name, kept, g)

        edges = [taken[name][place].edge for name, place in calls]
        with torch.autograd.set_multithreading_enabled(False):
            backward_one_by_one(output, edges, column.to(output.dtype), take)


def _among_processes(rows: Tensor) -> tuple[slice, Tensor]:
    """Where this process's rows are among those of all, and rows of that number with them in their place.

    So every process draws for all samples, and takes its own: the numbers are those of one process.
    """
    if distributed.size() == 1:
        return slice(None), rows
    counts = distributed.gather_all(len(rows))
    start = sum(counts[: distributed.rank()])
    own = slice(start, start + len(rows))
    every = rows.new_zeros(sum(counts), *rows.shape[1:])
    every[own] = rows
    return own, every


def _half_precision(device: str) -> bool:
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
