"""What an optimizer sees of training: the inputs and gradients of layers, from the passes that happen anyway.

Hooks are open only while the root module runs forward in training mode with gradients enabled: evaluation,
the second forward of activation checkpointing and passes under a transform of torch.func (vmap, grad) add
nothing. Gradients come to the outputs by hooks on the graph, with the user's own backward.
"""

import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fisherlab import distributed
from fisherlab.batch import LayerBatch
from fisherlab.capture import Seen as Captured
from fisherlab.capture import (
    backward_one_by_one,
    capture,
    drawn_layerwise,
    inputs_of,
    layerwise_draws,
    layerwise_slope,
    outputs_of,
)
from fisherlab.draws import normal
from fisherlab.errors import InputError
from fisherlab.layers import Layers, Use, activations_from
from fisherlab.likelihoods import Likelihood, label_columns
from fisherlab.optim.block import Seen
from fisherlab.optim.hooks import Hook


@dataclass(eq=False)
class ForwardPass:
    """One forward pass of the model; it lives as long as its graph.

    Attributes:
        samples: N.
        layers: the calls of every layer that took part, until they were used.
        refresh: whether statistics are due.
        outputs: the model's output, detached, while first steps are checked.
        output_gradient: what came back to it.
        came: whether a backward pass has begun.
    """

    samples: int
    layers: dict[str, list[Seen]]
    refresh: bool
    outputs: Tensor | None = None
    output_gradient: Tensor | None = None
    came: bool = False


