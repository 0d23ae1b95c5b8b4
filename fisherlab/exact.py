"""The exact Fisher of every layer: by samples' gradients, by Kronecker accumulation, or as a Gram operator.

F_l = (1/N) Σ_n Σ_c vec(V_{n,c}) vec(V_{n,c})ᵀ. A cost model picks the way for each layer under the
memory limit; the three agree to rounding.
"""

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from fisherlab.capture import unchanged
from fisherlab.collect import Collector, LayerBatch
from fisherlab.errors import (
    InputError,
    MemoryLimitError,
    NotSupportedError,
    bytes_text,
    unknown,
)
from fisherlab.layers import Layers, LayerView, select_layers
from fisherlab.likelihoods import Likelihood, as_likelihood, check_kind
from fisherlab.operators import (
    DenseOperator,
    GramOperator,
    LinearOperator,
    PackedOperator,
    UnitBlockOperator,
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
        return {name: _per_sample(collector, chosen[name], kind) for name in plans}
    work = {
        name: block_work(plan, chosen[name], collector.label_columns_of(plan.kind, name))
        for name, plan in plans.items()
    }
    gathered = gather(collector, work)
    blocks = {}
    for name, plan in plans.items():
        found = gathered.pop(name)
        blocks[name] = build_block(chosen[name], plan, found.sums[0], found.kept)
    return blocks


def make_plans(
    collector: Collector, kind: str, method: str, memory: int, max_columns: int, copies: int = 1
) -> dict[str, Plan]:
    """The way to compute every layer's exact block, small blocks first, under one memory limit.

    Args:
        collector: gives the layers' shapes and the number of samples.
        kind: the labels.
        method: `auto` or the method for all layers.
        memory: bytes for all blocks together.
        max_columns: the most columns of a Gram operator.
        copies: how many blocks a layer are held at once (halves of the data, and all).
    """
    if max_columns < 1:
        raise InputError(f"max_columns must be at least 1, not {max_columns}")
    plans: dict[str, Plan] = {}
    left = memory
    for view in sorted(collector.layers.values(), key=lambda v: v.size):
        plan = _plan(collector, view, kind, method, left, max_columns, copies)
        plans[view.name] = plan
        left -= plan.bytes
    return {name: plans[name] for name in collector.layers}


def _plan(
    collector: Collector,
    view: LayerView,
    kind: str,
    method: str,
    memory: int,
    max_columns: int,
    copies: int,
) -> Plan:
    samples = collector.batches.count()
    if kind == "layerwise":
        return _layerwise_plan(view, method, samples, memory, copies)
    positions = collector.shapes.positions[view.name]
    columns = collector.shapes.columns[kind]
    if method == "kronecker" and positions > 1:
        raise NotSupportedError(
            f"layer {view.name!r} has {positions} positions a sample; Kronecker accumulation is for "
            "one: use method='gram' or 'per-sample'"
        )
    total = None if samples is None else samples * columns
    packed = positions == 1 and method != "per-sample"
    dense = _dense_plan(view, kind, samples, total, packed, copies)
    if method in ("kronecker", "per-sample"):
        if dense.bytes > memory:
            raise MemoryLimitError(
                f"the block of layer {view.name!r} would need {bytes_text(dense.bytes)}, more than the "
                f"{bytes_text(memory)} left of the memory limit; use method='gram' or a larger limit"
            )
        return dense
    fits = method == "auto" and dense.bytes <= memory
    if fits and dense.bytes <= _SMALL_BLOCK:
        return dense
    gram = _gram_plan(collector, view, kind, samples, max_columns, dense.bytes)
    if fits:
        same = gram.kind == kind and gram.samples == samples and gram.bytes <= memory
        return gram if same and gram.operations < dense.operations else dense
    if gram.bytes > memory:
        raise MemoryLimitError(
            f"even the Gram form of layer {view.name!r} would need {bytes_text(gram.bytes)}, more than "
            f"the {bytes_text(memory)} left of the memory limit; use fewer samples, a smaller "
            "max_columns or a larger limit"
        )
    return gram


def _dense_plan(
    view: LayerView, kind: str, samples: int | None, total: int | None, packed: bool, copies: int
) -> Plan:
    if packed:
        entries = packed_size(view.inputs) * packed_size(view.outputs)
        operations = 2.0 * entries * (samples or 1)
        method = "kronecker"
    else:
        entries = view.size**2
        operations = 2.0 * entries * (total or 1)
        method = "per-sample"
    held = entries * _DOUBLE * copies
    return Plan(view.name, method, kind, samples, total, operations, held)


def _gram_plan(
    collector: Collector,
    view: LayerView,
    kind: str,
    samples: int | None,
    max_columns: int,
    dense_bytes: int,
) -> Plan:
    columns, t = collector.shapes.columns[kind], collector.shapes.positions[view.name]
    most = max_columns
    note = ""
    if samples is None or samples * columns > max_columns:
        if columns > 1:
            note = f"the block would need {bytes_text(dense_bytes)}; one label a sample is drawn"
            kind, columns = "drawn", 1
        if samples is None or samples > most:
            count = "" if samples is None else f" of {samples}"
            note = (note + "; " if note else "") + f"the first {most}{count} samples are used"
            samples = most
    size = torch.finfo(collector.dtype).bits // 8
    total = samples * columns
    held = samples * t * (view.inputs + columns * view.outputs) * size + 2 * total**2 * _DOUBLE
    width = view.inputs + view.outputs if t == 1 else view.size
    return Plan(view.name, "gram", kind, samples, total, 2.0 * total**2 * width, held, note)


def _layerwise_plan(view: LayerView, method: str, samples: int | None, memory: int, copies: int) -> Plan:
    if method in ("gram", "per-sample"):
        raise NotSupportedError(
            f"the layer-wise Fisher has a closed form; method={method!r} does not apply, use 'auto'"
        )
    entries = view.outputs * packed_size(view.inputs)
    held = entries * _DOUBLE * copies + view.outputs * view.inputs**2 * _DOUBLE
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
    return LayerWork(
        plan.kind, (), samples=plan.samples, keep=plan.samples, keep_kinds=frozenset({plan.kind})
    )


def build_block(view: LayerView, plan: Plan, sums: LayerSums, kept: LayerBatch | None) -> LinearOperator:
    """The operator of a plan from what its pass gathered."""
    statistic = block_statistic(plan)
    if statistic is None:
        assert kept is not None
        return GramOperator(kept.a.double(), kept.g[plan.kind].double())
    block = sums.mean(statistic)
    if plan.method == "kronecker":
        return PackedOperator(block, view.outputs, view.inputs)
    if plan.method == "per-sample":
        return DenseOperator(block, view.outputs, view.inputs)
    return layerwise_block(block, view)


def layerwise_block(block: Tensor, view: LayerView) -> UnitBlockOperator:
    """(1/N) Σ_n Σ_t (a aᵀ) ⊗ diag(φ'(s)²) from its packed blocks [m, d(d+1)/2]."""
    return UnitBlockOperator(smat(block, view.inputs))


def _per_sample(collector: Collector, view: LayerView, kind: str) -> DenseOperator:
    """F = JᵀJ/N with the rows of J from `torch.func`: any module, no hooks, no captured inputs."""
    total = torch.zeros(view.size, view.size, dtype=torch.float64, device=collector.device)
    samples = 0
    for rows, count in _gradient_rows(collector, view, kind):
        rows = rows.double()
        total.addmm_(rows.T, rows)
        samples += count
    return DenseOperator(total / samples, view.outputs, view.inputs)


def _gradient_rows(collector: Collector, view: LayerView, kind: str) -> Iterator[tuple[Tensor, int]]:
    """Chunks of J [n·c, D] in column-vec order, each with its number of samples."""
    model, size = collector.model, torch.finfo(collector.dtype).bits // 8
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    block = {name: parameters[name] for name in view.parameters}
    columns = collector.shapes.columns[kind]
    most = max(1, _ROW_BYTES // (size * columns * view.size))

    def output(block: Mapping[str, Tensor], x: Tensor) -> Tensor:
        x = x.unsqueeze(collector.batch_dim)
        return functional_call(model, {**parameters, **block}, (x,)).squeeze(0)

    def sample_rows(x: Tensor, u: Tensor) -> Tensor:
        pull = vjp(lambda block: output(block, x), block)[1]
        (gradients,) = vmap(pull)(u)
        return view.to_matrix(gradients).transpose(-1, -2).flatten(1)

    generators = collector.generators()
    with unchanged(model):
        for inputs, targets in collector.read(most):
            with torch.no_grad():
                u = collector.columns(kind, model(inputs), targets, generators)
            rows = vmap(sample_rows, in_dims=(collector.batch_dim, 0))(inputs, u.transpose(0, 1))
            yield rows.flatten(0, 1), len(rows)


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
