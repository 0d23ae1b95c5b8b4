"""The population error by simulation: draws from a distribution whose Fisher is known."""

import math
from collections.abc import Sequence
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from fisherlab.collect.layer_batch import LayerBatch, half_of
from fisherlab.comparison.population import (
    PopulationEstimate,
    Refit,
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
from fisherlab.metrics import relative_error
from fisherlab.operators import DenseOperator, KroneckerOperator, LinearOperator
from fisherlab.statistics import KeptSums


class Population:
    """Six equally likely atoms, each with inputs a [t, d] and gradients g [c, t, m]."""

    def __init__(self, positions: int) -> None:
        generator = torch.Generator().manual_seed(positions)
        self.a = torch.randn(6, positions, 3, generator=generator, dtype=torch.float64)
        self.g = torch.randn(2, 6, positions, 2, generator=generator, dtype=torch.float64)
        self.g *= torch.tensor([0.3, 0.5, 1.0, 1.0, 1.5, 2.0], dtype=torch.float64)[:, None, None]
        V = self.g.transpose(-1, -2) @ self.a
        rows = V.transpose(-1, -2).flatten(-2)
        self.fishers = torch.einsum("cnd,cne->nde", rows, rows)
        self.F = self.fishers.mean(0)

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(6, (n,), generator=generator)
        return self.a[chosen], self.g[:, chosen]


def block(a: Tensor, g: Tensor) -> DenseOperator:
    rows = (g.transpose(-1, -2) @ a).transpose(-1, -2).flatten(-2).flatten(0, 1)
    return DenseOperator(rows.T @ rows / len(a), g.shape[-1], a.shape[-1])


def split(a: Tensor, g: Tensor) -> list[tuple[Tensor, Tensor]]:
    half = half_of(0, len(a))
    return [(a[half == h], g[:, half == h]) for h in (0, 1)]


def halves_of(a: Tensor, g: Tensor, kept: int | None = None) -> PopulationEstimate:
    """With terms of the first `kept` samples; None: of all."""
    first = LayerBatch(0, a[:kept], {"predictive": g[:, :kept]})
    samples = {None: first, 0: first.half(0), 1: first.half(1)}

    def quadratics(operator: LinearOperator, half: int | None) -> Tensor:
        return operator.quadratics(samples[half].a, samples[half].g["predictive"])

    def squared(batch: LayerBatch) -> float:
        return (float(block(batch.a, batch.g["predictive"]).frobenius_norm()) * len(batch.a)) ** 2

    norms, exact = sample_norms(first.a, first.g["predictive"]), block(a, g)
    with_all, places = quadratics(exact, None) * len(a), group_places(len(first.a))
    parts = split(a, g)
    with_own = [quadratics(block(*part), h) * len(part[0]) for h, part in enumerate(parts)]
    groups = []
    for half, own, all_ in places:
        sums = KeptSums(samples[half].at(own))
        same = float(with_own[half][own].sum())
        terms = float(norms[all_].sum()), same, float(with_all[all_].sum()) - same, squared(sums.batch)
        groups.append(SampleGroup(half, own, *terms, sums))
    overlaps = {}
    for i, j in paired(len(groups)):
        both = squared(first.at(torch.cat([places[i][2], places[j][2]])))
        overlaps[i, j] = (both - groups[i].squared - groups[j].squared) / 2
    return PopulationEstimate(
        exact=exact,
        halves=[block(*part) for part in parts],
        counts=[len(part[0]) for part in parts],
        self_products=[float(self_product(*part)) for part in parts],
        quadratics=quadratics,
        groups=groups,
        overlaps=overlaps,
        terms=lambda operator, group: float(
            operator.quadratics(group.sums.batch.a, group.sums.batch.g["predictive"]).sum()
        ),
        without=lambda out: pytest.fail("not made from the block"),
        rounding=torch.finfo(a.dtype).eps,
    )


def refitted(a: Tensor, g: Tensor) -> Refit:
    """KFAC of a half without some groups, from the samples that stay."""
    parts = split(a, g)

    def refit(out: Sequence[SampleGroup]) -> KroneckerOperator:
        own_a, own_g = parts[out[0].half]
        stays = torch.ones(len(own_a), dtype=torch.bool)
        for group in out:
            stays[group.places] = False
        return kfac(own_a[stays], own_g[:, stays])

    return refit


def held(fit: LinearOperator) -> Refit:
    """A fit that does not depend on the samples."""
    return lambda out: fit


def kfac(a: Tensor, g: Tensor) -> KroneckerOperator:
    A = torch.einsum("nti,ntk->ik", a, a) / len(a)
    B = torch.einsum("cntj,cntl->jl", g, g) / (len(a) * a.shape[1])
    return KroneckerOperator(A, B)


def fits_of(a: Tensor, g: Tensor) -> list[KroneckerOperator]:
    return [kfac(*part) for part in split(a, g)]


@pytest.fixture(params=[1, 3], ids=["one position", "three positions"])
def population(request) -> Population:
    return Population(request.param)


def test_norms_of_single_samples(population):
    found = sample_norms(population.a, population.g)
    expected = population.fishers.square().sum((1, 2))
    assert torch.allclose(found, expected, rtol=1e-12)
    assert self_product(population.a, population.g) == pytest.approx(float(expected.sum()))


@pytest.mark.parametrize(("columns", "outputs"), [(1, 4), (4, 1), (3, 3), (5, 2)])
def test_norms_for_few_and_many_columns(columns, outputs):
    a = torch.randn(7, 1, 3).double()
    g = torch.randn(columns, 7, 1, outputs).double()
    rows = (g.transpose(-1, -2) @ a).flatten(-2)
    expected = torch.einsum("cnd,cne->nde", rows, rows).square().sum((1, 2))
    assert torch.allclose(sample_norms(a, g), expected, rtol=1e-12)


def test_the_squared_norm_is_unbiased(population):
    """The part that makes the difference: ‖F_sample‖² alone is too large by the self pairs."""
    generator = torch.Generator().manual_seed(0)
    fit = DenseOperator(torch.zeros(6, 6).double(), 2, 3)
    truth = float(population.F.square().sum())
    found, naive = [], []
    for _ in range(400):
        a, g = population.sample(10, generator)
        halves = halves_of(a, g)
        found.append(halves._pairs / (10 * 9))
        naive.append(float(halves.exact.frobenius_norm()) ** 2)
    assert halves.error([fit, fit], None).error == pytest.approx(1.0)
    values, other = torch.tensor(found), torch.tensor(naive)
    error = float(values.std()) / 20
    assert abs(float(values.mean()) - truth) < 4 * error
    assert float((other - values).mean()) > 0.1 * truth


def test_the_whole_estimate_is_unbiased(population):
    """E[error²·‖F‖²] = E‖F − F̂‖² for F̂ fitted on half of the samples."""
    generator = torch.Generator().manual_seed(1)
    differences = []
    for _ in range(300):
        a, g = population.sample(12, generator)
        halves, fits = halves_of(a, g), fits_of(a, g)
        truth = sum(float((population.F - fit.dense()).square().sum()) for fit in fits) / 2
        norm = halves._pairs / (12 * 11)
        found = halves.error(fits, None)
        if found.error is None:  # a negative estimate: its value is needed for the mean
            cross = sum(float(halves.halves[h].inner(fits[1 - h])) for h in (0, 1)) / 2
            own = sum(float(fit.frobenius_norm()) ** 2 for fit in fits) / 2
            differences.append(norm - 2 * cross + own - truth)
        else:
            differences.append(found.error**2 * norm - truth)
    values = torch.tensor(differences)
    assert abs(float(values.mean())) < 4 * float(values.std()) / 300**0.5


def test_the_estimate_of_many_samples_is_the_true_error(population):
    a, g = population.sample(6000, torch.Generator().manual_seed(2))
    found = halves_of(a, g).error(fits_of(a, g), refitted(a, g))
    truth = relative_error(DenseOperator(population.F, 2, 3), kfac(population.a, population.g))
    assert found.error == pytest.approx(truth, abs=max(4 * found.standard_error, 0.01))
    assert found.standard_error < 0.1 * truth


def test_the_standard_error_matches_the_spread(population):
    """By resampling, fits and all; the spread of 200 estimates is itself known to 1/√398 = 5 %."""
    generator = torch.Generator().manual_seed(3)
    errors, standard_errors = [], []
    for _ in range(200):
        a, g = population.sample(64, generator)
        found = halves_of(a, g).error(fits_of(a, g), refitted(a, g))
        errors.append(found.error)
        standard_errors.append(found.standard_error)
    spread = float(torch.tensor(errors).std())
    assert 0.8 < sum(standard_errors) / 200 / spread < 1.25


def test_the_standard_error_with_fits_that_are_held_is_another():
    """Where F̂ is fitted on the samples its own spread belongs to the estimate's."""
    population, generator = Population(1), torch.Generator().manual_seed(3)
    ratios = []
    for _ in range(20):
        a, g = population.sample(64, generator)
        halves, fits = halves_of(a, g), fits_of(a, g)

        def keep(out: Sequence[SampleGroup], fits: list[KroneckerOperator] = fits) -> KroneckerOperator:
            return fits[out[0].half]

        found = [halves.error(fits, refit).standard_error for refit in (keep, refitted(a, g))]
        ratios.append(found[0] / found[1])
    assert abs(sum(ratios) / 20 - 1) > 0.1


def test_standard_errors_fall_like_one_over_the_root_of_n(population):
    generator = torch.Generator().manual_seed(4)
    fit = kfac(population.a, population.g)

    def mean(n: int) -> float:
        found = [
            halves_of(*population.sample(n, generator)).error([fit, fit], held(fit)).standard_error
            for _ in range(30)
        ]
        return sum(found) / 30

    assert 0.35 < mean(400) / mean(100) < 0.7


def test_independent_inputs_and_gradients_have_no_population_error():
    """KFAC is the truth here, and the in-sample error measures sampling alone (d·m ≫ N)."""
    generator = torch.Generator().manual_seed(5)
    squares, inside = [], []
    for _ in range(10):
        a = torch.randn(200, 1, 24, generator=generator, dtype=torch.float64)
        g = torch.randn(1, 200, 1, 24, generator=generator, dtype=torch.float64)
        halves, fits = halves_of(a, g), fits_of(a, g)
        inside.append(relative_error(halves.exact, kfac(a, g)))
        norm = halves._pairs / (200 * 199)
        cross = sum(float(halves.halves[h].inner(fits[1 - h])) for h in (0, 1)) / 2
        own = sum(float(fit.frobenius_norm()) ** 2 for fit in fits) / 2
        squares.append((norm - 2 * cross + own) / norm)
        found = halves.error(fits, None)
        if found.error is None:
            assert squares[-1] < 0
        else:
            assert found.error**2 == pytest.approx(squares[-1])
    assert min(inside) > 0.4
    # what is left is the error of two factors fitted on 100 samples each
    assert -0.5 < sum(squares) / 10 < 0.6


def test_a_negative_estimate_is_empty_with_a_note(population):
    a, g = population.sample(8, torch.Generator().manual_seed(6))
    halves = halves_of(a, g)
    norm = halves._pairs / (8 * 7)
    # ‖F̂‖² − 2⟨F, F̂⟩ is least for F̂ in the direction of the sample itself
    fits = [DenseOperator(halves.halves[1 - h].dense(), 2, 3) for h in (0, 1)]
    cross = sum(float(halves.halves[h].inner(fits[1 - h])) for h in (0, 1)) / 2
    own = sum(float(fit.frobenius_norm()) ** 2 for fit in fits) / 2
    assert norm - 2 * cross + own < 0
    assert halves.error(fits, None) == (
        None,
        None,
        "population error: the estimate is negative; use more samples",
    )


def test_of_a_block_that_is_zero_the_note_says_so(population):
    a, g = population.sample(20, torch.Generator().manual_seed(0))
    halves = halves_of(a, torch.zeros_like(g))
    found = halves.error([block(a, g), block(a, g)], None)
    assert found == (None, None, "population error: the block is zero")


@pytest.mark.parametrize("n", [2, 3, 7])
def test_fewer_than_eight_samples_are_too_few(population, n):
    a, g = population.sample(n, torch.Generator().manual_seed(7))
    found = halves_of(a, g).error(fits_of(a, g), refitted(a, g))
    assert (found.error, found.standard_error) == (None, None)
    assert found.note == "population error needs at least 8 samples"


def test_the_jackknife_works_on_the_first_samples_alone(population):
    """Only some samples are kept in large runs: the standard error is about the same."""
    a, g = population.sample(800, torch.Generator().manual_seed(8))
    fits, refit = fits_of(a, g), refitted(a, g)
    one, two = halves_of(a, g).error(fits, refit), halves_of(a, g, kept=400).error(fits, refit)
    assert two.error == pytest.approx(one.error, rel=1e-12)
    assert two.standard_error != one.standard_error
    assert two.standard_error == pytest.approx(one.standard_error, rel=0.4)


@pytest.mark.parametrize("samples", [32, 30, 9])
def test_the_jackknife_is_that_of_estimates_with_groups_left_out(population, samples):
    """From the definition: estimate and fits from the samples that stay, alone and in pairs of groups."""
    a, g = population.sample(samples, torch.Generator().manual_seed(9))
    rows = (g.transpose(-1, -2) @ a).transpose(-1, -2).flatten(-2)
    F = torch.einsum("cnd,cne->nde", rows, rows)
    side = half_of(0, samples)

    def estimate(*out: Tensor) -> Tensor:
        keep = torch.ones(samples, dtype=torch.bool)
        keep[torch.cat([torch.empty(0, dtype=torch.long), *out])] = False
        norm = F.new_zeros(())
        for h, other in product((0, 1), (0, 1)):
            pairs = torch.einsum("nde,mde->nm", F[keep & (side == h)], F[keep & (side == other)])
            pairs += torch.zeros_like(pairs).fill_diagonal_(math.nan if h == other else 0.0)
            n, m = int((side == h).sum()), int((side == other).sum())
            norm += float(pairs.nanmean()) * n * (m - (h == other))
        norm /= samples * (samples - 1)
        fits = [kfac(a[keep & (side == h)], g[:, keep & (side == h)]).dense() for h in (0, 1)]
        cross = sum((F[keep & (side == h)].mean(0) * fits[1 - h]).sum() for h in (0, 1)) / 2
        own = sum(fit.square().sum() for fit in fits) / 2
        return ((norm - 2 * cross + own) / norm).clamp(min=0).sqrt()

    found = halves_of(a, g).error(fits_of(a, g), refitted(a, g))
    whole, groups = estimate(), [places for _, _, places in group_places(samples)]
    assert found.error == pytest.approx(float(whole), rel=1e-9)
    b = torch.tensor([len(group) for group in groups]).double()
    n = torch.tensor([int((side == h).sum()) for h, _, _ in group_places(samples)]).double()
    without = torch.stack([estimate(group) for group in groups])
    each, variance = len(groups) // 2, 0.0
    for own in (slice(each), slice(each, None)):
        spread = (without[own] - without[own].mean()).square()
        variance += float(((n[own] - b[own]) ** 2 / (n[own] * b[own]) * spread).sum()) / (each - 1)
    within, across = [], []
    for i, j in paired(len(groups)):
        both = estimate(groups[i], groups[j])
        if j - i == each:
            D = whole - without[i] - without[j] + both
            across.append(float(D**2 * (n[i] / b[i] - 1) * (n[j] / b[j] - 1)))
        else:
            Q = n[i] * whole - (n[i] - b[i]) * without[i] - (n[j] - b[j]) * without[j]
            Q += (n[i] - b[i] - b[j]) * both
            within.append(float(Q**2 / (b[i] * b[j]) * (1 - b[i] / n[i]) / 2))
    twice = 2 * sum(within) / len(within) + sum(across) / len(across)
    assert found.standard_error == pytest.approx(max(variance - twice, variance / 2) ** 0.5, rel=1e-9)


@pytest.mark.parametrize(
    "weights", [(1, 0, 0, 0), (1, 0.5, 0, 0), (1, 0, 0.5, 0), (1, 0, 0, 0.5), (1, -0.6, 0.4, 0.3)], ids=str
)
def test_the_jackknife_is_right_of_sums_over_samples_and_pairs(weights):
    """Sums over samples, over pairs within a half, and across: the mean variance is the true one."""
    n, tries, (one, within, other, across) = 16, 4000, weights
    x = torch.randn(tries, 2, n, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * n**0.5
    places = group_places(2 * n)
    groups = [SimpleNamespace(half=h, samples=len(own)) for h, own, _ in places]

    def statistic(*out: int) -> Tensor:
        kept = torch.ones(2, n, dtype=torch.bool)
        for place in out:
            kept[places[place][0], places[place][1]] = False
        sums = [x[:, h, kept[h]] for h in (0, 1)]
        m = [own.shape[1] for own in sums]
        pairs = [
            (own.sum(1) ** 2 - (own**2).sum(1)) / (len_ * (len_ - 1))
            for own, len_ in zip(sums, m, strict=True)
        ]
        means = [own.mean(1) for own in sums]
        return (
            9
            + one * (means[0] - 2 * means[1])
            + within * pairs[0]
            + other * pairs[1]
            + across * means[0] * means[1]
        )

    whole = statistic()
    alone = torch.stack([statistic(place) for place in range(len(groups))], 1)
    both = {pair: statistic(*pair) for pair in paired(len(groups))}
    halves = SimpleNamespace(counts=[n, n], groups=groups)
    found = [
        PopulationEstimate._variance(
            halves,
            float(whole[k]),
            alone[k].tolist(),
            {pair: float(value[k]) for pair, value in both.items()},
        )
        for k in range(tries)
    ]
    assert sum(found) / tries == pytest.approx(float(whole.var()), rel=0.12)


@pytest.mark.parametrize("kept", [1, 2, 3, 17, 400])
def test_groups_share_the_samples_that_are_kept(kept):
    """Of each half as many groups; each sample in one of them, at the place that its half gives it."""
    groups = group_places(kept)
    half = half_of(0, kept)
    assert [h for h, _, _ in groups] == [0] * (len(groups) // 2) + [1] * (len(groups) // 2)
    for h, own, places in groups:
        assert torch.equal((half == h).nonzero().squeeze(1)[own], places)
    if groups:
        assert torch.equal(torch.cat([places for _, _, places in groups]).sort().values, torch.arange(kept))
    assert len(groups) == (0 if kept < 4 else 16)


def test_without_groups_of_samples_there_is_no_standard_error(population):
    a, g = population.sample(40, torch.Generator().manual_seed(10))
    halves, fits = halves_of(a, g), fits_of(a, g)
    expected = halves.error(fits, refitted(a, g))
    assert halves.error(fits, None)[:2] == (expected.error, None)
    halves.groups = ()
    found = halves.error(fits, refitted(a, g))
    assert found.error == pytest.approx(expected.error, rel=1e-9)
    assert found.standard_error is None
    assert found.note == "no standard error: no terms of single samples are kept"


def test_an_estimate_that_one_sample_makes_up_to_rounding_is_empty(population):
    """‖F‖² without the products of samples with themselves is then a difference of equal numbers."""
    a, g = population.sample(40, torch.Generator().manual_seed(11))
    g = g * 1e-9
    g[:, 0] *= 1e9
    found = halves_of(a, g).error(fits_of(a, g), refitted(a, g))
    assert found == (None, None, "population error: few samples make up the block to rounding")


def test_norms_of_the_layerwise_fisher_of_single_samples(population):
    """F_n = Σ_t (a_t a_tᵀ) ⊗ diag(φ'(s_t)²), one column for each unit and position."""
    slope = population.g[:1]
    found = layerwise_norms(population.a, slope)
    columns = torch.diag_embed(slope[0].square())
    blocks = torch.einsum("nti,ntk,ntjl->nijkl", population.a, population.a, columns)
    expected = blocks.square().sum((1, 2, 3, 4))
    assert torch.allclose(found, expected, rtol=1e-12)
    assert layerwise_self_product(population.a, slope) == pytest.approx(float(expected.sum()))


@pytest.mark.parametrize("positions", [1, 2, 9])
def test_layerwise_norms_of_the_identity(positions):
    generator = torch.Generator().manual_seed(7)
    a = torch.randn(5, positions, 4, generator=generator, dtype=torch.float64)
    slope = torch.ones(1, 5, positions, 3, dtype=torch.float64)
    expected = layerwise_norms(a, slope)
    torch.testing.assert_close(layerwise_norms_identity(a, slope), expected)
    torch.testing.assert_close(layerwise_self_product_identity(a, slope), expected.sum())


def test_a_fit_that_jumps_without_some_samples_has_no_standard_error(population):
    """A jackknife is for smooth functions: here F̂ is another matrix without one of the groups."""
    a, g = population.sample(64, torch.Generator().manual_seed(2))
    halves, smooth = halves_of(a, g), refitted(a, g)

    def jumping(out: Sequence[SampleGroup]) -> LinearOperator:
        first = any(group is halves.groups[0] for group in out)
        return smooth(out) * (3.0 if first and len(out) == 1 else 1.0)

    known, empty = (halves.error(fits_of(a, g), refit) for refit in (smooth, jumping))
    assert known.standard_error is not None
    assert empty.standard_error is None
    assert empty.error == known.error
    assert "single samples decide" in empty.note
