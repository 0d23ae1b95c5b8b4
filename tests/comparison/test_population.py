"""The population error by simulation: draws from a distribution whose Fisher is known."""

import pytest
import torch
from torch import Tensor

from fisherlab.collect.layer_batch import half_of
from fisherlab.comparison.population import (
    PopulationEstimate,
    layerwise_norms,
    layerwise_norms_identity,
    layerwise_self_product,
    layerwise_self_product_identity,
    sample_norms,
    self_product,
)
from fisherlab.metrics import relative_error
from fisherlab.operators import DenseOperator, KroneckerOperator, LinearOperator


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
    first = a[:kept], g[:, :kept]
    samples = {None: first, **dict(enumerate(split(*first)))}

    def quadratics(operator: LinearOperator, half: int | None) -> Tensor:
        return operator.quadratics(*samples[half])

    parts = split(a, g)
    return PopulationEstimate(
        exact=block(a, g),
        halves=[block(*part) for part in parts],
        counts=[len(part[0]) for part in parts],
        self_products=float(self_product(a, g)),
        norms=sample_norms(*first),
        quadratics=quadratics,
    )


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
    assert halves.error([fit, fit]).error == pytest.approx(1.0)
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
        found = halves.error(fits)
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
    found = halves_of(a, g).error(fits_of(a, g))
    truth = relative_error(DenseOperator(population.F, 2, 3), kfac(population.a, population.g))
    assert found.error == pytest.approx(truth, abs=max(4 * found.standard_error, 0.01))
    assert found.standard_error < 0.1 * truth


def test_the_standard_error_matches_the_spread(population):
    generator = torch.Generator().manual_seed(3)
    fit = kfac(population.a, population.g) * 0.7
    errors, standard_errors = [], []
    for _ in range(200):
        halves = halves_of(*population.sample(60, generator))
        found = halves.error([fit, fit])
        errors.append(found.error)
        standard_errors.append(found.standard_error)
    spread = float(torch.tensor(errors).std())
    assert 0.7 < sum(standard_errors) / 200 / spread < 1.4


def test_standard_errors_fall_like_one_over_the_root_of_n(population):
    generator = torch.Generator().manual_seed(4)
    fit = kfac(population.a, population.g)

    def mean(n: int) -> float:
        found = [
            halves_of(*population.sample(n, generator)).error([fit, fit]).standard_error for _ in range(30)
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
        found = halves.error(fits)
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
    assert halves.error(fits) == (None, None, "population error: the estimate is negative; use more samples")


def test_of_a_block_that_is_zero_the_note_says_so(population):
    a, g = population.sample(20, torch.Generator().manual_seed(0))
    halves = halves_of(a, torch.zeros_like(g))
    found = halves.error([block(a, g), block(a, g)])
    assert found == (None, None, "population error: the block is zero")


@pytest.mark.parametrize("n", [2, 3, 7])
def test_fewer_than_eight_samples_are_too_few(population, n):
    a, g = population.sample(n, torch.Generator().manual_seed(7))
    found = halves_of(a, g).error(fits_of(a, g))
    assert (found.error, found.standard_error) == (None, None)
    assert found.note == "population error needs at least 8 samples"


def test_the_jackknife_works_on_the_first_samples_alone(population):
    """Only some samples are kept in large runs: the standard error is about the same."""
    a, g = population.sample(400, torch.Generator().manual_seed(8))
    fits = fits_of(a, g)
    one, two = halves_of(a, g).error(fits), halves_of(a, g, kept=200).error(fits)
    assert two.error == pytest.approx(one.error, rel=1e-12)
    assert two.standard_error != one.standard_error
    assert two.standard_error == pytest.approx(one.standard_error, rel=0.3)


def test_the_jackknife_is_that_of_estimates_with_a_sample_left_out(population):
    """From the definition: every sample left out of the pairs and of its half's mean, with the fits held."""
    a, g = population.sample(30, torch.Generator().manual_seed(9))
    halves, fits = halves_of(a, g), fits_of(a, g)
    rows = (g.transpose(-1, -2) @ a).transpose(-1, -2).flatten(-2)
    F = torch.einsum("cnd,cne->nde", rows, rows)
    pairs = torch.einsum("nde,mde->nm", F, F)
    side = half_of(0, 30)
    own = sum(float(fit.dense().square().sum()) for fit in fits) / 2

    def estimate(keep: Tensor) -> Tensor:
        n = int(keep.sum())
        chosen = pairs[keep][:, keep]
        norm = (chosen.sum() - chosen.trace()) / (n * (n - 1))
        cross = sum((F[keep & (side == h)].mean(0) * fits[1 - h].dense()).sum() for h in (0, 1)) / 2
        return ((norm - 2 * cross + own) / norm).clamp(min=0).sqrt()

    everyone = torch.ones(30, dtype=torch.bool)
    found = halves.error(fits)
    assert found.error == pytest.approx(float(estimate(everyone)), rel=1e-9)
    without = torch.stack([estimate(everyone & (torch.arange(30) != n)) for n in range(30)])
    assert found.standard_error == pytest.approx(float((29 * without.var(correction=0)).sqrt()), rel=1e-9)


def test_without_norms_of_samples_there_is_no_standard_error(population):
    a, g = population.sample(40, torch.Generator().manual_seed(10))
    halves, fits = halves_of(a, g), fits_of(a, g)
    expected = halves.error(fits).error
    halves.norms = None
    found = halves.error(fits)
    assert found.error == pytest.approx(expected, rel=1e-9)
    assert found.standard_error is None


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
