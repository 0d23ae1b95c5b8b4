"""The inputs of a convolution as images: patches are made when they are asked for, or not at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fisherlab.linalg.numerics import gram, spans, sum_pieces

_CHUNK_BYTES = 8 * 2**20  # of patches at a time: a choice, memory that is written again and again


@dataclass(frozen=True)
class Patches:
    """Inputs a [n, t, d]: a_t are the values under a kernel at place t, channels before places in it.

    Attributes:
        images: x [n, channels, …], padded.
        kernel: the kernel's size in each dimension.
        stride: from place to place.
        dilation: between the values under a kernel.
        ones: whether a last input is 1.
    """

    images: Tensor
    kernel: Sequence[int]
    stride: Sequence[int]
    dilation: Sequence[int]
    ones: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n, t, d)."""
        width = self.images.shape[1] * math.prod(self.kernel) + self.ones
        return len(self.images), math.prod(self._places()), width

    def with_ones(self) -> Patches:
        """The same with a last input 1."""
        return replace(self, ones=True)

    def unfolded(self) -> Tensor:
        """The tensor [n, t, d], a view of one that lies in memory as [d, n, t]."""
        samples, positions, width = self.shape
        out = self.images.new_empty(width, samples, positions)
        windows = _windows(self.images, self.kernel, self.stride, self.dilation)
        places, kernel = self._places(), tuple(self.kernel)
        dimensions = range(2, 2 + len(kernel))
        order = (1, *(place + len(kernel) for place in dimensions), 0, *dimensions)
        patches = out[: width - self.ones].view(self.images.shape[1], *kernel, samples, *places)
        patches.copy_(windows.permute(order))
        if self.ones:
            out[-1] = 1
        return out.permute(1, 2, 0)

    def second_moment(self) -> Tensor:
        """Σ_n Σ_t a aᵀ, [d, d]."""
        by_rows = len(self.kernel) == 2 and self.kernel[0] > 1 and self.stride[0] == self.dilation[0] == 1
        _, positions, width = self.shape
        numbers = positions * width // (self.kernel[0] if by_rows else 1)
        pieces = spans(len(self.images), numbers * self.images.element_size(), _CHUNK_BYTES)
        parts = (replace(self, images=self.images[start:stop]) for start, stop in pieces)
        return sum_pieces(
            part._by_rows() if by_rows else gram(part.unfolded().flatten(0, 1)) for part in parts
        )

    def squared_norms(self) -> Tensor:
        """‖a_t‖², [n, t]."""
        one_channel = replace(self, images=self.images.square().sum(1, keepdim=True))
        return one_channel.unfolded().sum(2)

    def _places(self) -> tuple[int, ...]:
        sizes = zip(self.images.shape[2:], self.kernel, self.stride, self.dilation, strict=True)
        return tuple((size - far * (k - 1) - 1) // step + 1 for size, k, step, far in sizes)

    def _by_rows(self) -> Tensor:
        """Σ_n Σ_t a aᵀ where the kernel moves by single rows, with 1/k of the products or fewer.

        Rows i and j of the kernel see rows y + i and y + j of the image at place y. With Z_r the horizontal
        patches of image row r, block (i, j) is Σ_y Z_{y+i} Z_{y+j}ᵀ; block (i + 1, j + 1) has the same terms
        but the first, and one more at the end. Columns of the kernel likewise, see `_ImageRows`.
        """
        samples, channels = self.images.shape[:2]
        k, width = self.kernel
        rows, columns = self._places()
        windows = _windows(self.images, (width,), self.stride[1:], self.dilation[1:], first=3)
        Z = windows.new_empty(width, channels, self.images.shape[2], samples, columns)
        Z.copy_(windows.permute(4, 1, 2, 0, 3))
        by_columns = self.stride[1] == self.dilation[1] == 1 and columns >= width > 1
        patches = _ImageRows.of(Z.flatten(3), columns if by_columns else None)
        blocks = Z.new_empty(channels, k, width, channels, k, width)
        for apart in range(k):
            product = patches.product(0, apart, rows)
            for i in range(k - apart):
                if i:
                    product -= patches.product(i - 1, i - 1 + apart, 1)
                    product += patches.product(i - 1 + rows, i - 1 + apart + rows, 1)
                block = product.permute(1, 0, 3, 2)
                blocks[:, i, :, :, i + apart] = block
                blocks[:, i + apart, :, :, i] = block.permute(2, 3, 0, 1)
        moment = blocks.view(channels * k * width, -1)
        if not self.ones:
            return moment
        by_row = patches.Z.sum(3)
        sums = torch.stack([by_row[:, :, i : i + rows].sum(2) for i in range(k)], 1)  # [k_x, k_y, C]
        total = sums.permute(2, 1, 0).reshape(-1, 1)
        count = total.new_full((1, 1), samples * rows * columns)
        return torch.cat([torch.cat([moment, total], 1), torch.cat([total.T, count], 1)])


class _ImageRows(NamedTuple):
    """The horizontal patches Z of image rows.

    Attributes:
        Z: [column of the kernel, C, image row, samples·places].
        first, last: where the kernel moves by single columns its columns but the last at the first place of a
            row, and those but the first at the last place: [k − 1, C, image row, samples]; else None.
    """

    Z: Tensor
    first: Tensor | None
    last: Tensor | None

    @classmethod
    def of(cls, Z: Tensor, columns: int | None) -> _ImageRows:
        """From Z and, where the kernel moves by single columns, the places of a row."""
        if columns is None:
            return cls(Z, None, None)
        return cls(Z, Z[:-1, ..., ::columns].contiguous(), Z[1:, ..., columns - 1 :: columns].contiguous())

    def product(self, row: int, other: int, count: int) -> Tensor:
        """Σ Z_r Z_sᵀ over r = row, …, row + count − 1 and s = r + other − row: [k, C, k, C].

        Block (i + 1, j + 1) of columns of the kernel has the same terms as (i, j) but those of the first
        place, and those of one more at the end.
        """
        X, Y = (self.Z[:, :, start : start + count].flatten(2) for start in (row, other))
        if self.first is None or self.last is None:
            return _product(X, Y)
        out = X.new_empty(*X.shape[:2], *X.shape[:2])
        out[0] = _product(X[:1], Y)[0]
        out[1:, :, 0] = out[0, :, 1:].permute(1, 2, 0) if row == other else _product(X[1:], Y[:1])[:, :, 0]
        before, after = (
            _product(*(ends[:, :, start : start + count].flatten(2) for start in (row, other)))
            for ends in (self.first, self.last)
        )
        change = after.sub_(before)
        for i in range(1, len(X)):
            torch.add(out[i - 1, :, :-1], change[i - 1], out=out[i, :, 1:])
        return out


def _product(X: Tensor, Y: Tensor) -> Tensor:
    """X [k, C, q] and Y [l, C, q] to [k, C, l, C]."""
    return (X.flatten(0, 1) @ Y.flatten(0, 1).T).view(*X.shape[:2], *Y.shape[:2])


def _windows(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], first: int = 2
) -> Tensor:
    """A view [n, channels, places…, kernel…] of the values under a kernel, from dimension `first` on."""
    for place, (size, step, far) in enumerate(zip(kernel, stride, dilation, strict=True)):
        x = x.unfold(first + place, far * (size - 1) + 1, step)[..., ::far]
    return x
