"""The exact blocks that approximations are compared with, made from what the passes gathered."""

from collections.abc import Callable, Sequence

from torch import Tensor

from fisherlab.collect import LayerBatch, unit_columns
from fisherlab.exact import Plan, block_statistic, build_block, layerwise_block
from fisherlab.layers import LayerView
from fisherlab.measure import Target
from fisherlab.operators import GramOperator, LinearOperator
from fisherlab.operators.packing import packed_size
from fisherlab.population import Halves, layerwise_self_product, self_product
from fisherlab.statistics import Gathered, Statistic, moments

GRADIENT = Statistic("gradient", moments.gradient_sum, "empirical")
"""Σ_n ∇ℓ_n with the data's labels."""

_LAYERWISE = (
    Statistic("block-layerwise", moments.unit_blocks, "layerwise"),
    Statistic("self-product-layerwise", layerwise_self_product, "layerwise"),
)


def main_statistics(plan: Plan) -> list[Statistic]:
    """The sums of the block that was asked for, and of its samples' norms."""
    if plan.kind == "layerwise":
        return list(_LAYERWISE)
    block = block_statistic(plan)
    return [*([] if block is None else [block]), _self_products(plan)]


def layerwise_statistics() -> list[Statistic]:
    """The sums of the layer-wise Fisher and of its samples' norms."""
    return list(_LAYERWISE)


def layerwise_bytes(view: LayerView) -> int:
    """What the layer-wise Fisher takes: the two halves' sums, their total, and the blocks."""
    return 8 * view.outputs * (3 * packed_size(view.inputs) + view.inputs**2)


def main_target(view: LayerView, plan: Plan, gathered: Gathered, memory: int) -> Target:
    """The target of the kind that was asked for."""
    if plan.kind == "layerwise":
        return layerwise_target(view, gathered, memory)
    halves = [None, None] if gathered.kept is None else [gathered.kept.half(h) for h in (0, 1)]
    parts: Sequence[LayerBatch | None] = [gathered.kept, *halves]
    blocks = [build_block(view, plan, sums, part) for sums, part in zip(gathered.sums, parts, strict=False)]
    return Target(
        "monte-carlo" if plan.kind == "drawn" else plan.kind,
        blocks[0],
        _gradient(gathered),
        _halves(blocks, gathered, _self_products(plan), lambda kept: kept.g[plan.kind]),
        memory,
        [plan.note] if plan.note else [],
    )


def layerwise_target(view: LayerView, gathered: Gathered, memory: int) -> Target:
    """The layer-wise Fisher as a target; its samples' columns are one for each unit and position."""
    block, norms = _LAYERWISE
    blocks = [layerwise_block(sums.mean(block), view) for sums in gathered.sums]
    halves = _halves(blocks, gathered, norms, lambda kept: unit_columns(kept.g["layerwise"]))
    return Target("layerwise", blocks[0], _gradient(gathered), halves, memory)


def _halves(
    blocks: Sequence[LinearOperator],
    gathered: Gathered,
    norms: Statistic,
    columns: Callable[[LayerBatch], Tensor],
) -> Halves | None:
    kept = gathered.kept
    if len(blocks) < 3 or kept is None:
        return None
    g = columns(kept)
    return Halves(
        exact=blocks[0],
        halves=blocks[1:],
        counts=[sums.samples for sums in gathered.sums[1:]],
        self_products=float(gathered.sums[0].sum(norms)),
        kept=GramOperator(kept.a.double(), g.double()),
    )


def _gradient(gathered: Gathered) -> Tensor | None:
    sums = gathered.sums[0]
    return sums.mean(GRADIENT) if GRADIENT.key in sums.values else None


def _self_products(plan: Plan) -> Statistic:
    return Statistic("self-product", self_product, plan.kind)
