"""A diagonal matrix in a Kronecker-factored basis (EKFAC's form)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from fisherlab.damping import DampingLike
from fisherlab.errors import InputError
from fisherlab.operators.base import LinearOperator
from fisherlab.operators.numerics import damped_power, dot64, norm64, spans
from fisherlab.operators.packing import outer_rows, packed_size

if TYPE_CHECKING:
    from fisherlab.operators.gram import GramOperator


class EigenKroneckerOperator(LinearOperator):
    """F = (U_A ⊗ U_B) diag(vec S) (U_A ⊗ U_B)ᵀ: F vec(X) = vec(U_B [S ∘ (U_Bᵀ X U_A)] U_Aᵀ).

    Source: George et al. 2018 (arXiv 1806.03884), section 3.

    Args:
        U_A: orthogonal input basis [d, d], basis vectors in columns.
        U_B: orthogonal output basis [m, m].
        S: [m, d]; entry (j, i) belongs to u_i ⊗ v_j.

    Raises:
        InputError: the shapes do not fit each other.
    """

    structure: ClassVar[int] = 2

    def __init__(self, U_A: Tensor, U_B: Tensor, S: Tensor):
        if S.ndim != 2 or U_B.shape != (S.shape[0],) * 2 or U_A.shape != (S.shape[1],) * 2:
            raise InputError(
                f"S is [m, d], U_A [d, d] and U_B [m, m], not {list(S.shape)}, "
                f"{list(U_A.shape)} and {list(U_B.shape)}."
            )
        super().__init__(S.shape[0], S.shape[1], S.dtype, S.device)
        self.U_A = U_A
        self.U_B = U_B
        self.S = S

    @property
    def pair_symmetric(self) -> bool:
        """True."""
        return True

    def apply(self, X: Tensor) -> Tensor:
        """U_B [S ∘ (U_Bᵀ X U_A)] U_Aᵀ."""
        self.check_matrix(X)
        return self.U_B @ (self.S * (self.U_B.T @ X @ self.U_A)) @ self.U_A.T

    def scaled(self, factor: float) -> EigenKroneckerOperator:
        """The same basis with c·S."""
        return EigenKroneckerOperator(self.U_A, self.U_B, self.S * factor)

    def diagonal_matrix(self) -> Tensor:
        """(U_B∘U_B) S (U_A∘U_A)ᵀ."""
        return self.U_B.square() @ self.S @ self.U_A.square().T

    def packed_rows(self, start: int, stop: int) -> Tensor:
        """Rows of R_A Sᵀ R_Bᵀ, column i of R_A being svec(u_i u_iᵀ)."""
        width = packed_size(self.outputs)
        weighted = outer_rows(self.U_A, slice(start, stop)) @ self.S.T
        rows = self.S.new_empty(stop - start, width)
        for first, last in spans(width, self.outputs * self.S.element_size()):
            rows[:, first:last] = weighted @ outer_rows(self.U_B, slice(first, last)).T
        return rows

    def trace(self) -> Tensor:
        """The sum of S."""
        return self.S.double().sum()

    def frobenius_norm(self) -> Tensor:
        """‖S‖_F."""
        return norm64(self.S)

    def eigenvalues(self) -> Tensor:
        """The entries of S, sorted, [D]."""
        return self.S.flatten().sort().values

    def power(self, p: float, damping: DampingLike = 0.0) -> EigenKroneckerOperator:
        """The same basis with (S + λ)^p."""
        powered = damped_power(self.S, self._uniform(damping), p)
        return EigenKroneckerOperator(self.U_A, self.U_B, powered)

    def diagonal_in_basis(self, U_A: Tensor, U_B: Tensor) -> Tensor:
        """The squares of the rotations between the two bases, on both sides of S."""
        return (U_B.T @ self.U_B).square() @ self.S @ (self.U_A.T @ U_A).square()

    def contract_output(self, B: Tensor) -> Tensor:
        """U_A diag(Sᵀ diag(U_Bᵀ B U_B)) U_Aᵀ."""
        weights = self.S.T @ _basis_diagonal(self.U_B, B)
        return (self.U_A * weights) @ self.U_A.T

    def contract_input(self, A: Tensor) -> Tensor:
        """U_B diag(S diag(U_Aᵀ A U_A)) U_Bᵀ."""
        weights = self.S @ _basis_diagonal(self.U_A, A)
        return (self.U_B * weights) @ self.U_B.T

    def unit_blocks(self) -> Tensor:
        """U_A diag(row j of (U_B∘U_B) S) U_Aᵀ for each unit j."""
        weights = self.U_B.square() @ self.S
        return (self.U_A * weights[:, None]) @ self.U_A.T

    def quadratic(self, V: Tensor) -> Tensor:
        """<S, (U_Bᵀ V U_A)∘²>."""
        self.check_matrix(V)
        return (self.S * (self.U_B.T @ V @ self.U_A).square()).sum((-2, -1))

    def gram_products(self, other: GramOperator) -> Tensor:
        """For one position Σ_j (g̃_j g̃_jᵀ) ∘ (ã diag(S_j) ãᵀ) with ã = a U_A, g̃ = g U_B: no V is made."""
        if not other.pair_symmetric:
            return super().gram_products(other)
        a, g = other.a[:, 0] @ self.U_A, other.g[:, :, 0] @ self.U_B
        classes, samples, m = g.shape
        total = a.new_zeros(classes, samples, classes, samples)
        for start, stop in spans(m, samples * max(samples, self.inputs) * classes * a.element_size()):
            inner = (a * self.S[start:stop, None]) @ a.T
            total += torch.einsum("cnj,jnk,dkj->cndk", g[..., start:stop], inner, g[..., start:stop])
        return total.flatten(2).flatten(0, 1) * other.weight

    def _outer_quadratics(self, a: Tensor, g: Tensor) -> Tensor:
        by_unit = (g @ self.U_B).square().sum(0)
        return ((by_unit @ self.S) * (a @ self.U_A).square()).sum(1)

    def _inner_with(self, other: LinearOperator) -> Tensor:
        return dot64(self.S, other.diagonal_in_basis(self.U_A, self.U_B))


def _basis_diagonal(U: Tensor, X: Tensor) -> Tensor:
    """diag(Uᵀ X U)."""
    return (U * (X @ U)).sum(0)
