"""The exact blocks that approximations are compared with, made from what the passes gathered."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from fisherlab.base.memory import at_most
from fisherlab.collect.layer_batch import LayerBatch, half_of
from fisherlab.comparison.measure import Target
from fisherlab.comparison.population import (
    GROUPS,
    PopulationEstimate,
    SampleGroup,
    group_places,
    layerwise_norms,
    layerwise_norms_identity,
    layerwise_self_product,
    layerwise_self_product_identity,
    paired,
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
from fisherlab.statistics import KeptSums, LayerSums, SplitSums, Statistic, SumsWithout, moments
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
    make = partial(_block, view, plan)
    blocks = [make(sums) for sums in gathered.each]
    halves = None
    if gathered.halves and gathered.kept is not None:
        kept, dtype = _Kept(gathered, gathered.kept), gathered.kept.a.dtype
        gram = plan.method == "gram"
        quadratics = partial(_gram_quadratics, blocks) if gram else partial(_quadratics, kept, plan.kind)
        squared = partial(_gram_squared, plan.kind)
        terms = partial(_term, plan.kind)
        norms = _norms(sample_norms, kept.all, plan.kind)
        total = _total(norms, gathered, _self_products(plan))
        halves = _halves(blocks, gathered, total, kept, norms, quadratics, squared, terms, make, dtype)
    return Target(
        str(plan.kind.target),
        blocks[0],
        _gradient(gathered),
        halves,
        memory,
        [plan.remarks] if plan.remarks else [],
    )


def _block(view: LayerView, plan: BlockPlan, sums: LayerSums) -> LinearOperator:
    """The block of the kind that was asked for, of any samples."""
    if plan.method != "gram":
        return build_block(view, plan, sums)
    assert isinstance(sums, KeptSums)
    return gram_block(sums.batch, plan.kind)


class _Remembering(KeptSums):
    """Sums of kept samples; the latest are remembered, as many as have so many numbers."""

    def __init__(self, batch: LayerBatch, most: int) -> None:
        super().__init__(batch)
        self._most = most

    def sum(self, statistic: Statistic) -> Tensor:
        """The sum over samples."""
        found = self._cached.pop(statistic.key) if statistic.key in self._cached else statistic(self.batch)
        if not statistic.key.startswith(ROTATED):
            self._cached[statistic.key] = found
        while sum(known.numel() for known in self._cached.values()) > self._most:
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
    halves = tuple(_Remembering(batch, _most_remembered()) for batch in lazy[1:])
    return SplitSums(_Both(lazy[0], halves), halves, gathered.kept)


class _Kept:
    """The first samples in float64: all of them, by halves, and in the groups that a jackknife leaves out."""

    def __init__(self, gathered: SplitSums, kept: LayerBatch) -> None:
        self.all = kept.double()
        lazy = [sums.batch for sums in gathered.halves if isinstance(sums, KeptSums)]
        self.halves = lazy if kept is gathered.kept and lazy else [self.all.half(h) for h in (0, 1)]
        self.places = group_places(len(self.all.a))
        most = _most_remembered() // (2 * GROUPS)
        self.sums = [_Remembering(self.halves[h].at(own), most) for h, own, _ in self.places]


def left_out(halves: Sequence[LayerSums], out: Sequence[SampleGroup]) -> LayerSums:
    """The sums of a half without groups of it."""
    sums = halves[out[0].half]
    for group in out:
        sums = SumsWithout(sums, group.sums)
    return sums


def _stays(halves: Sequence[LayerSums], out: Sequence[SampleGroup]) -> LayerSums:
    """The same, of samples that are kept by these samples alone."""
    half = halves[out[0].half]
    if not isinstance(half, KeptSums):
        return left_out(halves, out)
    stays = torch.ones(half.samples, dtype=torch.bool, device="cpu")
    for group in out:
        stays[group.places] = False
    return KeptSums(half.batch.at(stays.nonzero().squeeze(1)))


def _most_remembered() -> int:
    """Numbers in the sums of one half."""
    return at_most(_REMEMBERED_BYTES, 32) // 8


def remembered_bytes(numbers: int) -> int:
    """What the groups of a jackknife remember of sums with so many numbers in all."""
    return 8 * min(2 * GROUPS * numbers, _most_remembered())


def _quadratics(kept: _Kept, kind: str, operator: LinearOperator, half: int | None) -> Tensor:
    """⟨F_n, G⟩ of the samples kept of a half, or of all."""
    batch = kept.all if half is None else kept.halves[half]
    return operator.quadratics(batch.a, batch.g[kind])


def _term(kind: str, operator: LinearOperator, batch: LayerBatch) -> float:
    """⟨Σ_n F_n, G⟩ over samples."""
    return float(operator.quadratics(batch.a, batch.g[kind]).sum())


def _gram_squared(kind: str, batch: LayerBatch) -> float:
    """‖Σ_n F_n‖², by inner products of all pairs of gradients."""
    return (float(gram_block(batch, kind).frobenius_norm()) * len(batch.a)) ** 2


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

    def make(sums: LayerSums) -> LinearOperator:
        return _layerwise_block(view, sums, block, identity)

    def squared(batch: LayerBatch) -> float:
        return (float(make(KeptSums(batch)).frobenius_norm()) * len(batch.a)) ** 2

    blocks = [make(sums) for sums in gathered.each]
    halves = None
    if gathered.halves:
        few = _few(view, gathered.kept)
        of = layerwise_norms_identity if identity else layerwise_norms
        lazy = isinstance(gathered.all, KeptSums)
        known = gathered.kept if lazy else few  # of all samples, where the sum over all needs them anyway
        norms = None if known is None else _norms(of, known.double(), LAYERWISE)
        kept = None if few is None else _Kept(gathered, few)
        dtype = torch.float64 if gathered.kept is None else gathered.kept.a.dtype
        total = _total(norms, gathered, self_products)
        quadratics = partial(_layerwise_quadratics, kept)
        terms = _layerwise_term
        halves = _halves(blocks, gathered, total, kept, norms, quadratics, squared, terms, make, dtype)
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
    return kept.head(samples) if samples else None


def _layerwise_quadratics(kept: _Kept | None, operator: LinearOperator, half: int | None) -> Tensor:
    """Σ_t Σ_j vec(V)ᵀ G vec(V) with V = φ'(s_tj) e_j a_tᵀ for every sample kept of a half, or of all."""
    assert kept is not None
    return _layerwise_terms(operator, kept.all if half is None else kept.halves[half])


