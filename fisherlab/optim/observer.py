"""What passes say of layers' statistics: of layer-wise sampling, of drawn labels, and of the loss itself."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from fisherlab.base import distributed
from fisherlab.collect.hooks import (
    backward_one_by_one,
    drawn_layerwise,
    inputs_of,
    layerwise_slope,
    outputs_of,
    valid_of,
)
from fisherlab.collect.layer_batch import LayerBatch
from fisherlab.collect.outputs import Outputs
from fisherlab.collect.padding import tokens_of
from fisherlab.errors import InputError, InputTypeError
from fisherlab.layers import LayerCall, activations_from, nodes_behind
from fisherlab.likelihoods import Likelihood, label_columns
from fisherlab.likelihoods.draws import normal
from fisherlab.likelihoods.labels import DRAWN, LabelKind, masked_columns
from fisherlab.optim.cadence import Cadence
from fisherlab.optim.gradients import ParameterMatrices
from fisherlab.optim.passes import ForwardPass, KeptCall, Mark, Passes
from fisherlab.optim.preconditioner import LayerPreconditioner, Observation


class Observer:
    """Makes the observations that the layers' statistics are averaged of.

    Args:
        blocks: by layer.
        kind: the labels of the statistics.
        cadence: says what is due.
        dims: the dimension of each layer's inputs that counts samples.
        likelihood: what the output means.
        outputs: takes the output from what a module returns.
        passes: the other passes, and the random state.
        gradients: knows the dtype of each layer.
    """

    def __init__(
        self,
        blocks: Mapping[str, LayerPreconditioner],
        kind: LabelKind,
        cadence: Cadence,
        dims: Mapping[str, int],
        likelihood: Likelihood,
        outputs: Outputs,
        passes: Passes,
        gradients: ParameterMatrices,
    ) -> None:
        self._blocks, self._kind, self._cadence, self._dims = blocks, kind, cadence, dims
        self._likelihood, self._passes, self._gradients = likelihood, passes, gradients
        self._outputs = outputs
        self._marks = 0
        self._key = f"fisherlab calls {id(self)}"

    def of_forward(
        self,
        record: ForwardPass,
        taken: Mapping[str, list[LayerCall]],
        outputs: list[Tensor],
        output: Any,
        inputs: dict[str, Any],
        *,
        joined: bool,
    ) -> None:
        """Statistics that need no loss, from a forward pass that is just over.

        Args:
            record: the pass.
            taken: the calls with their graph.
            outputs: the tensors of its output.
            output: as the module gives it.
            inputs: those that the module was given by name.
            joined: whether the pass has parts before these calls.

        Raises:
            InputError: where labels cannot be drawn at this output.
        """
        layers = record.layers
        if joined:
            taken, layers = self._marked(outputs)
            self._drop_observed(record, layers)
        with torch.autocast(outputs[0].device.type, enabled=False):
            if self._kind.layerwise:
                self._layerwise(record, taken, layers, outputs)
            else:
                self._drawn(record, taken, layers, output, inputs)

    def of_loss(self, name: str, passes: Iterable[ForwardPass], scale: float) -> None:
        """Statistics of the loss: what came back to a layer, times a number, counts at once."""
        for one in passes:
            assert one.samples is not None
            g = self._came_back(name, one.layers[name], one.samples, scale)
            self._blocks[name].count(self._observation(name, one.layers[name], one.samples, g, ()))

    def _observation(
        self, name: str, calls: list[KeptCall], samples: int, g: Tensor, waiting: Iterable[Observation]
    ) -> Observation:
        """What the g [c, n, t, m] of calls of a layer says of its statistics."""
        view, dtype, dim = self._blocks[name].view, self._gradients.dtype_of(name), self._dims[name]
        uses = [call.use.in_dtype(dtype) for call in calls]
        valid = valid_of(view, uses, samples, dim)
        g = g if valid is None else g.masked_fill(~valid[None, :, :, None], 0.0)
        a = partial(inputs_of, view, uses, samples, dim)
        batch = LayerBatch(0, a, {self._kind: g}, view.groups, valid)
        return self._cadence.observe(name, batch, waiting)

    def _keep(self, record: ForwardPass, name: str, calls: list[KeptCall], g: Tensor) -> None:
        """The same, until the pass counts."""
        assert record.samples is not None
        waiting = [
            observation for one in self._passes.waiting() for _, observation in one.observed.get(name, ())
        ]
        found = self._observation(name, calls, record.samples, g, waiting)
        record.observed.setdefault(name, []).append((frozenset(map(id, calls)), found))

    def _came_back(self, name: str, calls: list[KeptCall], samples: int, scale: float) -> Tensor:
        """What came back to a layer's outputs, times a number, as g [1, n, t, m]."""
        view, dtype = self._blocks[name].view, self._gradients.dtype_of(name)
        pairs = [(call.use, call.g.unsqueeze(0).to(dtype)) for call in calls if call.g is not None]
        g = outputs_of(view, pairs, samples, self._dims[name])
        return g if scale == 1 else g * scale

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
                    call = replace(call, output=output.detach())
                    slope = layerwise_slope(call, activation, self._kind)
                pairs.append((call, slope.detach().unsqueeze(0).to(self._gradients.dtype_of(name))))
            g = outputs_of(self._blocks[name].view, pairs, record.samples, self._dims[name])
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
        inputs: dict[str, Any],
    ) -> None:
        """Statistics with one drawn label a sample, by a backward pass of their own."""
        assert record.samples is not None
        assert record.before is not None
        try:
            output = self._outputs.of(output)
        except (InputError, InputTypeError) as error:
            raise InputError(
                f"source='predictive' draws labels from the output: {error}; or use source='empirical'"
            ) from error
        scores = output.detach().to(torch.promote_types(output.dtype, torch.float32))
        self._likelihood.count(scores)  # refuses outputs of another form
        own, rows = _among_processes(scores)
        generator = torch.Generator().set_state(record.before)
        column = label_columns(self._likelihood, "monte-carlo", rows, None, 1, generator)[0, own]
        tokens = tokens_of(inputs, scores, decoder=self._outputs.of_decoder)
        if tokens is not None:
            column = masked_columns(column.unsqueeze(0), tokens)[0]
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
            g = self._came_back(name, kept, record.samples, 1.0)
            for call in kept:
                call.slot.clear()
            self._keep(record, name, kept, g)

        edges = [taken[name][place].edge for name, place in calls]
        with torch.autograd.set_multithreading_enabled(False):
            backward_one_by_one(output, edges, column.to(output.dtype), take)

    # --- calls of several modules -------------------------------------------------------------------

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
        if self._kind == DRAWN and record.observed:
            raise InputError(
                f"modules with {min(record.observed)!r} and {record.end!r} both give outputs of the same "
                "samples, and labels can be drawn at one output only; use source='empirical'"
            )

    def mark(self, name: str, call: LayerCall, kept: KeptCall) -> Mark:
        """Leaves a call on its node, for a module that is called with the output of this one."""
        self._marks += 1
        mark = Mark(
            self._marks,
            name,
            call.edge.output_nr,
            (replace(call, edge=None), kept),
        )
        call.edge.node.metadata.setdefault(self._key, []).append(mark)
        return mark

    def _marked(self, outputs: list[Tensor]) -> tuple[dict[str, list[LayerCall]], dict[str, list[KeptCall]]]:
        """The calls of all modules behind these outputs, with their edges."""
        found: list[tuple[int, str, LayerCall, KeptCall]] = []
        for node in nodes_behind(t.grad_fn for t in outputs):
            for mark in node.metadata.get(self._key, ()):
                if mark.call is not None:
                    bare, kept = mark.call
                    call = replace(bare, edge=GradientEdge(node, mark.place))
                    found.append((mark.order, mark.name, call, kept))
        taken: dict[str, list[LayerCall]] = {name: [] for name in self._blocks}
        layers: dict[str, list[KeptCall]] = {name: [] for name in self._blocks}
        for _, name, call, kept in sorted(found, key=lambda one: one[0]):
            taken[name].append(call)
            layers[name].append(kept)
        return {n: calls for n, calls in taken.items() if calls}, {n: c for n, c in layers.items() if c}


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
