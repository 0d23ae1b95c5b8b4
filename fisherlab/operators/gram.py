"""A Fisher block too large to store, by the inputs and gradients it is made of."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from fisherlab.damping import DampingLike
from fisherlab.errors import InputError, NotSupportedError, NumericalError
from fisherlab.operators.base import LinearOperator
from fisherlab.operators.layout import check_sample_shapes, sample_vectors
from fisherlab.operators.numerics import (
    CHUNK_BYTES,
    cholesky_apply,
    damped_cholesky,
    dot64,
    norm64,
    spans,
    sum_pieces,
)
from fisherlab.operators.packing import packed_size, smat, svec_gram, svec_outer

_DENSE_BYTES = 4 * 2**30


class GramOperator(LinearOperator):
    """F = (1/N) Σ_n Σ_c vec(V_{n,c}) vec(V_{n,c})ᵀ with V_{n,c} = Σ_t g_{c,n,t} a_{n,t}ᵀ.

    With J the [C·n, D] matrix of the vec(V) (flat index c·n_samples + n), F = JᵀJ/N, and
    K = JJᵀ/N has its non-zero spectrum. Neither J nor F is formed.

    Args:
        a: layer inputs [n, t, d].
        g: output gradients [c, n, t, m].
        samples: N; None: n.
        memory: the most bytes that `dense` may take.

    Raises:
        InputError: the shapes do not fit each other, or there are no samples.
    """

    structure: ClassVar[int] = 4

    def __init__(self, a: Tensor, g: Tensor, samples: int | None = None, *, memory: int = _DENSE_BYTES):
        check_sample_shapes(a, g)
        total = a.shape[0] if samples is None else samples
        if total <= 0 or g.numel() == 0:
            raise InputError("a Gram operator needs at least one sample.")
        super().__init__(g.shape[3], a.shape[2], a.dtype, a.device)
        self.a = a
        self.g = g
        self.memory = memory
        self.weight = 1.0 / total

    @property
    def columns(self) -> int:
        """n·C, the number of vectors that F is made of."""
        return self.g.shape[0] * self.g.shape[1]

    @property
    def pair_symmetric(self) -> bool:
        """True for one position."""
        return self.a.shape[1] == 1

    # --- J and K --------------------------------------------------------------------------------

    def vectors(self, start: int, stop: int) -> Tensor:
        """V of the flat indices c·n_samples + n in start..stop: [stop - start, m, d]."""
        return sample_vectors(self.a, self.g, start, stop)

    def rows(self, X: Tensor) -> Tensor:
        """J vec(X): <V_{n,c}, X> for X [..., m, d], as [..., c, n]."""
        self.check_matrix(X)
        matrices = X.reshape(-1, *X.shape[-2:])
        pieces = []
        for start, stop in spans(len(matrices), self._output_bytes):
            outputs = torch.einsum("ntd,bmd->bntm", self.a, matrices[start:stop])
            pieces.append(torch.einsum("cntm,bntm->bcn", self.g, outputs))
        return torch.cat(pieces).view(*X.shape[:-2], *self.g.shape[:2])

    def combine(self, w: Tensor) -> Tensor:
        """Jᵀ w = Σ w_{c,n} V_{n,c} for w [..., c, n], as [..., m, d].

        Raises:
            InputError: w does not end in [c, n].
        """
        self._check_weights(w)
        weights = w.reshape(-1, *w.shape[-2:]).to(self.dtype)
        pieces = []
        for start, stop in spans(len(weights), self._output_bytes):
            summed = torch.einsum("bcn,cntm->bntm", weights[start:stop], self.g)
            pieces.append(torch.einsum("bntm,ntd->bmd", summed, self.a))
        return torch.cat(pieces).view(*w.shape[:-2], self.outputs, self.inputs)

    def gram(self) -> Tensor:
        """K = JJᵀ/N [C·n, C·n], float64, index c·n_samples + n; kept after the first call."""
        return self._gram

    @cached_property
    def _gram(self) -> Tensor:
        classes, samples = self.g.shape[:2]
        K = torch.empty(classes, samples, classes, samples, dtype=torch.float64, device=self.device)
        for rows, columns, tile in self._tiles():
            K[:, rows, :, columns] = tile
            K[:, columns, :, rows] = tile.permute(2, 3, 0, 1)
        return K.view(self.columns, self.columns)

    def _tiles(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """K[c, n, c', n'] by pieces on and above the diagonal, over pairs of sample ranges."""
        classes, samples, positions, m = self.g.shape
        by_positions = positions == 1 or positions**2 * (m + self.inputs) < self.shape[0]
        budget = CHUNK_BYTES // (4 * self.dtype.itemsize)
        width = positions if by_positions else math.isqrt(self.shape[0])
        step = max(1, math.isqrt(budget) // (classes * width))
        product = self._tile_by_positions if by_positions else self._tile_by_vectors
        ranges = [slice(start, start + step) for start in range(0, samples, step)]
        for index, rows in enumerate(ranges):
            for columns in ranges[index:]:
                yield rows, columns, product(rows, columns).double() * self.weight

    def _tile_by_positions(self, rows: slice, columns: slice) -> Tensor:
        """Σ_{t,t'} (a_t·a_t')(g_t·g_t'), without V."""
        inputs = torch.tensordot(self.a[rows], self.a[columns], dims=([2], [2]))
        outputs = torch.tensordot(self.g[:, rows], self.g[:, columns], dims=([3], [3]))
        outputs *= inputs[None, :, :, None]
        return outputs.sum((2, 5))

    def _tile_by_vectors(self, rows: slice, columns: slice) -> Tensor:
        left, right = ((self.g[:, part].mT @ self.a[part]).flatten(2) for part in (rows, columns))
        return torch.tensordot(left, right, dims=([2], [2]))

    # --- products and numbers -------------------------------------------------------------------

    def apply(self, X: Tensor) -> Tensor:
        """Jᵀ J vec(X) / N."""
        return self.combine(self.rows(X)) * self.weight

    def scaled(self, factor: float) -> GramOperator:
        """c·F, on the same data."""
        other = copy.copy(self)
        other.weight = self.weight * factor
        for kept in ("_gram", "_dense_form"):
            other.__dict__.pop(kept, None)
        return other

    def diagonal_matrix(self) -> Tensor:
        """(1/N) Σ V∘V."""
        if self.pair_symmetric:
            return self._squared_gradients.T @ self.a[:, 0].square() * self.weight
        return sum_pieces(V.square().sum(0) for V in self._chunks()) * self.weight

    def trace(self) -> Tensor:
        """(1/N) Σ ‖V‖²; for one position (1/N) Σ ‖a‖² ‖g‖²."""
        if self.pair_symmetric:
            inputs = self.a[:, 0].square().sum(1)
            return dot64(self._squared_gradients.sum(1), inputs) * self.weight
        norms = [dot64(V, V) for V in self._chunks()]
        return torch.stack(norms).sum() * self.weight

    def frobenius_norm(self) -> Tensor:
        """‖K‖_F, by tiles of K."""
        if "_gram" in self.__dict__:
            return norm64(self._gram)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for rows, columns, tile in self._tiles():
            total += dot64(tile, tile) * (1 if rows == columns else 2)
        return total.sqrt()

    def eigenvalues(self) -> Tensor:
        """The min(D, n·C) largest eigenvalues, ascending, from K; all others are zero."""
        values = torch.linalg.eigvalsh(self.gram())
        return values[-min(self.shape[0], self.columns) :].to(self.dtype)

    def quadratic(self, V: Tensor) -> Tensor:
        """‖J vec(V)‖²/N."""
        return self.rows(V).square().sum((-2, -1)) * self.weight

    def sample_quadratics(self, other: LinearOperator) -> Tensor:
        """Σ_c vec(V_{n,c})ᵀ G vec(V_{n,c}) for each sample: [n], float64, by the structure of G."""
        return other.quadratics(self.a, self.g)

    # --- functions of F -------------------------------------------------------------------------

    def inverse(self, damping: DampingLike = 0.0) -> GramInverse:
        """(F + λI)⁻¹ as an operator that applies `solve`; K + λI is factored once.

        Raises:
            NumericalError: λ is zero, or K + λI is not finite.
        """
        return GramInverse(self, self._uniform(damping))

    def solve_combination(self, w: Tensor, damping: DampingLike) -> Tensor:
        """(F + λI)⁻¹ Jᵀ w = Jᵀ (K + λI)⁻¹ w, without cancellation at small λ.

        Args:
            w: [..., c, n].
            damping: λ; zero gives the pseudo-inverse where K is invertible.

        Returns:
            [..., m, d].

        Raises:
            InputError: w does not end in [c, n].
            NumericalError: K + λI is singular or not finite.
        """
        self._check_weights(w)
        factor = damped_cholesky(self.gram(), self._uniform(damping))
        return self.combine(_apply_factor(factor, w))

    def power(self, p: float, damping: DampingLike = 0.0) -> LinearOperator:
        """Not supported.

        Raises:
            NotSupportedError: always.
        """
        raise NotSupportedError(
            "a Gram operator has no powers; use inverse(), or DenseOperator(F.dense(), ...)."
        )

    def logdet(self, damping: DampingLike = 0.0) -> Tensor:
        """Not supported.

        Raises:
            NotSupportedError: always.
        """
        raise NotSupportedError(
            "a Gram operator has no logdet; use eigenvalues(), or DenseOperator(F.dense(), ...)."
        )

    # --- contractions ---------------------------------------------------------------------------

    def diagonal_in_basis(self, U_A: Tensor, U_B: Tensor) -> Tensor:
        """The diagonal of the operator made of the rotated a U_A and g U_B."""
        rotated = GramOperator(self.a @ U_A, self.g @ U_B)
        rotated.weight = self.weight
        return rotated.diagonal_matrix()

    def contract_output(self, B: Tensor) -> Tensor:
        """(1/N) Σ Vᵀ B V; for one position (1/N) Σ (gᵀ B g) a aᵀ."""
        if self.pair_symmetric:
            a, weights = self.a[:, 0], ((self.g @ B) * self.g).sum((0, 2, 3))
            return a.T @ (weights[:, None] * a) * self.weight
        pieces = (V.flatten(0, 1).T @ (B @ V).flatten(0, 1) for V in self._chunks())
        return sum_pieces(pieces) * self.weight

    def contract_input(self, A: Tensor) -> Tensor:
        """(1/N) Σ V A Vᵀ; for one position (1/N) Σ (aᵀ A a) g gᵀ."""
        if self.pair_symmetric:
            weights = ((self.a @ A) * self.a).sum((1, 2))
            weighted = (weights[:, None, None] * self.g).flatten(0, 2)
            return self.g.flatten(0, 2).T @ weighted * self.weight
        pieces = (torch.tensordot(V @ A, V, dims=([0, 2], [0, 2])) for V in self._chunks())
        return sum_pieces(pieces) * self.weight

    def unit_blocks(self) -> Tensor:
        """(1/N) Σ V[j] V[j]ᵀ for each unit j; for one position (1/N) Σ g_j² a aᵀ."""
        if self.pair_symmetric:
            by_unit, a = self._squared_gradients, self.a[:, 0]
            pairs = packed_size(self.inputs) * a.element_size()
            pieces = (
                by_unit[start:stop].T @ svec_outer(a[start:stop]) for start, stop in spans(len(a), pairs)
            )
            return smat(sum_pieces(pieces), self.inputs) * self.weight
        blocks = (V.permute(1, 2, 0) @ V.transpose(0, 1) for V in self._chunks())
        return sum_pieces(blocks) * self.weight

    def packed_rows(self, start: int, stop: int) -> Tensor:
        """Rows start..stop of (1/N) Σ svec(a aᵀ) svec(Σ_c g gᵀ)ᵀ; for one position only."""
        if not self.pair_symmetric:
            return super().packed_rows(start, stop)
        a, g = self.a[:, 0], self.g[:, :, 0]
        widest = max(self.inputs, self.outputs) ** 2 * a.element_size()
        pieces = (
            svec_outer(a[first:last])[:, start:stop].T @ svec_gram(g[:, first:last])
            for first, last in spans(len(a), widest)
        )
        return sum_pieces(pieces) * self.weight

    # --- private --------------------------------------------------------------------------------

    @property
    def _squared_gradients(self) -> Tensor:
        """Σ_{c,t} g², [n, m]."""
        return self.g.square().sum((0, 2))

    @property
    def _output_bytes(self) -> int:
        """Bytes of one output of the layer for all samples."""
        return self.a.shape[0] * self.a.shape[1] * self.outputs * self.dtype.itemsize

    def _chunks(self) -> Iterator[Tensor]:
        for start, stop in spans(self.columns, self.shape[0] * self.dtype.itemsize):
            yield self.vectors(start, stop)

    def _check_weights(self, w: Tensor) -> None:
        if w.shape[-2:] != self.g.shape[:2]:
            raise InputError(
                f"the weights of the vectors are [..., {self.g.shape[0]}, {self.g.shape[1]}] "
                f"(columns, samples), not {list(w.shape)}."
            )

    def _dense_columns(self) -> Tensor:
        needed = self.shape[0] ** 2 * self.dtype.itemsize
        if needed > self.memory:
            raise NotSupportedError(
                f"the dense block needs {needed:,} bytes, more than the limit of {self.memory:,}; "
                "use the operator itself (inner, solve, eigenvalues), or a larger memory=."
            )
        size = self.shape[0]
        F = torch.zeros(size, size, dtype=self.dtype, device=self.device)
        for V in self._chunks():
            vectors = V.mT.flatten(1)
            F.addmm_(vectors.T, vectors)
        return F * self.weight

    def _inner_with(self, other: LinearOperator) -> Tensor:
        return self.sample_quadratics(other).sum() * self.weight


class GramInverse(LinearOperator):
    """(F + λI)⁻¹ of a Gram operator: v ↦ [v − Jᵀ(K + λI)⁻¹ J v/N]/λ (Woodbury).

    Args:
        gram: the operator F.
        damping: λ > 0.

    Raises:
        NumericalError: λ is zero, or K + λI is not finite.
    """

    def __init__(self, gram: GramOperator, damping: float):
        if damping == 0:
            raise NumericalError(
                "the inverse of a Gram operator divides by the damping λ; use a λ above zero."
            )
        super().__init__(gram.outputs, gram.inputs, gram.dtype, gram.device)
        self._source = gram
        self._damping = damping
        self._factor = damped_cholesky(gram.gram(), damping)
        self._weight = 1.0

    def apply(self, X: Tensor) -> Tensor:
        """(F + λI)⁻¹ vec(X)."""
        weights = _apply_factor(self._factor, self._source.rows(X))
        correction = self._source.combine(weights) * self._source.weight
        return (X - correction) * (self._weight / self._damping)

    def scaled(self, factor: float) -> GramInverse:
        """c·(F + λI)⁻¹."""
        other = copy.copy(self)
        other._weight = self._weight * factor
        other.__dict__.pop("_dense_form", None)
        return other

    def diagonal_matrix(self) -> Tensor:
        """The diagonal, by way of the dense matrix (small layers only)."""
        return self._dense_form.diagonal_matrix()


def _apply_factor(factor: Tensor, w: Tensor) -> Tensor:
    """(K + λI)⁻¹ w for w [..., c, n], from the Cholesky factor of K + λI."""
    right = w.reshape(-1, factor.shape[0]).T
    return cholesky_apply(factor, right).T.reshape(w.shape)