class Recorder:
    """Follows a model through training.

    Args:
        model: the root module.
        layers: the layers with a block.
        likelihood: what the output means.
        batch_dim: the dimension that counts samples.
        kind: the labels of the statistics.
        generator: source of drawn labels.
        scaled: whether a `GradScaler` is known.
        due: whether the next step refreshes statistics of one of these layers.
        listens: whether gradients of outputs are wanted, given `due`.
        opened: is told when a forward pass begins.
        observe: is given a layer's `LayerBatch` where statistics are due.
        began: is told when the backward pass of a forward pass begins.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers,
        likelihood: Likelihood,
        batch_dim: int,
        kind: str,
        generator: torch.Generator,
        scaled: bool,
        due: Callable[[Iterable[str]], bool],
        listens: Callable[[bool], bool],
        opened: Callable[[], None],
        observe: Callable[[str, LayerBatch], None],
        began: Callable[[ForwardPass], None],
    ) -> None:
        self._layers, self._likelihood, self._batch_dim = layers, likelihood, batch_dim
        self._kind, self._generator = kind, generator
        self._due, self._listens, self._opened = due, listens, opened
        self._observe, self._began = observe, began
        self._passes: list[weakref.ref[ForwardPass]] = []
        self.checks = True
        self._owned = {
            name: [model.get_parameter(p) for p in view.parameters] for name, view in layers.items()
        }
        self._scaled = scaled
        model.register_forward_pre_hook(Hook(self._open), with_kwargs=True)

    def came_back(self, name: str) -> "list[ForwardPass]":
        """The passes whose gradients have come to a layer and were not used yet."""
        alive = [one for one in (ref() for ref in self._passes) if one is not None]
        return [one for one in alive if any(call.g is not None for call in one.layers.get(name, ()))]

    @property
    def waiting(self) -> bool:
        """Whether there is a forward pass whose backward pass may come."""
        return any(one is not None and not one.came for one in (ref() for ref in self._passes))

    def forget(self) -> None:
        """Every pass so far."""
        self._passes.clear()

    def dtype_of(self, name: str) -> torch.dtype:
        """That of a layer's statistics: float32, or its weights' where they have more digits."""
        return torch.promote_types(self._owned[name][0].dtype, torch.float32)

    def batch(self, name: str, calls: list[Seen], samples: int, g: Mapping[str, Tensor]) -> LayerBatch:
        """A layer's inputs, made when they are asked for, with g."""
        view, dtype = self._layers[name], self.dtype_of(name)
        uses = [Use(call.use.input.to(dtype), call.use.output) for call in calls]
        return LayerBatch(0, lambda: inputs_of(view, uses, samples, self._batch_dim), g, view.groups)

    def gradients(self, name: str, calls: list[Seen], samples: int, scale: float) -> Tensor:
        """What came back to a layer's outputs, times a number, as g [1, n, t, m]."""
        view, dtype = self._layers[name], self.dtype_of(name)
        pairs = [(call.use, call.g.unsqueeze(0).to(dtype)) for call in calls if call.g is not None]
        g = outputs_of(view, pairs, samples, self._batch_dim)
        return g if scale == 1 else g * scale

    # --- a forward pass ---------------------------------------------------------------------------

    def _open(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not (model.training and torch.is_grad_enabled()) or _is_transformed():
            return
        if not self._scaled and _half_precision(next(model.parameters()).device.type):
            raise InputError(
                "the model runs in float16, whose gradients are scaled; give the GradScaler in use as "
                "scaler=, or use bfloat16"
            )
        samples = _samples(args, kwargs, self._batch_dim)
        self._opened()
        stack = ExitStack()
        seen = stack.enter_context(capture(self._trained(), outputs=False))

        def done(module: nn.Module, _: Any, output: Any) -> None:
            handle.remove()
            stack.close()
            if output is not None:
                with torch.autocast(next(model.parameters()).device.type, enabled=False):
                    self._finish(seen, samples, output)

        handle = model.register_forward_hook(done, always_call=True)

    def _trained(self) -> Layers:
        """The layers that are not frozen now."""
        names = [name for name, owned in self._owned.items() if any(p.requires_grad for p in owned)]
        return self._layers if len(names) == len(self._layers) else self._layers.select(names)

    def _finish(self, seen: Mapping[str, list[Captured]], samples: int, output: Any) -> None:
        outputs = [t for t in _tensors(output) if t.requires_grad]
        if not outputs:
            return
        used = {name: [call for call in calls if call.output.numel()] for name, calls in seen.items()}
        taken = {name: calls for name, calls in used.items() if calls}
        refresh = self._due(taken)
        layers = {name: [Seen(call.use) for call in calls] for name, calls in taken.items()}
        record = ForwardPass(samples, layers, refresh)
        if refresh and self._kind.startswith("layerwise"):
            self._layerwise(record, taken, outputs)
        elif refresh and self._kind == "drawn":
            self._drawn(record, taken, output)
        if not self._listens(refresh):
            record.layers.clear()
        else:
            for name, calls in taken.items():
                for call, kept in zip(calls, layers[name], strict=True):
                    _listen(call.edge, kept.slot)
        if self.checks and isinstance(output, Tensor):
            record.outputs = output.detach()
        for tensor in outputs:
            tensor.register_hook(partial(self._begins, record))
        self._passes = [ref for ref in self._passes if ref() is not None]
        self._passes.append(weakref.ref(record))

    def _begins(self, record: ForwardPass, g: Tensor) -> None:
        if record.outputs is not None and record.outputs.shape == g.shape:
            record.output_gradient = g.detach()
        if not record.came:
            record.came = True
            self._began(record)

    def _layerwise(
        self, record: ForwardPass, taken: Mapping[str, list[Captured]], outputs: list[Tensor]
    ) -> None:
        """Statistics under layer-wise sampling: of the slope φ'(s), or of draws −φ'(s)∘ε/√k."""
        edges = {
            (name, place): call.edge for name, calls in taken.items() for place, call in enumerate(calls)
        }
        found = activations_from(outputs, edges)
        draws = layerwise_draws(self._kind)
        ends = {(output.grad_fn, output.output_nr): output for output in outputs}
        for name, calls in taken.items():
            pairs = []
            for place, call in enumerate(calls):
                activation = found[name, place]
                if activation is None:  # a call whose output is not used
                    slope = torch.zeros_like(call.output)
                else:
                    call.output = ends.get((call.edge.node, call.edge.output_nr), call.output)
                    slope = layerwise_slope(call, activation, self._kind)
                pairs.append((call.use, slope.detach().unsqueeze(0).to(self.dtype_of(name))))
            g = outputs_of(self._layers[name], pairs, record.samples, self._batch_dim)
            if draws:
                own, rows = _among_processes(g[0])
                noise = normal(rows, draws, tuple(g.shape[2:]), self._generator)[:, own]
                g = drawn_layerwise(g, noise)
            self._observe(name, self.batch(name, record.layers[name], record.samples, {self._kind: g}))

    def _drawn(self, record: ForwardPass, taken: Mapping[str, list[Captured]], output: Any) -> None:
        """Statistics with one drawn label a sample, by a backward pass of their own."""
        if not isinstance(output, Tensor):
            raise InputError(
                "source='predictive' draws labels from the model's output, which must be one tensor; use "
                "source='empirical'"
            )
        scores = output.detach().to(torch.promote_types(output.dtype, torch.float32))
        own, rows = _among_processes(scores)
        column = label_columns(self._likelihood, "monte-carlo", rows, None, 1, self._generator)[0, own]
        calls = [(name, place) for name, calls in taken.items() for place in range(len(calls))]
        missing = {name: len(taken[name]) for name in taken}

        def take(index: int, g: Tensor | None) -> None:
            name, place = calls[index]
            one, kept = taken[name][place], record.layers[name]
            kept[place].slot[:] = [torch.zeros_like(one.output) if g is None else g.detach()]
            missing[name] -= 1
            if missing[name]:
                return
            g = self.gradients(name, kept, record.samples, 1.0)
            for call in kept:
                call.slot.clear()
            self._observe(name, self.batch(name, kept, record.samples, {self._kind: g}))

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


def _listen(edge: Any, slot: list[Tensor]) -> None:
    place = edge.output_nr  # not the edge: its node would hold itself

    def arrived(gradients: tuple[Tensor, ...]) -> None:
        if gradients[place] is not None:
            slot[:] = [gradients[place].detach()]

    edge.node.register_prehook(arrived)


def _is_transformed() -> bool:
    """Whether a transform of torch.func is at work."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _half_precision(device: str) -> bool:
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16


def _samples(args: tuple[Any, ...], kwargs: dict[str, Any], batch_dim: int) -> int:
    for value in (*args, *kwargs.values()):
        for tensor in _tensors(value):
            if tensor.dim() > batch_dim:
                return tensor.shape[batch_dim]
    raise InputError("the model is called without a tensor whose first dimension could count samples")


def _tensors(value: Any) -> list[Tensor]:
    """The tensors in a model's argument or result."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [t for one in value.values() for t in _tensors(one)]
    if isinstance(value, (tuple, list)):
        return [t for one in value for t in _tensors(one)]
    return []
