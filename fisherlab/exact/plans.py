"""How each layer's exact block is to be computed: the way, its operations and bytes, under the limits."""

import math
from dataclasses import dataclass, replace

from fisherlab.arguments import Count, check
from fisherlab.collect.collector import Collector
from fisherlab.errors import MemoryLimitError, NotSupportedError, bytes_text
from fisherlab.layers import LayerView
from fisherlab.likelihoods.labels import DRAWN, LAYERWISE, LAYERWISE_COLUMNS, PREDICTIVE, LabelKind
from fisherlab.linalg.packing import packed_size

METHODS = ("auto", "per-sample", "kronecker", "gram")

_DOUBLE = 8  # bytes of a float64, in which blocks are summed
# Matrices K [N·C, N·C] at once, counted: K and a factor; with halves, whose K are a quarter each, also the
# copy that a factor is made from.
_GRAMS = 2.0, 3.5
# A choice: a block of D = 2896 at most is had without weighing its cost against that of a Gram form.
_SMALL_BLOCK = 64 * 2**20


@dataclass(frozen=True)
class BlockPlan:
    """How one layer's exact block is to be computed.

    Attributes:
        layer: the layer's name.
        method: `kronecker`, `per-sample`, `gram` or `layerwise`.
        kind: the labels; `drawn` is one label a sample drawn from the model, where the exact expectation
            has more columns than a Gram operator may.
        samples: how many samples are used.
        columns: samples times label columns.
        operations: multiplications and additions of the block itself.
        bytes: what the block holds while it is made.
        note: what was done for want of memory or time.
        remark: how the layer was read, where that is not as usual.
    """

    layer: str
    method: str
    kind: LabelKind
    samples: int | None
    columns: int | None
    operations: float
    bytes: int
    note: str = ""
    remark: str = ""

    @property
    def remarks(self) -> str:
        """All that a reader of the result should know."""
        return "; ".join(filter(None, (self.note, self.remark)))

    def __str__(self) -> str:
        count = "all samples" if self.columns is None else f"{self.columns} columns"
        work = f"{self.operations:.2g} operations, {bytes_text(self.bytes)}"
        return f"{self.layer}: {self.method}, {self.kind}, {count}, {work}" + (
            f" ({self.remarks})" if self.remarks else ""
        )


def make_plans(
    collector: Collector,
    kind: str,
    method: str,
    memory: int,
    max_columns: int,
    *,
    copies: int = 1,
    together: bool = True,
    most_operations: float | None = None,
    most_contraction: float = math.inf,
) -> dict[str, BlockPlan]:
    """The way to compute every layer's exact block, small blocks first, under one memory limit.

    Layers whose blocks do not fit it any more are left out.

    Args:
        collector: gives the layers' shapes and the number of samples.
        kind: the labels.
        method: `auto` or the method for all layers.
        memory: bytes for all blocks that are held at once.
        max_columns: the most columns of a Gram operator.
        copies: how many blocks a layer are held at once (halves of the data, and all).
        together: whether all layers' blocks are held at once, or one at a time.
        most_operations: for the backward passes of the exact expectation; above, one label a sample is
            drawn for every layer. None: no bound.
        most_contraction: operations of one contraction of a Gram operator with a Kronecker product; above,
            one label a sample is drawn for that layer.
    """
    check("max_columns", max_columns, Count)
    if method != "per-sample":  # which needs no rows
        collector.look_ahead()
    drawn = _why_drawn(collector, kind, memory, most_operations) if kind == PREDICTIVE else ""
    kind = DRAWN if drawn else LabelKind(kind)
    chooser = _Chooser(collector, kind, method, max_columns, most_contraction, copies, drawn)
    plans: dict[str, BlockPlan] = {}
    too_large: dict[str, MemoryLimitError] = {}
    left = memory
    for view in sorted(collector.layers.values(), key=lambda v: v.size):
        remark = "; ".join(filter(None, (collector.remarks.get(view.name), collector.apart)))
        try:
            plan = plans[view.name] = replace(chooser.plan(view, left), remark=remark)
        except MemoryLimitError as error:  # the others are done without it
            too_large[view.name] = error
        else:
            left -= plan.bytes if together else 0
    collector.leave_out(too_large)
    collector.tell()
    collector.vectors = frozenset(name for name, plan in plans.items() if plan.method == "kronecker")
    return {name: plans[name] for name in collector.layers}


def _why_drawn(collector: Collector, kind: str, memory: int, most_operations: float | None) -> str:
    """Why the expectation over labels is out of reach for every layer, or an empty text."""
    columns = collector.sizes.columns[kind]
    held = collector.sizes.pass_bytes(columns)
    if held > memory:
        return (
            f"the exact expectation has {columns:,} label columns a sample, whose backward pass would need "
            f"{bytes_text(held)}; one label a sample (a token) is drawn"
        )
    samples = collector.batches.count() or 1
    operations = 4.0 * samples * columns * collector.sizes.multiplications
    if most_operations is not None and operations > most_operations:
        return (
            f"the backward passes of {columns:,} label columns a sample would take {operations:.1g} "
            "operations; one label a sample (a token) is drawn"
        )
    return ""


