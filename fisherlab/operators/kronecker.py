"""A Kronecker product of an input and an output factor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from fisherlab.damping import DampingLike, FactoredDamping
from fisherlab.errors import InputError
from fisherlab.gradients.contractions import kronecker_quadratics
from fisherlab.gradients.inputs import Inputs, OneHot, alike, rotated
from fisherlab.gradients.pairs import GradientPair, tiles
from fisherlab.linalg.factors import (
    as_matrix,
    damped_factor,
    diagonal_in,
    factor_diagonal,
    factor_difference,
    factor_eigh,
    factor_inner,
    factor_inverse,
    factor_svec,
    factor_times,
    times_factor,
)
from fisherlab.linalg.numerics import norm64
from fisherlab.operators.base import LinearOperator
from fisherlab.operators.eigenbasis import FactoredBasis
from fisherlab.operators.eigenkronecker import EigenKroneckerOperator
from fisherlab.operators.layout import check_sample_shapes

if TYPE_CHECKING:
    from fisherlab.operators.gram import GramOperator


class KroneckerOperator(LinearOperator):
    """F = A ⊗ B (column-vec order): F vec(X) = vec(B X A).

    Args:
        A: input factor [d, d], symmetric; or [d], the diagonal of a diagonal matrix.
        B: output factor [m, m], symmetric; or [m].

    Raises:
        InputError: a factor is neither square nor a vector.
    """

    structure: ClassVar[int] = 1
    pair_symmetric = True

    def __init__(self, A: Tensor, B: Tensor):
        A, B = alike("the factors of an operator", A, B)
        for factor in (A, B):
            if factor.ndim not in (1, 2) or factor.shape[0] != factor.shape[-1]:
                raise InputError(
                    f"a Kronecker factor is square, or a vector (its diagonal), not {list(factor.shape)}."
                )
        super().__init__(B.shape[0], A.shape[0], A.dtype, A.device)
        self.A = A
        self.B = B
        self._source: KroneckerOperator | None = None
        self._weight = 1.0

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """(A [d, d], B [m, m]), matrices in any case."""
        return as_matrix(self.A), as_matrix(self.B)

    def apply(self, X: Tensor) -> Tensor:
        """B X A."""
        return times_factor(factor_times(self.B, X), self.A.T if self.A.ndim == 2 else self.A)

    def scaled(self, factor: float) -> KroneckerOperator:
        """(c·A) ⊗ B, with the eigenvectors of this operator."""
        other = KroneckerOperator(self.A * factor, self.B)
        other._source, other._weight = self._source or self, self._weight * factor
        return other

    def diagonal_matrix(self) -> Tensor:
        """diag(B) diag(A)ᵀ."""
        return torch.outer(factor_diagonal(self.B), factor_diagonal(self.A))

    def packed_rows(self, start: int, stop: int) -> Tensor:
        """Rows of svec(A) svec(B)ᵀ."""
        return torch.outer(factor_svec(self.A)[start:stop], factor_svec(self.B))

    def trace(self) -> Tensor:
        """The product of the traces, tr A · tr B."""
        trace_A, trace_B = self._traces
        return trace_A.double() * trace_B.double()

    def frobenius_norm(self) -> Tensor:
        """‖A‖ ‖B‖."""
        return norm64(self.A) * norm64(self.B)

    def difference_norm(self, other: LinearOperator) -> Tensor:
        """‖A⊗B − C⊗D‖ from (A − C)⊗B + C⊗(B − D), D brought to the norm of B; else as in the base class."""
        norms = [norm64(self.B), norm64(other.B)] if isinstance(other, KroneckerOperator) else []
        if not isinstance(other, KroneckerOperator) or not all(float(norm) > 0 for norm in norms):
            return super().difference_norm(other)
        self.check_same_size(other)
        scale = norms[0] / norms[1]
        C, D = other.A / scale, other.B * scale
        inputs, outputs = factor_difference(self.A, C), factor_difference(self.B, D)
        squared = (norm64(inputs) * norm64(self.B)) ** 2 + (norm64(C) * norm64(outputs)) ** 2
        squared += 2 * factor_inner(inputs, C) * factor_inner(self.B, outputs)
        return squared.clamp(min=0).sqrt()

    def eigenvalues(self) -> Tensor:
        """The products of the factors' eigenvalues, sorted, [D]."""
        return self._eigen.eigenvalues()

    def logdet(self, damping: DampingLike = 0.0) -> Tensor:
        """The log-determinant of A ⊗ B + λI, or of the damped factors for a factored damping."""
        if isinstance(damping, FactoredDamping):
            return self.damped(damping).logdet()
        return self._eigen.logdet(damping)

    def damped(self, damping: FactoredDamping) -> KroneckerOperator:
        """(A + λ_A I) ⊗ (B + λ_B I)."""
        shifts = self._shifts(damping)
        return KroneckerOperator(damped_factor(self.A, shifts[0]), damped_factor(self.B, shifts[1]))

    def inverse(self, damping: DampingLike = 0.0) -> LinearOperator:
        """The exact (A ⊗ B + λI)⁻¹, or (A + λ_A I)⁻¹ ⊗ (B + λ_B I)⁻¹ for a factored damping.

        Returns:
            An EigenKroneckerOperator for a number, a KroneckerOperator (by Cholesky) for `Pi` and
            `Clip`.

        Raises:
            NumericalError: a damped matrix is singular or not finite.
        """
        if isinstance(damping, FactoredDamping):
            shift_A, shift_B = self._shifts(damping)
            return KroneckerOperator(factor_inverse(self.A, shift_A), factor_inverse(self.B, shift_B))
        return self._eigen.inverse(damping)

    def power(self, p: float, damping: DampingLike = 0.0) -> LinearOperator:
        """(A ⊗ B + λI)^p, or the power of the damped factors for a factored damping."""
        if isinstance(damping, FactoredDamping):
            return self.damped(damping).power(p)
        return self._eigen.power(p, damping)

    def log(self, damping: DampingLike = 0.0) -> LinearOperator:
        """The logarithm of A ⊗ B + λI, or of the damped factors for a factored damping."""
        if isinstance(damping, FactoredDamping):
            return self.damped(damping).log()
        return super().log(damping)

    def function(self, f: Callable[[Tensor], Tensor]) -> EigenKroneckerOperator:
        """The function f of the products of the factors' eigenvalues, in the factors' eigenbases."""
        return self._eigen.function(f)

    def eigenbasis(self) -> FactoredBasis:
        """Of the factors' eigenvectors."""
        return self._eigen.eigenbasis()

    def solves(self, M: Tensor, dampings: Sequence[float]) -> Iterator[Tensor]:
        """`solve` from one eigendecomposition."""
        return self._eigen.solves(M, dampings)

    def diagonal_in_basis(self, U_A: Tensor | None, U_B: Tensor | None) -> Tensor:
        """Entry (j, i) is (v_jᵀ B v_j)(u_iᵀ A u_i)."""
        return torch.outer(diagonal_in(U_B, self.B), diagonal_in(U_A, self.A))

    def contract_output(self, B: Tensor) -> Tensor:
        """<own B, B> A."""
        return as_matrix(factor_inner(self.B, B).to(self.dtype) * self.A)

    def contract_input(self, A: Tensor) -> Tensor:
        """<own A, A> B."""
        return as_matrix(factor_inner(self.A, A).to(self.dtype) * self.B)

    def inner_kronecker(self, A: Tensor, B: Tensor) -> Tensor:
        """<own A, A> <own B, B>."""
        return factor_inner(self.A, A) * factor_inner(self.B, B)

    def unit_blocks(self) -> Tensor:
        """B[j, j] A."""
        return factor_diagonal(self.B)[:, None, None] * as_matrix(self.A)

    def quadratics(self, a: Inputs, g: Tensor, held: Tensor | None = None) -> Tensor:
        """Σ_c <V, B V A>, without V where that is cheaper."""
        check_sample_shapes(a, g)
        return kronecker_quadratics(a, g, self.A, self.B, held).double()

    def gram_products(self, other: GramOperator) -> Tensor:
        """The inner products of the V with those of (a A, g B)."""
        classes, samples = other.g.shape[:2]
        out = other.g.new_empty(classes, samples, classes, samples)
        for rows, columns, tile in tiles(GradientPair(other.a, other.g), self._image(other)):
            out[:, rows, :, columns] = tile * other.weight
        return out.view(other.columns, other.columns)

    def _image(self, other: GramOperator) -> GradientPair:
        """B V A as (a A, g B); for one-hot a and a diagonal A as (a, A[index] g B)."""
        a, g = other.a, times_factor(other.g, self.B)
        if self.A.ndim == 2:
            return GradientPair(rotated(a, self.A), g)
        if isinstance(a, OneHot):
            return GradientPair(a, g * a.gathered(self.A)[..., None])
        return GradientPair(a * self.A, g)

    @cached_property
    def _eigen(self) -> EigenKroneckerOperator:
        if self._source is not None:
            return self._source._eigen.scaled(self._weight)
        values_A, U_A = factor_eigh(self.A)
        values_B, U_B = factor_eigh(self.B)
        return EigenKroneckerOperator(U_A, U_B, torch.outer(values_B, values_A))

    def _shifts(self, damping: FactoredDamping) -> tuple[Tensor, Tensor]:
        trace_A, trace_B = self._traces
        return damping.factors(trace_A, self.inputs, trace_B, self.outputs)

    @property
    def _traces(self) -> tuple[Tensor, Tensor]:
        return factor_diagonal(self.A).sum(), factor_diagonal(self.B).sum()

    def _dense_columns(self) -> Tensor:
        return torch.kron(*self.factors)

    def _inner_with(self, other: LinearOperator) -> Tensor:
        return other.inner_kronecker(self.A, self.B)
