"""A block-diagonal Fisher block: one d×d block for each output unit."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from fisherlab.damping import DampingLike
from fisherlab.errors import InputError
from fisherlab.gradients.inputs import alike
from fisherlab.linalg.factors import as_matrix, factor_diagonal
from fisherlab.linalg.numerics import (
    cholesky_apply,
    damped_cholesky,
    damped_inverse,
    damped_power,
    dot64,
    norm64,
    spans,
    symmetric_eigh,
)
from fisherlab.linalg.packing import packed_size, packing_index, svec, svec_outer
from fisherlab.operators.arguments import constant_damping
from fisherlab.operators.base import LinearOperator
from fisherlab.operators.eigenbasis import UnitBasis


class UnitBlockOperator(LinearOperator):
    """F with no coupling between output units: row j of X is multiplied by block j.

    Args:
        blocks: [m, d, d], each symmetric.

    Raises:
        InputError: another shape.
    """

    structure: ClassVar[int] = 3
    pair_symmetric = True

    def __init__(self, blocks: Tensor):
        (blocks,) = alike("the blocks of an operator", blocks)
        if blocks.ndim != 3 or blocks.shape[1] != blocks.shape[2]:
            raise InputError(f"the blocks are [m, d, d], not {list(blocks.shape)}.")
        super().__init__(blocks.shape[0], blocks.shape[1], blocks.dtype, blocks.device)
        self.blocks = blocks

    def apply(self, X: Tensor) -> Tensor:
        """Row j of the result is block_j X[j]."""
        return torch.einsum("jik,...jk->...ji", self.blocks, X)

    def scaled(self, factor: float) -> UnitBlockOperator:
        """Each block times c."""
        return UnitBlockOperator(self.blocks * factor)

    def diagonal_matrix(self) -> Tensor:
        """The diagonals of the blocks."""
        return self.blocks.diagonal(dim1=1, dim2=2)

    def packed_rows(self, start: int, stop: int) -> Tensor:
        """svec(block_j) in the column of unit j with itself, zero elsewhere."""
        rows = self.blocks.new_zeros(stop - start, packed_size(self.outputs))
        units = packing_index(self.outputs, self.device).diagonal
        rows[:, units] = svec(self.blocks)[:, start:stop].T
        return rows

    def frobenius_norm(self) -> Tensor:
        """The norm of all stored entries."""
        return norm64(self.blocks)

    def eigenvalues(self) -> Tensor:
        """The blocks' eigenvalues, sorted, [D]."""
        return self._eigh[0].flatten().sort().values

    def inverse(self, damping: DampingLike = 0.0) -> UnitBlockOperator:
        """Each (block + λI)⁻¹, by Cholesky."""
        return UnitBlockOperator(damped_inverse(self.blocks, constant_damping(self, damping)))

    def power(self, p: float, damping: DampingLike = 0.0) -> UnitBlockOperator:
        """Each (block + λI)^p."""
        values, vectors = self._eigh
        powered = damped_power(values, constant_damping(self, damping), p)
        return UnitBlockOperator((vectors * powered[:, None]) @ vectors.mT)

    def function(self, f: Callable[[Tensor], Tensor]) -> UnitBlockOperator:
        """The function f of each block."""
        values, vectors = self._eigh
        return UnitBlockOperator((vectors * f(values)[:, None]) @ vectors.mT)

    def eigenbasis(self) -> UnitBasis:
        """Of the blocks."""
        return UnitBasis(*self._eigh)

    def solve(self, M: Tensor, damping: DampingLike = 0.0) -> Tensor:
        """Row j of the result is (block_j + λI)⁻¹ M[j], by Cholesky."""
        factor = damped_cholesky(self.blocks, constant_damping(self, damping))
        columns = M.reshape(-1, *M.shape[-2:]).permute(1, 2, 0)
        return cholesky_apply(factor, columns).permute(2, 0, 1).reshape(M.shape)

    def diagonal_in_basis(self, U_A: Tensor | None, U_B: Tensor | None) -> Tensor:
        """(U_B∘U_B)ᵀ Q, row j of Q being diag(U_Aᵀ block_j U_A)."""
        by_unit = self.diagonal_matrix() if U_A is None else (U_A * (self.blocks @ U_A)).sum(1)
        return by_unit if U_B is None else U_B.square().T @ by_unit

    def contract_output(self, B: Tensor) -> Tensor:
        """Σ_j B[j, j] block_j."""
        return torch.einsum("j,jik->ik", factor_diagonal(B), self.blocks)

    def contract_input(self, A: Tensor) -> Tensor:
        """diag(<block_j, A>)."""
        return torch.diag(torch.einsum("jik,ik->j", self.blocks, as_matrix(A)))

    def unit_blocks(self) -> Tensor:
        """The blocks."""
        return self.blocks

    @cached_property
    def _eigh(self) -> tuple[Tensor, Tensor]:
        return symmetric_eigh(self.blocks)

    def _dense_columns(self) -> Tensor:
        m, d = self.outputs, self.inputs
        out = self.blocks.new_zeros(d, m, d, m)
        out.diagonal(dim1=1, dim2=3).copy_(self.blocks.permute(1, 2, 0))
        return out.view(self.shape)

    def _outer_quadratics(self, a: Tensor, g: Tensor) -> Tensor:
        packed, weights = svec(self.blocks), g.square().sum(0)
        pieces = spans(len(a), packed.shape[1] * a.element_size())
        parts = (slice(*span) for span in pieces)
        return torch.cat([(svec_outer(a[part]) @ packed.T * weights[part]).sum(1) for part in parts])

    def _inner_with(self, other: LinearOperator) -> Tensor:
        return dot64(self.blocks, other.unit_blocks())
