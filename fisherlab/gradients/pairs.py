"""Inner products of all pairs of gradients, <V_{n,c}, V'_{n',c'}>, by tiles of bounded size.

By positions, Σ_{t,s} (a_t·a'_s)(g_t·g'_s), or by vectors, V over blocks of outputs so that each entry of V
is made once; whichever takes fewer operations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fisherlab.base.memory import at_most
from fisherlab.gradients.inputs import Inputs, OneHot, inner_products, sample_gradients
from fisherlab.linalg.numerics import CHUNK_BYTES, ENTRY_COST, add_product, self_product, spans

_BLOCK_BYTES = 128 * 2**20  # of V, for the outputs that are made at a time: a choice, half of `CHUNK_BYTES`

Tile = tuple[slice, slice, Tensor]


@dataclass(frozen=True)
class GradientPair:
    """V_{n,c} = Σ_t g_{c,n,t} a_{n,t}ᵀ by its parts.

    Attributes:
        a: [n, t, d].
        g: [c, n, t, m].
    """

    a: Inputs
    g: Tensor

    def __getitem__(self, samples: slice) -> GradientPair:
        return GradientPair(self.a[samples], self.g[:, samples])

    @property
    def count(self) -> int:
        """n·c."""
        return self.g.shape[0] * self.g.shape[1]

    def rows(self, start: int, stop: int) -> Tensor:
        """The rows start..stop of every V, vectors sample by sample: [n·c, (stop - start)·d]."""
        return sample_gradients(self.a, self.g[..., start:stop]).flatten(2).flatten(0, 1)


def tiles(left: GradientPair, right: GradientPair | None = None) -> Iterator[Tile]:
    """(samples, other samples, <V, V'> [c, n, c', n'] float64) over pairs of ranges of samples.

    Without `right` of V with itself, only on and above the diagonal.
    """
    other = left if right is None else right
    by_positions = _by_positions(left, other)
    if not by_positions and isinstance(left.a, OneHot) and right is None:
        left = other = GradientPair(left.a.compact(), left.g)
    tile = _tile_by_positions if by_positions else _tile_by_vectors
    side = math.isqrt(at_most(CHUNK_BYTES, 16) // (4 * left.g.element_size()))
    ranges = _ranges(left, side, by_positions)
    for index, rows in enumerate(ranges):
        part = left[rows]
        for columns in ranges[index:] if right is None else _ranges(other, side, by_positions):
            same = right is None and rows == columns
            yield rows, columns, tile(part, part if same else other[columns])


def _ranges(pair: GradientPair, side: int, by_positions: bool) -> list[slice]:
    width = pair.g.shape[0] * (pair.g.shape[2] if by_positions else 1)
    step = max(1, side // width)
    return [slice(start, start + step) for start in range(0, len(pair.a), step)]


def _by_positions(left: GradientPair, right: GradientPair) -> bool:
    """Whether positions take fewer operations than V, for a pair of samples."""
    (c, n, t, m), (k, others, s, _) = left.g.shape, right.g.shape
    d = left.a.shape[2]
    if isinstance(left.a, OneHot):
        d = min(d, left.a.indices.numel())
        inputs = ENTRY_COST
    else:
        inputs = float(d)
    positions = t * s * (inputs + c * k * (m + ENTRY_COST))
    vectors = m * d * (c * k + c * (t + ENTRY_COST) / max(1, others) + k * (s + ENTRY_COST) / max(1, n))
    return t * s == 1 or positions < vectors


def _tile_by_positions(left: GradientPair, right: GradientPair) -> Tensor:
    """Σ_{t,s} (a_t·a'_s)(g_t·g'_s), without V."""
    inputs = inner_products(left.a, right.a)
    outputs = torch.tensordot(left.g, right.g, dims=([3], [3]))
    outputs *= inputs[None, :, :, None]
    return outputs.sum((2, 5)).double()


def _tile_by_vectors(left: GradientPair, right: GradientPair) -> Tensor:
    """The products of blocks of outputs, added in float64."""
    each = (left.count + right.count) * left.a.shape[2] * left.g.element_size()
    blocks = spans(left.g.shape[3], each, _BLOCK_BYTES)
    if left is right:
        columns = (left.rows(*block).T for block in blocks)
        total = self_product(columns, left.count, left.g.device)
    else:
        total = torch.zeros(left.count, right.count, dtype=torch.float64, device=left.g.device)
        for block in blocks:
            add_product(total, left.rows(*block), right.rows(*block).T)
    sizes = (left.g.shape[1], left.g.shape[0], right.g.shape[1], right.g.shape[0])
    return total.view(sizes).permute(1, 0, 3, 2)


def weighted_gram(pair: GradientPair, S: Tensor) -> Tensor:
    """<V, S∘V'> for all pairs, [c·n, c·n] with index c·n_samples + n, for S [m, d].

    For one position Σ_j (g_j g_jᵀ) ∘ (a diag(S_j) aᵀ), else by vectors.
    """
    if pair.g.shape[2] == 1 and isinstance(pair.a, Tensor):
        return _weighted_outer_gram(pair.a[:, 0], pair.g[:, :, 0], S)
    blocks = list(
        spans(pair.g.shape[3], 2 * pair.count * pair.a.shape[2] * pair.g.element_size(), _BLOCK_BYTES)
    )
    rows = (pair.rows(*block) for block in blocks)
    return _sum_of_blocks(rows, blocks, pair.g.shape[0], S)


def vectors_gram(V: Tensor, S: Tensor) -> Tensor:
    """`weighted_gram` of V [n, c, m, d] that are known."""
    blocks = list(spans(V.shape[2], V[:, :, 0].numel() * V.element_size(), _BLOCK_BYTES))
    rows = (V[:, :, start:stop].flatten(2).flatten(0, 1) for start, stop in blocks)
    return _sum_of_blocks(rows, blocks, V.shape[1], S)


def _sum_of_blocks(
    rows: Iterator[Tensor], blocks: Sequence[tuple[int, int]], classes: int, S: Tensor
) -> Tensor:
    """Σ V S Vᵀ over blocks of outputs, from rows sample by sample to the order c·n_samples + n."""
    total = torch.zeros((), dtype=torch.float64, device=S.device)
    for V, (start, stop) in zip(rows, blocks, strict=True):
        if not total.dim():
            total = total.new_zeros(len(V), len(V))
        add_product(total, V * S[start:stop].flatten(), V.T)
    samples = len(total) // classes
    by_class = total.view(samples, classes, samples, classes).permute(1, 0, 3, 2)
    return by_class.reshape(total.shape).to(S.dtype)


def _weighted_outer_gram(a: Tensor, g: Tensor, S: Tensor) -> Tensor:
    classes, samples, m = g.shape
    total = a.new_zeros(classes, samples, classes, samples)
    for start, stop in spans(m, samples * max(samples, a.shape[1]) * classes * a.element_size()):
        inner = (a * S[start:stop, None]) @ a.T
        total += torch.einsum("cnj,jnk,dkj->cndk", g[..., start:stop], inner, g[..., start:stop])
    return total.flatten(2).flatten(0, 1)
