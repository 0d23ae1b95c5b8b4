"""The population error: how far F̂ is from the Fisher of the distribution, not of the sample at hand.

On N samples the error of a wide layer mostly measures sampling: F itself is noisy. With F = E[F_n],
F_n = Σ_c vec(V_{n,c}) vec(V_{n,c})ᵀ, three unbiased parts remove that:

    ‖F‖²    ≈ 1/(N(N−1)) Σ_{n≠n'} ⟨F_n, F_n'⟩           (no sample meets itself)
    ⟨F, F̂⟩ ≈ the mean of ⟨F_n, F̂⟩ over the half of the samples that F̂ was not fitted on
    ‖F̂‖²   as it is,

averaged over the two directions of the split. The standard error is a jackknife over groups of samples: the
estimate is made again without each group, the fit of its half included, for a fit is as much a function of
the samples as F is. All sums are additive, so that leaving a group out is a subtraction.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fisherlab.collect.layer_batch import half_of
from fisherlab.errors import FisherlabError
from fisherlab.gradients.inputs import (
    Inputs,
    OneHot,
    by_sample,
    position_products,
    sample_gradients,
    squared_norms,
)
from fisherlab.linalg.numerics import spans
from fisherlab.operators import LinearOperator
from fisherlab.statistics import KeptSums

LEAST_SAMPLES = 8  # a choice: four in each half, from which a variance can be told at all
# Of each half, fewer where it has fewer samples. A choice: from 16 groups in all a standard error is known to
# 1/√(2·14) = 19 %, and each more costs a fit of every method.
GROUPS = 8
_MOST_LOST = 1e-3  # of a sum: a choice, far below the standard errors
_MOST_ROUNDING = 10  # of the relative errors of sums, in ‖F − F̂‖²/‖F‖²: a choice, of its three terms
# ‖F̂‖ of a fit that is a smooth function of n samples, as a jackknife needs it, changes by less than
# (n/(n − b))² without b of them, or as ‖F‖ does. A choice: KFAC, of degree two, changes by 1 % where the
# best A ⊗ B in log-det divergence changes by a multiple, since a unit is left with a single sample.
_DEGREE = 2
_LEAST_LEFT = 0.1  # of ‖F‖² without a sixteenth of the samples, for a standard error to be one: a choice


class PopulationError(NamedTuple):
    """The estimate √(‖F − F̂‖²/‖F‖²) and its standard error; None with the reason in `note`."""

    error: float | None
    standard_error: float | None
    note: str = ""


@dataclass(frozen=True)
class SampleGroup:
    """Samples of one half that the jackknife leaves out together.

    Attributes:
        half: which (0 or 1).
        places: their places among the samples kept of that half, [b].
        norms: Σ ‖F_n‖².
        with_own: ⟨Σ F_n, Σ F_n'⟩ with all samples of its half.
        with_other: the same with those of the other half.
        squared: ‖Σ F_n‖².
        sums: their sums, in float64.
    """

    half: int
    places: Tensor
    norms: float
    with_own: float
    with_other: float
    squared: float
    sums: KeptSums

    @property
    def samples(self) -> int:
        """How many they are."""
        return len(self.places)


Refit = Callable[[Sequence[SampleGroup]], LinearOperator]
"""From groups of one half to F̂ fitted on that half without them."""


def group_places(kept: int) -> list[tuple[int, Tensor, Tensor]]:
    """The groups of the first samples, as many of each half: half, places in that half, places among all.

    Their members are dealt by a fixed shuffle, so that no order of the data makes them unlike each other.
    """
    generator = torch.Generator().manual_seed(0)
    half = half_of(0, kept)
    sides = [(half == h).nonzero().squeeze(1) for h in (0, 1)]
    groups = min(GROUPS, *map(len, sides))
    found = []
    for h, own in enumerate(sides):
        order = torch.randperm(len(own), generator=generator, device="cpu")
        parts = [part.sort().values for part in order.tensor_split(groups)] if groups > 1 else []
        found += [(h, part, own[part]) for part in parts]
    return found


def paired(groups: int) -> Iterator[tuple[int, int]]:
    """The pairs of groups that are left out together: of either half one, and neighbours within a half."""
    each = groups // 2
    yield from ((place, each + place) for place in range(each))
    yield from ((start + place, start + place + 1) for start in (0, each) for place in range(0, each - 1, 2))


class _Fit(NamedTuple):
    """F̂ of a half, its ⟨F, F̂⟩ with the other half, and ‖F̂‖²."""

    operator: LinearOperator
    product: float
    squared: float


@dataclass
class PopulationEstimate:
    """A layer's exact block on all samples and on the two halves, and terms of the first few samples.

    Attributes:
        exact: F on all N samples.
        halves: F on the samples of each half (`fisherlab.collect.layer_batch.half_of`).
        counts: how many samples each half has.
        self_products: Σ_n ‖F_n‖² of each half.
        quadratics: from an operator G to ⟨F_n, G⟩ of the samples kept of a half (0 or 1), [k].
        groups: what the jackknife leaves out, of the samples kept, those of half 0 first; none: no standard
            error.
        overlaps: ⟨Σ_n F_n, Σ_n' F_n'⟩ over two groups, for each pair of `paired`.
        terms: from an operator G and a group to ⟨Σ_n F_n, G⟩.
        without: F on a half without groups of it.
        rounding: the relative error of the sums.
    """

    exact: LinearOperator
    halves: Sequence[LinearOperator]
    counts: Sequence[int]
    self_products: Sequence[float]
    quadratics: Callable[[LinearOperator, int | None], Tensor]
    groups: Sequence[SampleGroup]
    overlaps: Mapping[tuple[int, int], float]
    terms: Callable[[LinearOperator, SampleGroup], float]
    without: Refit
    rounding: float

    def __post_init__(self) -> None:
        """The parts that do not depend on the approximation."""
        self.samples = sum(self.counts)
        squared = [
            n**2 * float(F.frobenius_norm()) ** 2 for n, F in zip(self.counts, self.halves, strict=True)
        ]
        self._squared = squared
        whole = self.samples**2 * float(self.exact.frobenius_norm()) ** 2
        self._within = [one - own for one, own in zip(squared, self.self_products, strict=True)]
        self._across = (whole - sum(squared)) / 2
        self._pairs = whole - sum(self.self_products)

    @property
    def lost(self) -> bool:
        """Whether what is left of ‖F‖² without the products of samples with themselves is rounding."""
        own = sum(self.self_products)
        return (
            self.samples >= LEAST_SAMPLES and own > 0 and own * self.rounding > _MOST_LOST * abs(self._pairs)
        )

    def error(self, fits: Sequence[LinearOperator], refit: Refit | None) -> PopulationError:
        """The population error of an approximation fitted on each half.

        Args:
            fits: F̂ of each half.
            refit: F̂ of a half without groups of it; None: no standard error.
        """
        n = self.samples
        if n < LEAST_SAMPLES:
            return PopulationError(None, None, f"population error needs at least {LEAST_SAMPLES} samples")
        if not any(self.self_products):
            return PopulationError(None, None, "population error: the block is zero")
        if self.lost:
            return PopulationError(None, None, "population error: few samples make up the block to rounding")
        products = [self.quadratics(fits[1 - h], h) for h in (0, 1)] if self.groups else None
        found = [self._fit(fit, h, products) for h, fit in enumerate(fits)]
        error = self._error(found, (), {})
        if error is not None and error**2 < _MOST_ROUNDING * self.rounding:
            floor = (_MOST_ROUNDING * self.rounding) ** 0.5
            return PopulationError(None, None, f"population error: below {floor:.1g}, which is rounding")
        if error is None or error < 0:
            return PopulationError(None, None, "population error: the estimate is negative; use more samples")
        if products is None:
            return PopulationError(error, None, "no standard error: no terms of single samples are kept")
        if refit is None:
            return PopulationError(error, None, "no standard error: its fits would take too long")
        left = [float(products[group.half][group.places].sum()) for group in self.groups]
        try:
            return self._with_spread(error, found, left, refit)
        except (FisherlabError, torch.linalg.LinAlgError) as failed:
            return PopulationError(error, None, f"no standard error: without some samples {failed}")

    def _fit(self, fit: LinearOperator, half: int, products: Sequence[Tensor] | None = None) -> _Fit:
        """What an F̂ of a half gives; ⟨F_n, F̂⟩ of the samples of the other half may be known."""
        other, squared = 1 - half, float(fit.frobenius_norm()) ** 2
        if products is not None and len(products[other]) == self.counts[other]:
            return _Fit(fit, float(products[other].mean()), squared)
        return _Fit(fit, float(self.halves[other].inner(fit)), squared)

    def _error(self, fits: Sequence[_Fit], out: Sequence[int], left: Mapping[int, float]) -> float | None:
        """The error without some groups, negative for a negative square; None where ‖F‖² is gone.

        In ‖F‖² the pairs within either half, and those across, keep the weights that they have of all
        samples: else a half that lost samples would count less, and the estimate would move to the other.

        Args:
            fits: F̂ of the two halves without them.
            out: the groups that are left out.
            left: ⟨Σ F_n, F̂⟩ of each of them with the F̂ of the other half.
        """
        within, across, counts = list(self._within), self._across, list(self.counts)
        products = [fits[1].product * counts[0], fits[0].product * counts[1]]
        for place in out:
            group = self.groups[place]
            within[group.half] += group.squared + group.norms - 2 * group.with_own
            across -= group.with_other
            counts[group.half] -= group.samples
            products[group.half] -= left[place]
        if len(out) == 2:
            one, two = (self.groups[place].half for place in out)
            overlap = self.overlaps[out[0], out[1]]
            within[one] += 2 * overlap if one == two else 0.0
            across += overlap if one != two else 0.0
        whole = [n / m for n, m in zip(self.counts, counts, strict=True)]
        norm = 2 * across * whole[0] * whole[1]
        for pairs, n, m in zip(within, self.counts, counts, strict=True):
            norm += pairs * (n * (n - 1)) / (m * (m - 1))
        norm /= self.samples * (self.samples - 1)
        cross = sum(product / count for product, count in zip(products, counts, strict=True))
        least = _LEAST_LEFT * self._pairs / (self.samples * (self.samples - 1)) if out else 0.0
        if not norm > least:
            return None
        squared = (norm - cross + 0.5 * (fits[0].squared + fits[1].squared)) / norm
        return math.copysign(abs(squared) ** 0.5, squared)

    def _moved(self, whole: _Fit, part: _Fit, out: Sequence[int]) -> bool:
        """Whether F̂ of a half is another matrix without some groups, by more than F itself is."""
        half, squared = self.groups[out[0]].half, self._squared[self.groups[out[0]].half]
        if not whole.squared > 0:
            return part.squared > 0
        stays = squared + sum(self.groups[g].squared - 2 * self.groups[g].with_own for g in out)
        stays += 2 * self.overlaps[out[0], out[1]] if len(out) == 2 else 0.0
        of_samples = self.counts[half] - sum(self.groups[g].samples for g in out)
        exact = stays / of_samples**2 / (squared / self.counts[half] ** 2)
        change, most = part.squared / whole.squared, (self.counts[half] / of_samples) ** (2 * _DEGREE)
        as_such = not 1 / most <= change <= most
        return as_such and not (exact > 0 and 1 / most <= change / exact <= most)

    def _with_spread(
        self, error: float, fits: Sequence[_Fit], left: Sequence[float], refit: Refit
    ) -> PopulationError:
        """The jackknife over the groups of each half, less what it counts twice.

        The halves are two samples, and T is no symmetric function of both: a group is compared with those of
        its own half, and the variance is Σ_halves (G − 1)/G Σ_g (T_g − T̄)². Of T = T_1 + T_2 with T_1 a sum
        over samples and T_2 one over pairs that is var T_1 + 2 var T_2 (Efron and Stein 1981). Second
        differences do not see T_1: within a half Q = G T − (G − 1)(T_g + T_g') + (G − 2) T_gg', across
        them D = T − T_g − T_g' + T_gg', and var T_2 = Σ_halves (G − 1)/2G · E[Q²] + (G − 1)(G' − 1) E[D²].
        At least half of the jackknife's variance is left, as there where T = T_2. G is a half's samples by
        those of a group, which need not cover all of them.

        Args:
            error: T.
            fits: F̂ of the two halves.
            left: ⟨Σ F_n, F̂⟩ of each group with the F̂ of the other half.
            refit: see `error`.

        Returns:
            T with its standard error; without one where F̂ jumps: a jackknife takes its differences for
            those of a smooth function.
        """
        each = len(self.groups) // 2
        alone: dict[int, float | None] = {}
        together: dict[tuple[int, int], float | None] = {}
        moved = False
        for place, other in paired(2 * each):
            one, two = self.groups[place], self.groups[other]
            if one.half != two.half:
                first, second = self._fit(refit([one]), 0), self._fit(refit([two]), 1)
                moved = moved or self._moved(fits[0], first, [place]) or self._moved(fits[1], second, [other])
                alone[place] = self._error([first, fits[1]], [place], {place: left[place]})
                alone[other] = self._error([fits[0], second], [other], {other: left[other]})
                both = {place: self.terms(second.operator, one), other: self.terms(first.operator, two)}
                together[place, other] = self._error([first, second], [place, other], both)
            else:
                changed = list(fits)
                changed[one.half] = self._fit(refit([one, two]), one.half)
                moved = moved or self._moved(fits[one.half], changed[one.half], [place, other])
                own = {place: left[place], other: left[other]}
                together[place, other] = self._error(changed, [place, other], own)
        singles = [alone[place] for place in range(2 * each)]
        if any(value is None for value in (*singles, *together.values())):
            return PopulationError(error, None, "no standard error: few samples make up the block")
        if moved:
            return PopulationError(error, None, "no standard error: single samples decide what F̂ is")
        T = [max(0.0, value) for value in singles if value is not None]
        pairs = {pair: max(0.0, value) for pair, value in together.items() if value is not None}
        return PopulationError(error, self._variance(error, T, pairs) ** 0.5)

    def _variance(self, T: float, alone: Sequence[float], pairs: Mapping[tuple[int, int], float]) -> float:
        """That of `_with_spread` from T, T without each group, and without pairs of them."""
        n = [self.counts[group.half] for group in self.groups]
        b = [group.samples for group in self.groups]
        each, variance = len(b) // 2, 0.0
        for half in (range(each), range(each, 2 * each)):
            mean = sum(alone[g] for g in half) / each
            spread = sum((n[g] - b[g]) ** 2 / (n[g] * b[g]) * (alone[g] - mean) ** 2 for g in half)
            variance += spread / (each - 1)
        within, across = [], []
        for (i, j), both in pairs.items():
            if self.groups[i].half == self.groups[j].half:
                Q = n[i] * T - (n[i] - b[i]) * alone[i] - (n[j] - b[j]) * alone[j]
                Q += (n[i] - b[i] - b[j]) * both
                within.append((1 / b[i] - 1 / n[i]) / (2 * b[j]) * Q**2)
            else:
                D = T - alone[i] - alone[j] + both
                across.append((n[i] / b[i] - 1) * (n[j] / b[j] - 1) * D**2)
        twice = sum(across) / len(across) + (2 * sum(within) / len(within) if within else 0.0)
        return max(variance - twice, variance / 2)


def sample_norms(a: Inputs, g: Tensor) -> Tensor:
    """‖F_n‖² = Σ_{c,c'} ⟨V_{n,c}, V_{n,c'}⟩² for every sample, [n] float64."""
    classes, samples, positions, m = g.shape
    if positions == 1:
        columns = g[:, :, 0].transpose(0, 1)
        small = columns @ columns.mT if classes <= m else columns.mT @ columns
        norms = squared_norms(a)[:, 0].double()
        return norms.square() * small.double().square().sum((1, 2))
    d = a.shape[2]
    by_vectors = classes * d * m * (positions + classes)
    by_positions = positions**2 * (d + classes * m) + classes**2 * positions * m
    product, width = _norms_by_positions, positions * (positions + 2 * classes * m)
    if by_vectors < by_positions:
        product, width = _norms_by_vectors, classes * m * d
    pieces = [
        product(a[start:stop], g[:, start:stop]) for start, stop in spans(samples, width * g.element_size())
    ]
    return torch.cat(pieces)


def _norms_by_vectors(a: Inputs, g: Tensor) -> Tensor:
    V = sample_gradients(a, g).flatten(2)
    return (V @ V.mT).double().square().sum((1, 2))


def _norms_by_positions(a: Inputs, g: Tensor) -> Tensor:
    weighted = position_products(a) @ by_sample(g)
    classes = g.shape[0]
    left, right = (x.unflatten(2, (classes, -1)).transpose(1, 2).flatten(2) for x in (by_sample(g), weighted))
    return (left @ right.mT).double().square().sum((1, 2))


def layerwise_norms(a: Inputs, slope: Tensor) -> Tensor:
    """‖F_n‖² [n] of F_n = Σ_t (a_t a_tᵀ) ⊗ diag(φ'(s_t)²), from the slope [1, n, t, m]."""
    squares = slope[0].square()
    pieces = []
    for start, stop in spans(len(squares), 3 * squares.shape[1] ** 2 * squares.element_size()):
        part = squares[start:stop]
        products = position_products(a[start:stop]).square() * (part @ part.mT)
        pieces.append(products.double().sum((1, 2)))
    return torch.cat(pieces)


def layerwise_norms_identity(a: Inputs, slope: Tensor) -> Tensor:
    """`layerwise_norms` where φ is the identity and the slope 1: m ‖Σ_t a_t a_tᵀ‖² [n]."""
    positions, inputs = a.shape[1:]
    small = isinstance(a, OneHot) or positions <= inputs
    width = (positions if small else inputs) ** 2
    pieces = []
    for start, stop in spans(len(a), 2 * width * slope.element_size()):
        part = a[start:stop]
        products = part.mT @ part if isinstance(part, Tensor) and not small else position_products(part)
        pieces.append(products.double().square().sum((1, 2)))
    return torch.cat(pieces) * slope.shape[-1]


def layerwise_self_product(a: Inputs, slope: Tensor) -> Tensor:
    """Σ_n ‖F_n‖² of `layerwise_norms`, a sum over samples."""
    return layerwise_norms(a, slope).sum()


def layerwise_self_product_identity(a: Inputs, slope: Tensor) -> Tensor:
    """Σ_n ‖F_n‖² of `layerwise_norms_identity`."""
    return layerwise_norms_identity(a, slope).sum()


def self_product(a: Inputs, g: Tensor) -> Tensor:
    """Σ_n ‖F_n‖², a sum over samples."""
    return sample_norms(a, g).sum()
