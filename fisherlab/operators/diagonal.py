"""A diagonal Fisher block."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from fisherlab.damping import DampingLike
from fisherlab.errors import InputError
from fisherlab.gradients.contractions import weighted_squares
from fisherlab.gradients.inputs import Inputs, alike
from fisherlab.linalg.factors import factor_diagonal
from fisherlab.linalg.numerics import damped_power, dot64, norm64
from fisherlab.linalg.packing import packed_size, packing_index
from fisherlab.operators.arguments import constant_damping
from fisherlab.operators.base import LinearOperator
from fisherlab.operators.eigenbasis import FactoredBasis
from fisherlab.operators.layout import check_sample_shapes


class DiagonalOperator(LinearOperator):
    """F = diag(vec S), stored as the matrix S [m, d].

    Args:
        matrix: S [m, d]; entry (j, i) belongs to weight W[j, i].

    Raises:
        InputError: it is not a matrix.
    """

    structure: ClassVar[int] = 0
    pair_symmetric = True

    def __init__(self, matrix: Tensor):
        (matrix,) = alike("the diagonal of an operator", matrix)
        if matrix.ndim != 2:
            raise InputError(f"a diagonal block is a matrix [m, d], not {list(matrix.shape)}.")
        super().__init__(matrix.shape[0], matrix.shape[1], matrix.dtype, matrix.device)
        self.matrix = matrix

    def apply(self, X: Tensor) -> Tensor:
        """S ∘ X."""
        return self.matrix * X

    def scaled(self, factor: float) -> DiagonalOperator:
        """diag(c·S)."""
        return DiagonalOperator(self.matrix * factor)

    def diagonal_matrix(self) -> Tensor:
        """S."""
        return self.matrix

    def packed_rows(self, start: int, stop: int) -> Tensor:
        """Sᵀ at the crossings of the diagonal places, zero elsewhere."""
        m, d = self.outputs, self.inputs
        places = packing_index(d, self.device).diagonal
        inside = (places >= start) & (places < stop)
        rows = self.matrix.new_zeros(stop - start, packed_size(m))
        units = packing_index(m, self.device).diagonal
        rows[(places[inside] - start)[:, None], units] = self.matrix.T[inside]
        return rows

    def frobenius_norm(self) -> Tensor:
        """‖S‖_F."""
        return norm64(self.matrix)

    def eigenvalues(self) -> Tensor:
        """The entries of S, sorted."""
        return self.matrix.flatten().sort().values

    def power(self, p: float, damping: DampingLike = 0.0) -> DiagonalOperator:
        """diag((S + λ)^p)."""
        return DiagonalOperator(damped_power(self.matrix, constant_damping(self, damping), p))

    def function(self, f: Callable[[Tensor], Tensor]) -> DiagonalOperator:
        """diag(f(S))."""
        return DiagonalOperator(f(self.matrix))

    def eigenbasis(self) -> FactoredBasis:
        """The entries."""
        return FactoredBasis(None, None, self.matrix)

    def diagonal_in_basis(self, U_A: Tensor | None, U_B: Tensor | None) -> Tensor:
        """(U_B∘U_B)ᵀ S (U_A∘U_A)."""
        by_unit = self.matrix if U_B is None else U_B.square().T @ self.matrix
        return by_unit if U_A is None else by_unit @ U_A.square()

    def contract_output(self, B: Tensor) -> Tensor:
        """diag(Sᵀ diag B)."""
        return torch.diag(self.matrix.T @ factor_diagonal(B))

    def contract_input(self, A: Tensor) -> Tensor:
        """diag(S diag A)."""
        return torch.diag(self.matrix @ factor_diagonal(A))

    def unit_blocks(self) -> Tensor:
        """diag(S[j]) for each unit j."""
        return torch.diag_embed(self.matrix)

    def inner_kronecker(self, A: Tensor, B: Tensor) -> Tensor:
        """diag(B)ᵀ S diag(A)."""
        return dot64(self.matrix, torch.outer(factor_diagonal(B), factor_diagonal(A)))

    def quadratics(self, a: Inputs, g: Tensor, held: Tensor | None = None) -> Tensor:
        """Σ_c <S, V∘V>, without V where that is cheaper."""
        check_sample_shapes(a, g)
        return weighted_squares(a, g, self.matrix, held).double()

    def _dense_columns(self) -> Tensor:
        return torch.diag(self.diagonal())

    def _inner_with(self, other: LinearOperator) -> Tensor:
        return dot64(self.matrix, other.diagonal_matrix())
