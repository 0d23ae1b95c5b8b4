"""The Fisher block of a layer with groups: one block a group, nothing between groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import ClassVar

import torch
from torch import Tensor

from fisherlab.damping import DampingLike
from fisherlab.errors import InputError, InputTypeError
from fisherlab.gradients.inputs import Inputs, OneHot
from fisherlab.linalg.packing import packed_size, packing_index
from fisherlab.operators.base import LinearOperator
from fisherlab.operators.eigenbasis import Eigenbasis
from fisherlab.operators.layout import check_sample_shapes


class GroupedOperator(LinearOperator):
    """F that multiplies the rows k·m..(k+1)·m of X [G·m, d] by block k.

    X is the weight of a grouped convolution, its rows in the order of the groups. Numbers are sums over the
    blocks; functions of F and factored dampings are taken block by block.

    Args:
        blocks: one operator a group, all with m outputs and d inputs.

    Raises:
        InputError: there is no block, or the blocks differ in size.
    """

    structure: ClassVar[int] = 7

    def __init__(self, blocks: Sequence[LinearOperator]):
        for block in blocks:
            if not isinstance(block, LinearOperator):
                raise InputTypeError(f"a group's block is an operator, not a {type(block).__name__}.")
        sizes = {(block.outputs, block.inputs) for block in blocks}
        if len(sizes) != 1:
            raise InputError(
                "a grouped operator needs one block a group, all of one size, not "
                f"{len(blocks)} blocks of {len(sizes)} sizes."
            )
        dtype = reduce(torch.promote_types, (block.dtype for block in blocks))
        blocks = [block.widened(dtype) for block in blocks]
        first = blocks[0]
        super().__init__(len(blocks) * first.outputs, first.inputs, first.dtype, first.device)
        self.blocks = tuple(blocks)

    @property
    def pair_symmetric(self) -> bool:
        """True where every block is."""
        return all(block.pair_symmetric for block in self.blocks)

    @property
    def rows(self) -> list[slice]:
        """The rows of X of each block."""
        m = self.outputs // len(self.blocks)
        return [slice(start, start + m) for start in range(0, self.outputs, m)]

    def apply(self, X: Tensor) -> Tensor:
        """Each block applied to its rows."""
        return torch.cat([block.apply(X[..., rows, :]) for block, rows in self._with_rows()], dim=-2)

    def scaled(self, factor: float) -> GroupedOperator:
        """Each block times c."""
        return self._map(lambda block: block.scaled(factor))

    def diagonal_matrix(self) -> Tensor:
        """The diagonals of the blocks, one below the other."""
        return torch.cat([block.diagonal_matrix() for block in self.blocks])

    def packed_rows(self, start: int, stop: int) -> Tensor:
        """The blocks' rows, in the columns of pairs of units of one group; zero elsewhere."""
        packed = torch.zeros(stop - start, packed_size(self.outputs), dtype=self.dtype, device=self.device)
        positions = packing_index(self.outputs, self.device).positions
        for block, rows in self._with_rows():
            own = packing_index(block.outputs, self.device)
            columns = positions[rows, rows][own.rows, own.columns]
            packed[:, columns] = block.packed_rows(start, stop)
        return packed

    # --- numbers --------------------------------------------------------------------------------

    def trace(self) -> Tensor:
        """The sum of the blocks' traces."""
        return self._sum(block.trace() for block in self.blocks)

    def frobenius_norm(self) -> Tensor:
        """The root of the sum of the blocks' squared norms."""
        return self._sum(block.frobenius_norm().square() for block in self.blocks).sqrt()

    def difference_norm(self, other: LinearOperator) -> Tensor:
        """‖F − G‖_F, block by block where both have the same groups."""
        if not isinstance(other, GroupedOperator) or not self._same_groups(other):
            return super().difference_norm(other)
        pairs = zip(self.blocks, other.blocks, strict=True)
        return self._sum(own.difference_norm(block).square() for own, block in pairs).sqrt()

    def logdet(self, damping: DampingLike = 0.0) -> Tensor:
        """The sum of the blocks' log-determinants."""
        return self._sum(block.logdet(damping) for block in self.blocks)

    def eigenvalues(self) -> Tensor:
        """Those of all blocks, sorted; Gram blocks leave out zeros."""
        return torch.cat([block.eigenvalues() for block in self.blocks]).sort().values

    # --- functions of F -------------------------------------------------------------------------

    def inverse(self, damping: DampingLike = 0.0) -> GroupedOperator:
        """Each block's inverse."""
        return self._map(lambda block: block.inverse(damping))

    def power(self, p: float, damping: DampingLike = 0.0) -> GroupedOperator:
        """Each block's power."""
        return self._map(lambda block: block.power(p, damping))

    def log(self, damping: DampingLike = 0.0) -> GroupedOperator:
        """Each block's logarithm."""
        return self._map(lambda block: block.log(damping))

    def function(self, f: Callable[[Tensor], Tensor]) -> GroupedOperator:
        """The function f of each block."""
        return self._map(lambda block: block.function(f))

    def eigenbasis(self) -> GroupedBasis:
        """Those of all blocks, one after another."""
        return GroupedBasis(self)

    def solve(self, M: Tensor, damping: DampingLike = 0.0) -> Tensor:
        """Each block's solution for its rows."""
        solved = [block.solve(M[..., rows, :], damping) for block, rows in self._with_rows()]
        return torch.cat(solved, dim=-2)

    def solves(self, M: Tensor, dampings: Sequence[float]) -> Iterator[Tensor]:
        """Each block's solutions for its rows."""
        solved = [block.solves(M[..., rows, :], dampings) for block, rows in self._with_rows()]
        return (torch.cat(parts, dim=-2) for parts in zip(*solved, strict=True))

    def forget(self) -> None:
        """Of each block."""
        for block in self.blocks:
            block.forget()

    # --- contractions ---------------------------------------------------------------------------

    def diagonal_in_basis(self, U_A: Tensor | None, U_B: Tensor | None) -> Tensor:
        """The sum over blocks, each with its rows of U_B."""
        if U_B is None:
            return torch.cat([block.diagonal_in_basis(U_A, None) for block in self.blocks])
        found = [block.diagonal_in_basis(U_A, U_B[rows]) for block, rows in self._with_rows()]
        return torch.stack(found).sum(0)

    def contract_output(self, B: Tensor) -> Tensor:
        """The sum over blocks, each with its own part of B."""
        found = [block.contract_output(_factor_of(B, rows)) for block, rows in self._with_rows()]
        return torch.stack(found).sum(0)

    def contract_input(self, A: Tensor) -> Tensor:
        """The blocks' contractions on the diagonal, [G·m, G·m]."""
        return torch.block_diag(*(block.contract_input(A) for block in self.blocks))

    def inner_kronecker(self, A: Tensor, B: Tensor) -> Tensor:
        """The sum over blocks of <block, A ⊗ own part of B>."""
        return self._sum(block.inner_kronecker(A, _factor_of(B, rows)) for block, rows in self._with_rows())

    def unit_blocks(self) -> Tensor:
        """Those of all blocks."""
        return torch.cat([block.unit_blocks() for block in self.blocks])

    def quadratics(self, a: Inputs, g: Tensor, held: Tensor | None = None) -> Tensor:
        """Σ_c Σ_k of the quadratic forms of block k with its own inputs and outputs, [n] float64.

        Args:
            a: [n, t, G·d], the inputs of each group after those of the one before; or [n, t, d] that all
                groups see.
            g: [c, n, t, G·m].
            held: not used: the V of the groups are apart.

        Raises:
            InputError: the shapes do not fit.
        """
        check_sample_shapes(a, g)
        shared = a.shape[2] == self.inputs
        total = torch.zeros(g.shape[1], dtype=torch.float64, device=self.device)
        for k, (block, rows) in enumerate(self._with_rows()):
            own = a if shared or isinstance(a, OneHot) else a[..., k * self.inputs : (k + 1) * self.inputs]
            total += block.quadratics(own, g[..., rows])
        return total

    # --- private --------------------------------------------------------------------------------

    def _check_inputs(self, a: Inputs) -> None:
        groups, size = len(self.blocks), a.shape[2] if a.ndim == 3 else self.inputs
        if size == self.inputs or (size == groups * self.inputs and not isinstance(a, OneHot)):
            return
        raise InputError(
            f"the inputs of {groups} groups of size {self.inputs} are a tensor [n, t, {self.inputs}] or "
            f"[n, t, {groups * self.inputs}], not {list(a.shape)}."
        )

    def _with_rows(self) -> Iterator[tuple[LinearOperator, slice]]:
        return zip(self.blocks, self.rows, strict=True)

    def _map(self, function: Callable[[LinearOperator], LinearOperator]) -> GroupedOperator:
        return GroupedOperator([function(block) for block in self.blocks])

    def _sum(self, numbers: Iterator[Tensor]) -> Tensor:
        return torch.stack(list(numbers)).sum()

    def _same_groups(self, other: GroupedOperator) -> bool:
        self.check_same_size(other)
        return len(other.blocks) == len(self.blocks)

    def _dense_columns(self) -> Tensor:
        m, d = self.outputs, self.inputs
        out = torch.zeros(d, m, d, m, dtype=self.dtype, device=self.device)
        for block, rows in self._with_rows():
            out[:, rows, :, rows] = block.dense().view(d, block.outputs, d, block.outputs)
        return out.view(self.shape)

    def _inner_with(self, other: LinearOperator) -> Tensor:
        if not isinstance(other, GroupedOperator) or not self._same_groups(other):
            return super()._inner_with(other)
        pairs = zip(self.blocks, other.blocks, strict=True)
        return self._sum(own.inner(block) for own, block in pairs)


