"""The rearrangement R(F) of Van Loan and Pitsianis 1993 as a map: F = Σ vec(V) vec(V)ᵀ takes B to Σ VᵀBV.

R(F)·B = Σ Vᵀ B V and R(F)ᵀ·A = Σ V A Vᵀ. The input factors A [d, d] that it reaches are given by coordinates,
so that a power iteration need not form them.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from fisherlab.base.memory import at_most
from fisherlab.gradients.inputs import by_sample
from fisherlab.linalg.numerics import self_product, spans, symmetrised
from fisherlab.operators.base import LinearOperator
from fisherlab.operators.gram import GramOperator

_MOST_BYTES = 192 * 2**20  # of the inner products of all positions: a choice, as `gram._HELD_BYTES`


class Rearranged(Protocol):
    """R(F) with input factors in coordinates, which scale as the factors do."""

    def inputs(self, B: Tensor) -> tuple[Tensor, Tensor]:
        """The coordinates of A = Σ Vᵀ B V, and ‖A‖ (0-d)."""

    def outputs(self, coordinates: Tensor) -> Tensor:
        """Σ V A Vᵀ [m, m]."""

    def matrix(self, coordinates: Tensor) -> Tensor:
        """A [d, d]."""


def rearranged(F: LinearOperator) -> Rearranged:
    """R(F), in the cheaper coordinates."""
    if isinstance(F, GramOperator) and _few_positions(F):
        return _ByPositions(F)
    return _ByEntries(F)


def _few_positions(F: GramOperator) -> bool:
    """Whether a step takes fewer operations by inner products of all positions than by the factors."""
    if not isinstance(F.a, Tensor) or F.a.shape[1] == 1:
        return False
    (c, n, t, m), d = F.g.shape, F.inputs
    by_positions = 2 * (n * t) ** 2 * t + 2 * c * n * t * m * (t + m)
    by_entries = min(2 * n * t * d * (d + t), 2 * c * n * m * d * (d + m))
    return (n * t) ** 2 * F.dtype.itemsize <= at_most(_MOST_BYTES, 20) and by_positions < by_entries


class _ByEntries:
    """The coordinates are the entries of A."""

    def __init__(self, F: LinearOperator) -> None:
        self._block = F

    def inputs(self, B: Tensor) -> tuple[Tensor, Tensor]:
        A = symmetrised(self._block.contract_output(B))
        return A, torch.linalg.norm(A)

    def outputs(self, coordinates: Tensor) -> Tensor:
        return symmetrised(self._block.contract_input(coordinates))

    def matrix(self, coordinates: Tensor) -> Tensor:
        return coordinates


class _ByPositions:
    """A = Σ_n a_nᵀ W_n a_n for a_n [t, d] with the coordinates W [n, t, t]; a_n a_n'ᵀ are made once."""

    def __init__(self, F: GramOperator) -> None:
        assert isinstance(F.a, Tensor)
        self._a, self._g, self._weight = F.a, F.g, F.weight
        samples, t, d = self._a.shape
        rows = self._a.reshape(samples * t, d)
        columns = (rows[:, start:stop].T for start, stop in spans(d, rows.shape[0] * rows.element_size()))
        self._products = self_product(columns, samples * t, rows.device).to(F.dtype).view(samples, t, -1)

    def inputs(self, B: Tensor) -> tuple[Tensor, Tensor]:
        W = by_sample(self._g @ B) @ by_sample(self._g).mT * self._weight
        W = symmetrised(W)
        return W, (W * self._quadratics(W)).sum().clamp(min=0).sqrt()

    def outputs(self, coordinates: Tensor) -> Tensor:
        found = (self._quadratics(coordinates) @ self._g).flatten(0, 2)
        return symmetrised(self._g.flatten(0, 2).T @ found * self._weight)

    def matrix(self, coordinates: Tensor) -> Tensor:
        rows = (coordinates @ self._a).flatten(0, 1)
        return symmetrised(self._a.reshape(rows.shape).T @ rows)

    def _quadratics(self, W: Tensor) -> Tensor:
        """a_n A a_nᵀ, [n, t, t]."""
        samples, t, _ = W.shape
        right = self._products.view(samples, t, samples, t).transpose(1, 2)  # [n, n', t, t']
        return ((right @ W).transpose(1, 2).flatten(2)) @ self._products.mT
