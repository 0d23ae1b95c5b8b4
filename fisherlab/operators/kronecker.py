"""A Kronecker product of an input and an output factor."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from fisherlab.damping import DampingLike, FactoredDamping
from fisherlab.errors import InputError
from fisherlab.operators.base import LinearOperator
from fisherlab.operators.eigenkronecker import EigenKroneckerOperator
from fisherlab.operators.numerics import damped_inverse, dot64, norm64, symmetric_eigh
from fisherlab.operators.packing import svec


class KroneckerOperator(LinearOperator):
    """F = A ⊗ B (column-vec order): F vec(X) = vec(B X A).

    Args:
        A: input factor [d, d], symmetric.
        B: output factor [m, m], symmetric.

    Raises:
        InputError: a factor is not square.
    """

    structure: ClassVar[int] = 1

    def __init__(self, A: Tensor, B: Tensor):
        for factor in (A, B):
            if factor.ndim != 2 or factor.shape[0] != factor.shape[1]:
                raise InputError(f"a Kronecker factor is square, not {list(factor.shape)}.")
        super().__init__(B.shape[0], A.shape[0], A.dtype, A.device)
        self.A = A
        self.B = B

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """(A [d, d], B [m, m])."""
        return self.A, self.B

    @property
    def pair_symmetric(self) -> bool:
        """True."""
        return True

    def apply(self, X: Tensor) -> Tensor:
        """B X A."""
        self.check_matrix(X)
        return self.B @ X @ self.A.T

    def scaled(self, factor: float) -> KroneckerOperator:
        """(c·A) ⊗ B."""
        return KroneckerOperator(self.A * factor, self.B)

    def diagonal_matrix(self) -> Tensor:
        """diag(B) diag(A)ᵀ."""
        return torch.outer(self.B.diagonal(), self.A.diagonal())

    def packed_rows(self, start: int, stop: int) -> Tensor:
        """Rows of svec(A) svec(B)ᵀ."""
        return torch.outer(svec(self.A)[start:stop], svec(self.B))

    def trace(self) -> Tensor:
        """The product of the traces, tr A · tr B."""
        return self.A.double().trace() * self.B.double().trace()

    def frobenius_norm(self) -> Tensor:
        """‖A‖ ‖B‖."""
        return norm64(self.A) * norm64(self.B)

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
        A, B = (
            factor + shift * torch.eye(len(factor), dtype=self.dtype, device=self.device)
            for factor, shift in zip(self.factors, shifts, strict=True)
        )
        return KroneckerOperator(A, B)

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
            return KroneckerOperator(damped_inverse(self.A, shift_A), damped_inverse(self.B, shift_B))
        return self._eigen.inverse(damping)

    def power(self, p: float, damping: DampingLike = 0.0) -> LinearOperator:
        """(A ⊗ B + λI)^p, or the power of the damped factors for a factored damping."""
        if isinstance(damping, FactoredDamping):
            return self.damped(damping).power(p)
        return self._eigen.power(p, damping)

    def diagonal_in_basis(self, U_A: Tensor, U_B: Tensor) -> Tensor:
        """Entry (j, i) is (v_jᵀ B v_j)(u_iᵀ A u_i)."""
        return torch.outer((U_B * (self.B @ U_B)).sum(0), (U_A * (self.A @ U_A)).sum(0))

    def contract_output(self, B: Tensor) -> Tensor:
        """<own B, B> A."""
        return (self.B * B).sum() * self.A

    def contract_input(self, A: Tensor) -> Tensor:
        """<own A, A> B."""
        return (self.A * A).sum() * self.B

    def unit_blocks(self) -> Tensor:
        """B[j, j] A."""
        return self.B.diagonal()[:, None, None] * self.A

    @cached_property
    def _eigen(self) -> EigenKroneckerOperator:
        values_A, U_A = symmetric_eigh(self.A)
        values_B, U_B = symmetric_eigh(self.B)
        return EigenKroneckerOperator(U_A, U_B, torch.outer(values_B, values_A))

    def _shifts(self, damping: FactoredDamping) -> tuple[Tensor, Tensor]:
        traces = self.A.trace(), self.B.trace()
        return damping.factors(traces[0], self.inputs, traces[1], self.outputs)

    def _dense_columns(self) -> Tensor:
        return torch.kron(self.A, self.B)

    def _outer_quadratics(self, a: Tensor, g: Tensor) -> Tensor:
        return ((a @ self.A) * a).sum(1) * ((g @ self.B) * g).sum((0, 2))

    def _inner_with(self, other: LinearOperator) -> Tensor:
        return dot64(other.contract_output(self.B), self.A)