class GroupedBasis(Eigenbasis):
    """Eigenvectors of the blocks, each in the rows of its group."""

    def __init__(self, F: GroupedOperator) -> None:
        self._bases, self._rows = [block.eigenbasis() for block in F.blocks], F.rows
        self._counts = [len(basis.values) for basis in self._bases]
        self._shape = (F.outputs, F.inputs)
        super().__init__(torch.cat([basis.values for basis in self._bases]))

    def matrices(self, places: Tensor) -> Tensor:
        """Zero outside the group."""
        found = self.values.new_zeros(len(places), *self._shape)
        start = 0
        for basis, rows, count in zip(self._bases, self._rows, self._counts, strict=True):
            own = ((places >= start) & (places < start + count)).nonzero().squeeze(1)
            found[own, rows] = basis.matrices(places[own] - start)
            start += count
        return found

    def coefficients(self, X: Tensor) -> Tensor:
        """Of the rows of each group."""
        pairs = zip(self._bases, self._rows, strict=True)
        return torch.cat([basis.coefficients(X[..., rows, :]) for basis, rows in pairs], -1)

    def masses(self, F: LinearOperator) -> Tensor:
        """Block by block where F has the same groups."""
        if not isinstance(F, GroupedOperator) or len(F.blocks) != len(self._bases):
            return super().masses(F)
        pairs = zip(self._bases, F.blocks, strict=True)
        return torch.cat([basis.masses(block) for basis, block in pairs])


def joined(blocks: Sequence[LinearOperator]) -> LinearOperator:
    """The operator of a layer from those of its groups: the only one itself, else a `GroupedOperator`.

    What their remarks have in common it says once.
    """
    if len(blocks) == 1:
        return blocks[0]
    found = GroupedOperator(blocks)
    remarks = (part for block in blocks for part in block.remark.split("; ") if part)
    found.remark = "; ".join(dict.fromkeys(remarks))
    return found


def blocks_of(F: LinearOperator) -> Sequence[LinearOperator]:
    """The operators of a layer's groups: the inverse of `joined`."""
    return F.blocks if isinstance(F, GroupedOperator) else (F,)


def _factor_of(B: Tensor, rows: slice) -> Tensor:
    return B[rows] if B.ndim == 1 else B[rows, rows]
