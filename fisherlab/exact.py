"""The exact Fisher of every layer: by samples' gradients, by Kronecker accumulation, or as a Gram operator.

F_l = (1/N) Σ_n Σ_c vec(V_{n,c}) vec(V_{n,c})ᵀ. A cost model picks the way for each layer under the
memory limit; the three agree to rounding.
"""

import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from fisherlab.capture import unchanged
from fisherlab.collect import Collector, LayerBatch
from fisherlab.data import ModelInputs, called, each, tensors_of
from fisherlab.errors import (
    InputError,
    MemoryLimitError,
    NotSupportedError,
    bytes_text,
    unknown,
)
from fisherlab.layers import BlockShape, Layers, LayerView, select_layers
from fisherlab.likelihoods import Likelihood, as_likelihood, check_kind
from fisherlab.operators import (
    DenseOperator,
    GramOperator,
    LinearOperator,
    PackedOperator,
    UnitBlockOperator,
    joined,
)
from fisherlab.operators.packing import packed_size, smat
from fisherlab.progress import Progress
from fisherlab.statistics import LayerSums, LayerWork, Statistic, gather, moments

METHODS = ("auto", "per-sample", "kronecker", "gram")
DEFAULT_MEMORY = 4 * 2**30
DEFAULT_COLUMNS = 4096

_DOUBLE = 8
_ROW_BYTES = 64 * 2**20
_SMALL_BLOCK = 64 * 2**20


