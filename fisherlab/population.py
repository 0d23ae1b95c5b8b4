"""The population error: how far F̂ is from the Fisher of the distribution, not of the sample at hand.

On N samples the error of a wide layer mostly measures sampling: F itself is noisy. With F = E[F_n],
F_n = Σ_c vec(V_{n,c}) vec(V_{n,c})ᵀ, three unbiased parts remove that:

    ‖F‖²    ≈ 1/(N(N−1)) Σ_{n≠n'} ⟨F_n, F_n'⟩           (no sample meets itself)
    ⟨F, F̂⟩ ≈ the mean of ⟨F_n, F̂⟩ over the half of the samples that F̂ was not fitted on
    ‖F̂‖²   as it is,

averaged over the two directions of the split. The standard error is the jackknife over samples with
the two fits held as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fisherlab.collect import half_of
from fisherlab.operators import GramOperator, LinearOperator

LEAST_SAMPLES = 8


class PopulationError(NamedTuple):
    """The estimate √(‖F − F̂‖²/‖F‖²) and its standard error; None with the reason in `note`."""

    error: float | None
    standard_error: float | None
    note: str = ""


@dataclass
class Halves:
    """A layer's exact block on all samples and on the two halves, and a few samples kept.

    Attributes:
        exact: F on all N samples.
        halves: F on the samples of each half (`fisherlab.collect.half_of`).
        counts: how many samples each half has.
        self_products: Σ_n ‖F_n‖².
        kept: the first samples in Gram form; the jackknife's terms come from them.
    """

    exact: LinearOperator
    halves: Sequence[LinearOperator]
    counts: Sequence[int]
    self_products: float
    kept: GramOperator

    def __post_init__(self) -> None:
        """The parts that do not depend on the approximation."""
        self.samples = sum(self.counts)
        squared = float(self.exact.frobenius_norm()) ** 2
        self._pairs = self.samples**2 * squared - self.self_products
        self._terms: Tensor | None = None

    def error(self, fits: Sequence[LinearOperator]) -> PopulationError:
        """The population error of an approximation fitted on each half."""
        n = self.samples
        if n < LEAST_SAMPLES:
            return PopulationError(None, None, f"population error needs at least {LEAST_SAMPLES} samples")
        norm = self._pairs / (n * (n - 1))
        cross = 0.5 * sum(float(self.halves[h].inner(fits[1 - h])) for h in (0, 1))
        own = 0.5 * sum(float(fit.frobenius_norm()) ** 2 for fit in fits)
        if norm <= 0 or norm - 2 * cross + own < 0:
            return PopulationError(None, None, "population error: the estimate is negative; use more samples")
        error = ((norm - 2 * cross + own) / norm) ** 0.5
        return PopulationError(error, self._standard_error(fits, cross, own))

    def _standard_error(self, fits: Sequence[LinearOperator], cross: float, own: float) -> float:
        n, terms = self.samples, self._other_samples()
        norms = (self._pairs - 2 * terms) / ((n - 1) * (n - 2))
        crosses = torch.full_like(norms, cross)
        half = half_of(0, len(norms)).to(norms.device)
        for h in (0, 1):
            products = self.kept.sample_quadratics(fits[1 - h])[half == h]
            mean = float(self.halves[h].inner(fits[1 - h]))
            crosses[half == h] -= 0.5 * (products - mean) / (self.counts[h] - 1)
        without = ((norms - 2 * crosses + own) / norms).clamp(min=0).sqrt()
        return float(((n - 1) * without.var(correction=0)).sqrt())

    def _other_samples(self) -> Tensor:
        """⟨F_n, Σ_{n' ≠ n} F_n'⟩ for the samples kept."""
        if self._terms is None:
            own = sample_norms(self.kept.a, self.kept.g)
            self._terms = self.kept.sample_quadratics(self.exact) * self.samples - own
        return self._terms


def sample_norms(a: Tensor, g: Tensor) -> Tensor:
    """‖F_n‖² = Σ_{c,c'} ⟨V_{n,c}, V_{n,c'}⟩² for every sample, [n] float64."""
    if a.shape[1] == 1:
        columns = g[:, :, 0].transpose(0, 1)
        small = columns @ columns.mT if g.shape[0] <= g.shape[-1] else columns.mT @ columns
        return a[:, 0].double().square().sum(1).square() * small.double().square().sum((1, 2))
    weights = a @ a.transpose(1, 2)
    products = torch.einsum("cntm,nts,knsm->nck", g, weights, g)
    return products.double().square().sum((1, 2))


def layerwise_self_product(a: Tensor, slope: Tensor) -> Tensor:
    """Σ_n ‖F_n‖² of F_n = Σ_t (a_t a_tᵀ) ⊗ diag(φ'(s_t)²), from the slope [1, n, t, m]."""
    squares = slope[0].square()
    products = (a @ a.mT).square() * (squares @ squares.mT)
    return products.double().sum()


def self_product(a: Tensor, g: Tensor) -> Tensor:
    """Σ_n ‖F_n‖², a sum over samples."""
    return sample_norms(a, g).sum()
