"""The passes over data that fill the sums of all layers: one, or two where a method needs a basis."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from fisherlab.base import distributed
from fisherlab.collect.collector import Collector
from fisherlab.collect.layer_batch import LayerBatch
from fisherlab.collect.sizes import Needs
from fisherlab.errors import FisherlabError
from fisherlab.gradients.inputs import OneHot, cat
from fisherlab.layers import BlockShape
from fisherlab.likelihoods.labels import EMPIRICAL, LabelKind
from fisherlab.statistics.batches import BatchGradients
from fisherlab.statistics.sums import Basis, KeptSums, LayerSums, Statistic

T = TypeVar("T")


@dataclass(frozen=True)
class PassRequest:
    """What is to be summed for one layer.

    Attributes:
        kind: whose labels the second pass uses.
        statistics: the sums of the first pass.
        bases: for each two-pass method a function from the first pass's sums to (U_A, U_B).
        samples: only the first so many samples of the data; None: all.
        keep: the (a, g) of the first so many samples are kept as they are.
        keep_kinds: the kinds of g kept.
        lazy: nothing is summed in the pass: all samples are kept, and the sums are made from them.
        scratch: further numbers a sample that the statistics make, so that batches stay small.
        batches: each B whose batches' mean gradients are kept, see `BatchGradients`.
    """

    kind: LabelKind
    statistics: Sequence[Statistic]
    bases: Mapping[str, Callable[[LayerSums], Basis]] = field(default_factory=dict)
    samples: int | None = None
    keep: int = 0
    keep_kinds: frozenset[LabelKind] = frozenset()
    lazy: bool = False
    scratch: int = 0
    batches: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        """Each statistic is summed once, however many methods share it."""
        object.__setattr__(self, "statistics", tuple(dict.fromkeys(self.statistics)))

    @property
    def kinds(self) -> frozenset[LabelKind]:
        """The kinds of g that the first pass needs."""
        needed = {LabelKind(s.kind) for s in self.statistics if s.kind is not None}
        needed |= {EMPIRICAL} if self.batches else set()
        return frozenset(needed | self.keep_kinds | ({self.kind} if self.lazy and self.bases else set()))

    @property
    def in_parts(self) -> bool:
        """Whether the first pass may give it the label columns in parts."""
        sides = all(s.one_sided for s in self.statistics) and not self.batches
        return not self.keep and not self.lazy and sides

    def numbers(self, layer: BlockShape) -> int:
        """How many numbers the sums of both passes and the bases take."""
        inputs = 0 if layer.one_hot else layer.inputs**2
        basis = layer.groups * (inputs + layer.group.outputs**2) + layer.size
        return sum(statistic.numbers(layer) for statistic in self.statistics) + len(self.bases) * basis


@dataclass(frozen=True)
class SplitSums:
    """A layer's sums: over all samples, and over each half where asked for.

    Attributes:
        all: the sums over all samples.
        halves: those over each half; none where they were not asked for, or one has no sample.
        kept: the (a, g) that were kept; None where none were.
        batches: the gradients of batches of B samples, by B.
    """

    all: LayerSums
    halves: tuple[LayerSums, ...] = ()
    kept: LayerBatch | None = None
    batches: Mapping[int, BatchGradients] = field(default_factory=dict)

    @classmethod
    def of_kept(cls, kept: LayerBatch, halves: bool) -> "SplitSums":
        """The sums of samples that are all kept, which are in float64 from here on."""
        kept = kept.double()
        parts = [kept.half(0), kept.half(1)] if halves else []
        if not all(len(part.a) for part in parts):
            parts = []
        return cls(KeptSums(kept), tuple(map(KeptSums, parts)), kept)

    @classmethod
    def of_parts(cls, parts: Sequence[LayerSums], kept: LayerBatch | None) -> "SplitSums":
        """From the sums of all samples, or of the two halves."""
        filled = [sums for sums in parts if sums.samples]
        if len(filled) < 2:
            return cls((filled or parts)[0], (), kept)
        return cls(parts[0] + parts[1], tuple(parts), kept)

    @property
    def each(self) -> tuple[LayerSums, ...]:
        """The sums over all samples, then those over the halves."""
        return (self.all, *self.halves)


class Keeper(Protocol):
    """Where the sums of a pass are kept while it goes on, so that another can go on from them."""

    def state(self) -> "tuple[int, int, dict[str, LayerSums]] | None":
        """The pass (1 or 2), the samples that it has read, and the sums; None: nothing is kept."""

    def tick(self, stage: int, done: int, sums: Mapping[str, LayerSums]) -> None:
        """Called after every batch with what `state` gives."""


def gather(
    collector: Collector,
    work: Mapping[str, PassRequest],
    *,
    halves: bool = False,
    keeper: Keeper | None = None,
    failed: Callable[[Mapping[str, FisherlabError]], None] | None = None,
) -> dict[str, SplitSums]:
    """Runs the passes that the work needs, at most two for all layers together.

    Of lazy work the samples are kept and nothing is summed; see `SplitSums.of_kept`. Layers that a batch is
    not right for are missing from what is returned.

    Args:
        collector: the model, its layers and its data.
        work: for each layer what to sum.
        halves: also sum the two halves of the samples apart.
        keeper: keeps unfinished sums; without halves and kept samples only.
        failed: told of such layers and why; None: the collector leaves them out.
    """
    parts = {name: [LayerSums() for _ in range(2 if halves else 1)] for name in work}
    stage, done = 1, None
    state = None if keeper is None else keeper.state()
    if state is not None:
        stage, done, known = state
        parts = {name: [known[name]] for name in work}
    kept: dict[str, list[LayerBatch]] = {name: [] for name in work}
    batches = {name: {size: BatchGradients(size) for size in task.batches} for name, task in work.items()}
    failed = collector.leave_out if failed is None else failed
    if stage == 1:
        wrong = _first_pass(collector, work, parts, kept, batches, halves, keeper, done)
        done = None
        failed(wrong)
        parts, keeper = _without(parts, wrong), None if wrong else keeper
    # popped, so that the batches of one layer at most are there twice
    gathered = {
        name: replace(SplitSums.of_parts(sums, _joined(kept.pop(name))), batches=batches[name])
        for name, sums in parts.items()
    }
    wrong = _second_pass(collector, work, gathered, keeper, done)
    failed(wrong)
    return _without(gathered, wrong)


def _without(found: Mapping[str, T], wrong: Mapping[str, FisherlabError]) -> dict[str, T]:
    return {name: own for name, own in found.items() if name not in wrong}


def _first_pass(
    collector: Collector,
    work: Mapping[str, PassRequest],
    parts: Mapping[str, list[LayerSums]],
    kept: dict[str, list[LayerBatch]],
    batches: Mapping[str, Mapping[int, BatchGradients]],
    halves: bool,
    keeper: Keeper | None,
    begin: int | None,
) -> dict[str, FisherlabError]:
    needs = {name: task.kinds for name, task in work.items()}
    for batch_parts in _batches(collector, work, needs, begin):
        whole: set[str] = set()
        for part in batch_parts:
            whole |= part.keys()
            for name in list(part):
                batch = part.pop(name)
                done = batch.start + batch.samples
                _add(batch, work[name], parts[name], kept[name], halves)
                for gradients in batches[name].values():
                    gradients.add(_limited(batch, work[name]))
        if keeper is not None and whole == work.keys():  # sums of a layer that failed are not gone on from
            keeper.tick(1, done, {name: sums[0] for name, sums in parts.items()})
    wrong = collector.failures()
    _over_processes(_without(parts, wrong), kept)
    for by_size in _without(batches, wrong).values():  # in one order in all processes
        for size in sorted(by_size):
            by_size[size].over_processes()
    return wrong


def _batches(
    collector: Collector, work: Mapping[str, PassRequest], needs: Needs, begin: int | None
) -> Iterator[Iterable[dict[str, LayerBatch]]]:
    """The batches, each in parts where no layer needs all columns at once."""
    if all(task.in_parts for task in work.values()):
        yield from collector.passes_in_parts(needs, "statistics", begin)
        return
    scratch = sum(task.scratch for task in work.values())
    for batch in collector.passes(needs, "statistics", scratch, begin):
        yield (batch,)


def _add(
    batch: LayerBatch, task: PassRequest, sums: Sequence[LayerSums], kept: list[LayerBatch], halves: bool
) -> None:
    """What a batch, or a part of it, adds to a layer's sums and kept samples."""
    batch = _limited(batch, task)
    _keep(kept, batch, task)
    if task.lazy:
        return
    for one, part in zip(sums, _split(batch, halves), strict=True):
        if part.samples:
            one.count(part)
            one.add(task.statistics, part)


