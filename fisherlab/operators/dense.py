"""Any symmetric matrix, stored in full."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from fisherlab.damping import DampingLike
from fisherlab.errors import InputError
from fisherlab.gradients.inputs import alike
from fisherlab.linalg.arguments import check_sizes
from fisherlab.linalg.factors import as_matrix
from fisherlab.linalg.numerics import (
    cholesky_apply,
    damped_cholesky,
    damped_inverse,
    damped_power,
    norm64,
    symmetric_eigenvalues,
    symmetric_eigh,
)
from fisherlab.operators.arguments import constant_damping
from fisherlab.operators.base import LinearOperator
from fisherlab.operators.eigenbasis import DenseBasis
from fisherlab.operators.layout import (
    check_vec,
    column_order,
    matrix_to_vector,
    vector_to_matrix,
)


class DenseOperator(LinearOperator):
    """F stored as a matrix [D, D].

    Args:
        matrix: [D, D], symmetric.
        outputs: m.
        inputs: d, with D = m·d.
        vec: the order of the rows and columns of `matrix`; it is stored in column-vec order.

    Raises:
        InputError: the matrix is not [m·d, m·d], or another `vec`.
    """

    structure: ClassVar[int] = 6

    def __init__(self, matrix: Tensor, outputs: int, inputs: int, vec: str = "column"):
        check_sizes(outputs, inputs)
        (matrix,) = alike("the matrix of an operator", matrix)
        size = outputs * inputs
        if matrix.shape != (size, size):
            raise InputError(
                f"a layer with {outputs} outputs and {inputs} inputs has a [{size}, {size}] "
                f"matrix, not {list(matrix.shape)}."
            )
        check_vec(vec)
        super().__init__(outputs, inputs, matrix.dtype, matrix.device)
        self.matrix = matrix if vec == "column" else column_order(matrix, outputs, inputs)

    def apply(self, X: Tensor) -> Tensor:
        """mat(F vec(X))."""
        return self._to_matrix(matrix_to_vector(X) @ self.matrix.T)

    def scaled(self, factor: float) -> DenseOperator:
        """c·F."""
        return self._like(self.matrix * factor)

    def diagonal_matrix(self) -> Tensor:
        """The stored diagonal, [m, d]."""
        return self._to_matrix(self.matrix.diagonal())

    def frobenius_norm(self) -> Tensor:
        """‖F‖_F of the stored entries."""
        return norm64(self.matrix)

    def eigenvalues(self) -> Tensor:
        """Eigenvalues of the symmetrised matrix, ascending, [D]."""
        return self._eigh[0] if "_eigh" in self.__dict__ else self._eigenvalues

    def inverse(self, damping: DampingLike = 0.0) -> DenseOperator:
        """(F + λI)⁻¹ by Cholesky."""
        return self._like(damped_inverse(self.matrix, constant_damping(self, damping)))

    def power(self, p: float, damping: DampingLike = 0.0) -> DenseOperator:
        """(F + λI)^p by the eigendecomposition."""
        values, vectors = self._eigh
        return self._like((vectors * damped_power(values, constant_damping(self, damping), p)) @ vectors.T)

    def function(self, f: Callable[[Tensor], Tensor]) -> DenseOperator:
        """f(F) by the eigendecomposition."""
        values, vectors = self._eigh
        return self._like((vectors * f(values)) @ vectors.T)

    def eigenbasis(self) -> DenseBasis:
        """By the eigendecomposition."""
        return DenseBasis(*self._eigh, self.outputs, self.inputs)

    def solve(self, M: Tensor, damping: DampingLike = 0.0) -> Tensor:
        """(F + λI)⁻¹ vec(M) by Cholesky."""
        factor = damped_cholesky(self.matrix, constant_damping(self, damping))
        right = matrix_to_vector(M).reshape(-1, self.shape[0]).T
        return self._to_matrix(cholesky_apply(factor, right).T).reshape(M.shape)

    def diagonal_in_basis(self, U_A: Tensor | None, U_B: Tensor | None) -> Tensor:
        """Rotates one index at a time and keeps the diagonal: inputs first, then outputs."""
        if U_A is None:
            by_input = self._by_entry.diagonal(dim1=0, dim2=2)
        else:
            one_input = torch.einsum("ijkl,kp->ijlp", self._by_entry, U_A)
            by_input = torch.einsum("ijlp,ip->jlp", one_input, U_A)
        if U_B is None:
            return by_input.diagonal(dim1=0, dim2=1).T
        one_output = torch.einsum("jlp,lq->jqp", by_input, U_B)
        return torch.einsum("jqp,jq->qp", one_output, U_B)

    def contract_output(self, B: Tensor) -> Tensor:
        """Σ_jl F[(i,j),(k,l)] B[j,l]."""
        return torch.einsum("ijkl,jl->ik", self._by_entry, as_matrix(B))

    def contract_input(self, A: Tensor) -> Tensor:
        """Σ_ik F[(i,j),(k,l)] A[i,k]."""
        return torch.einsum("ijkl,ik->jl", self._by_entry, as_matrix(A))

    def unit_blocks(self) -> Tensor:
        """F[(i,j),(k,j)]."""
        return self._by_entry.diagonal(dim1=1, dim2=3).permute(2, 0, 1)

    @property
    def _by_entry(self) -> Tensor:
        """The matrix as [i, j, k, l]: inputs i, k and outputs j, l."""
        return self.matrix.reshape(self.inputs, self.outputs, self.inputs, self.outputs)

    @cached_property
    def _eigenvalues(self) -> Tensor:
        return symmetric_eigenvalues(self.matrix)

    @cached_property
    def _eigh(self) -> tuple[Tensor, Tensor]:
        return symmetric_eigh(self.matrix)

    def _dense_columns(self) -> Tensor:
        return self.matrix

    def _to_matrix(self, v: Tensor) -> Tensor:
        return vector_to_matrix(v, self.outputs, self.inputs)

    def _like(self, matrix: Tensor) -> DenseOperator:
        return DenseOperator(matrix, self.outputs, self.inputs)
