"""Divergences between F and F̂, and how F̂ sees the curvature of F: by eigenvectors of both.

F is the exact block, F̂ the approximation, brought to the trace of F; F_λ = F + λI and X = F̂_λ⁻¹F_λ.
All is made of the eigenvalues of F, and of those of F̂ with the masses û_jᵀFû_j of F in its eigenvectors û_j.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from fisherlab.arguments import Positive, checked
from fisherlab.errors import NotSupportedError, NumericalError, bytes_text
from fisherlab.linalg.numerics import damped_log, require_positive, spans, without_negative
from fisherlab.operators import GramOperator, LinearOperator, blocks_of

Block = Annotated[LinearOperator, "take that of one layer, or make a DenseOperator of a matrix"]

LARGEST_DENSE = 4096
"""Size of a dense block whose eigenvalues are made: a choice, 128 MiB and some 10 D³ = 7·10¹¹ operations."""

BANDS = (0.5, 0.9, 0.999)
"""Shares of tr F that the directions carry up to the end of the top, the middle and the tail."""

BAND_NAMES = ("top", "middle", "tail")

_MOST_OPERATIONS = 1e11  # derived from 10¹⁰ operations a second in float64, once a row: seconds
_GRID = 48  # sizes of subspaces, a choice: as many as a picture shows
_ROUNDING = 1e-6  # of tr F in the kernel of F̂: about 8 ε of float32, what sums of products in it leave there
_EQUAL = 1e-9  # of eigenvalues that differ by less, in proportion: well above rounding


class LogDet(NamedTuple):
    """The log-det divergence of F̂_λ from F_λ, and its least value over the scales of F̂_λ."""

    divergence: float
    scaled: float


class Calibration(NamedTuple):
    """The curvature that F̂ sees, in parts of that of F.

    Attributes:
        top: geometric mean of q_i = u_iᵀF̂u_i/ℓ_i over the directions that carry the first 50 % of tr F.
        middle: over those of the next 40 %; None where there are none.
        tail: over those of the next 9.9 %; None where there are none.
        ratios: every q_i, in descending order of ℓ_i.
        overlap: ‖U_kᵀÛ_k‖²/k for the sizes k of `Curvature.sizes`.
    """

    top: float
    middle: float | None
    tail: float | None
    ratios: Tensor
    overlap: Tensor

    @property
    def bands(self) -> tuple[float | None, ...]:
        """Top, middle and tail."""
        return self.top, self.middle, self.tail


class CurvatureScale(NamedTuple):
    """What pictures show of a `Curvature`.

    Attributes:
        eigenvalues: the leading ones, descending.
        ends: how many of them the bands end at.
        sizes: of subspaces.
    """

    eigenvalues: Tensor
    ends: list[int]
    sizes: Tensor


@dataclass
class Curvature:
    """The leading eigenpairs of F, which carry 99.9 % of its trace.

    Args:
        F: the exact block.

    Raises:
        NotSupportedError: where the block is too large for an eigendecomposition here.
        NumericalError: where F is zero.
    """

    F: LinearOperator

    def __post_init__(self) -> None:
        """The eigendecomposition."""
        check_spectrum(self.F)
        self.F = self.F.widened(torch.float64)
        self._basis = self.F.eigenbasis()
        self._order = self._basis.leading()
        values = self._basis.values[self._order].clamp(min=0)
        carried = values.cumsum(0) / values.sum()
        if not bool(carried[-1:].isfinite().all()) or not len(values):
            raise NumericalError("the block is zero: it has no curvature")
        edges = torch.tensor(BANDS, dtype=torch.float64, device=carried.device) * (1 - 1e-12)
        self.ends = [int(end) + 1 for end in torch.searchsorted(carried, edges)]
        self.eigenvalues = values[: self.ends[-1]]

    @property
    def scale(self) -> CurvatureScale:
        """Without the eigenvectors."""
        return CurvatureScale(self.eigenvalues, self.ends, self.sizes)

    @property
    def directions(self) -> list[int]:
        """How many directions the top, the middle and the tail have."""
        top, middle, tail = self.ends
        return [top, middle - top, tail - middle]

    @cached_property
    def sizes(self) -> Tensor:
        """Sizes k of subspaces, from 1 to all of these directions, [s]."""
        steps = torch.logspace(0, math.log10(self.ends[-1]), _GRID, device=self.eigenvalues.device)
        return steps.round().long().unique()

    def pieces(self) -> Iterator[tuple[int, int, Tensor]]:
        """(start, stop, u [stop − start, m, d]) of the leading directions; made once where they are few."""
        if self._whole is not None:
            yield 0, len(self.eigenvalues), self._whole
            return
        for start, stop in self._spans():
            yield start, stop, self._basis.matrices(self._order[start:stop])

    def _spans(self) -> list[tuple[int, int]]:
        return list(spans(len(self.eigenvalues), 2 * self.F.shape[0] * self.F.dtype.itemsize))

    @cached_property
    def _whole(self) -> Tensor | None:
        count = len(self.eigenvalues)
        return self._basis.matrices(self._order[:count]) if len(self._spans()) == 1 else None

    def operations(self) -> float:
        """Of the products of the directions with a Kronecker basis."""
        return 2.0 * len(self.eigenvalues) * self.F.shape[0] * (self.F.outputs + self.F.inputs)


class Divergences:
    """F̂ against F by the eigenvectors of F̂, in which the masses of F are made once.

    Args:
        F: the exact block.
        approximation: F̂.

    Raises:
        NumericalError: where tr F or tr F̂ is not positive.
    """

    def __init__(self, F: LinearOperator, approximation: LinearOperator) -> None:
        self.F, approximation = compared(F.widened(torch.float64), approximation)
        self.trace = float(F.trace())
        if not self.trace > 0:
            raise NumericalError("the block is zero: there are no divergences from it")
        self.matched = approximation * matching_scale(self.trace, float(approximation.trace()))
        self._basis = self.matched.eigenbasis()
        self._values = without_negative(self._basis.values)

    @cached_property
    def _masses(self) -> Tensor:
        return self._basis.masses(self.F)

    def logdet(self, damping: float) -> LogDet:
        """The log-det divergence at a damping λ > 0.

        Tr X = Σ_j (û_jᵀFû_j + λ)/(q_j + λ) and log det X = log det F_λ − Σ_j log(q_j + λ) with the
        eigenvalues q_j of F̂; with μ = tr X/D the best scale takes ½(μ − 1 − log μ) away.

        Raises:
            NumericalError: where F̂_λ is not positive definite.
        """
        size, damped = self.F.shape[0], self._values + damping
        require_positive(damped)
        absent = size - len(damped)  # of an F̂ in Gram form; F there is what is left of its trace
        trace = float(((self._masses + damping) / damped).sum())
        log = float(damped.log().sum())
        if absent:
            trace += absent + (self.trace - float(self._masses.sum())) / damping
            log += absent * math.log(damping)
        log = float(self.F.logdet(damping)) - log
        divergence = max(0.0, (trace - log - size) / (2 * size))
        excess = trace / size - 1
        return LogDet(divergence, max(0.0, divergence - (excess - math.log1p(excess)) / 2))

    def von_neumann(self) -> float:
        """(tr F log F − ⟨F, log F̂⟩)/tr F, without damping.

        Raises:
            NumericalError: where it is infinite, for F̂ is zero inside the range of F, or where F is zero.
        """
        logarithms = damped_log(self._values, 0.0)
        outside = self.trace - float(self._masses[self._values > 0].sum())
        if outside > _ROUNDING * self.trace:
            share = f"{outside / self.trace:.1g} of its trace"
            raise NumericalError(f"the von Neumann divergence is infinite: F̂ is zero where F has {share}")
        own = without_negative(self.F.eigenvalues())
        entropy, cross = (own * damped_log(own, 0.0)).sum(), (self._masses * logarithms).sum()
        return float(entropy - cross) / self.trace

    def calibration(self, curvature: Curvature) -> Calibration:
        """How much of the curvature along the eigenvectors of F this F̂ sees.

        Args:
            curvature: of the same F.

        Raises:
            NotSupportedError: where it would take too long.
        """
        if curvature.operations() > _MOST_OPERATIONS:
            raise NotSupportedError(
                f"calibration would take {curvature.operations():.1g} operations; use fewer samples"
            )
        sizes = curvature.sizes.to(self._values.device)
        order, count = self._basis.leading(), len(curvature.eigenvalues)
        seen, shared = [], []
        for _, _, U in curvature.pieces():
            for start, stop in spans(len(U), 3 * self.F.shape[0] * self.F.dtype.itemsize):
                squares = self._basis.coefficients(U[start:stop]).square()
                seen.append(squares @ self._values)
                leading = _evened(squares[:, order], self._values[order], count)
                shared.append(leading.cumsum(1)[:, sizes.clamp(max=leading.shape[1]) - 1])
        ratios = torch.cat(seen) / curvature.eigenvalues
        cumulated = torch.cat(shared).cumsum(0)[sizes - 1, torch.arange(len(sizes), device=sizes.device)]
        parts = ratios.clamp(min=0).log().split(curvature.directions)
        top, middle, tail = (float(part.mean().exp()) if len(part) else None for part in parts)
        assert top is not None
        return Calibration(top, middle, tail, ratios, cumulated / sizes)


def _evened(squares: Tensor, values: Tensor, count: int) -> Tensor:
    """The first columns, those of equal eigenvalues replaced by their mean: any basis of them is as good."""
    begins = torch.ones(len(values), dtype=torch.long, device=values.device)
    begins[1:] = values[1:] < values[:-1] * (1 - _EQUAL)
    if bool(begins[: count + 1].all()):
        return squares[:, :count]
    group = begins.cumsum(0) - 1
    number = int(group[-1]) + 1
    sums = squares.new_zeros(len(squares), number).index_add_(1, group, squares)
    return (sums / torch.bincount(group, minlength=number))[:, group[:count]]


@checked
def logdet_divergence(F: Block, approximation: Block, damping: Positive) -> float:
    """[tr X − log det X − D]/(2D) with X = F̂_λ⁻¹F_λ, in nats a dimension; F̂ has the trace of F.

    The Kullback–Leibler divergence of normal distributions with the precisions F_λ and F̂_λ (Stein's loss).

    Args:
        F: the exact block.
        approximation: F̂.
        damping: λ > 0.
    """
    return Divergences(F, approximation).logdet(damping).divergence


@checked
def logdet_divergence_scaled(F: Block, approximation: Block, damping: Positive) -> float:
    """The least `logdet_divergence` of c F̂_λ over c > 0: ½[log(tr X/D) − log det X/D].

    Half the logarithm of the arithmetic by the geometric mean of the eigenvalues of X.
    """
    return Divergences(F, approximation).logdet(damping).scaled


@checked
def von_neumann_divergence(F: Block, approximation: Block) -> float:
    """(tr F log F − ⟨F, log F̂⟩)/tr F at equal traces and without damping: the relative entropy.

    Raises:
        NumericalError: where it is infinite, for F̂ is zero inside the range of F.
    """
    check_spectrum(F)
    return Divergences(F, approximation).von_neumann()


@checked
def calibration(F: Block, approximation: Block) -> Calibration:
    """By bands of the spectrum, q_i = u_iᵀF̂u_i/ℓ_i over the eigenpairs (ℓ_i, u_i) of F; F̂ has the trace of F.

    1 is right; below, curvature is not seen and steps are too long; above, steps are too short. Where
    eigenvalues of F are equal their eigenvectors, and so the q_i, are not unique.

    Raises:
        NotSupportedError: where the block is too large for an eigendecomposition here.
    """
    found = Divergences(F, approximation)
    return found.calibration(Curvature(found.F))


def check_spectrum(F: LinearOperator) -> None:
    """Checks that the eigenvalues of F can be had.

    Raises:
        NotSupportedError: where a dense block is too large.
    """
    for block in blocks_of(F):
        if not isinstance(block, GramOperator) and block.shape[0] > LARGEST_DENSE:
            needed = bytes_text(8.0 * block.shape[0] ** 2)
            raise NotSupportedError(
                f"the eigenvalues of a block of size {block.shape[0]} ({needed}) are not computed above "
                f"{LARGEST_DENSE}; use a Gram operator with fewer samples"
            )


@checked
def matching_scale(exact: float, approximate: float) -> float:
    """The factor that brings F̂ to the trace of F.

    Raises:
        NumericalError: where tr F̂ is not positive.
    """
    if not approximate > 0:
        raise NumericalError("the approximation is zero: it cannot be matched to a trace")
    return exact / approximate


def compared(F: LinearOperator, approximation: LinearOperator) -> tuple[LinearOperator, LinearOperator]:
    """Two operators of one size, in the wider of their dtypes, and in float32 at least."""
    F.check_same_size(approximation)
    F = F.widened(torch.float32).widened(approximation.dtype)  # of a half type no matrix can be factored
    return F, approximation.widened(F.dtype)
