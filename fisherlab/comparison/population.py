"""The population error: how far F̂ is from the Fisher of the distribution, not of the sample at hand.

On N samples the error of a wide layer mostly measures sampling: F itself is noisy. With F = E[F_n],
F_n = Σ_c vec(V_{n,c}) vec(V_{n,c})ᵀ, three unbiased parts remove that:

    ‖F‖²    ≈ 1/(N(N−1)) Σ_{n≠n'} ⟨F_n, F_n'⟩           (no sample meets itself)
    ⟨F, F̂⟩ ≈ the mean of ⟨F_n, F̂⟩ over the half of the samples that F̂ was not fitted on
    ‖F̂‖²   as it is,

averaged over the two directions of the split. The standard error is the jackknife over samples with
the two fits held as they are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from fisherlab.collect.layer_batch import half_of
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

LEAST_SAMPLES = 8  # a choice: four in each half, from which a variance can be told at all


class PopulationError(NamedTuple):
    """The estimate √(‖F − F̂‖²/‖F‖²) and its standard error; None with the reason in `note`."""

    error: float | None
    standard_error: float | None
    note: str = ""


@dataclass
class PopulationEstimate:
    """A layer's exact block on all samples and on the two halves, and terms of the first few samples.

    Attributes:
        exact: F on all N samples.
        halves: F on the samples of each half (`fisherlab.collect.layer_batch.half_of`).
        counts: how many samples each half has.
        self_products: Σ_n ‖F_n‖².
        norms: ‖F_n‖² of the first samples, [k], from which the jackknife's terms come; None: no
            standard error.
        quadratics: from an operator G to ⟨F_n, G⟩ of those samples, [k]; of those in one half (0 or 1), or
            of all (None).
    """

    exact: LinearOperator
    halves: Sequence[LinearOperator]
    counts: Sequence[int]
    self_products: float
    norms: Tensor | None
    quadratics: Callable[[LinearOperator, int | None], Tensor]

    def __post_init__(self) -> None:
        """The parts that do not depend on the approximation."""
        self.samples = sum(self.counts)
        squared = float(self.exact.frobenius_norm()) ** 2
        self._pairs = self.samples**2 * squared - self.self_products

    def error(self, fits: Sequence[LinearOperator]) -> PopulationError:
        """The population error of an approximation fitted on each half."""
        n = self.samples
        if n < LEAST_SAMPLES:
            return PopulationError(None, None, f"population error needs at least {LEAST_SAMPLES} samples")
        if self.self_products == 0:
            return PopulationError(None, None, "population error: the block is zero")
        norm = self._pairs / (n * (n - 1))
        products = None if self.norms is None else [self.quadratics(fits[1 - h], h) for h in (0, 1)]
        means = [self._mean(fits[1 - h], h, products) for h in (0, 1)]
        cross = 0.5 * sum(means)
        own = 0.5 * sum(float(fit.frobenius_norm()) ** 2 for fit in fits)
        if norm <= 0 or norm - 2 * cross + own < 0:
            return PopulationError(None, None, "population error: the estimate is negative; use more samples")
        error = ((norm - 2 * cross + own) / norm) ** 0.5
        return PopulationError(error, self._standard_error(products, means, own))

    def _mean(self, fit: LinearOperator, half: int, products: Sequence[Tensor] | None) -> float:
        """⟨F, F̂⟩ with F from one half of the samples."""
        if products is not None and len(products[half]) == self.counts[half]:
            return float(products[half].mean())
        return float(self.halves[half].inner(fit))

    def _standard_error(
        self, products: Sequence[Tensor] | None, means: Sequence[float], own: float
    ) -> float | None:
        if self.norms is None or products is None:
            return None
        n = self.samples
        norms = (self._pairs - 2 * self._other_samples) / ((n - 1) * (n - 2))
        crosses = torch.full_like(norms, 0.5 * sum(means))
        half = half_of(0, len(norms)).to(norms.device)
        for h in (0, 1):
            crosses[half == h] -= 0.5 * (products[h] - means[h]) / (self.counts[h] - 1)
        without = ((norms - 2 * crosses + own) / norms).clamp(min=0).sqrt()
        return float(((n - 1) * without.var(correction=0)).sqrt())

    @cached_property
    def _other_samples(self) -> Tensor:
        """⟨F_n, Σ_{n' ≠ n} F_n'⟩ for the first samples."""
        assert self.norms is not None
        return self.quadratics(self.exact, None) * self.samples - self.norms


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