def _second_pass(
    collector: Collector,
    work: Mapping[str, PassRequest],
    gathered: Mapping[str, SplitSums],
    keeper: Keeper | None,
    begin: int | None,
) -> dict[str, FisherlabError]:
    tasks = {name: task for name, task in work.items() if name in gathered and task.bases and not task.lazy}
    needs: Needs = {name: frozenset({task.kind}) for name, task in tasks.items()}
    if not needs:
        return {}
    for name in needs if begin is None else ():
        for sums in gathered[name].each:
            sums.bases = _bases(work[name], sums)
    for batches in collector.passes(needs, "second moments", begin=begin):
        whole = batches.keys() == needs.keys()
        for name in list(batches):
            task, found, batch = work[name], gathered[name], batches.pop(name)
            done, batch = batch.start + batch.samples, _limited(batch, task)
            parts = [batch, *(_split(batch, True) if found.halves else ())]
            for part, total in zip(parts, found.each, strict=True):
                if part.samples:
                    total.add([total.rotated(method, task.kind) for method in total.bases], part)
        if keeper is not None and whole:
            keeper.tick(2, done, {name: found.all for name, found in gathered.items()})
    wrong = collector.failures()
    for name in _without(needs, wrong):  # in one order in all processes
        for total in gathered[name].each:
            _add_up(total.values, [total.rotated(method, work[name].kind).key for method in total.bases])
    return wrong


