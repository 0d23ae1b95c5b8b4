"""Symmetric matrices as vectors (svec), and the packed form of a Fisher block.

`svec` is an isometry: <svec X, svec Y> = <X, Y> for symmetric X and Y. Nothing here is
differentiable; inputs are detached where that matters.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from fisherlab.errors import InputError
from fisherlab.linalg.arguments import real_tensor
from fisherlab.linalg.numerics import spans

_ROOT_2 = math.sqrt(2.0)
_EXPANSION_BYTES = 4 * 2**20  # expanded at a time by `unpack`: a choice that stays in the cache


class PackingIndex(NamedTuple):
    """Where the entries of a symmetric [k, k] matrix stand in its packed vector [k(k+1)/2].

    Attributes:
        rows: row of each packed entry, [k(k+1)/2].
        columns: column of each packed entry, [k(k+1)/2].
        flat: its place in the flattened matrix, [k(k+1)/2].
        positions: packed place of each entry of the matrix, [k, k].
    """

    rows: Tensor
    columns: Tensor
    flat: Tensor
    positions: Tensor

    @property
    def diagonal(self) -> Tensor:
        """Packed places of the diagonal entries, [k]."""
        return self.positions.diagonal()


@lru_cache(maxsize=16)
def packing_index(k: int, device: torch.device) -> PackingIndex:
    """The index tensors of size k on a device (cached)."""
    with torch.inference_mode(False):
        rows, columns = torch.triu_indices(k, k, device=device)
        positions = torch.empty(k, k, dtype=torch.long, device=device)
        places = torch.arange(len(rows), device=device)
        positions[rows, columns] = places
        positions[columns, rows] = places
        return PackingIndex(rows, columns, rows * k + columns, positions)


@lru_cache(maxsize=32)
def _packed_scale(k: int, device: torch.device, dtype: torch.dtype, off_diagonal: float) -> Tensor:
    """1 at diagonal entries and `off_diagonal` at the others, [k(k+1)/2]."""
    with torch.inference_mode(False):
        index = packing_index(k, device)
        scale = torch.full((packed_size(k),), off_diagonal, dtype=dtype, device=device)
        scale[index.diagonal] = 1.0
        return scale


def packed_size(k: int) -> int:
    """k(k+1)/2, the length of svec of a [k, k] matrix."""
    return k * (k + 1) // 2


def svec(S: Tensor) -> Tensor:
    """The upper triangle of symmetric matrices, row by row, off-diagonal entries times √2.

    Args:
        S: [..., k, k]; only the upper triangle is read.

    Returns:
        [..., k(k+1)/2].
    """
    if real_tensor("the matrix of svec", S).ndim < 2 or S.shape[-2] != S.shape[-1]:
        raise InputError(f"svec is of square matrices [..., k, k], not {list(S.shape)}.")
    k = S.shape[-1]
    flat = packing_index(k, S.device).flat
    entries = S.flatten(-2).gather(-1, flat.expand(*S.shape[:-2], -1))
    return entries.mul_(_packed_scale(k, S.device, S.dtype, _ROOT_2))


def smat(v: Tensor, k: int) -> Tensor:
    """The symmetric matrices [..., k, k] whose `svec` is v [..., k(k+1)/2].

    Raises:
        InputError: the last dimension of v is not k(k+1)/2.
    """
    real_tensor("the vector of smat", v)
    if v.shape[-1] != packed_size(k):
        raise InputError(f"svec of a {k}×{k} matrix has {packed_size(k)} entries, not {v.shape[-1]}.")
    positions = packing_index(k, v.device).positions.flatten()
    scaled = v * _packed_scale(k, v.device, v.dtype, 1 / _ROOT_2)
    return scaled.gather(-1, positions.expand(*v.shape[:-1], -1)).unflatten(-1, (k, k))


def svec_outer(a: Tensor) -> Tensor:
    """svec(a aᵀ) for vectors a [n, k], without forming a [k, k] matrix: [n, k(k+1)/2].

    The result is a transposed view: its entries lie sample by sample, so that each is one product of two
    contiguous rows and `svec_outer(a).T` is contiguous.
    """
    if real_tensor("the vectors of svec_outer", a).ndim != 2:
        raise InputError(f"svec_outer is of vectors [n, k], not {list(a.shape)}.")
    k = a.shape[-1]
    rows = a.detach().T.contiguous()
    scaled = rows * _ROOT_2
    out = a.new_empty(packed_size(k), a.shape[0])
    start = 0
    for row in range(k):
        stop = start + k - row
        torch.mul(rows[row], scaled[row:], out=out[start:stop])
        torch.mul(rows[row], rows[row], out=out[start])
        start = stop
    return out.T


def svec_gram(g: Tensor) -> Tensor:
    """svec(Σ_c g_c g_cᵀ) for g [c, n, k]: [n, k(k+1)/2].

    Raises:
        InputError: g has other dimensions.
    """
    if real_tensor("the vectors of svec_gram", g).ndim != 3:
        raise InputError(f"svec_gram is of vectors [c, n, k], not {list(g.shape)}.")
    if g.shape[0] == 1:
        return svec_outer(g[0])
    per_sample = g.transpose(0, 1)
    return svec(per_sample.mT @ per_sample)


def outer_rows(U: Tensor, rows: slice) -> Tensor:
    """Rows of R [k(k+1)/2, r], whose column i is svec(u_i u_iᵀ) for column u_i of U [k, r]."""
    k = U.shape[0]
    index = packing_index(k, U.device)
    products = U.index_select(0, index.rows[rows]) * U.index_select(0, index.columns[rows])
    return products.mul_(_packed_scale(k, U.device, U.dtype, _ROOT_2)[rows, None])


def project(U: Tensor, M: Tensor) -> Tensor:
    """Rᵀ M for the R of `outer_rows`: row i is svec(u_i u_iᵀ)ᵀ M.

    Args:
        U: [k, r].
        M: [k(k+1)/2, q].

    Returns:
        [r, q].
    """
    out = M.new_zeros(U.shape[1], M.shape[1])
    for start, stop in spans(len(M), U.shape[1] * U.element_size()):
        out.addmm_(outer_rows(U, slice(start, stop)).T, M[start:stop])
    return out


def unpack(M: Tensor, outputs: int, inputs: int) -> Tensor:
    """The dense matrix [D, D], column-vec order, whose packed form is M.

    Entry ((i, j), (k, l)) is M[p(i, k), p(j, l)], times 1/√2 for each of the two pairs that is
    off the diagonal.

    Args:
        M: [d(d+1)/2, m(m+1)/2].
        outputs: m.
        inputs: d.
    """
    m, d = outputs, inputs
    out = M.new_empty(d, m, d, m)
    for start, stop in spans(d, d * m * m * M.element_size(), _EXPANSION_BYTES):
        out[start:stop] = unpack_rows(M, start, stop, m, d)
    return out.view(d * m, d * m)


def unpack_rows(M: Tensor, start: int, stop: int, outputs: int, inputs: int) -> Tensor:
    """Entries ((i, j), (k, l)) of `unpack(M)` for i in start..stop: a view [i, j, k, l]."""
    m, d = outputs, inputs
    pairs = packing_index(d, M.device).positions[start:stop].flatten()
    units = packing_index(m, M.device).positions.flatten()
    pair_scale = _packed_scale(d, M.device, M.dtype, 1 / _ROOT_2)[pairs, None]
    entries = M.index_select(0, pairs).mul_(pair_scale)
    entries *= _packed_scale(m, M.device, M.dtype, 1 / _ROOT_2)
    return entries.index_select(1, units).view(stop - start, d, m, m).permute(0, 2, 1, 3)
