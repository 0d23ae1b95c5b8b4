"""The inputs of a convolution as images: patches are made when they are asked for, or not at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fisherlab.operators.numerics import gram, spans, sum_pieces

_CHUNK_BYTES = 8 * 2**20  # of patches at a time: memory that is written again and again


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
        """Σ_n Σ_t a aᵀ where the kernel moves by single rows, with 1/k of the products.

        Rows i and j of the kernel see rows y + i and y + j of the image at place y. With Z_r the horizontal
        patches of image row r, block (i, j) is Σ_y Z_{y+i} Z_{y+j}ᵀ; block (i + 1, j + 1) has the same terms
        but the first, and one more at the end.
        """
        samples, channels = self.images.shape[:2]
        k, width = self.kernel
        rows, columns = self._places()
        windows = _windows(self.images, (width,), self.stride[1:], self.dilation[1:], first=3)
        Z = windows.new_empty(channels, width, self.images.shape[2], samples, columns)
        Z.copy_(windows.permute(1, 4, 2, 0, 3))
        Z = Z.view(channels * width, -1, samples * columns)  # [C·k, image row, places of a row]
        blocks = Z.new_empty(channels, k, width, channels, k, width)
        for apart in range(k):
            product = _product(Z[:, :rows], Z[:, apart : apart + rows]) if apart else _square(Z[:, :rows])
            for i in range(k - apart):
                if i:
                    product -= _product(Z[:, i - 1], Z[:, i - 1 + apart])
                    product += _product(Z[:, i - 1 + rows], Z[:, i - 1 + apart + rows])
                block = product.view(channels, width, channels, width)
                blocks[:, i, :, :, i + apart] = block
                blocks[:, i + apart, :, :, i] = block.permute(2, 3, 0, 1)
        moment = blocks.view(channels * k * width, -1)
        if not self.ones:
            return moment
        by_row = Z.sum(2)
        sums = torch.stack([by_row[:, i : i + rows].sum(1) for i in range(k)], 1)
        total = sums.view(channels, width, k).transpose(1, 2).reshape(-1, 1)
        count = total.new_full((1, 1), samples * rows * columns)
        return torch.cat([torch.cat([moment, total], 1), torch.cat([total.T, count], 1)])


def _product(X: Tensor, Y: Tensor) -> Tensor:
    return X.flatten(1) @ Y.flatten(1).T


def _square(X: Tensor) -> Tensor:
    return gram(X.flatten(1).T)


def _windows(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], first: int = 2
) -> Tensor:
    """A view [n, channels, places…, kernel…] of the values under a kernel, from dimension `first` on."""
    for place, (size, step, far) in enumerate(zip(kernel, stride, dilation, strict=True)):
        x = x.unfold(first + place, far * (size - 1) + 1, step)[..., ::far]
    return x
