"""The passes over data that fill the sums of all layers: one, or two where a method needs a basis."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fisherlab.collect import Collector, LayerBatch, Needs
from fisherlab.statistics.sums import LayerSums, Statistic

Basis = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class LayerWork:
    """What is to be summed for one layer.

    Attributes:
        kind: whose labels the second pass uses.
        statistics: the sums of the first pass.
        bases: for each two-pass method a function from the first pass's sums to (U_A, U_B).
        samples: only the first so many samples of the data; None: all.
        keep: the (a, g) of the first so many samples are kept as they are.
        keep_kinds: the kinds of g kept.
        scratch: further numbers a sample that the statistics make, so that batches stay small.
    """

    kind: str
    statistics: Sequence[Statistic]
    bases: Mapping[str, Callable[[LayerSums], Basis]] = field(default_factory=dict)
    samples: int | None = None
    keep: int = 0
    keep_kinds: frozenset[str] = frozenset()
    scratch: int = 0

    def __post_init__(self) -> None:
        """Each statistic is summed once, however many methods share it."""
        object.__setattr__(self, "statistics", tuple(dict.fromkeys(self.statistics)))

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of g that the first pass needs."""
        needed = {s.kind for s in self.statistics if s.kind is not None}
        return frozenset(needed | self.keep_kinds)


@dataclass
class Gathered:
    """A layer's sums: over all samples, and over each half where asked for.

    Attributes:
        sums: one `LayerSums` (all), or three (all, half, other half) where halves were asked for and have
            samples.
        kept: the (a, g) that were kept; None where none were.
    """

    sums: list[LayerSums]
    kept: LayerBatch | None = None


def gather(
    collector: Collector, work: Mapping[str, LayerWork], *, halves: bool = False
) -> dict[str, Gathered]:
    """Runs the passes that the work needs, at most two for all layers together.

    Args:
        collector: the model, its layers and its data.
        work: for each layer what to sum.
        halves: also sum the two halves of the samples apart.
    """
    parts = {name: [LayerSums() for _ in range(2 if halves else 1)] for name in work}
    kept: dict[str, list[LayerBatch]] = {name: [] for name in work}
    needs = {name: task.kinds for name, task in work.items()}
    scratch = sum(task.scratch for task in work.values())
    for batches in collector.passes(needs, "statistics", scratch):
        for name, task in work.items():
            batch = _limited(batches[name], task)
            _keep(kept[name], batch, task)
            for sums, part in zip(parts[name], _split(batch, halves), strict=True):
                sums.count(part)
                sums.add(task.statistics, part)
    gathered = {name: Gathered(_with_total(sums), _joined(kept[name])) for name, sums in parts.items()}
    _second_pass(collector, work, gathered)
    return gathered


def _second_pass(
    collector: Collector, work: Mapping[str, LayerWork], gathered: Mapping[str, Gathered]
) -> None:
    needs: Needs = {n: frozenset({task.kind}) for n, task in work.items() if task.bases}
    if not needs:
        return
    for name in needs:
        for sums in gathered[name].sums:
            sums.bases = {method: basis(sums) for method, basis in work[name].bases.items()}
    for batches in collector.passes(needs, "second moments"):
        for name in needs:
            task, totals = work[name], gathered[name].sums
            batch = _limited(batches[name], task)
            parts = [batch, *_split(batch, True)] if len(totals) == 3 else [batch]
            for part, total in zip(parts, totals, strict=True):
                total.add([total.rotated(method, task.kind) for method in task.bases], part)


def _with_total(parts: list[LayerSums]) -> list[LayerSums]:
    """(all, half, other half); only (all) where a half has no sample."""
    if len(parts) == 1:
        return parts
    total = parts[0] + parts[1]
    return [total, *parts] if all(sums.samples for sums in parts) else [total]


def _limited(batch: LayerBatch, task: LayerWork) -> LayerBatch:
    return batch if task.samples is None else batch.head(task.samples)


def _split(batch: LayerBatch, halves: bool) -> list[LayerBatch]:
    return [batch.half(0), batch.half(1)] if halves else [batch]


def _keep(kept: list[LayerBatch], batch: LayerBatch, task: LayerWork) -> None:
    if batch.start < task.keep:
        head = batch.head(task.keep)
        g = {kind: head.g[kind].clone() for kind in task.keep_kinds}
        kept.append(LayerBatch(head.start, head.a.clone(), g))


def _joined(batches: list[LayerBatch]) -> LayerBatch | None:
    if not batches:
        return None
    g = {kind: torch.cat([b.g[kind] for b in batches], dim=1) for kind in batches[0].g}
    return LayerBatch(0, torch.cat([b.a for b in batches]), g)
