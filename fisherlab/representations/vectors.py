"""Representation vectors of every layer, batch by batch: a_{l−1}, s and φ(s), and gradients at φ(s).

A layer's *output* s is what its module returns, its *activated* output a = φ(s) what the element-wise
function gives that alone takes s (`fisherlab.layers.activation` has the rule). The vector at a position of
a convolution is that of all channels there.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.overrides import TorchFunctionMode

from fisherlab.collect.batches import is_finite
from fisherlab.collect.collector import Collector
from fisherlab.collect.forms import ModelInputs
from fisherlab.collect.hooks import capture, inputs_of, outputs_of, valid_of
from fisherlab.collect.layer_batch import valid_positions
from fisherlab.errors import InputError, NotSupportedError, NumericalError
from fisherlab.layers import ACTIVATIONS, Activation, LayerCall, LayerView, find_activations, unreached

_BATCH_BYTES = 256 * 2**20  # of a pass with its copies: a choice, as `numerics.CHUNK_BYTES`
_MOST_SAMPLES = 8192  # in one batch: a choice, as `sizes._MOST_SAMPLES`

INPUT, OUTPUT, ACTIVATED = VECTORS = ("input", "output", "activated")


@dataclass(frozen=True)
class Vectors:
    """The vectors of one kind of a layer in a batch.

    Attributes:
        values: [n, t, k].
        valid: the positions that count, a bool [n, t]; None: all.
    """

    values: Tensor
    valid: Tensor | None

    @property
    def rows(self) -> Tensor:
        """[r, k] in float64, of the positions that count."""
        values = self.values.double()
        return values.flatten(0, 1) if self.valid is None else values[self.valid]

    def pick(self, samples: Tensor, shares: Tensor) -> Tensor:
        """One vector a sample, [i, k]: that at the share u ∈ [0, 1) of its valid positions; NaN without any.

        Args:
            samples: places in the batch, [i].
            shares: u, [i].
        """
        values = self.values[samples].double()
        if self.valid is None:
            places = (shares * values.shape[1]).long()
            return values[torch.arange(len(places), device=places.device), places]
        valid = self.valid[samples]
        counts = valid.sum(1)
        reached = valid.cumsum(1) > (shares * counts).long().unsqueeze(1)
        found = values[torch.arange(len(counts), device=counts.device), reached.int().argmax(1)]
        return found.masked_fill((counts == 0).unsqueeze(1), torch.nan)


class BatchReading:
    """One forward pass: every layer's vectors, and the places of its activated outputs in the graph."""

    def __init__(
        self,
        collector: Collector,
        inputs: ModelInputs,
        seen: Mapping[str, list[LayerCall]],
        outputs: Tensor,
        copies: "_Copies",
    ) -> None:
        self.outputs = outputs
        self.samples = collector.batches.size(inputs)
        self.inputs = inputs
        self._collector, self._seen, self._copies = collector, seen, copies
        self._found = find_activations(outputs, seen)
        for name in seen:
            if name not in self._found:
                raise InputError(unreached(name))

    def vectors(self, name: str) -> dict[str, Vectors]:
        """Vectors of a layer by kind: `output`, `input` unless it sees indices, `activated` unless φ = id."""
        view, calls = self._collector.layers[name], self._seen[name]
        valid = self._valid(view, calls)
        s = [self._copies.output(call) for call in calls]
        found = {OUTPUT: Vectors(self._laid_out(view, calls, s), valid)}
        if self._collector.activations[name].name != "identity":
            a = [self._activated(name, place, own) for place, own in enumerate(s)]
            found[ACTIVATED] = Vectors(self._laid_out(view, calls, a), valid)
        if not view.one_hot:
            values = self._laid_out(view, calls, [call.input for call in calls])
            fits = valid is not None and valid.shape == values.shape[:2]
            found[INPUT] = Vectors(values, valid if fits else None)
        return {kind: found[kind] for kind in VECTORS if kind in found}

    def edges(self, name: str) -> list[Any] | None:
        """Where each call's activated output stands in the graph; None where a named φ is not in it."""
        given, edges = self._collector.layers[name].activation, []
        for place, call in enumerate(self._seen[name]):
            activation = self._found[name][place]
            if given not in (None, activation.name):
                return None
            edges.append(call.edge if activation.node is None else GradientEdge(activation.node[0], 0))
        return edges

    def gradients(self, name: str, found: list[Tensor | None], columns: int) -> Tensor:
        """What came back to `edges(name)` as q [c, n, t, m]; zero where positions do not count."""
        view, calls = self._collector.layers[name], self._seen[name]
        q = [call.gradients(one, columns) for call, one in zip(calls, found, strict=True)]
        shaped, valid = self._columns_laid_out(view, calls, q), self._valid(view, calls)
        return shaped if valid is None else shaped * valid[None, :, :, None]

    def _laid_out(self, view: LayerView, calls: list[LayerCall], values: list[Tensor]) -> Tensor:
        return self._columns_laid_out(view, calls, [own.unsqueeze(0) for own in values])[0]

    def _columns_laid_out(self, view: LayerView, calls: list[LayerCall], values: list[Tensor]) -> Tensor:
        pairs = list(zip(calls, values, strict=True))
        return outputs_of(view, pairs, self.samples, self._collector.batch_dim)

    def _activated(self, name: str, place: int, s: Tensor) -> Tensor:
        given = self._collector.layers[name].activation
        if given is not None:
            return ACTIVATIONS[given](s)
        return self._copies.activated(name, self._found[name][place], s)

    def _valid(self, view: LayerView, calls: list[LayerCall]) -> Tensor | None:
        given = view, calls, self.samples, self._collector.batch_dim
        rows = valid_of(*given)
        if view.mask is None and not view.one_hot:
            return rows
        return valid_positions(view, self.inputs, inputs_of(*given), rows)


