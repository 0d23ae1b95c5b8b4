"""A diagonal matrix in a Kronecker-factored basis (EKFAC's form)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from fisherlab.damping import DampingLike
from fisherlab.errors import InputError
from fisherlab.gradients.contractions import rotated_pieces, rotated_weighted_squares, rotates_held
from fisherlab.gradients.inputs import Inputs, alike, rotated
from fisherlab.gradients.pairs import GradientPair, vectors_gram, weighted_gram
from fisherlab.linalg.factors import (
    diagonal_in,
    into_basis,
    rows_into_basis,
    squares_of,
    with_eigenvalues,
)
from fisherlab.linalg.numerics import damped_power, dot64, norm64, spans
from fisherlab.linalg.packing import outer_rows, packed_size
from fisherlab.operators.arguments import constant_damping
from fisherlab.operators.base import LinearOperator
from fisherlab.operators.eigenbasis import FactoredBasis
from fisherlab.operators.layout import check_sample_shapes

if TYPE_CHECKING:
    from fisherlab.operators.gram import GramOperator

_ABSENT = 1e-18  # of a damping: far below ε/2 = 1.1e-16, so that it does not change it in float64


class EigenKroneckerOperator(LinearOperator):
    """F = (U_A ⊗ U_B) diag(vec S) (U_A ⊗ U_B)ᵀ: F vec(X) = vec(U_B [S ∘ (U_Bᵀ X U_A)] U_Aᵀ).

    Source: George et al. 2018 (arXiv 1806.03884), section 3.

    Args:
        U_A: orthogonal input basis [d, d], basis vectors in columns; None: the identity.
        U_B: orthogonal output basis [m, m]; None: the identity.
        S: [m, d]; entry (j, i) belongs to u_i ⊗ v_j.

    Raises:
        InputError: the shapes do not fit each other.
    """

    structure: ClassVar[int] = 2
    pair_symmetric = True

    def __init__(self, U_A: Tensor | None, U_B: Tensor | None, S: Tensor):
        U_A, U_B, S = alike("the bases and eigenvalues of an operator", U_A, U_B, S)
        if S.ndim != 2 or any(
            U is not None and U.shape != (k, k) for U, k in zip((U_B, U_A), S.shape, strict=True)
        ):
            shapes = [None if X is None else list(X.shape) for X in (S, U_A, U_B)]
            raise InputError(
                f"S is [m, d], U_A [d, d] or None and U_B [m, m] or None, not {shapes[0]}, {shapes[1]} and "
                f"{shapes[2]}."
            )
        super().__init__(S.shape[0], S.shape[1], S.dtype, S.device)
        self.U_A = U_A
        self.U_B = U_B
        self.S = S

    def apply(self, X: Tensor) -> Tensor:
        """U_B [S ∘ (U_Bᵀ X U_A)] U_Aᵀ."""
        scaled = self.S * self._coefficients(X)
        by_input = scaled if self.U_A is None else scaled @ self.U_A.T
        return by_input if self.U_B is None else self.U_B @ by_input

    def scaled(self, factor: float) -> EigenKroneckerOperator:
        """The same basis with c·S."""
        return EigenKroneckerOperator(self.U_A, self.U_B, self.S * factor)

    def diagonal_matrix(self) -> Tensor:
        """(U_B∘U_B) S (U_A∘U_A)ᵀ."""
        return squares_of(self.U_A, squares_of(self.U_B, self.S).T).T

    def packed_rows(self, start: int, stop: int) -> Tensor:
        """Rows of R_A Sᵀ R_Bᵀ, column i of R_A being svec(u_i u_iᵀ)."""
        width = packed_size(self.outputs)
        weighted = self.S.new_empty(stop - start, self.outputs)
        for first, last in spans(stop - start, self.inputs * self.S.element_size()):
            own = slice(start + first, start + last)
            weighted[first:last] = self._outer_rows(self.U_A, self.inputs, own) @ self.S.T
        rows = self.S.new_empty(stop - start, width)
        for first, last in spans(width, self.outputs * self.S.element_size()):
            rows[:, first:last] = weighted @ self._outer_rows(self.U_B, self.outputs, slice(first, last)).T
        return rows

    def _outer_rows(self, U: Tensor | None, k: int, rows: slice) -> Tensor:
        basis = torch.eye(k, dtype=self.dtype, device=self.device) if U is None else U
        return outer_rows(basis, rows)

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
        powered = damped_power(self.S, constant_damping(self, damping), p)
        return EigenKroneckerOperator(self.U_A, self.U_B, powered)

    def function(self, f: Callable[[Tensor], Tensor]) -> EigenKroneckerOperator:
        """The same basis with f(S)."""
        return EigenKroneckerOperator(self.U_A, self.U_B, f(self.S))

    def eigenbasis(self) -> FactoredBasis:
        """U_A ⊗ U_B and S."""
        return FactoredBasis(self.U_A, self.U_B, self.S)

    def solve(self, M: Tensor, damping: DampingLike = 0.0) -> Tensor:
        """U_B [(U_Bᵀ M U_A) / (S + λ)] U_Aᵀ; for λ > 0 without rotating where S vanishes."""
        value = constant_damping(self, damping)
        return next(self.solves(M, [value])) if value > 0 else super().solve(M, damping)

    def solves(self, M: Tensor, dampings: Sequence[float]) -> Iterator[Tensor]:
        """`solve` with the coefficients UᵀM made once.

        Columns of U_A where S is below rounding of every λ are left out: M outside the others is only divided
        by λ.
        """
        U_A, S, outside = self.U_A, self.S, None
        kept = self.S.abs().amax(0) > _ABSENT * min(dampings)
        if U_A is not None and 0 < 2 * int(kept.sum()) < self.inputs:
            U_A, S = U_A[:, kept], self.S[:, kept]
            outside = M - into_basis(M, U_A) @ U_A.T
        coefficients = rows_into_basis(self.U_B, into_basis(M, U_A))
        for damping in dampings:
            solved = coefficients * damped_power(S, damping, -1.0)
            solved = solved if self.U_B is None else self.U_B @ solved
            solved = solved if U_A is None else solved @ U_A.T
            yield solved if outside is None else solved + outside / damping

    def diagonal_in_basis(self, U_A: Tensor | None, U_B: Tensor | None) -> Tensor:
        """The squares of the rotations between the two bases, on both sides of S."""
        by_unit = squares_of(_rotation(U_B, self.U_B), self.S)
        return squares_of(_rotation(U_A, self.U_A), by_unit.T).T

    def contract_output(self, B: Tensor) -> Tensor:
        """U_A diag(Sᵀ diag(U_Bᵀ B U_B)) U_Aᵀ."""
        return with_eigenvalues(self.U_A, self.S.T @ diagonal_in(self.U_B, B))

    def contract_input(self, A: Tensor) -> Tensor:
        """U_B diag(S diag(U_Aᵀ A U_A)) U_Bᵀ."""
        return with_eigenvalues(self.U_B, self.S @ diagonal_in(self.U_A, A))

    def inner_kronecker(self, A: Tensor, B: Tensor) -> Tensor:
        """diag(U_Bᵀ B U_B)ᵀ S diag(U_Aᵀ A U_A)."""
        return dot64(self.S.T @ diagonal_in(self.U_B, B), diagonal_in(self.U_A, A))

    def unit_blocks(self) -> Tensor:
        """U_A diag(row j of (U_B∘U_B) S) U_Aᵀ for each unit j."""
        return with_eigenvalues(self.U_A, squares_of(self.U_B, self.S))

    def quadratic(self, V: Tensor) -> Tensor:
        """<S, (U_Bᵀ V U_A)∘²>."""
        return (self.S * self._coefficients(V).square()).sum((-2, -1))

    def quadratics(self, a: Inputs, g: Tensor, held: Tensor | None = None) -> Tensor:
        """Σ_c <S, (U_Bᵀ V U_A)∘²> from the rotated a U_A and g U_B, or from V where that is cheaper."""
        check_sample_shapes(a, g)
        return rotated_weighted_squares(a, g, self.U_A, self.U_B, self.S, held).double()

    def gram_products(self, other: GramOperator) -> Tensor:
        """<V, S∘V'> of all pairs of the rotated gradients."""
        held = other.held
        if held is not None and rotates_held(other.a, other.g, self.U_A, self.U_B, held):
            pieces = rotated_pieces(other.a, other.g, self.U_A, self.U_B, held)
            return vectors_gram(torch.cat([R for _, R in pieces]), self.S) * other.weight
        pair = GradientPair(rotated(other.a, self.U_A), into_basis(other.g, self.U_B))
        return weighted_gram(pair, self.S) * other.weight

    def _coefficients(self, X: Tensor) -> Tensor:
        """U_Bᵀ X U_A."""
        return into_basis(rows_into_basis(self.U_B, X), self.U_A)

    def _inner_with(self, other: LinearOperator) -> Tensor:
        return dot64(self.S, other.diagonal_in_basis(self.U_A, self.U_B))


def _rotation(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Firstᵀ second, where None is the identity."""
    if first is None:
        return second
    return first.T if second is None else first.T @ second
