"""One pass over data: for every layer its inputs a and output gradients g, without side effects.

Hooks keep each layer's input and the autograd edge of its output; all columns of the output Hessian's root
go backwards in one batched call, with respect to those edges, so no parameter gradient is ever
formed. Whole samples are cut so that a batch stays under the memory limit.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fisherlab.arguments import Count, check
from fisherlab.base import distributed
from fisherlab.base.memory import at_most
from fisherlab.base.precision import reference
from fisherlab.base.progress import Progress, bar
from fisherlab.collect.batches import Batches, converted, each, is_finite
from fisherlab.collect.forms import ModelInputs
from fisherlab.collect.hooks import (
    backward,
    draw_layerwise,
    inputs_of,
    layerwise_slope,
    outputs_of,
    roots_of,
    unchanged,
    unit_columns,
    valid_of,
)
from fisherlab.collect.layer_batch import LayerBatch, mask_of, masked, masked_slopes, valid_positions, whole
from fisherlab.collect.left_out import LeftOutLayers, Reasons, T, made
from fisherlab.collect.outputs import Output, Outputs
from fisherlab.collect.own_labels import own_labels
from fisherlab.collect.padding import Padding, padded_layers, tokens_of
from fisherlab.collect.reading import MOST, Reading
from fisherlab.collect.refusals import longer, not_finite, require_finite_weights
from fisherlab.collect.sample_gradients import SampleGradients
from fisherlab.collect.sizes import LABEL_KINDS, Needs, PassSizes
from fisherlab.collect.uses import rows_of_uses
from fisherlab.errors import FisherlabError, InputError, NotSupportedError
from fisherlab.layers import Activation, LayerCall, Layers, find_activations, unreached
from fisherlab.likelihoods import Likelihood, label_columns
from fisherlab.likelihoods.draws import Generators, drawn_seed
from fisherlab.likelihoods.labels import LAYERWISE_COLUMNS, LabelKind, masked_columns

_GRADIENT_BYTES = 2**28  # of samples' gradients at a time: a choice, small beside the 4 GiB given by default


class Collector:
    """Reads a model, its layers and its data; every pass of fisherlab is one of its.

    Its `layers` are those given, read as the first look at the data found that they must be; those that
    cannot be done are left out, and do not stop the others (`leave_out`, `tell`). Its `remarks` say of a
    layer what a reader should know. Its `vectors` are the layers that are summed as ones with a single
    position; batches with more are refused.

    Args:
        model: the network.
        layers: the layers to look at.
        data: see `Batches`.
        likelihood: what the output means.
        output: which tensor of what the model returns is its output, see `Outputs`.
        draws: labels a sample for the kind `monte-carlo`.
        batch_dim: the dimension that counts samples in the layers' inputs and outputs.
        generator: source of the seed for drawn labels; None: seed 0. Every pass draws the same labels.
        strict: whether layers that are left out stop the work.
        progress: see `fisherlab.base.progress`.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers,
        data: Any,
        likelihood: Likelihood,
        *,
        output: Output = None,
        draws: int = 1,
        batch_dim: int = 0,
        generator: torch.Generator | None = None,
        strict: bool = False,
        progress: Progress = False,
    ) -> None:
        check("draws", draws, Count)
        self._seed = drawn_seed(generator)
        self.model, self.layers, self.likelihood = model, layers, likelihood
        self.batches = Batches(data, batch_dim)
        self.batch_dim = batch_dim
        self._draws, self._progress = draws, progress
        self._left_out = LeftOutLayers(strict)
        self._failed: dict[str, FisherlabError] = {}
        first = reference(model)
        self.device, self.dtype = first.device, first.dtype
        require_finite_weights(model)
        self.remarks: dict[str, str] = {}
        self.outputs = Outputs(model, output)
        self.batches.labels = own_labels(self.batches, model, self.outputs, likelihood)
        self._reading = Reading(model, self.batches, batch_dim, self.outputs)
        self._sample_gradients: dict[tuple[str, ...], SampleGradients] = {}
        self.vectors: frozenset[str] = frozenset()
        self.sizes = self._look()

    def passes(
        self, needs: Needs, what: str, scratch: int = 0, begin: int | None = None
    ) -> Iterator[dict[str, LayerBatch]]:
        """One pass over this process's share of the data.

        Args:
            needs: what each layer is to be given.
            what: a word for the progress bar.
            scratch: further numbers a sample that the caller will make of each batch.
            begin: the first sample; None: the first of the share.

        Yields:
            For each layer in `needs` its `LayerBatch`; a caller that takes the layers out one by one (`pop`)
            lets go of their unfolded inputs as it goes. Layers that a batch is not right for are missing
            from there on; `failures` says why.

        Raises:
            NumericalError: where the network gives values that are not finite; names the layer and
                the batch.
        """
        for parts in self._passes(needs, what, self.sizes.samples(needs, scratch), begin):
            together = whole(list(parts))
            yield {name: batch for name, batch in together.items() if name not in self._failed}

    def passes_in_parts(
        self, needs: Needs, what: str, begin: int | None = None
    ) -> Iterator[Iterator[dict[str, LayerBatch]]]:
        """The same as `passes`, with each batch in parts that are sums over columns and need little memory.

        Yields:
            For each batch its parts: the inputs and layer-wise g of all layers, which are fresh, then the
            label columns as they come back through the network.
        """
        yield from self._passes(needs, what, self.sizes.samples(needs, in_parts=True), begin)

    def _passes(
        self, needs: Needs, what: str, most: int, begin: int | None
    ) -> Iterator[Iterator[dict[str, LayerBatch]]]:
        self.tell()
        self.sizes.require_room(needs, self.batches.samples)
        first, stop = self.share()
        start = first if begin is None else begin
        generators = Generators(self._seed, start)
        with (
            unchanged(self.model),
            bar(self._progress, what, None if stop is None else stop - first) as report,
        ):
            for index, (inputs, targets) in enumerate(self.read(most, start, stop)):
                self._fail(self._reading.not_right_for(inputs, index))
                yield self._collect(inputs, targets, needs, generators, start, index)
                if self._failed.keys() >= needs.keys():
                    return
                start += self.batches.size(inputs)
                report(start - first)

    def share(self) -> tuple[int, int | None]:
        """The samples [start, stop) of this process; None: to the end of the data."""
        if distributed.size() == 1:
            return 0, self.batches.samples
        total = self.batches.count()
        if total is None:
            raise InputError("several processes need data that can be read more than once")
        if total < distributed.size():
            raise InputError(
                f"{distributed.size()} processes cannot share {total} samples; start fewer processes"
            )
        return distributed.share(total)

    def read(
        self, most: int, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[ModelInputs, Tensor | None]]:
        """The data in batches of at most `most` samples, in the model's dtype and on its device."""
        for inputs, targets in self.batches.batches(most, start, stop):
            yield each(inputs, self._move), None if targets is None else self._move(targets)

    def columns(
        self,
        kind: str,
        outputs: Tensor,
        targets: Tensor | None,
        generators: Generators,
        inputs: ModelInputs,
    ) -> Tensor:
        """The label columns [c, n, …] of one of `LABEL_KINDS`; zero at the padding of inputs."""
        columns = self._every_column(kind, outputs, targets, generators)
        tokens = tokens_of(inputs, outputs, decoder=self.outputs.of_decoder) if not self.batch_dim else None
        return columns if tokens is None else masked_columns(columns, tokens)

    def _every_column(
        self, kind: str, outputs: Tensor, targets: Tensor | None, generators: Generators
    ) -> Tensor:
        if kind in ("predictive", "empirical"):
            return label_columns(self.likelihood, kind, outputs, targets)
        draws = 1 if kind == "drawn" else self._draws

        def draw(samples: int, generator: torch.Generator) -> Tensor:
            return self.likelihood.draw(outputs[:1].expand(samples, *outputs.shape[1:]), draws, generator)

        generator = generators.ready(kind, draw)
        return label_columns(self.likelihood, "monte-carlo", outputs, targets, draws, generator)

    def numbers(self, inputs: ModelInputs) -> int:
        """How many a pass of a batch computes, for `backward`: beyond all where columns go one by one."""
        apart = self._reading.columns_apart(inputs)
        return sys.maxsize if apart else self.batches.size(inputs) * self.sizes.activations

    @property
    def apart(self) -> str:
        """A remark where label columns go backwards one by one for want of another way, or an empty text."""
        return (
            "label columns go back one by one, as torch cannot send these together"
            if self._reading.apart
            else ""
        )

    @property
    def labels(self) -> str:
        """What drawn labels depend on."""
        return f"{self._draws} draws, seed {self._seed}"

    def generators(self, begin: int = 0) -> Generators:
        """Fresh generators, one a use, that give every pass the same draws; `begin` as for `Generators`."""
        return Generators(self._seed, begin)

    def _collect(
        self,
        inputs: ModelInputs,
        targets: Tensor | None,
        needs: Needs,
        generators: Generators,
        start: int,
        index: int,
    ) -> Iterator[dict[str, LayerBatch]]:
        """A batch in parts: the inputs and layer-wise g first, then label columns as they come back."""
        samples, numbers = self.batches.size(inputs), self.numbers(inputs)
        seen, outputs = self._reading.forward(inputs, index)
        if targets is not None:
            self.likelihood.check(outputs, targets)
        self._fail(self._reading.others_than_known(inputs, seen, index))
        self._fail(self._reading.not_right(inputs, seen, outputs, start, index))
        needs = {name: kinds for name, kinds in needs.items() if name not in self._failed}
        batches = {name: self._layer_batch(name, inputs, seen.get(name, []), start) for name in needs}
        self._layerwise(batches, needs, seen, outputs, generators, inputs)
        yield {n: batch.part(batch.g, True) for n, batch in batches.items() if n not in self._failed}
        wanted = [kind for kind in LABEL_KINDS if any(kind in kinds for kinds in needs.values())]
        for kind in wanted:
            columns = self.columns(kind, outputs.detach(), targets, generators, inputs)
            taken = {n: batches[n] for n in needs if kind in needs[n] and n not in self._failed}
            others = {name: batch for name, batch in taken.items() if name not in seen}
            if others:
                yield from self._of_gradients(others, kind, inputs, columns, index)
            calls = {name: seen[name] for name in taken if name in seen}
            edges = [call.edge for own in calls.values() for call in own]
            keep = kind != wanted[-1]
            parts = backward(outputs, edges, columns, keep, numbers) if edges else ()
            for place, part in enumerate(parts):
                yield self._of_calls(taken, calls, kind, part, samples, index, first=not place)

    def _layer_batch(self, name: str, inputs: ModelInputs, calls: list[LayerCall], start: int) -> LayerBatch:
        """A layer's inputs, made when they are asked for where no position is left out."""
        view, samples = self.layers[name], self.batches.size(inputs)
        if view.of_uses:  # each column has inputs of its own, see `_of_calls`
            none = [(call, call.gradients(None)) for call in calls]
            return LayerBatch(start, rows_of_uses(none, samples, self.batch_dim)[0], {}, view.groups)
        if view.by_gradients:
            return LayerBatch(start, view.unit_inputs(samples, self.dtype, self.device), {}, view.groups)
        make = partial(inputs_of, view, calls, samples, self.batch_dim)
        rows = valid_of(view, calls, samples, self.batch_dim)
        if view.mask is None and rows is None and not view.one_hot:
            return LayerBatch(start, make, {}, view.groups)
        a = make()
        valid = valid_positions(view, inputs, a, rows)
        return LayerBatch(start, masked(a, valid), {}, view.groups, valid)

    def _of_calls(
        self,
        batches: Mapping[str, LayerBatch],
        seen: Mapping[str, list[LayerCall]],
        kind: str,
        part: tuple[int, tuple[Tensor | None, ...]],
        samples: int,
        index: int,
        *,
        first: bool,
    ) -> dict[str, LayerBatch]:
        """Columns that came back to the layers' calls, as `backward` gives them."""
        count, gradients = part[0], iter(part[1])
        found = {}
        for name, calls in seen.items():
            pairs = [(call, call.gradients(next(gradients), count)) for call in calls]
            if self.layers[name].of_uses:
                a, g = rows_of_uses(pairs, samples, self.batch_dim)
                if first and not (is_finite(a) and is_finite(g)):
                    self._fail({name: not_finite(name, index)})
                elif name not in self._failed:
                    found[name] = LayerBatch(batches[name].start, a, {kind: g}, fresh=False, apart=True)
                continue
            g = self._outputs(batches[name], name, kind, pairs, samples)
            if g.shape[2] > 1 and name in self.vectors:
                self._fail({name: longer(name, g.shape[2], index)})
            elif first and not is_finite(g):  # a function without a slope spoils all columns
                self._fail({name: not_finite(name, index)})
            if name not in self._failed:
                found[name] = batches[name].part({kind: g}, False)
        return found

    def _of_gradients(
        self,
        batches: Mapping[str, LayerBatch],
        kind: str,
        inputs: ModelInputs,
        columns: Tensor,
        index: int,
    ) -> Iterator[dict[str, LayerBatch]]:
        """Columns [c, n, …] as they come back to parameters, sample by sample; as many at a time as fit."""
        try:
            rows = self.sample_gradients(batches)
        except NotSupportedError as error:
            self._fail(dict.fromkeys(batches, error))
            return
        numbers = sum(self.layers[name].size for name in batches)
        held = self.sizes.bytes * numbers * columns.shape[1]
        for together in columns.split(max(1, at_most(_GRADIENT_BYTES, 16) // held)):
            most = self.samples_together(len(together), numbers)
            try:
                found = rows.pieces(inputs, together.transpose(0, 1), most)
            except NotSupportedError as error:
                self._fail(dict.fromkeys(batches, error))
                return
            self._fail({name: not_finite(name, index) for name, V in found.items() if not is_finite(V)})
            yield {
                name: batch.part({kind: found[name].permute(1, 0, 3, 2)}, False)
                for name, batch in batches.items()
                if name not in self._failed
            }

    def samples_together(self, columns: int, numbers: int) -> int:
        """How many samples' gradients are computed at a time, of so many columns and numbers each.

        A graph may keep more than what the layers give, or have no layers in it.
        """
        passing = replace(self.sizes, activations=max(self.sizes.activations, self._reading.saved))
        needed = passing.pass_bytes(columns) + self.sizes.bytes * numbers * columns
        return max(1, at_most(_GRADIENT_BYTES, 16) // needed)

    def sample_gradients(self, names: Iterable[str]) -> SampleGradients:
        """The samples' gradients of these layers' parameters by autograd alone.

        Raises:
            NotSupportedError: where they do not add up to the gradient of the batch; names the layer.
        """
        names = tuple(names)
        if names not in self._sample_gradients:
            rows = SampleGradients(
                self.model, [self.layers[name] for name in names], self.batch_dim, self.outputs
            )
            for name, reason in rows.why_not(*self._reading.looked_at).items():
                if reason:
                    raise NotSupportedError(
                        f"layer {name!r} has no gradients of single samples: {reason}; use another method "
                        "than per-sample"
                    )
            self._sample_gradients[names] = rows
        return self._sample_gradients[names]

    def leave_out(self, reasons: Reasons) -> None:
        """Takes layers out; `tell` says so, at the latest when the next pass begins.

        Raises:
            FisherlabError: where no layer is left; lists all that were left out.
        """
        self.layers = self.layers.without({name: str(reason) for name, reason in reasons.items()})
        self._reading.leave_out(reasons)
        self._left_out.add(reasons, none_left=not self.layers)

    def tell(self) -> None:
        """Says which layers were left out since it last did, in one warning.

        Raises:
            FisherlabError: with `strict`; lists them.
        """
        self._left_out.tell()

    def each_layer(self, makers: Mapping[str, Callable[[], T]]) -> dict[str, T]:
        """What is made of every layer; those whose maker fails are left out."""
        found, wrong = made(makers)
        self.leave_out(wrong)
        return found

    def failures(self) -> dict[str, FisherlabError]:
        """The layers that the pass was not right for, in any process, and why; asked once, at its end."""
        found = {name: error for own in distributed.gather_all(self._failed) for name, error in own.items()}
        self._failed = {}
        return found

    def _fail(self, errors: Mapping[str, FisherlabError]) -> None:
        """Layers that the pass goes on without."""
        self._failed = {**errors, **self._failed}

    def _layerwise(
        self,
        batches: Mapping[str, LayerBatch],
        needs: Needs,
        seen: Mapping[str, list[LayerCall]],
        outputs: Tensor,
        generators: Generators,
        inputs: ModelInputs,
    ) -> None:
        """Gives the batches the g of the kinds of layer-wise sampling that they need."""
        samples = self.batches.size(inputs)
        wanted = {n: sorted(kind for kind in map(LabelKind, needs[n]) if kind.layerwise) for n in needs}
        names = [name for name, kinds in wanted.items() if kinds]
        found = find_activations(outputs, {name: seen[name] for name in names})
        self._fail({name: InputError(unreached(name)) for name in names if name not in found})
        for name in found:
            for kind in wanted[name]:
                view, valid = self.layers[name], batches[name].valid
                slopes = [
                    layerwise_slope(call, activation, kind).unsqueeze(0)
                    for call, activation in zip(seen[name], found[name], strict=True)
                ]
                pairs = zip(seen[name], masked_slopes(view, inputs, slopes), strict=True)
                roots = roots_of(view, list(pairs), samples, self.batch_dim)
                roots = roots if valid is None else roots.masked_fill(~valid[None, :, :, None], 0.0)
                if kind.draws:
                    g = draw_layerwise(roots, kind.draws, generators, f"{kind} of {name}")
                elif kind == LAYERWISE_COLUMNS:
                    g = unit_columns(roots)
                else:
                    g = roots if len(roots) == 1 else torch.linalg.vector_norm(roots, dim=0, keepdim=True)
                batches[name].g[kind] = g

    def _outputs(
        self, batch: LayerBatch, name: str, kind: str, calls: list[tuple[LayerCall, Tensor]], samples: int
    ) -> Tensor:
        """What came back to the outputs of a layer's calls as g [c, n, t, m]."""
        view = self.layers[name]
        g = outputs_of(view, calls, samples, self.batch_dim)
        if batch.valid is None:
            return g
        valid = batch.valid[None, :, :, None]
        padding = isinstance(view.mask, Padding)
        checked = (padding or (batch.start == 0 and not view.one_hot)) and kind in LABEL_KINDS
        if checked and bool(g.masked_fill(valid, 0.0).any()):
            if padding:
                raise InputError(
                    f"the loss depends on what layer {name!r} gives at padding, which it did not in the "
                    "first samples; put a batch with padding first"
                )
            raise InputError(
                f"the mask of layer {name!r} hides positions that the loss depends on; leave them in"
            )
        return g.masked_fill(~valid, 0.0)

    def _look(self) -> PassSizes:
        """Reads a few samples: how each layer is to be read, and sizes."""
        first_inputs, targets = self.batches.first(MOST)
        inputs, targets = each(first_inputs, self._move), None if targets is None else self._move(targets)
        counted: list[int] = []

        def check(outputs: Tensor) -> None:
            if targets is not None:
                self.likelihood.check(outputs, targets[: len(outputs)])
            counted.append(self.likelihood.count(outputs))

        with unchanged(self.model):
            for view in self.layers.values():
                if view.mask is not None:  # also where no sum will ask for it, as of a norm
                    mask_of(view, inputs)
            first = self._reading.settle(self.layers, inputs, check)
            self.leave_out(self._reading.left_out)
            self.remarks = self._reading.remarks
            self.layers = self.layers.read_as(self._reading.views, self.remarks)
            self.layers = padded_layers(self.layers, inputs, self.outputs, self.batch_dim)
            self.activations: dict[str, Activation] = {}
            seen = {name: calls for name, calls in first.seen.items() if not self.layers[name].of_uses}
            following = find_activations(first.outputs, seen)
            self.leave_out({name: unreached(name) for name in seen if name not in following})
            for name, found in following.items():
                given = self.layers[name].activation
                kinds = dict.fromkeys(a.name for a in found) if given is None else [given]
                self.activations[name] = Activation(", ".join(kinds), "" if given else found[0].reason)
        return PassSizes(
            self.layers,
            torch.finfo(self.dtype).bits // 8,
            positions=dict(self._reading.positions),
            columns={"predictive": counted[0], "monte-carlo": self._draws, "drawn": 1, "empirical": 1},
            activations=self._reading.numbers,
            outputs=first.outputs.numel() // first.samples,
        )

    def look_ahead(self) -> None:
        """Looks at inputs of every shape that the data have, where they can be read before the pass.

        The sizes are those of the most positions then.
        """
        self.batches.count()
        with unchanged(self.model):
            for index, inputs in self.batches.forms.values():
                self.leave_out(self._reading.not_right_for(each(inputs, self._move), index))
        self.sizes = replace(self.sizes, positions=dict(self._reading.positions))

    def _move(self, values: Tensor) -> Tensor:
        return converted(values, self.dtype, self.device)
