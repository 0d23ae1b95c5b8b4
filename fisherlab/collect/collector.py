"""One pass over data: for every layer its inputs a and output gradients g, without side effects.

Hooks keep each layer's input and the autograd edge of its output; all columns of the output Hessian's root
go backwards in one batched call, with respect to those edges, so no parameter gradient is ever
formed. Whole samples are cut so that a batch stays under the memory limit.
"""

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fisherlab.base import distributed
from fisherlab.base.progress import Progress, bar
from fisherlab.collect.batches import Batches, Form, ModelInputs, each, outputs_of_model, tensors_of
from fisherlab.collect.hooks import (
    backward,
    capture,
    drawn_layerwise,
    inputs_of,
    layerwise_draws,
    layerwise_slope,
    outputs_of,
    unchanged,
)
from fisherlab.collect.layer_batch import LayerBatch, whole
from fisherlab.collect.look import Look, Looker, moves_rows
from fisherlab.collect.refusals import require_finite, require_finite_gradients, require_finite_weights
from fisherlab.collect.sample_gradients import SampleGradients
from fisherlab.collect.sizes import LABEL_KINDS, LAYERWISE_COLUMNS, Needs, PassSizes
from fisherlab.errors import InputError, InputTypeError, whole_number
from fisherlab.gradients.inputs import Inputs, OneHot
from fisherlab.gradients.patches import Patches
from fisherlab.layers import Activation, LayerCall, Layers, LayerView, find_activations
from fisherlab.likelihoods import Likelihood, label_columns
from fisherlab.likelihoods.draws import Generators, normal

_FIRST, _MORE, _MOST = 2, 32, 64  # samples of the first look, of another, and where too little came back
_LOOK_BYTES = 2**28