def _layerwise_term(operator: LinearOperator, batch: LayerBatch) -> float:
    return float(_layerwise_terms(operator, batch).sum())


def _layerwise_terms(operator: LinearOperator, batch: LayerBatch) -> Tensor:
    """The same for the samples of a batch, their positions taken as samples."""
    slope = batch.g[LAYERWISE][0]
    samples, positions = slope.shape[:2]
    by_group = slope.flatten(0, 1).unflatten(-1, (batch.groups, -1))
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
    self_products: Sequence[float],
    kept: _Kept | None,
    norms: Tensor | None,
    quadratics: Callable[[LinearOperator, int | None], Tensor],
    squared: Callable[[LayerBatch], float],
    terms: Callable[[LinearOperator, LayerBatch], float],
    make: Callable[[LayerSums], LinearOperator],
    dtype: torch.dtype,
) -> PopulationEstimate:
    """The blocks with what the jackknife leaves out of them; without samples kept it leaves out nothing.

    Args:
        blocks: F on all samples and on the two halves.
        gathered: the sums that they are made of.
        self_products: Σ ‖F_n‖² of each half.
        kept: the first samples.
        norms: their ‖F_n‖².
        quadratics: as for `PopulationEstimate`, and for half None of all samples kept.
        squared: ‖Σ F_n‖² of samples.
        terms: ⟨Σ F_n, G⟩ of samples.
        make: a block from sums.
        dtype: of the products that were summed; of samples that are kept they are in float64.
    """
    groups, overlaps = [], {}
    if kept is not None and norms is not None:
        with_all = quadratics(blocks[0], None) * gathered.all.samples
        with_own = [quadratics(blocks[1 + h], h) * gathered.halves[h].samples for h in (0, 1)]
        for (half, own, places), sums in zip(kept.places, kept.sums, strict=True):
            same = float(with_own[half][own].sum())
            others = float(with_all[places].sum()) - same
            known = float(norms[places].sum()), same, others, squared(sums.batch)
            groups.append(SampleGroup(half, own, *known, sums))
        for i, j in paired(len(groups)):
            one, two = groups[i], groups[j]
            both = squared(kept.all.at(torch.cat([kept.places[i][2], kept.places[j][2]])))
            overlaps[i, j] = (both - one.squared - two.squared) / 2
    return PopulationEstimate(
        exact=blocks[0],
        halves=blocks[1:],
        counts=[sums.samples for sums in gathered.halves],
        self_products=self_products,
        quadratics=quadratics,
        groups=groups,
        overlaps=overlaps,
        terms=lambda operator, group: terms(operator, group.sums.batch),
        without=lambda out: make(_stays(gathered.halves, out)),
        rounding=torch.finfo(torch.float64 if isinstance(gathered.all, KeptSums) else dtype).eps,
    )


def _total(norms: Tensor | None, gathered: SplitSums, self_products: Statistic) -> list[float]:
    """Σ_n ‖F_n‖² over each half."""
    if norms is not None and len(norms) == gathered.all.samples:
        half = half_of(0, len(norms)).to(norms.device)
        return [float(norms[half == h].sum()) for h in (0, 1)]
    return [float(sums.sum(self_products).sum()) for sums in gathered.halves]


def _gradient(gathered: SplitSums) -> Tensor | None:
    """∇h [m, d]; of all groups one below the other."""
    sums = gathered.all
    if not sums.has(GRADIENT):
        return None
    gradient = sums.mean(GRADIENT)
    return gradient.flatten(0, 1) if gradient.dim() == 3 else gradient


def _self_products(plan: BlockPlan) -> Statistic:
    return Statistic("self-product", self_product, plan.kind)
