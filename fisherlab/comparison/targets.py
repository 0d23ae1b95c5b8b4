"""The exact blocks that approximations are compared with, made from what the passes gathered."""

from collections.abc import Callable, Sequence
from functools import cached_property, partial

import torch
from torch import Tensor

from fisherlab.base.memory import at_most
from fisherlab.collect.layer_batch import LayerBatch
from fisherlab.comparison.measure import Target
from fisherlab.comparison.population import (
    PopulationEstimate,
    layerwise_norms,
    layerwise_norms_identity,
    layerwise_self_product,
    layerwise_self_product_identity,
    sample_norms,
    self_product,
)
from fisherlab.exact.fisher import block_statistic, build_block, by_group, gram_block, layerwise_block
from fisherlab.exact.plans import BlockPlan
from fisherlab.gradients.inputs import Inputs, OneHot
from fisherlab.layers import LayerView
from fisherlab.likelihoods.labels import EMPIRICAL, LAYERWISE
from fisherlab.linalg.packing import packed_size
from fisherlab.operators import GramOperator, KroneckerOperator, LinearOperator, blocks_of
from fisherlab.statistics import KeptSums, LayerSums, SplitSums, Statistic, moments
from fisherlab.statistics.sums import ROTATED

GRADIENT = Statistic("gradient", moments.gradient_sum, EMPIRICAL)
"""Σ_n ∇ℓ_n with the data's labels."""

_COLUMN_BYTES = 256 * 2**20  # of a layer-wise Fisher's columns at once, in float64: a choice
_REMEMBERED_BYTES = 128 * 2**20  # of the sums of one half: a choice

_LAYERWISE = (
    Statistic("block-layerwise", moments.unit_blocks, LAYERWISE),
    Statistic("self-product-layerwise", layerwise_self_product, LAYERWISE),
)
_LAYERWISE_IDENTITY = (
    Statistic("input-moment", moments.input_moment),
    Statistic("self-product-layerwise", layerwise_self_product_identity, LAYERWISE),
)


def main_statistics(plan: BlockPlan) -> list[Statistic]:
    """The sums of the block that was asked for, and of its samples' norms."""
    if plan.kind == LAYERWISE:
        return list(_LAYERWISE)
    block = block_statistic(plan)
    return [*([] if block is None else [block]), _self_products(plan)]


def layerwise_statistics(identity: bool) -> list[Statistic]:
    """The sums of the layer-wise Fisher and of its samples' norms; where φ is the identity it is A ⊗ I."""
    return list(_LAYERWISE_IDENTITY if identity else _LAYERWISE)


def layerwise_bytes(view: LayerView, identity: bool) -> int:
    """What the layer-wise Fisher takes: the two halves' sums, their total, and the block of each."""
    if identity:
        return 8 * 3 * view.groups * view.inputs**2
    return 8 * view.outputs * 3 * (packed_size(view.inputs) + view.inputs**2)


def layerwise_operations(view: LayerView, positions: int) -> float:
    """Of the sum of its blocks over so many positions."""
    return 2.0 * positions * view.outputs * packed_size(view.inputs)


def main_target(view: LayerView, plan: BlockPlan, gathered: SplitSums, memory: int) -> Target:
    """The target of the kind that was asked for."""
    if plan.kind == LAYERWISE:
        return layerwise_target(view, gathered, memory, False)
    if plan.method == "gram":
        batches = [sums.batch for sums in gathered.each if isinstance(sums, KeptSums)]
        blocks = [gram_block(batch, plan.kind) for batch in batches]
    else:
        blocks = [build_block(view, plan, sums) for sums in gathered.each]
    halves = None
    if gathered.halves and gathered.kept is not None:
        kept = _KeptTerms(gathered, plan.kind)
        norms = kept.norms()
        quadratics = partial(_gram_quadratics, blocks) if plan.method == "gram" else kept.quadratics
        halves = _halves(blocks, gathered, _self_products(plan), norms, quadratics)
    return Target(
        str(plan.kind.target),
        blocks[0],
        _gradient(gathered),
        halves,
        memory,
        [plan.remarks] if plan.remarks else [],
    )


class _Half(KeptSums):
    """Sums of the samples of one half; the latest are remembered."""

    def sum(self, statistic: Statistic) -> Tensor:
        """The sum over samples."""
        found = self._cached.pop(statistic.key) if statistic.key in self._cached else statistic(self.batch)
        if not statistic.key.startswith(ROTATED):
            self._cached[statistic.key] = found
        while sum(known.numel() for known in self._cached.values()) > at_most(_REMEMBERED_BYTES, 32) // 8:
            del self._cached[next(iter(self._cached))]
        return found


class _Both(KeptSums):
    """Sums of all samples as those of the two halves added; second moments in a basis are made anew."""

    def __init__(self, batch: LayerBatch, halves: Sequence[KeptSums]) -> None:
        super().__init__(batch)
        self._parts = halves

    def sum(self, statistic: Statistic) -> Tensor:
        """The sum over samples."""
        if statistic.key.startswith(ROTATED):
            return statistic(self.batch)
        return self._parts[0].sum(statistic) + self._parts[1].sum(statistic)


def added_up(gathered: SplitSums) -> SplitSums:
    """Sums of samples that are kept, each made once: by halves, and of all by adding them."""
    lazy = [sums.batch for sums in gathered.each if isinstance(sums, KeptSums)]
    if not lazy or not gathered.halves or lazy[0].groups > 1:
        return gathered
    halves = tuple(map(_Half, lazy[1:]))
    return SplitSums(_Both(lazy[0], halves), halves, gathered.kept)


