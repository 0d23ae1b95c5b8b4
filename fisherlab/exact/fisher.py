"""The exact Fisher of every layer: by samples' gradients, by Kronecker accumulation, or as a Gram operator.

F_l = (1/N) Σ_n Σ_c vec(V_{n,c}) vec(V_{n,c})ᵀ. A cost model picks the way for each layer under the
memory limit; the three agree to rounding.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from fisherlab.base.memory import at_most, limited
from fisherlab.base.precision import reference
from fisherlab.collect.batches import is_finite, masks_of
from fisherlab.collect.collector import Collector
from fisherlab.collect.hooks import unchanged
from fisherlab.collect.layer_batch import LayerBatch
from fisherlab.collect.refusals import not_finite
from fisherlab.errors import unknown
from fisherlab.exact.edges import warn_of_edges
from fisherlab.exact.options import AnalysisOptions, completed, of_pass, parse_bytes, takes
from fisherlab.exact.plans import METHODS, BlockPlan, make_plans
from fisherlab.layers import BlockShape, Layers, LayerView, select_layers
from fisherlab.likelihoods import Likelihood, as_likelihood, check_kind
from fisherlab.likelihoods.labels import LAYERWISE, LabelKind
from fisherlab.linalg.packing import smat
from fisherlab.operators import (
    DenseOperator,
    GramOperator,
    LinearOperator,
    PackedOperator,
    UnitBlockOperator,
    blocks_of,
    joined,
)
from fisherlab.statistics import LayerSums, PassRequest, SplitSums, Statistic, gather, moments

_ROW_BYTES = 64 * 2**20  # of the samples' gradients at a time, a choice: beside them stands one block


@takes(AnalysisOptions)
def exact_fisher(
    model: nn.Module,
    data: Any,
    likelihood: str | Likelihood = "categorical",
    kind: str = "predictive",
    layers: "Layers | Iterable[str] | str | None" = None,
    method: str = "auto",
    **options: Unpack[AnalysisOptions],
) -> dict[str, LinearOperator]:
    """The exact Fisher block of every layer, F_l = (1/N) Σ_n Σ_c vec(V_{n,c}) vec(V_{n,c})ᵀ.

    V_{n,c} = Σ_t g_{n,c,t} a_{n,t}ᵀ [m, d] is the gradient of sample n for label column c; a joint bias is
    its last column. Per-sample log-likelihoods define F: no mean over a batch enters.

    Args:
        model: the network; in evaluation mode during the call, and unchanged by it.
        data: `(inputs, targets)` tensors, inputs alone or by name with labels among or beside them, or an
            iterable of such batches (docs/networks.md).
        likelihood: `categorical`, `token-categorical`, `bernoulli`, `gaussian`, or a `Likelihood`.
        kind: `predictive` (the expectation over the model's own labels), `monte-carlo`, `empirical` or
            `layerwise` ((1/N) Σ_n Σ_t (a aᵀ) ⊗ diag(φ'(s)²)).
        layers: names, globs, or `find_layers(...)`; None: all.
        method: `per-sample` (torch.func, the reference), `kronecker` (T = 1: one matrix product of packed
            second moments), `gram` (never forms the block), or `auto`.
        **options: of every analysis, see `AnalysisOptions`.

    Returns:
        For each layer a `LinearOperator` of dimension D = m·d, in column-vec order.

    Raises:
        InputError: for an unknown name, or data that do not fit the model. Batches 0, 1, 2, 4, 8 and so on
            are looked at as a whole.
        NumericalError: for values that are not finite; names the batch.
        MemoryLimitError: where the label columns of one sample do not fit the limit.
        FisherlabError: where no layer can be done, or with `strict` not all; lists them. A layer can not
            where its block does not fit the memory limit, its gradients are not finite, or a batch is not
            right for it; the others are returned.
        NotSupportedError: `kronecker` for a layer with several positions; names it.
    """
    given = completed(AnalysisOptions, options, "exact_fisher")
    kind, likelihood = check_kind(kind), as_likelihood(likelihood)
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    memory = parse_bytes(given["memory"])
    with limited(memory):
        chosen = select_layers(model, layers, given["exclude"], bias=given["bias"], masks=masks_of(data))
        collector = Collector(model, chosen, data, likelihood, **of_pass(given))
        if kind == LAYERWISE:
            collector.leave_out(no_layerwise(collector))
        plans = make_plans(collector, kind, method, memory, given["max_columns"])
        chosen = collector.layers
        for plan in plans.values():
            if plan.note:
                warnings.warn(f"layer {plan.layer!r}: {plan.note}", stacklevel=3)
        make: Callable[[LayerView, BlockPlan], LinearOperator] = partial(_per_sample, collector)
        if method != "per-sample":
            work = {
                name: block_work(plan, chosen[name], collector.sizes.label_columns_of(plan.kind, name))
                for name, plan in plans.items()
            }
            gathered = gather(collector, work)
            plans = {name: plans[name] for name in gathered}
            make = partial(_block, gathered)
        blocks = collector.each_layer({n: partial(make, chosen[n], plan) for n, plan in plans.items()})
        collector.tell()
        warn_of_edges(blocks, collector.dtype)
        return blocks


def no_layerwise(collector: Collector) -> dict[str, str]:
    """The layers that have no layer-wise Fisher, and why."""
    return {
        name: "it has no layer-wise Fisher, which is of a module's own inputs and outputs"
        for name, view in collector.layers.items()
        if view.by_gradients
    }


def block_statistic(plan: BlockPlan) -> Statistic | None:
    """The sum that makes the block; None for a Gram operator, which keeps the samples."""
    compute = {
        "kronecker": moments.packed_block,
        "per-sample": moments.dense_block,
        "layerwise": moments.unit_blocks,
    }.get(plan.method)
    return None if compute is None else Statistic(f"block-{plan.method}", compute, plan.kind)


def block_work(plan: BlockPlan, view: LayerView, columns: int) -> PassRequest:
    """What a pass must sum or keep for this block alone, with so many label columns a sample."""
    statistic = block_statistic(plan)
    if statistic is not None:
        scratch = view.outputs * (2 * columns + view.outputs)
        return PassRequest(plan.kind, (statistic,), scratch=scratch)
    assert plan.samples is not None
    kinds = frozenset({plan.kind})
    return PassRequest(plan.kind, (), samples=plan.samples, keep=plan.samples, keep_kinds=kinds, lazy=True)


def build_block(view: LayerView, plan: BlockPlan, sums: LayerSums) -> LinearOperator:
    """The operator of a plan from the sums of its pass; that of the block becomes its mean in place."""
    statistic = block_statistic(plan)
    assert statistic is not None
    return _rounded(view, by_group(view, sums.taken_mean(statistic), partial(_operator, plan.method)))


def _block(gathered: dict[str, SplitSums], view: LayerView, plan: BlockPlan) -> LinearOperator:
    """A layer's block; its sums are let go."""
    found = gathered.pop(view.name)
    if plan.method != "gram":
        return build_block(view, plan, found.all)
    assert found.kept is not None
    return gram_block(found.kept.double(), plan.kind)


def gram_block(kept: LayerBatch, kind: str) -> LinearOperator:
    """The Gram operator of the samples kept; one a group."""
    return joined([GramOperator(part.a, part.g[kind]) for part in kept.parts])


def layerwise_block(view: LayerView, block: Tensor) -> LinearOperator:
    """(1/N) Σ_n Σ_t (a aᵀ) ⊗ diag(φ'(s)²) from its packed blocks [m, d(d+1)/2]; [G, …] for groups."""
    return _rounded(view, by_group(view, block, partial(_operator, "layerwise")))


def _rounded(view: LayerView, found: LinearOperator) -> LinearOperator:
    """An operator of sums that were made in the number type of the layer's model."""
    for block in blocks_of(found):
        block.rounding = torch.finfo(reference(view.modules[0]).dtype).eps
    return found


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


def _per_sample(collector: Collector, view: LayerView, plan: BlockPlan) -> LinearOperator:
    """F = JᵀJ/N with the rows of J from `torch.func`: any module, no hooks, no captured inputs."""
    size = view.group.size
    total = torch.zeros(view.groups, size, size, dtype=torch.float64, device=collector.device)
    samples = 0
    for matrices, count in _gradient_matrices(collector, view, plan.kind):
        grouped = matrices.double().unflatten(1, (view.groups, -1)).transpose(0, 1)
        rows = grouped.transpose(-1, -2).flatten(2)
        total.baddbmm_(rows.mT, rows)
        samples += count
    block = total / samples
    return by_group(view, block if view.groups > 1 else block[0], partial(_operator, "per-sample"))


def _gradient_matrices(collector: Collector, view: LayerView, kind: str) -> Iterator[tuple[Tensor, int]]:
    """Chunks of the samples' gradients V [n·c, m, d], each with its number of samples."""
    model = collector.model
    columns = collector.sizes.columns[kind]
    collector.sizes.require_room({view.name: frozenset({LabelKind(kind)})}, collector.batches.samples)
    generators = collector.generators()
    with unchanged(model):
        most = max(1, at_most(_ROW_BYTES, 64) // (collector.sizes.bytes * columns * view.size))
        most = min(most, collector.samples_together(columns, view.size))
        rows_of = collector.sample_gradients([view.name])
        for index, (inputs, targets) in enumerate(collector.read(most)):
            with torch.no_grad():
                u = collector.columns(kind, collector.outputs(inputs), targets, generators, inputs)
            V = rows_of(inputs, u.transpose(0, 1))[view.name]
            if not is_finite(V):
                raise not_finite(view.name, index)
            yield V.flatten(0, 1), u.shape[1]