def read(collector: Collector, inputs: ModelInputs) -> BatchReading:
    """A forward pass of one batch.

    Raises:
        NumericalError: where the model's output is not finite.
    """
    samples = collector.batches.size(inputs)
    with capture(collector.layers, samples=samples) as seen, _Copies(collector) as copies:
        outputs = collector.outputs(inputs)
    if not is_finite(outputs.detach()):
        raise NumericalError("the model's output is not finite; check the weights and the scale of the data")
    return BatchReading(collector, inputs, seen, outputs, copies)


def most_samples(collector: Collector, columns: int, more: int) -> int:
    """How many samples a batch may have for a pass with so many columns, and `more` bytes a sample."""
    copies = 2 * (torch.finfo(collector.dtype).bits // 8) * collector.sizes.activations
    needed = collector.sizes.pass_bytes(columns) + copies + more
    return max(1, min(_BATCH_BYTES // needed, _MOST_SAMPLES))


def places_between(ordered: Tensor, start: int, stop: int) -> slice:
    """Where the numbers from `start` to below `stop` stand in an ascending tensor [n]."""
    return slice(*torch.searchsorted(ordered, ordered.new_tensor([start, stop])).tolist())


class _Copies(TorchFunctionMode):
    """Copies of the layers' outputs, and of what is made of them, before either is overwritten in place.

    Copies are found by their place in the autograd graph.
    """

    def __init__(self, collector: Collector) -> None:
        super().__init__()
        self._collector = collector
        self._outputs: dict[tuple[Any, int], Tensor] = {}
        self._watched: set[tuple[Any, int]] = set()
        self._results: dict[Any, Tensor] = {}

    def __enter__(self) -> "_Copies":
        self._hooks = ExitStack()
        for name, view in self._collector.layers.items():
            watched = self._collector.activations[name].name != "identity"
            for module in view.modules if view.part is None else ():
                handle = module.register_forward_hook(self._keeper(watched))
                self._hooks.callback(handle.remove)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._hooks.close()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        node = result.grad_fn if isinstance(result, Tensor) else None
        if node is not None and any(place in self._watched for place in node.next_functions):
            self._results[node] = result.detach().clone()
        return result

    def output(self, call: LayerCall) -> Tensor:
        """The s of a call; a projection of an attention module is not overwritten."""
        kept = self._outputs.get((call.edge.node, call.edge.output_nr))
        return call.output if kept is None else kept

    def activated(self, layer: str, activation: Activation, s: Tensor) -> Tensor:
        """φ(s) of a call."""
        if activation.node is None:
            return s
        if activation.node[0] not in self._results:
            raise NotSupportedError(
                f"the activation after layer {layer!r} does not run as a function of torch; name it with "
                "find_layers(model, activations={...})"
            )
        return self._results[activation.node[0]]

    def _keeper(self, watched: bool) -> Any:
        def keep(module: Any, args: Any, output: Tensor) -> None:
            if output.requires_grad:
                place = output.grad_fn, output.output_nr
                self._outputs[place] = output.detach().clone()
                if watched:
                    self._watched.add(place)

        return keep