@dataclass(frozen=True)
class _Chooser:
    """Chooses the way for a layer.

    Attributes:
        drawn: why labels are drawn for every layer, or empty.
    """

    collector: Collector
    kind: LabelKind
    method: str
    max_columns: int
    most_contraction: float
    copies: int
    drawn: str

    def plan(self, view: LayerView, memory: int) -> BlockPlan:
        """The plan of a layer with so much memory left."""
        if self.kind == LAYERWISE:
            return self._layerwise(view, memory)
        dense = self._dense(view)
        if self.method in ("kronecker", "per-sample"):
            if dense.bytes > memory:
                raise MemoryLimitError(
                    f"the block of layer {view.name!r} would need {bytes_text(dense.bytes)}, more than the "
                    f"{bytes_text(memory)} left of the memory limit; use method='gram' or a larger limit"
                )
            return dense
        fits = self.method == "auto" and dense.bytes <= memory
        if fits and dense.bytes <= _SMALL_BLOCK:
            return dense
        gram = self._gram(view, dense.bytes)
        if fits:
            same = gram.kind == self.kind and gram.samples == dense.samples and gram.bytes <= memory
            return gram if same and gram.operations < dense.operations else dense
        if gram.bytes > memory:
            raise MemoryLimitError(
                f"even the Gram form of layer {view.name!r} would need {bytes_text(gram.bytes)}, more than "
                f"the {bytes_text(memory)} left of the memory limit; use fewer samples, a smaller "
                "max_columns or a larger limit"
            )
        return gram

    def _dense(self, view: LayerView) -> BlockPlan:
        positions = self.collector.sizes.positions[view.name]
        samples, columns = self.collector.batches.count(), self.collector.sizes.columns[self.kind]
        total = None if samples is None else samples * columns
        packed = positions == 1 and not view.one_hot
        if self.method == "kronecker" and view.by_gradients and not packed:
            raise NotSupportedError(
                f"layer {view.name!r} is {self.collector.remarks[view.name]}; Kronecker accumulation needs "
                "its inputs: use method='auto', 'gram' or 'per-sample'"
            )
        if self.method == "kronecker" and not packed:
            what = f"{positions} positions a sample" if positions > 1 else "indices for inputs"
            raise NotSupportedError(
                f"layer {view.name!r} has {what}; Kronecker accumulation is for vectors, one a sample: use "
                "method='gram' or 'per-sample'"
            )
        block = view.group
        if packed and self.method != "per-sample":
            entries = view.groups * packed_size(block.inputs) * packed_size(block.outputs)
            method, operations = "kronecker", 2.0 * entries * (samples or 1)
        else:
            entries = view.groups * block.size**2
            method, operations = "per-sample", 2.0 * entries * (total or 1)
        held = entries * _DOUBLE * self.copies
        return BlockPlan(view.name, method, self.kind, samples, total, operations, held, self.drawn)

    def _gram(self, view: LayerView, dense_bytes: int) -> BlockPlan:
        kind, note = self.kind, self.drawn
        samples, columns = self.collector.batches.count(), self.collector.sizes.columns[kind]
        work = self._contraction(view, samples or self.max_columns, columns)
        if columns > 1 and work > self.most_contraction:
            note = f"a contraction of its {columns} label columns a sample would take {work:.1g} operations; "
            note, kind, columns = note + "one label a sample is drawn", DRAWN, 1
        if samples is None or samples * columns > self.max_columns:
            if columns > 1:
                note = f"the block would need {bytes_text(dense_bytes)}; one label a sample is drawn"
                kind, columns = DRAWN, 1
            if samples is None or samples > self.max_columns:
                count = "" if samples is None else f" of {samples}"
                note = (note + "; " if note else "") + f"the first {self.max_columns}{count} samples are used"
                samples = self.max_columns
        total = samples * columns
        sent = columns + 1 if view.of_uses else columns  # its positions are more with those of ∇h
        held = _DOUBLE * self.copies * samples * self.collector.sizes.numbers(view.name, sent)
        held += int(_DOUBLE * _GRAMS[self.copies > 1] * view.groups * total**2)
        operations = self._gram_operations(view, samples, columns)
        return BlockPlan(view.name, "gram", kind, samples, total, operations, held, note)

    def _gram_operations(self, view: LayerView, samples: int, columns: int) -> float:
        """Of K, by inner products of positions or of gradients."""
        t, total = self.collector.sizes.positions_of(view.name, columns), samples * columns
        by_positions = 2.0 * (samples * t) ** 2 * (view.groups * view.inputs + columns**2 * view.outputs)
        by_vectors = 2.0 * total * view.size * (total + t)
        return min(by_positions, by_vectors)

    def _contraction(self, view: LayerView, samples: int, columns: int) -> float:
        """Of Σ ⟨V, B V A⟩, by gradients or by inner products of positions."""
        t, d, m = self.collector.sizes.positions_of(view.name, columns), view.inputs, view.group.outputs
        by_vectors = columns * m * d * (t + m + d)
        by_positions = t * d * d + columns * t * m * m + t * t * (d + columns * m)
        return 2.0 * samples * view.groups * min(by_vectors, by_positions)

    def _layerwise(self, view: LayerView, memory: int) -> BlockPlan:
        if self.method in ("gram", "per-sample"):
            raise NotSupportedError(
                f"the layer-wise Fisher has a closed form; method={self.method!r} does not apply, use 'auto'"
            )
        samples = self.collector.batches.count()
        paired = view.vector and len(view.parameters) > 1  # scale and shift of a norm have one ε
        entries = view.size**2 if paired else view.outputs * packed_size(view.inputs)
        held = entries * _DOUBLE * self.copies + view.outputs * view.inputs**2 * _DOUBLE
        if held > memory:
            raise MemoryLimitError(
                f"the layer-wise Fisher of layer {view.name!r} would need {bytes_text(held)}, more than the "
                f"{bytes_text(memory)} left of the memory limit; give a larger limit"
            )
        operations = 2.0 * entries * (samples or 1)
        if paired:
            total = None if samples is None else samples * view.outputs
            return BlockPlan(view.name, "per-sample", LAYERWISE_COLUMNS, samples, total, operations, held)
        return BlockPlan(view.name, "layerwise", LAYERWISE, samples, samples, operations, held)