@dataclass(frozen=True)
class Plan:
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
        note: what a reader of the result should know.
    """

    layer: str
    method: str
    kind: str
    samples: int | None
    columns: int | None
    operations: float
    bytes: int
    note: str = ""

    def __str__(self) -> str:
        count = "all samples" if self.columns is None else f"{self.columns} columns"
        work = f"{self.operations:.2g} operations, {bytes_text(self.bytes)}"
        return f"{self.layer}: {self.method}, {self.kind}, {count}, {work}" + (
            f" ({self.note})" if self.note else ""
        )


def exact_fisher(
    model: nn.Module,
    data: Any,
    likelihood: str | Likelihood = "categorical",
    kind: str = "predictive",
    layers: "Layers | Iterable[str] | str | None" = None,
    method: str = "auto",
    *,
    bias: str = "joint",
    memory: int | str = DEFAULT_MEMORY,
    max_columns: int = DEFAULT_COLUMNS,
    batch_dim: int = 0,
    draws: int = 1,
    generator: torch.Generator | None = None,
    progress: Progress = False,
) -> dict[str, LinearOperator]:
    """The exact Fisher block of every layer, F_l = (1/N) Σ_n Σ_c vec(V_{n,c}) vec(V_{n,c})ᵀ.

    V_{n,c} = Σ_t g_{n,c,t} a_{n,t}ᵀ [m, d] is the gradient of sample n for label column c; a joint bias is
    its last column. Per-sample log-likelihoods define F: no mean over a batch enters.

    Args:
        model: the network; in evaluation mode during the call, and unchanged by it.
        data: `(inputs, targets)` tensors, or an iterable of such batches.
        likelihood: `categorical`, `bernoulli`, `gaussian`, or a `Likelihood`.
        kind: `predictive` (the expectation over the model's own labels), `monte-carlo`, `empirical` or
            `layerwise` (method.md, section 4: (1/N) Σ_n Σ_t (a aᵀ) ⊗ diag(φ'(s)²)).
        layers: names, globs, or `find_layers(...)`; None: all.
        method: `per-sample` (torch.func, the reference), `kronecker` (T = 1: one matrix product of packed
            second moments), `gram` (never forms the block), or `auto`.
        bias: `joint`, `separate` or `ignore`.
        memory: the limit, in bytes or as text such as "4GiB".
        max_columns: the most columns N·C of a Gram operator; above, one label a sample is drawn,
            and a warning says so.
        batch_dim: the dimension that counts samples.
        draws: labels a sample for `monte-carlo`.
        generator: seeds the drawn labels.
        progress: True for a bar on stderr.

    Returns:
        For each layer a `LinearOperator` of dimension D = m·d, in column-vec order.

    Raises:
        InputError: for an unknown name, or data that do not fit the model.
        MemoryLimitError: where the method asked for cannot hold a block under the limit.
        NotSupportedError: `kronecker` for a layer with several positions; names it.
    """
    kind, likelihood = check_kind(kind), as_likelihood(likelihood)
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    chosen = select_layers(model, layers, bias=bias)
    collector = Collector(
        model,
        chosen,
        data,
        likelihood,
        draws=draws,
        batch_dim=batch_dim,
        generator=generator,
        progress=progress,
    )
    plans = make_plans(collector, kind, method, parse_bytes(memory), max_columns)
    for plan in plans.values():
        if plan.note:
            warnings.warn(f"layer {plan.layer!r}: {plan.note}", stacklevel=2)
    if method == "per-sample":
        return {name: _per_sample(collector, chosen[name], plan.kind) for name, plan in plans.items()}
    work = {
        name: block_work(plan, chosen[name], collector.label_columns_of(plan.kind, name))
        for name, plan in plans.items()
    }
    gathered = gather(collector, work)
    blocks = {}
    for name, plan in plans.items():
        found = gathered.pop(name)
        if plan.method == "gram":
            assert found.kept is not None
            blocks[name] = gram_block(found.kept.double(), plan.kind)
        else:
            blocks[name] = build_block(chosen[name], plan, found.sums[0])
    return blocks


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
) -> dict[str, Plan]:
    """The way to compute every layer's exact block, small blocks first, under one memory limit.

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
    if max_columns < 1:
        raise InputError(f"max_columns must be at least 1, not {max_columns}")
    drawn = _why_drawn(collector, kind, memory, most_operations) if kind == "predictive" else ""
    kind = "drawn" if drawn else kind
    chooser = _Chooser(collector, kind, method, max_columns, most_contraction, copies, drawn)
    plans: dict[str, Plan] = {}
    left = memory
    for view in sorted(collector.layers.values(), key=lambda v: v.size):
        plan = plans[view.name] = chooser.plan(view, left)
        left -= plan.bytes if together else 0
    return {name: plans[name] for name in collector.layers}


def _why_drawn(collector: Collector, kind: str, memory: int, most_operations: float | None) -> str:
    """Why the expectation over labels is out of reach for every layer, or an empty text."""
    columns = collector.shapes.columns[kind]
    held = collector.pass_bytes(columns)
    if held > memory:
        return (
            f"the exact expectation has {columns:,} label columns a sample, whose backward pass would need "
            f"{bytes_text(held)}; one label a sample (a token) is drawn"
        )
    samples = collector.batches.count() or 1
    operations = 4.0 * samples * columns * collector.shapes.multiplications
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
    kind: str
    method: str
    max_columns: int
    most_contraction: float
    copies: int
    drawn: str

    def plan(self, view: LayerView, memory: int) -> Plan:
        """The plan of a layer with so much memory left."""
        if self.kind == "layerwise":
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

    def _dense(self, view: LayerView) -> Plan:
        positions = self.collector.shapes.positions[view.name]
        samples, columns = self.collector.batches.count(), self.collector.shapes.columns[self.kind]
        total = None if samples is None else samples * columns
        packed = positions == 1 and not view.one_hot
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
        return Plan(view.name, method, self.kind, samples, total, operations, held, self.drawn)

    def _gram(self, view: LayerView, dense_bytes: int) -> Plan:
        kind, note = self.kind, self.drawn
        samples, columns = self.collector.batches.count(), self.collector.shapes.columns[kind]
        work = self._contraction(view, samples or self.max_columns, columns)
        if columns > 1 and work > self.most_contraction:
            note = f"a contraction of its {columns} label columns a sample would take {work:.1g} operations; "
            note, kind, columns = note + "one label a sample is drawn", "drawn", 1
        if samples is None or samples * columns > self.max_columns:
            if columns > 1:
                note = f"the block would need {bytes_text(dense_bytes)}; one label a sample is drawn"
                kind, columns = "drawn", 1
            if samples is None or samples > self.max_columns:
                count = "" if samples is None else f" of {samples}"
                note = (note + "; " if note else "") + f"the first {self.max_columns}{count} samples are used"
                samples = self.max_columns
        total = samples * columns
        held = _DOUBLE * self.copies * samples * self.collector.numbers(view.name, columns)
        held += _DOUBLE * 2 * view.groups * total**2
        operations = self._gram_operations(view, samples, columns)
        return Plan(view.name, "gram", kind, samples, total, operations, held, note)

    def _gram_operations(self, view: LayerView, samples: int, columns: int) -> float:
        """Of K, by inner products of positions or of gradients."""
        t, total = self.collector.shapes.positions[view.name], samples * columns
        by_positions = 2.0 * (samples * t) ** 2 * (view.groups * view.inputs + columns**2 * view.outputs)
        by_vectors = 2.0 * total * view.size * (total + t)
        return min(by_positions, by_vectors)

    def _contraction(self, view: LayerView, samples: int, columns: int) -> float:
        """Of Σ ⟨V, B V A⟩, by gradients or by inner products of positions."""
        t, d, m = self.collector.shapes.positions[view.name], view.inputs, view.group.outputs
        by_vectors = columns * m * d * (t + m + d)
        by_positions = t * d * d + columns * t * m * m + t * t * (d + columns * m)
        return 2.0 * samples * view.groups * min(by_vectors, by_positions)

    def _layerwise(self, view: LayerView, memory: int) -> Plan:
        if self.method in ("gram", "per-sample"):
            raise NotSupportedError(
                f"the layer-wise Fisher has a closed form; method={self.method!r} does not apply, use 'auto'"
            )
        samples = self.collector.batches.count()
        entries = view.outputs * packed_size(view.inputs)
        held = entries * _DOUBLE * self.copies + view.outputs * view.inputs**2 * _DOUBLE
        if held > memory:
            raise MemoryLimitError(
                f"the layer-wise Fisher of layer {view.name!r} would need {bytes_text(held)}, more than the "
                f"{bytes_text(memory)} left of the memory limit; leave the layer out or give a larger limit"
            )
        operations = 2.0 * entries * (samples or 1)
        return Plan(view.name, "layerwise", "layerwise", samples, samples, operations, held)


def block_statistic(plan: Plan) -> Statistic | None:
    """The sum that makes the block; None for a Gram operator, which keeps the samples."""
    compute = {
        "kronecker": moments.packed_block,
        "per-sample": moments.dense_block,
        "layerwise": moments.unit_blocks,
    }.get(plan.method)
    return None if compute is None else Statistic(f"block-{plan.method}", compute, plan.kind)


def block_work(plan: Plan, view: LayerView, columns: int) -> LayerWork:
    """What a pass must sum or keep for this block alone, with so many label columns a sample."""
    statistic = block_statistic(plan)
    if statistic is not None:
        scratch = view.outputs * (2 * columns + view.outputs)
        return LayerWork(plan.kind, (statistic,), scratch=scratch)
    assert plan.samples is not None
    kinds = frozenset({plan.kind})
    return LayerWork(plan.kind, (), samples=plan.samples, keep=plan.samples, keep_kinds=kinds, lazy=True)


def build_block(view: LayerView, plan: Plan, sums: LayerSums) -> LinearOperator:
    """The operator of a plan from the sums of its pass."""
    statistic = block_statistic(plan)
    assert statistic is not None
    return by_group(view, sums.mean(statistic), partial(_operator, plan.method))


def gram_block(kept: LayerBatch, kind: str) -> LinearOperator:
    """The Gram operator of the samples kept; one a group."""
    return joined([GramOperator(part.a, part.g[kind]) for part in kept.parts])


def layerwise_block(view: LayerView, block: Tensor) -> LinearOperator:
    """(1/N) Σ_n Σ_t (a aᵀ) ⊗ diag(φ'(s)²) from its packed blocks [m, d(d+1)/2]; [G, …] for groups."""
    return by_group(view, block, partial(_operator, "layerwise"))


def by_group(
    view: LayerView, block: Tensor, operator: Callable[[BlockShape, Tensor], LinearOperator]
) -> LinearOperator:
    """The operator that a function makes of a sum; of a grouped layer, whose sums are [G, …], one a group."""
    return joined([operator(view.group, part) for part in (block if view.groups > 1 else [block])])


def _operator(method: str, shape: BlockShape, block: Tensor) -> LinearOperator:
    if method == "kronecker":
        return PackedOperator(block, shape.outputs, shape.inputs)
    if method == "per-sample":
        return DenseOperator(block, shape.outputs, shape.inputs)
    return UnitBlockOperator(smat(block, shape.inputs))


def _per_sample(collector: Collector, view: LayerView, kind: str) -> LinearOperator:
    """F = JᵀJ/N with the rows of J from `torch.func`: any module, no hooks, no captured inputs."""
    size = view.group.size
    total = torch.zeros(view.groups, size, size, dtype=torch.float64, device=collector.device)
    samples = 0
    for matrices, count in _gradient_matrices(collector, view, kind):
        grouped = matrices.double().unflatten(1, (view.groups, -1)).transpose(0, 1)
        rows = grouped.transpose(-1, -2).flatten(2)
        total.baddbmm_(rows.mT, rows)
        samples += count
    block = total / samples
    return by_group(view, block if view.groups > 1 else block[0], partial(_operator, "per-sample"))


def _gradient_matrices(collector: Collector, view: LayerView, kind: str) -> Iterator[tuple[Tensor, int]]:
    """Chunks of the samples' gradients V [n·c, m, d], each with its number of samples."""
    model, size = collector.model, torch.finfo(collector.dtype).bits // 8
    columns = collector.shapes.columns[kind]
    most = max(1, _ROW_BYTES // (size * columns * view.size))
    rows_of = _Rows(model, view, collector.batch_dim)
    generators = collector.generators()
    with unchanged(model):
        for inputs, targets in collector.read(most):
            with torch.no_grad():
                u = collector.columns(kind, called(model, inputs), targets, generators)
            yield rows_of(inputs, u.transpose(0, 1)), u.shape[1]


class _Rows:
    """The samples' gradients of one block by `torch.func`, sample by sample where vmap cannot."""

    def __init__(self, model: nn.Module, view: LayerView, batch_dim: int) -> None:
        self._model, self._view, self._batch_dim = model, view, batch_dim
        self._parameters = {name: p.detach() for name, p in model.named_parameters()}
        self._block = {name: self._parameters[name] for name in view.parameters}
        self._loop = False

    def __call__(self, inputs: ModelInputs, u: Tensor) -> Tensor:
        """V [n·c, m, d] for columns u [n, c, …]."""
        if not self._loop:
            try:
                return vmap(self._sample, in_dims=(self._batch_dim, 0))(inputs, u).flatten(0, 1)
            except RuntimeError:  # the model does what vmap cannot
                self._loop = True
        samples = [self._select(inputs, n) for n in range(len(u))]
        rows = [self._sample(x, columns, batched=False) for x, columns in zip(samples, u, strict=True)]
        return torch.cat(rows)

    def _select(self, inputs: ModelInputs, n: int) -> ModelInputs:
        return each(inputs, lambda x: x.select(self._batch_dim, n))

    def _sample(self, x: ModelInputs, u: Tensor, batched: bool = True) -> Tensor:
        pull = vjp(lambda block: self._output(block, x), self._block)[1]
        if batched:
            (gradients,) = vmap(pull)(u)
        else:
            pulled = [pull(column, retain_graph=True)[0] for column in u]
            gradients = {name: torch.stack([one[name] for one in pulled]) for name in self._block}
        return self._view.to_matrix(gradients)

    def _output(self, block: Mapping[str, Tensor], x: ModelInputs) -> Tensor:
        x = each(x, lambda value: value.unsqueeze(self._batch_dim))
        arguments, keywords = ((), x) if isinstance(x, dict) else (tensors_of(x), {})
        return functional_call(self._model, {**self._parameters, **block}, arguments, keywords).squeeze(0)


_UNITS = {"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def parse_bytes(size: int | str) -> int:
    """A number of bytes from an integer or a text such as "4GiB" or "500 MB".

    Raises:
        InputError: for anything else, or a size below one byte.
    """
    if isinstance(size, str):
        match = re.fullmatch(r"\s*([0-9]+\.?[0-9]*|\.[0-9]+)\s*([a-zA-Z]*)\s*", size)
        unit = _UNITS.get(match[2].lower()) if match else None
        if match is None or unit is None:
            raise InputError(f"cannot read the memory size {size!r}; write it as 4GiB or 500MB")
        size = int(float(match[1]) * unit)
    if size < 1:
        raise InputError(f"the memory limit must be positive, not {size}")
    return size
