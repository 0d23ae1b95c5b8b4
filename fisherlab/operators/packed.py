"""The packed form of a Fisher block with one position."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fisherlab.damping import DampingLike
from fisherlab.errors import InputError
from fisherlab.gradients.inputs import alike
from fisherlab.linalg.arguments import check_sizes
from fisherlab.linalg.factors import factor_svec
from fisherlab.linalg.numerics import dot64, norm64, spans, symmetrised
from fisherlab.linalg.packing import (
    packed_size,
    packing_index,
    project,
    smat,
    svec_gram,
    svec_outer,
    unpack_rows,
)
from fisherlab.operators.base import LinearOperator
from fisherlab.operators.layout import matrix_to_vector, vector_to_matrix


class PackedOperator(LinearOperator):
    """F = Σ (a aᵀ) ⊗ (g gᵀ), stored as M = Σ svec(a aᵀ) svec(g gᵀ)ᵀ, a quarter of its size.

    M is an isometric image: ‖M‖ = ‖F‖ and <F, A ⊗ B> = svec(A)ᵀ M svec(B). Only `eigenvalues`,
    `power`, `inverse`, `solve` and `logdet` make (and keep) the dense matrix.

    Args:
        M: [d(d+1)/2, m(m+1)/2].
        outputs: m.
        inputs: d.

    Raises:
        InputError: M has another shape.
    """

    structure: ClassVar[int] = 5
    pair_symmetric = True

    def __init__(self, M: Tensor, outputs: int, inputs: int):
        check_sizes(outputs, inputs)
        (M,) = alike("the packed form of an operator", M)
        expected = (packed_size(inputs), packed_size(outputs))
        if M.shape != expected:
            raise InputError(
                f"the packed form of a layer with {outputs} outputs and {inputs} inputs is "
                f"{list(expected)}, not {list(M.shape)}."
            )
        super().__init__(outputs, inputs, M.dtype, M.device)
        self.M = M

    def apply(self, X: Tensor) -> Tensor:
        """F vec(X), by rows of F expanded in pieces of bounded size; by the dense matrix once it is known."""
        if "_dense_form" in self.__dict__:
            return self._dense_form.apply(X)
        m, d = self.outputs, self.inputs
        vectors = matrix_to_vector(X).reshape(-1, m * d)
        out = vectors.new_empty(vectors.shape)
        for start, stop in spans(d, d * m * m * self.M.element_size()):
            rows = unpack_rows(self.M, start, stop, m, d).reshape(-1, d * m)
            out[:, start * m : stop * m] = vectors @ rows.T
        return vector_to_matrix(out, m, d).reshape(X.shape)

    def scaled(self, factor: float) -> PackedOperator:
        """c·M."""
        return PackedOperator(self.M * factor, self.outputs, self.inputs)

    def diagonal_matrix(self) -> Tensor:
        """M at the crossings of the diagonal places, transposed."""
        units = packing_index(self.outputs, self.device).diagonal
        return self._input_diagonal.index_select(1, units).T

    def packed(self) -> Tensor:
        """M."""
        return self.M

    def packed_rows(self, start: int, stop: int) -> Tensor:
        """Rows of M."""
        return self.M[start:stop]

    def frobenius_norm(self) -> Tensor:
        """‖M‖_F."""
        return norm64(self.M)

    def solve(self, M: Tensor, damping: DampingLike = 0.0) -> Tensor:
        """(F + λI)⁻¹ vec(M), by Cholesky of the dense matrix."""
        return self._dense_form.solve(M, damping)

    def inverse(self, damping: DampingLike = 0.0) -> LinearOperator:
        """(F + λI)⁻¹, by Cholesky of the dense matrix."""
        return self._dense_form.inverse(damping)

    def diagonal_in_basis(self, U_A: Tensor | None, U_B: Tensor | None) -> Tensor:
        """(R_Aᵀ M R_B)ᵀ; the smaller side is contracted first."""
        if self.outputs < self.inputs:
            return _projected(U_A, _projected(U_B, self.M.T, self.outputs).T, self.inputs).T
        return _projected(U_B, _projected(U_A, self.M, self.inputs).T, self.outputs)

    def contract_output(self, B: Tensor) -> Tensor:
        """smat(M svec(B))."""
        return smat(self.M @ _svec(B), self.inputs)

    def contract_input(self, A: Tensor) -> Tensor:
        """smat(Mᵀ svec(A))."""
        return smat(self.M.T @ _svec(A), self.outputs)

    def unit_blocks(self) -> Tensor:
        """The columns of M (as matrices) that belong to one unit."""
        units = packing_index(self.outputs, self.device).diagonal
        return smat(self.M.index_select(1, units).T.contiguous(), self.inputs)

    @property
    def _input_diagonal(self) -> Tensor:
        return self.M.index_select(0, packing_index(self.inputs, self.device).diagonal)

    def _outer_quadratics(self, a: Tensor, g: Tensor) -> Tensor:
        widest = max(self.inputs**2, self.outputs**2)
        pieces = []
        for start, stop in spans(len(a), widest * a.element_size()):
            inputs = svec_outer(a[start:stop]) @ self.M
            pieces.append((inputs * svec_gram(g[:, start:stop])).sum(1))
        return torch.cat(pieces)

    def _inner_with(self, other: LinearOperator) -> Tensor:
        if other.pair_symmetric:
            return dot64(self.M, other.packed())
        return dot64(self.dense(), other.dense())


def _projected(U: Tensor | None, M: Tensor, k: int) -> Tensor:
    """`project`, or for the identity its rows at the diagonal places."""
    if U is None:
        return M.index_select(0, packing_index(k, M.device).diagonal)
    return project(U, M)


def _svec(factor: Tensor) -> Tensor:
    """`svec` of the symmetric part of a factor, a matrix or a diagonal."""
    return factor_svec(symmetrised(factor) if factor.ndim == 2 else factor)
