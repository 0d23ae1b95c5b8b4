"""A Fisher block too large to store, by the inputs and gradients it is made of."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from fisherlab.base.memory import DEFAULT, at_most
from fisherlab.damping import DampingLike
from fisherlab.errors import InputError, NotSupportedError
from fisherlab.gradients.contractions import (
    input_contraction,
    kronecker_quadratics,
    output_contraction,
    rotated_squares,
    squared_gradients,
    vector_pieces,
)
from fisherlab.gradients.inputs import (
    Inputs,
    OneHot,
    alike,
    dense_inputs,
    layer_outputs,
    sample_gradients,
    weighted_sum,
)
from fisherlab.gradients.pairs import GradientPair, tiles
from fisherlab.linalg.arguments import finite, fitting
from fisherlab.linalg.numerics import (
    ENTRY_COST,
    damped_cholesky,
    damped_power,
    dot64,
    norm64,
    require_positive,
    self_product,
    spans,
    sum_pieces,
    symmetric_eigh,
)
from fisherlab.linalg.packing import packed_size, smat, svec_gram, svec_outer
from fisherlab.operators.arguments import constant_damping
from fisherlab.operators.base import LinearOperator
from fisherlab.operators.eigenbasis import GramBasis
from fisherlab.operators.graminverse import GramFunction, GramInverse, apply_factor
from fisherlab.operators.layout import check_sample_shapes

_HELD_BYTES, _HELD_PART = 192 * 2**20, 20  # of all V, kept for the operator's life: a choice, a twentieth


class GramOperator(LinearOperator):
    """F = (1/N) Σ_n Σ_c vec(V_{n,c}) vec(V_{n,c})ᵀ with V_{n,c} = Σ_t g_{c,n,t} a_{n,t}ᵀ.

    With J the [C·n, D] matrix of the vec(V) (flat index c·n_samples + n), F = JᵀJ/N, and
    K = JJᵀ/N has its non-zero spectrum. Neither J nor F is formed.

    Args:
        a: layer inputs [n, t, d], a tensor or `OneHot`.
        g: output gradients [c, n, t, m].
        samples: N; None: n.
        memory: the most bytes that `dense` may take.

    Raises:
        InputError: the shapes do not fit each other, or there are no samples.
    """

    structure: ClassVar[int] = 4

    def __init__(self, a: Inputs, g: Tensor, samples: int | None = None, *, memory: int = DEFAULT):
        a, g = alike("the inputs and gradients of a Gram operator", a, g)
        check_sample_shapes(a, g)
        total = a.shape[0] if samples is None else finite("the number of samples", samples)
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
        samples = torch.arange(start, stop, device=self.device) % self.a.shape[0]
        return sample_gradients(self.a[samples], self.g.flatten(0, 1)[None, start:stop])[:, 0]

    def chunks(self) -> Iterator[Tensor]:
        """All V in the order of the flat indices, in pieces of bounded size."""
        for start, stop in spans(self.columns, self.shape[0] * self.dtype.itemsize):
            yield self.vectors(start, stop)

    def rows(self, X: Tensor) -> Tensor:
        """J vec(X): <V_{n,c}, X> for X [..., m, d], as [..., c, n]."""
        matrices = X.reshape(-1, *X.shape[-2:])
        if self.held is not None:
            products = matrices.flatten(1) @ self.held.flatten(2).flatten(0, 1).T
            return products.view(*X.shape[:-2], *self.g.shape[1::-1]).mT
        if self._by_vectors(len(matrices)):
            found = matrices.new_empty(len(matrices), *self.g.shape[:2])
            for part, V in vector_pieces(self.a, self.g):
                products = matrices.flatten(1) @ V.flatten(2).flatten(0, 1).T
                found[..., part] = products.view(len(matrices), *V.shape[:2]).mT
        else:
            found = torch.cat([self._rows_by_outputs(piece) for piece in self._output_pieces(matrices)])
        return found.view(*X.shape[:-2], *self.g.shape[:2])

    def _rows_by_outputs(self, matrices: Tensor) -> Tensor:
        outputs = layer_outputs(self.a, matrices)
        return (self.g.transpose(0, 1).flatten(2) @ outputs.transpose(0, 1).flatten(2).mT).permute(2, 1, 0)

    def combine(self, w: Tensor) -> Tensor:
        """Jᵀ w = Σ w_{c,n} V_{n,c} for w [..., c, n], as [..., m, d].

        Raises:
            InputError: w does not end in [c, n].
        """
        w = self._check_weights(w)
        weights = w.reshape(-1, *w.shape[-2:])
        if self.held is not None:
            found = weights.mT.flatten(1) @ self.held.flatten(2).flatten(0, 1)
            return found.view(*w.shape[:-2], self.outputs, self.inputs)
        if self._by_vectors(len(weights)):
            found = sum_pieces(
                weights[..., part].mT.flatten(1) @ V.flatten(0, 1).flatten(1)
                for part, V in vector_pieces(self.a, self.g)
            )
        else:
            found = torch.cat([self._combine_outputs(piece) for piece in self._output_pieces(weights)])
        return found.view(*w.shape[:-2], self.outputs, self.inputs)

    def _combine_outputs(self, weights: Tensor) -> Tensor:
        return weighted_sum(torch.einsum("bcn,cntm->bntm", weights, self.g), self.a)

    def gram(self) -> Tensor:
        """K = JJᵀ/N [C·n, C·n], float64, index c·n_samples + n; kept after the first call."""
        return self._gram

    @cached_property
    def _gram(self) -> Tensor:
        classes, samples = self.g.shape[:2]
        if self.held is not None:
            J = self.held.transpose(0, 1).flatten(2).flatten(0, 1)
            return (J @ J.T).double().mul_(self.weight)
        K = torch.empty(classes, samples, classes, samples, dtype=torch.float64, device=self.device)
        for rows, columns, tile in tiles(self._gradients):
            K[:, rows, :, columns] = tile
            K[:, columns, :, rows] = tile.permute(2, 3, 0, 1)
        return K.view(self.columns, self.columns).mul_(self.weight)

    # --- products and numbers -------------------------------------------------------------------

    def apply(self, X: Tensor) -> Tensor:
        """Jᵀ J vec(X) / N."""
        return self.combine(self.rows(X)) * self.weight

    def scaled(self, factor: float) -> GramOperator:
        """c·F, on the same data."""
        other = copy.copy(self)
        other.weight = self.weight * factor
        for kept in ("_gram", "_eigh", "_dense_form"):
            other.__dict__.pop(kept, None)
        return other

    def diagonal_matrix(self) -> Tensor:
        """(1/N) Σ V∘V."""
        return squared_gradients(self.a, self.g, self.held) * self.weight

    def trace(self) -> Tensor:
        """(1/N) Σ ‖V‖²; for one position (1/N) Σ ‖a‖² ‖g‖²."""
        return kronecker_quadratics(self.a, self.g, held=self.held).double().sum() * self.weight

    def frobenius_norm(self) -> Tensor:
        """‖K‖_F, by tiles of K."""
        if self.held is not None or "_gram" in self.__dict__:
            return norm64(self._gram)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for rows, columns, tile in tiles(self._gradients):
            total += dot64(tile, tile) * (1 if rows == columns else 2)
        return total.sqrt() * abs(self.weight)

    def eigenvalues(self) -> Tensor:
        """The min(D, n·C) largest eigenvalues, ascending, from K; all others are zero."""
        values = self._eigh[0] if "_eigh" in self.__dict__ else torch.linalg.eigvalsh(self.gram())
        return values[-min(self.shape[0], self.columns) :].to(self.dtype)

    def quadratic(self, V: Tensor) -> Tensor:
        """‖J vec(V)‖²/N."""
        return self.rows(V).square().sum((-2, -1)) * self.weight

    def quadratics(self, a: Inputs, g: Tensor, held: Tensor | None = None) -> Tensor:
        """Σ_c ‖J vec(V_{n,c})‖²/N, by inner products of all pairs of gradients."""
        check_sample_shapes(a, g)
        if held is not None and self.held is not None:
            return self.quadratic(held).double().sum(1)
        total = torch.zeros(g.shape[1], dtype=torch.float64, device=self.device)
        for samples, _, tile in tiles(GradientPair(a, g), self._gradients):
            total[samples] += tile.square().sum((0, 2, 3))
        return total * self.weight

    def sample_quadratics(self, other: LinearOperator) -> Tensor:
        """Σ_c vec(V_{n,c})ᵀ G vec(V_{n,c}) for each sample: [n], float64, by the structure of G."""
        if other is self:
            squares = self.gram().view(self.columns, *self.g.shape[:2]).square()
            return squares.sum((0, 1)) / self.weight
        return other.quadratics(self.a, self.g, self.held)

    # --- functions of F -------------------------------------------------------------------------

    def inverse(self, damping: DampingLike = 0.0) -> GramInverse:
        """(F + λI)⁻¹ as an operator that applies `solve`; K + λI is factored once.

        Raises:
            NumericalError: λ is zero, or K + λI is not finite.
        """
        return GramInverse(self, constant_damping(self, damping))

    def solves(self, M: Tensor, dampings: Sequence[float]) -> Iterator[Tensor]:
        """`solve` at each damping, with products by J for all of them at once."""
        w = self.rows(M)
        solved = [apply_factor(damped_cholesky(self.gram(), damping), w) for damping in dampings]
        corrections = self.combine(torch.stack(solved)) * self.weight
        for damping, correction in zip(dampings, corrections, strict=True):
            yield (M - correction) / damping

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
        w = self._check_weights(w)
        factor = damped_cholesky(self.gram(), constant_damping(self, damping))
        return self.combine(apply_factor(factor, w))

    def power(self, p: float, damping: DampingLike = 0.0) -> GramFunction:
        """(F + λI)^p from the eigenvectors of K."""
        value = constant_damping(self, damping)
        return self.function(lambda values: damped_power(values, value, p))

    def function(self, f: Callable[[Tensor], Tensor]) -> GramFunction:
        """f(F) from the eigenvectors of K."""
        return GramFunction(self, f)

    def eigenpairs(self) -> tuple[Tensor, Tensor]:
        """The non-zero eigenvalues of F, ascending, [r], and the eigenvectors of K of these, [C·n, r].

        Jᵀw/√(N v) is the unit eigenvector of F of a pair (v, w).
        """
        values, vectors = self._eigh
        kept = values > 0
        kept[: max(0, self.columns - self.shape[0])] = False
        return values[kept], vectors[:, kept]

    def eigenbasis(self) -> GramBasis:
        """From the eigenvectors of K; those of the kernel are left out."""
        return GramBasis(self)

    def logdet(self, damping: DampingLike = 0.0) -> Tensor:
        """The log-determinant of F + λI from the eigenvalues of K; all others are λ."""
        value = constant_damping(self, damping)
        damped = self.eigenvalues().double() + value
        absent = damped.new_full((self.shape[0] - len(damped),), value)
        require_positive(torch.cat([damped, absent[:1]]))
        return damped.log().sum() + absent.log().sum()

    @cached_property
    def _eigh(self) -> tuple[Tensor, Tensor]:
        return symmetric_eigh(self.gram())

    # --- contractions ---------------------------------------------------------------------------

    def diagonal_in_basis(self, U_A: Tensor | None, U_B: Tensor | None) -> Tensor:
        """(1/N) Σ (U_Bᵀ V U_A)∘²."""
        return rotated_squares(self.a, self.g, U_A, U_B, self.held) * self.weight

    def contract_output(self, B: Tensor) -> Tensor:
        """(1/N) Σ Vᵀ B V; for one position (1/N) Σ (gᵀ B g) a aᵀ."""
        return input_contraction(self.a, self.g, B, self.held) * self.weight

    def contract_input(self, A: Tensor) -> Tensor:
        """(1/N) Σ V A Vᵀ; for one position (1/N) Σ (aᵀ A a) g gᵀ."""
        return output_contraction(self.a, self.g, A, self.held) * self.weight

    def inner_kronecker(self, A: Tensor, B: Tensor) -> Tensor:
        """(1/N) Σ <V, B V A>."""
        return kronecker_quadratics(self.a, self.g, A, B, self.held).double().sum() * self.weight

    def unit_blocks(self) -> Tensor:
        """(1/N) Σ V[j] V[j]ᵀ for each unit j; for one position (1/N) Σ g_j² a aᵀ."""
        if self.pair_symmetric:
            by_unit, a = self.g.square().sum((0, 2)), dense_inputs(self.a)[:, 0]
            pairs = packed_size(self.inputs) * a.element_size()
            pieces = (
                by_unit[start:stop].T @ svec_outer(a[start:stop]) for start, stop in spans(len(a), pairs)
            )
            return smat(sum_pieces(pieces), self.inputs) * self.weight
        by_row = (V.flatten(0, 1).transpose(0, 1) for _, V in vector_pieces(self.a, self.g, self.held))
        blocks = (rows.mT @ rows for rows in by_row)
        return sum_pieces(blocks) * self.weight

    def packed_rows(self, start: int, stop: int) -> Tensor:
        """Rows start..stop of (1/N) Σ svec(a aᵀ) svec(Σ_c g gᵀ)ᵀ; for one position only."""
        if not self.pair_symmetric:
            return super().packed_rows(start, stop)
        a, g = dense_inputs(self.a)[:, 0], self.g[:, :, 0]
        widest = max(self.inputs, self.outputs) ** 2 * a.element_size()
        pieces = (
            svec_outer(a[first:last])[:, start:stop].T @ svec_gram(g[:, first:last])
            for first, last in spans(len(a), widest)
        )
        return sum_pieces(pieces) * self.weight

    # --- private --------------------------------------------------------------------------------

    @cached_property
    def held(self) -> Tensor | None:
        """All V [n, c, m, d] where they are small beside what making them again and again would cost."""
        needed = self.columns * self.shape[0] * self.dtype.itemsize
        if self.pair_symmetric or isinstance(self.a, OneHot) or needed > at_most(_HELD_BYTES, _HELD_PART):
            return None
        return sample_gradients(self.a, self.g)

    @property
    def _gradients(self) -> GradientPair:
        return GradientPair(self.a, self.g)

    def _by_vectors(self, count: int) -> bool:
        """Whether products with so many matrices cost less by the V than by outputs of the layer."""
        classes, _, positions, m = self.g.shape
        outputs = count * positions * m * (self.inputs + classes)
        vectors = classes * self.shape[0] * (positions + ENTRY_COST + count)
        return isinstance(self.a, Tensor) and vectors < outputs

    def _output_pieces(self, items: Tensor) -> Iterator[Tensor]:
        """Pieces of the items whose outputs of the layer, for all samples, stay in bounds."""
        each = self.a.shape[0] * self.a.shape[1] * self.outputs * self.dtype.itemsize
        for start, stop in spans(len(items), each):
            yield items[start:stop]

    def _check_weights(self, w: Tensor) -> Tensor:
        w = fitting("the weights of the vectors", w, self)
        if w.shape[-2:] != self.g.shape[:2]:
            raise InputError(
                f"the weights of the vectors are [..., {self.g.shape[0]}, {self.g.shape[1]}] "
                f"(columns, samples), not {list(w.shape)}."
            )
        return w

    def _dense_columns(self) -> Tensor:
        needed = self.shape[0] ** 2 * self.dtype.itemsize
        if needed > self.memory:
            raise NotSupportedError(
                f"the dense block needs {needed:,} bytes, more than the limit of {self.memory:,}; "
                "use the operator itself (inner, solve, eigenvalues), or a larger memory=."
            )
        size = self.shape[0]
        rows = (V.flatten(0, 1).mT.flatten(1) for _, V in vector_pieces(self.a, self.g, self.held))
        return self_product(rows, size, self.device).mul_(self.weight).to(self.dtype)

    def _inner_with(self, other: LinearOperator) -> Tensor:
        return self.sample_quadratics(other).sum() * self.weight