class _KeptTerms:
    """The terms F_n of the samples kept, all of them and by halves, in float64."""

    def __init__(self, gathered: SplitSums, kind: str) -> None:
        assert gathered.kept is not None
        self._kind, self._all = kind, gathered.kept.double()

    @cached_property
    def _halves(self) -> list[LayerBatch]:
        return [self._all.half(h) for h in (0, 1)]

    def norms(self) -> Tensor:
        """‖F_n‖², [k]."""
        return _norms(sample_norms, self._all, self._kind)

    def quadratics(self, operator: LinearOperator, half: int | None) -> Tensor:
        """⟨F_n, G⟩ of the samples in a half, or of all."""
        batch = self._all if half is None else self._halves[half]
        return operator.quadratics(batch.a, batch.g[self._kind])


def _gram_quadratics(blocks: Sequence[LinearOperator], operator: LinearOperator, half: int | None) -> Tensor:
    """⟨F_n, G⟩ of the samples that Gram operators (all, half, other half) are made of."""
    own = blocks[0] if half is None else blocks[1 + half]
    pairs = zip(blocks_of(own), blocks_of(operator), strict=True)
    return torch.stack(
        [block.sample_quadratics(part) for block, part in pairs if isinstance(block, GramOperator)]
    ).sum(0)


def layerwise_target(view: LayerView, gathered: SplitSums, memory: int, identity: bool) -> Target:
    """The layer-wise Fisher as a target; its samples' columns are one for each unit and position."""
    block, self_products = layerwise_statistics(identity)
    blocks = [_layerwise_block(view, sums, block, identity) for sums in gathered.each]
    halves = None
    if gathered.halves:
        kept = _few(view, gathered.kept)
        of = layerwise_norms_identity if identity else layerwise_norms
        lazy = isinstance(gathered.all, KeptSums)
        known = gathered.kept if lazy else kept  # of all samples, where the sum over all needs them anyway
        norms = None if known is None else _norms(of, known.double(), LAYERWISE)
        halves = _halves(blocks, gathered, self_products, norms, partial(_layerwise_quadratics, kept))
        halves.norms = None if kept is None or norms is None else norms[: len(kept.a)]
    return Target(str(LAYERWISE), blocks[0], _gradient(gathered), halves, memory)


def _layerwise_block(view: LayerView, sums: LayerSums, block: Statistic, identity: bool) -> LinearOperator:
    if not identity:
        return layerwise_block(view, sums.taken_mean(block))
    return by_group(view, sums.mean(block), lambda shape, A: KroneckerOperator(A, A.new_ones(shape.outputs)))


def _norms(of: Callable[[Inputs, Tensor], Tensor], kept: LayerBatch, kind: str) -> Tensor:
    """‖F_n‖² of every sample, [k]: the sum over groups of what a function gives of (a, g)."""
    return torch.stack([of(part.a, part.g[kind]) for part in kept.parts]).sum(0)


def _few(view: LayerView, kept: LayerBatch | None) -> LayerBatch | None:
    """As many of the samples kept as their columns, one a unit and position, allow."""
    if kept is None:
        return None
    numbers = kept.a.shape[1] * view.outputs * view.group.outputs
    samples = at_most(_COLUMN_BYTES, 16) // 8 // numbers
    return kept.head(samples).double() if samples else None


def _layerwise_quadratics(kept: LayerBatch | None, operator: LinearOperator, half: int | None) -> Tensor:
    """Σ_t Σ_j vec(V)ᵀ G vec(V) with V = φ'(s_tj) e_j a_tᵀ for every sample, its positions as samples."""
    assert kept is not None
    batch = kept if half is None else kept.half(half)
    slope = batch.g[LAYERWISE][0]
    samples, positions = slope.shape[:2]
    by_group = slope.flatten(0, 1).unflatten(-1, (kept.groups, -1))
    columns = torch.diag_embed(by_group).permute(2, 0, 1, 3).flatten(2).unsqueeze(2)
    return operator.quadratics(_as_samples(batch.a), columns).view(samples, positions).sum(1)


def _as_samples(a: Inputs) -> Inputs:
    """Every position as a sample with one position."""
    if isinstance(a, OneHot):
        return OneHot(a.indices.reshape(-1, 1), a.size, a.dtype)
    return a.reshape(-1, 1, a.shape[-1])


def _halves(
    blocks: Sequence[LinearOperator],
    gathered: SplitSums,
    self_products: Statistic,
    norms: Tensor | None,
    quadratics: Callable[[LinearOperator, int | None], Tensor],
) -> PopulationEstimate:
    return PopulationEstimate(
        exact=blocks[0],
        halves=blocks[1:],
        counts=[sums.samples for sums in gathered.halves],
        self_products=_total(norms, gathered, self_products),
        norms=norms,
        quadratics=quadratics,
    )


def _total(norms: Tensor | None, gathered: SplitSums, self_products: Statistic) -> float:
    """Σ_n ‖F_n‖² over all samples."""
    if norms is not None and len(norms) == gathered.all.samples:
        return float(norms.sum())
    return float(gathered.all.sum(self_products).sum())


def _gradient(gathered: SplitSums) -> Tensor | None:
    """∇h [m, d]; of all groups one below the other."""
    sums = gathered.all
    if not sums.has(GRADIENT):
        return None
    gradient = sums.mean(GRADIENT)
    return gradient.flatten(0, 1) if gradient.dim() == 3 else gradient


def _self_products(plan: BlockPlan) -> Statistic:
    return Statistic("self-product", self_product, plan.kind)