class Collector:
    """Reads a model, its layers and its data; every pass of fisherlab is one of its.

    Its `layers` are those given, read as the first look at the data found that they must be; those that
    cannot be read are left out with a warning. Its `remarks` say of a layer what a reader should know. Its
    `vectors` are the layers that are summed as ones with a single position; batches with more are refused.

    Args:
        model: the network; its output is one tensor [n, …].
        layers: the layers to look at.
        data: see `Batches`.
        likelihood: what the output means.
        draws: labels a sample for the kind `monte-carlo`.
        batch_dim: the dimension that counts samples in the layers' inputs and outputs.
        generator: source of the seed for drawn labels; None: seed 0. Every pass draws the same labels.
        progress: see `fisherlab.base.progress`.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers,
        data: Any,
        likelihood: Likelihood,
        *,
        draws: int = 1,
        batch_dim: int = 0,
        generator: torch.Generator | None = None,
        progress: Progress = False,
    ) -> None:
        draws = whole_number("draws", draws, "the labels drawn for a sample", least=1)
        if generator is not None and not isinstance(generator, torch.Generator):
            raise InputTypeError(
                f"generator is a torch.Generator, not {type(generator).__name__}; for a seed give "
                "torch.Generator().manual_seed(seed)"
            )
        self.model, self.layers, self.likelihood = model, layers, likelihood
        self.batches = Batches(data, batch_dim)
        self.batch_dim = batch_dim
        self._draws, self._progress = draws, progress
        self._seed = 0
        if generator is not None:
            device = generator.device
            self._seed = int(torch.randint(2**62, (), generator=generator, device=device))
        first = next(model.parameters())
        self.device, self.dtype = first.device, first.dtype
        require_finite_weights(model)
        self.remarks: dict[str, str] = {}
        self._looker = Looker(model, batch_dim)
        self._rows_of: dict[tuple[str, ...], SampleGradients] = {}
        self._looked: dict[Form, int] = {}
        self._rows_seen: dict[Form, dict[str, list[int]]] = {}
        self._longest: dict[str, int] = {}
        self._right_to = 0  # the samples before have been looked at
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
            lets go of their unfolded inputs as it goes.

        Raises:
            NumericalError: where the network gives values that are not finite; names the layer and
                the batch.
        """
        for parts in self._passes(needs, what, self.sizes.samples(needs, scratch), begin):
            yield whole(list(parts))

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
        first, stop = self.share()
        start = first if begin is None else begin
        generators = Generators(self._seed, start)
        with (
            unchanged(self.model),
            bar(self._progress, what, None if stop is None else stop - first) as report,
        ):
            for index, (inputs, targets) in enumerate(self.read(most, start, stop)):
                self._make_sure(inputs, index)
                yield self._collect(inputs, targets, needs, generators, start, index)
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
    ) -> Tensor:
        """The label columns [c, n, …] of one of `LABEL_KINDS`."""
        if kind in ("predictive", "empirical"):
            return label_columns(self.likelihood, kind, outputs, targets)
        draws = 1 if kind == "drawn" else self._draws

        def draw(samples: int, generator: torch.Generator) -> Tensor:
            return self.likelihood.draw(outputs[:1].expand(samples, *outputs.shape[1:]), draws, generator)

        generator = generators.ready(kind, draw)
        return label_columns(self.likelihood, "monte-carlo", outputs, targets, draws, generator)

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
        samples = self.batches.size(inputs)
        seen, outputs = self._forward(inputs, index)
        if targets is not None:
            self.likelihood.check(outputs, targets)
        wanted = [kind for kind in LABEL_KINDS if any(kind in kinds for kinds in needs.values())]
        if start >= self._right_to and (self._moving or _is_looked_at(index)):
            self._looker.require_right(self._captured, seen, outputs, index, pairs=self._moving)
        self._right_to = max(self._right_to, start + samples)
        given = {name: self._given(name, inputs, seen.get(name, []), samples, start) for name in needs}
        self._layerwise(given, needs, seen, outputs, generators, samples)
        yield {name: batch.part(batch.g, True) for name, batch in given.items()}
        for kind in wanted:
            columns = self.columns(kind, outputs.detach(), targets, generators)
            taken = [name for name in needs if kind in needs[name]]
            names = [name for name in taken if name in seen]
            if len(names) < len(taken):
                others = [name for name in taken if name not in seen]
                yield from self._of_gradients(given, others, kind, inputs, columns, index)
            edges = [call.edge for name in names for call in seen[name]]
            numbers = sys.maxsize if self._apart else samples * self.sizes.activations
            keep = kind != wanted[-1]
            parts = backward(outputs, edges, columns, keep, numbers) if edges else ()
            for place, (count, found) in enumerate(parts):
                gradients = iter(found)
                part = {}
                for name in names:
                    calls = [(call, _known(next(gradients), call, count)) for call in seen[name]]
                    g = self._outputs(given[name], name, kind, calls, samples)
                    self._require_vectors(name, g, index)
                    if not place:  # a function without a slope spoils all columns
                        require_finite_gradients(name, g, index)
                    part[name] = given[name].part({kind: g}, False)
                yield part

    def _given(
        self, name: str, inputs: ModelInputs, calls: list[LayerCall], samples: int, start: int
    ) -> LayerBatch:
        """A layer's inputs, made when they are asked for where no position is left out."""
        view = self.layers[name]
        if view.by_gradients:
            return LayerBatch(start, view.unit_inputs(samples, self.dtype, self.device), {}, view.groups)
        make = partial(self._inputs, name, calls, samples)
        if view.mask is None and not view.one_hot:
            return LayerBatch(start, make, {}, view.groups)
        a = make()
        valid = _valid(view, inputs, a)
        return LayerBatch(start, _masked(a, valid), {}, view.groups, valid)

    def _of_gradients(
        self,
        given: Mapping[str, LayerBatch],
        names: Sequence[str],
        kind: str,
        inputs: ModelInputs,
        columns: Tensor,
        index: int,
    ) -> Iterator[dict[str, LayerBatch]]:
        """Columns [c, n, …] as they come back to parameters, sample by sample; as many at a time as fit."""
        rows = self.sample_gradients(names)
        size = self.sizes.bytes * sum(self.layers[name].size for name in names)
        width = max(1, _LOOK_BYTES // (size * columns.shape[1]))
        for some in columns.split(width):
            most = max(1, _LOOK_BYTES // (self.sizes.pass_bytes(len(some)) + size * len(some)))
            found = rows.pieces(inputs, some.transpose(0, 1), most)
            for name in names:
                require_finite_gradients(name, found[name], index)
            yield {n: given[n].part({kind: found[n].permute(1, 0, 3, 2)}, False) for n in names}

    def sample_gradients(self, names: Iterable[str]) -> SampleGradients:
        """The samples' gradients of these layers' parameters by autograd alone.

        Raises:
            InputError: where they do not add up to the gradient of the batch; names the layer.
        """
        names = tuple(names)
        if names not in self._rows_of:
            rows = SampleGradients(self.model, [self.layers[name] for name in names], self.batch_dim)
            for name, reason in rows.why_not(*self._looked_at).items():
                if reason:
                    raise InputError(
                        f"layer {name!r} has no gradients of single samples: {reason}; use another method "
                        "than per-sample, or leave it out with layers="
                    )
            self._rows_of[names] = rows
        return self._rows_of[names]

    def leave_out(self, reasons: Mapping[str, str], stacklevel: int = 3) -> None:
        """Takes layers out, with one warning that says why; raised as from the caller's caller.

        Raises:
            InputError: where no layer is left.
        """
        if not reasons:
            return
        self.layers = self.layers.without(reasons)
        text = "; ".join(f"layer {name!r}: {reason}" for name, reason in reasons.items())
        if not self.layers:
            raise InputError(f"no layer can be measured: {text}")
        warnings.warn(f"not measured: {text}", stacklevel=stacklevel)

    def _layerwise(
        self,
        given: dict[str, LayerBatch],
        needs: Needs,
        seen: Mapping[str, list[LayerCall]],
        outputs: Tensor,
        generators: Generators,
        samples: int,
    ) -> None:
        wanted = {n: sorted(k for k in needs[n] if k.startswith("layerwise")) for n in needs}
        names = [name for name, kinds in wanted.items() if kinds]
        found = self._find_activations(outputs, seen, names)
        for name in names:
            for kind in wanted[name]:
                calls = [
                    (call, layerwise_slope(call, activation, kind).unsqueeze(0))
                    for call, activation in zip(seen[name], found[name], strict=True)
                ]
                slope = self._outputs(given[name], name, kind, calls, samples)
                given[name].g[kind] = self._of_slope(slope, kind, name, generators)

    def _outputs(
        self, batch: LayerBatch, name: str, kind: str, calls: list[tuple[LayerCall, Tensor]], samples: int
    ) -> Tensor:
        """What came back to the outputs of a layer's calls as g [c, n, t, m]."""
        view = self.layers[name]
        g = outputs_of(view, calls, samples, self.batch_dim)
        if batch.valid is None:
            return g
        valid = batch.valid[None, :, :, None]
        checked = batch.start == 0 and kind in LABEL_KINDS and not view.one_hot
        if checked and bool(g.masked_fill(valid, 0.0).any()):
            raise InputError(
                f"the mask of layer {name!r} hides positions that the loss depends on; leave them in"
            )
        return g.masked_fill(~valid, 0.0)

    def _find_activations(
        self, outputs: Tensor, seen: Mapping[str, list[LayerCall]], names: Iterable[str]
    ) -> dict[str, list[Activation]]:
        names = list(names)
        edges = {(name, place): call.edge for name in names for place, call in enumerate(seen[name])}
        found = find_activations(outputs, edges)
        return {name: [found[name, place] for place in range(len(seen[name]))] for name in names}

    def _of_slope(self, slope: Tensor, kind: str, layer: str, generators: Generators) -> Tensor:
        """The g of a kind of layer-wise sampling from the slope [1, n, t, m]."""
        draws = layerwise_draws(kind)
        if draws:
            return _draw_layerwise(slope, draws, generators, f"{kind} of {layer}")
        return unit_columns(slope) if kind == LAYERWISE_COLUMNS else slope

    def _forward(self, inputs: ModelInputs, index: int) -> tuple[dict[str, list[LayerCall]], Tensor]:
        samples = self.batches.size(inputs)
        with capture(self._captured, samples=samples) as seen:
            outputs = outputs_of_model(self.model, inputs)
        require_finite(outputs, seen, index)
        for name, rows in self._rows_seen.get(self.batches.form(inputs), {}).items():
            self._require_rows(name, rows, seen[name], samples, index)
        return seen, outputs

    def _require_rows(
        self, name: str, known: list[int], calls: list[LayerCall], samples: int, index: int
    ) -> None:
        """Refuses other numbers of rows than at the look at inputs of the same shape."""
        try:
            rows = self._looker.rows(self.layers[name], calls, samples)
        except InputError:
            rows = []
        if rows != known:
            raise InputError(
                f"layer {name!r} sees other rows in batch {index} than it did of the first samples, so they "
                "cannot be told apart by sample; use method='per-sample', or leave it out with layers="
            )

    def _require_vectors(self, name: str, g: Tensor, index: int) -> None:
        """Refuses several positions of a layer that is summed as one with a single position."""
        if g.shape[2] > 1 and name in self.vectors:
            raise InputError(
                f"layer {name!r} has one position a sample in the first samples and {g.shape[2]} in batch "
                f"{index}, for which Kronecker accumulation is not right; put a batch of the longest length "
                "first, or use method='per-sample'"
            )

    def _look(self) -> PassSizes:
        """Reads a few samples: how each layer is to be read, and sizes."""
        inputs, targets = self.batches.first(_MOST)
        inputs, targets = each(inputs, self._move), None if targets is None else self._move(targets)
        counted: list[int] = []

        def check(outputs: Tensor) -> None:
            if targets is not None:
                self.likelihood.check(outputs, targets[: len(outputs)])
            counted.append(self.likelihood.count(outputs))

        with unchanged(self.model):
            for view in self.layers.values():
                if view.mask is not None:  # also where no sum will ask for it, as of a norm
                    _mask(view, inputs)
            looks = self._looks(inputs, check)
            first = looks[0]
            settled = self._looker.settle(self.layers, looks)
            self._moving = any(moves_rows(look.outputs) for look in looks)
            self._looked_at = first.inputs, first.column
            self.leave_out(settled.left_out, stacklevel=5)
            self.layers = self.layers.read_as(settled.views, settled.remarks)
            self.remarks = settled.remarks
            self._captured = {name: view for name, view in self.layers.items() if not view.by_gradients}
            form = self.batches.form(first.inputs)
            self._looked[form] = first.samples
            seen, outputs = {name: first.seen[name] for name in self._captured}, first.outputs
            if any(view.expanded is not None for view in self._captured.values()):
                seen, outputs = self._forward(first.inputs, 0)
            activations = sum(call.output.numel() for own in {**first.seen, **seen}.values() for call in own)
            activations //= first.samples
            self._apart = not self._looker.goes_together(self._captured, first.inputs, activations)
            self._rows_seen[form] = {
                name: self._looker.rows(view, seen[name], first.samples)
                for name, view in self._captured.items()
            }
            self.activations = self._name_activations(outputs, seen)
            positions = {
                name: view.inputs
                if view.by_gradients
                else self._inputs(name, seen[name], first.samples).shape[1]
                for name, view in self.layers.items()
            }
        return PassSizes(
            self.layers,
            torch.finfo(self.dtype).bits // 8,
            positions=positions,
            columns={"predictive": counted[0], "monte-carlo": self._draws, "drawn": 1, "empirical": 1},
            activations=activations,
            outputs=outputs.numel() // first.samples,
        )

    def _looks(self, inputs: ModelInputs, check: Callable[[Tensor], None] | None = None) -> list[Look]:
        """Looks at two of these samples, and at more, as many as are needed for something to come back."""
        total = self.batches.size(inputs)
        count = min(_FIRST, total)
        first = self._looker.look(self.layers, self._first(inputs), count, check=check)
        self._looker.require_own(self.layers, first)
        numbers = sum(call.output.numel() for calls in first.seen.values() for call in calls) // count
        silent = not all(first.tells(view) for view in self.layers.values())
        fitting = _LOOK_BYTES // (8 * (torch.finfo(self.dtype).bits // 8) * max(1, numbers))
        more = min(total, _MOST if silent else _MORE, fitting)
        if more <= count:
            return [first]
        second = self._looker.look(self.layers, self._part(inputs, more), more, swap=False)
        self._looker.require_own(self.layers, second)
        return [first, second]

    def _make_sure(self, inputs: ModelInputs, index: int) -> None:
        """Looks anew at inputs of shapes not seen before, and at two samples where one alone was seen.

        How the rows of samples lie in a layer's tensors may depend on the shapes.
        """
        count, form = min(_FIRST, self.batches.size(inputs)), self.batches.form(inputs)
        known = self._looked.get(form, 0)
        if known >= count:
            return
        look = self._looker.look(self._captured, self._first(inputs), count)
        self._looker.require_own(self._captured, look)
        for name, view in self._captured.items():
            reason = self._looker.why_not(view, [look])
            if reason and known:
                raise InputError(
                    f"the first batch has one sample only, and of a later one layer {name!r} is not right: "
                    f"{reason}; give a first batch of two samples or more"
                )
            if reason:
                raise InputError(
                    f"layer {name!r} was right for the first samples and is not in batch {index}, whose "
                    f"inputs have another shape: {reason}; use method='per-sample', or leave it out with "
                    "layers="
                )
        self._looked[form] = count
        for name in self._captured:
            positions = self._inputs(name, look.seen[name], count).shape[1]
            self._longest[name] = max(positions, self._longest.get(name, 0))
        rows = {n: self._looker.rows(view, look.seen[n], count) for n, view in self._captured.items()}
        self._rows_seen.setdefault(form, rows)

    def look_ahead(self) -> None:
        """Looks at inputs of every shape that the data have, where they can be read before the pass.

        The sizes are those of the most positions then.
        """
        self.batches.count()
        with unchanged(self.model):
            for index, inputs in self.batches.forms.values():
                self._make_sure(each(inputs, self._move), index)
        known = self.sizes.positions
        longest = {name: max(known[name], self._longest.get(name, 0)) for name in known}
        self.sizes = replace(self.sizes, positions=longest)

    def _first(self, inputs: ModelInputs) -> ModelInputs:
        """The first sample, and the next that is another; any two where all are alike."""
        samples = min(_MOST, self.batches.size(inputs))
        rows = [x.narrow(self.batch_dim, 0, samples) for x in tensors_of(inputs)]

        def other(n: int) -> bool:
            pairs = ((x.select(self.batch_dim, 0), x.select(self.batch_dim, n)) for x in rows)
            return not all(torch.equal(*pair) for pair in pairs)

        place = next(filter(other, range(1, samples)), 1)
        if place == 1:
            return self._part(inputs, min(_FIRST, samples))
        places = torch.tensor([0, place], device=self.device)
        return each(inputs, lambda x: x.index_select(self.batch_dim, places))

    def _part(self, inputs: ModelInputs, count: int) -> ModelInputs:
        return each(inputs, lambda x: x.narrow(self.batch_dim, 0, count))

    def _inputs(self, name: str, calls: list[LayerCall], samples: int) -> Inputs | Patches:
        return inputs_of(self.layers[name], calls, samples, self.batch_dim)

    def _name_activations(
        self, outputs: Tensor, seen: Mapping[str, list[LayerCall]]
    ) -> dict[str, Activation]:
        named = {}
        for name, found in self._find_activations(outputs, seen, seen).items():
            given = self.layers[name].activation
            kinds = list(dict.fromkeys(a.name for a in found)) if given is None else [given]
            named[name] = Activation(", ".join(kinds), "" if given else found[0].reason)
        return named

    def _move(self, values: Tensor) -> Tensor:
        dtype = self.dtype if values.is_floating_point() else None
        return values.to(device=self.device, dtype=dtype)


def _is_looked_at(index: int) -> bool:
    """Whether a batch is looked at: 0, 1, 2, 4, 8 and so on, which takes ever less of the time."""
    return index & (index - 1) == 0


def _known(gradients: Tensor | None, call: LayerCall, columns: int) -> Tensor:
    """The gradients of a call; zero where the outputs do not depend on it."""
    return call.output.new_zeros(columns, *call.output.shape) if gradients is None else gradients


def _valid(view: LayerView, inputs: ModelInputs, a: Inputs | Patches) -> Tensor | None:
    """The positions of a layer that count: those of its own mask, and indices that are no padding."""
    valid = None
    if view.mask is not None and not view.vector:  # a norm's sums have no positions left
        valid = _mask(view, inputs)
        if valid.shape != a.shape[:2]:
            raise InputError(
                f"the mask of layer {view.name!r} has shape {list(valid.shape)}; it must be a bool for each "
                f"sample and position, {list(a.shape[:2])}"
            )
    if isinstance(a, OneHot) and a.masked:
        return a.indices >= 0 if valid is None else valid & (a.indices >= 0)
    return valid


def _mask(view: LayerView, inputs: ModelInputs) -> Tensor:
    """What a layer's mask gives for these inputs, a bool tensor.

    Raises:
        InputError: where it raises any exception, or gives anything else.
    """
    assert view.mask is not None
    try:
        valid = view.mask(inputs)
    except Exception as error:
        raise InputError(
            f"the mask of layer {view.name!r} fails on the model's inputs ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(valid, Tensor) or valid.dtype != torch.bool:
        given = f"a tensor of {valid.dtype}" if isinstance(valid, Tensor) else type(valid).__name__
        raise InputError(
            f"the mask of layer {view.name!r} gives {given}; it must be a bool for each sample and position, "
            "a tensor [n, t]"
        )
    return valid


def _masked(a: Inputs | Patches, valid: Tensor | None) -> Inputs | Patches:
    if valid is None:
        return a
    if isinstance(a, Patches):
        a = a.unfolded()
    if isinstance(a, OneHot):
        return OneHot(a.indices.masked_fill(~valid, -1), a.size, a.dtype)
    return a * valid.unsqueeze(-1)


def unit_columns(slope: Tensor) -> Tensor:
    """φ'(s_tj) e_tj for every unit j and position t: [t·m, n, t, m] from the slope [1, n, t, m]."""
    columns = torch.diag_embed(slope[0].flatten(1)).transpose(0, 1)
    return columns.unflatten(-1, slope.shape[2:])


def _draw_layerwise(slope: Tensor, draws: int, generators: Generators, use: str) -> Tensor:
    numbers = tuple(slope.shape[2:])

    def draw(samples: int, generator: torch.Generator) -> Tensor:
        return normal(slope[0, :1].expand(samples, *numbers), draws, numbers, generator)

    noise = normal(slope[0], draws, numbers, generators.ready(use, draw))
    return drawn_layerwise(slope, noise)