def _bases(task: PassRequest, sums: LayerSums) -> dict[str, Basis]:
    """The bases of the second pass; one that cannot be made is missing, and its method's `build` says why."""
    found = {}
    for method, basis in task.bases.items():
        with suppress(FisherlabError, torch.linalg.LinAlgError):
            found[method] = basis(sums)
    return found


def _over_processes(parts: Mapping[str, list[LayerSums]], kept: dict[str, list[LayerBatch]]) -> None:
    """The sums of all processes, and the samples that they kept."""
    if distributed.size() == 1:
        return
    for name, sums in parts.items():
        for one in sums:
            one.samples, one.positions = (
                sum(counts)
                for counts in zip(*distributed.gather_all((one.samples, one.positions)), strict=True)
            )
            _add_up(one.values)
        everyone = distributed.gather_all([batch for batch in kept[name] if len(batch.a)])
        kept[name] = [batch for own in everyone for batch in own]


def _add_up(values: dict[str, Tensor], only: Sequence[str] | None = None) -> None:
    """Sums over all processes, in place; a process that saw no sample adds zeros."""
    if distributed.size() == 1:
        return
    own = {key: (v.shape, v.device) for key, v in values.items() if only is None or key in only}
    known = {key: form for forms in distributed.gather_all(own) for key, form in forms.items()}
    for key, (shape, device) in known.items():
        values.setdefault(key, torch.zeros(shape, dtype=torch.float64, device=device))
    distributed.add_up([values[key] for key in sorted(known)])


def _limited(batch: LayerBatch, task: PassRequest) -> LayerBatch:
    return batch if task.samples is None else batch.head(task.samples)


def _split(batch: LayerBatch, halves: bool) -> list[LayerBatch]:
    return [batch.half(0), batch.half(1)] if halves else [batch]


def _keep(kept: list[LayerBatch], batch: LayerBatch, task: PassRequest) -> None:
    if batch.start < task.keep:
        kinds = task.kinds if task.lazy else task.keep_kinds
        kept.append(batch.head(task.keep).copied(kinds))


def _joined(batches: list[LayerBatch]) -> LayerBatch | None:
    if not batches:
        return None
    most = max(batch.inputs.shape[1] for batch in batches)
    columns = {kind: max(len(batch.g[kind]) for batch in batches) for kind in batches[0].g}
    batches = [_padded(batch, most, columns) for batch in batches]
    first = batches[0]
    if len(batches) == 1:
        return first
    g = {kind: torch.cat([b.g[kind] for b in batches], dim=1) for kind in first.g}
    valid = None
    if any(batch.valid is not None for batch in batches):
        valid = torch.cat([_valid(batch) for batch in batches])
    return LayerBatch(0, cat([b.a for b in batches]), g, first.groups, valid)


def _padded(batch: LayerBatch, positions: int, columns: Mapping[str, int]) -> LayerBatch:
    """The same with so many positions and label columns; those that are new are zero, and do not count."""
    missing = positions - batch.inputs.shape[1]
    wider = any(len(g) < columns[kind] for kind, g in batch.g.items())
    if not missing and not wider:
        return batch
    a = batch.a
    if isinstance(a, OneHot):
        a = OneHot(functional.pad(a.indices, (0, missing), value=-1), a.size, a.dtype)
    else:
        a = functional.pad(a, (0, 0, 0, missing))
    g = {
        kind: functional.pad(values, (0, 0, 0, missing, 0, 0, 0, columns[kind] - len(values)))
        for kind, values in batch.g.items()
    }
    valid = functional.pad(_valid(batch), (0, missing)) if missing else batch.valid
    return LayerBatch(batch.start, a, g, batch.groups, valid, batch.fresh)


def _valid(batch: LayerBatch) -> Tensor:
    """The positions that count, bool [n, t]."""
    if batch.valid is not None:
        return batch.valid
    return torch.ones(batch.inputs.shape[:2], dtype=torch.bool, device=batch.a.device)
