"""Layer inputs a [n, t, d]: a tensor, or one-hot rows kept as indices; and all that is done with them.

The functions here take either kind. None of them makes one-hot matrices, except `dense_inputs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fisherlab.errors import InputError, InputTypeError
from fisherlab.linalg.arguments import real_tensor
from fisherlab.linalg.numerics import gram, symmetric_product

_LARGE_PRODUCT = 2**21  # multiplications, measured as 16 µs, beside which one more call of 1 µs is little


class OneHot:
    """Inputs a [n, t, d] whose rows are unit vectors, or zero where the index is −1.

    It has the attributes of the tensor that it stands for, as far as operators and statistics need them.

    Args:
        indices: [n, t], whole numbers from −1 to d − 1.
        size: d.
        dtype: of the products that the inputs take part in.

    Raises:
        InputError: the indices are not a matrix of whole numbers in that range.
    """

    ndim = 3

    def __init__(self, indices: Tensor, size: int, dtype: torch.dtype):
        if not isinstance(indices, Tensor):
            raise InputTypeError(f"one-hot inputs have a tensor of indices, not a {type(indices).__name__}.")
        if isinstance(size, bool) or not isinstance(size, int):
            raise InputTypeError(f"the size of one-hot inputs is a whole number, not {size!r}.")
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise InputTypeError(f"one-hot inputs have a real floating-point dtype, not {dtype!r}.")
        if indices.ndim != 2 or indices.dtype != torch.int64:
            raise InputError(
                f"one-hot inputs have int64 indices [n, t], not {indices.dtype} {list(indices.shape)}."
            )
        known = indices.numel() and not indices.is_meta
        lowest, highest = (int(x) for x in indices.aminmax()) if known else (0, -1)
        if lowest < -1 or highest >= size:
            raise InputError(
                f"the indices of one-hot inputs of size {size} go from -1 to {size - 1}, "
                f"not from {lowest} to {highest}."
            )
        self.indices = indices
        self.size = size
        self.dtype = dtype
        self.masked = lowest == -1

    def __repr__(self) -> str:
        return f"OneHot(shape={list(self.shape)}, dtype={self.dtype})"

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, samples: slice | Tensor) -> OneHot:
        return self._like(self.indices[samples])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n, t, d)."""
        return *self.indices.shape, self.size

    @property
    def device(self) -> torch.device:
        """Where the indices are."""
        return self.indices.device

    @property
    def valid(self) -> Tensor:
        """1 where a row is a unit vector and 0 where it is zero, [n, t], in the dtype."""
        return (self.indices >= 0).to(self.dtype)

    @property
    def safe(self) -> Tensor:
        """The indices with 0 for −1, flat: [n·t]."""
        return self.indices.clamp(min=0).flatten()

    def to(self, target: torch.dtype | torch.device | str) -> OneHot:
        """The same inputs in another dtype or on another device."""
        if isinstance(target, torch.dtype):
            return OneHot(self.indices, self.size, target)
        return self._like(self.indices.to(target))

    def double(self) -> OneHot:
        """The same inputs in float64."""
        return self.to(torch.float64)

    def clone(self) -> OneHot:
        """A copy."""
        return self._like(self.indices.clone())

    def dense(self) -> Tensor:
        """The tensor [n, t, d] itself."""
        out = torch.zeros(self.shape, dtype=self.dtype, device=self.device)
        return out.scatter_(2, self.indices.clamp(min=0)[..., None], self.valid[..., None])

    def gathered(self, vector: Tensor) -> Tensor:
        """The entries of a vector [d] at the indices, 0 where a row is zero: [n, t]."""
        values = vector.index_select(0, self.safe).view(self.indices.shape)
        return values * self.valid if self.masked else values

    def merged(self, g: Tensor) -> tuple[OneHot, Tensor]:
        """Inputs with distinct rows in each sample, and the g that gives the same V = Σ_t g_t a_tᵀ.

        The g of equal positions are summed; positions that become free have the index −1.

        Args:
            g: [c, n, t, m].
        """
        samples, positions = self.indices.shape
        if positions == 1:
            return self, g
        ordered, order = self.indices.sort(dim=1)
        new = ordered.diff(dim=1, prepend=ordered[:, :1]) != 0
        if bool(new[:, 1:].all()):
            return self, g
        places = new.cumsum(1)
        indices = torch.full_like(ordered, -1).scatter_(1, places, ordered)
        own = torch.empty_like(order).scatter_(1, order, places)
        first = positions * torch.arange(samples, device=self.device)
        flat = (own + first[:, None]).flatten()
        summed = g.new_zeros(g.shape[0], samples * positions, g.shape[3])
        summed.index_add_(1, flat, g.detach().reshape(summed.shape))
        return self._like(indices), summed.view(g.shape)

    def compact(self) -> OneHot:
        """The same inner products in the smallest size: only indices that occur are counted."""
        found, renamed = self.indices.unique(return_inverse=True)
        missing = int((found < 0).sum())
        return OneHot(renamed - missing, len(found) - missing, self.dtype)

    def _like(self, indices: Tensor) -> OneHot:
        return OneHot(indices, self.size, self.dtype)


Inputs: TypeAlias = Tensor | OneHot


def cat(pieces: Sequence[Inputs]) -> Inputs:
    """Inputs of one kind one after another, along the samples."""
    first = pieces[0]
    if isinstance(first, OneHot):
        return first._like(torch.cat([piece.indices for piece in pieces if isinstance(piece, OneHot)]))
    return torch.cat([piece for piece in pieces if isinstance(piece, Tensor)])


def dense_inputs(a: Inputs) -> Tensor:
    """The inputs as a tensor [n, t, d]; for the few operators that hold d² numbers themselves."""
    return a.dense() if isinstance(a, OneHot) else a


def squared_norms(a: Inputs) -> Tensor:
    """‖a_t‖², [n, t]."""
    return a.valid if isinstance(a, OneHot) else a.square().sum(-1)


def rotated(a: Inputs, U: Tensor | None) -> Inputs:
    """The rows times U [d, k]: [n, t, k]; None: the inputs as they are."""
    if U is None:
        return a
    if isinstance(a, OneHot):
        rows = U.to(a.dtype).index_select(0, a.safe).view(*a.indices.shape, -1)
        return rows * a.valid[..., None] if a.masked else rows
    return a @ U.to(a.dtype)


def inner_products(a: Inputs, b: Inputs) -> Tensor:
    """a_{n,t}·b_{k,s} of all positions of all samples: [n, t, k, s]."""
    if isinstance(a, OneHot) and isinstance(b, OneHot):
        equal = a.indices[:, :, None, None] == b.indices
        return (equal & (a.indices >= 0)[:, :, None, None]).to(a.dtype)
    if isinstance(a, OneHot):
        return inner_products(b, a).permute(2, 3, 0, 1)
    if isinstance(b, OneHot):
        entries = a.index_select(2, b.safe).unflatten(2, b.indices.shape)
        return entries * b.valid if b.masked else entries
    return torch.tensordot(a, b, dims=([2], [2]))


def position_products(a: Inputs, A: Tensor | None = None) -> Tensor:
    """a_tᵀ A a_s of the positions of each sample: [n, t, s], for A [d, d], a diagonal [d], or None (I)."""
    if isinstance(a, OneHot):
        left, right = a.indices[:, :, None], a.indices[:, None, :]
        if A is None or A.ndim == 1:
            weights = a.valid if A is None else a.gathered(A)
            return (left == right) * weights[..., None]
        entries = A[left.clamp(min=0), right.clamp(min=0)]
        return entries * (a.valid[..., None] * a.valid[:, None]) if a.masked else entries
    if A is None:
        return a @ a.mT
    return (a @ A if A.ndim == 2 else a * A) @ a.mT


def second_moment(a: Inputs, weights: Tensor | None = None) -> Tensor:
    """Σ_n Σ_t w_{n,t} a aᵀ: [d, d] for a tensor, its diagonal [d] for one-hot inputs.

    Args:
        a: the inputs.
        weights: [n, t]; None: 1.
    """
    if isinstance(a, OneHot):
        values = a.valid if weights is None else weights * a.valid
        return values.new_zeros(a.size).index_add_(0, a.safe, values.flatten())
    if weights is None:
        return row_moment(a)
    rows = a.reshape(-1, a.shape[-1])
    return symmetric_product(rows, rows * weights.reshape(-1, 1))


def row_moment(x: Tensor) -> Tensor:
    """Σ x xᵀ over all rows of x [..., t, k]: [k, k].

    Rows that lie in memory column by column (unfolded images, gradients of channels) are not copied.
    """
    positions, width = x.shape[-2:]
    by_columns = x.dim() > 2 and x.stride(-2) == 1 and x.stride(-1) >= positions >= width
    if by_columns and x.stride(-3) != positions:
        samples = (x.transpose(0, 1) if x.dim() == 4 and x.stride(0) < x.stride(1) else x).flatten(0, -3)
        return torch.bmm(samples.mT, samples).sum(0)
    return gram(x.reshape(-1, width))


def pair_moment(a: Inputs, weights: Tensor) -> Tensor:
    """Σ_n Σ_{t,s} w_{n,t,s} a_t a_sᵀ, [d, d], for weights [n, t, s]."""
    if isinstance(a, OneHot):
        safe = a.indices.clamp(min=0)
        places = safe[:, :, None] * a.size + safe[:, None]
        values = weights * (a.valid[..., None] * a.valid[:, None]) if a.masked else weights
        total = weights.new_zeros(a.size * a.size)
        return total.index_add_(0, places.flatten(), values.flatten()).view(a.size, a.size)
    return symmetric_product(a.reshape(-1, a.shape[-1]), (weights @ a).reshape(-1, a.shape[-1]))


def layer_outputs(a: Inputs, X: Tensor) -> Tensor:
    """X_b a_{n,t} for weights X [b, m, d]: [b, n, t, m]."""
    if isinstance(a, OneHot):
        found = X.permute(2, 0, 1).index_select(0, a.safe).unflatten(0, a.indices.shape)
        return (found * a.valid[..., None, None] if a.masked else found).permute(2, 0, 1, 3)
    return torch.einsum("ntd,bmd->bntm", a, X)


def weighted_sum(s: Tensor, a: Inputs) -> Tensor:
    """Σ_n Σ_t s_{b,n,t} a_{n,t}ᵀ for s [b, n, t, m]: [b, m, d]."""
    if isinstance(a, OneHot):
        rows = s.permute(1, 2, 0, 3).flatten(0, 1)
        values = rows * a.valid.view(-1, 1, 1) if a.masked else rows
        total = s.new_zeros(a.size, s.shape[0], s.shape[3])
        return total.index_add_(0, a.safe, values).permute(1, 2, 0)
    return torch.einsum("bntm,ntd->bmd", s, a)


def by_sample(g: Tensor) -> Tensor:
    """The gradients g [c, n, t, m] as [n, t, c·m]."""
    return g.permute(1, 2, 0, 3).flatten(2)


def sample_gradients(a: Inputs, g: Tensor, out: Tensor | None = None) -> Tensor:
    """V_{n,c} = Σ_t g_{c,n,t} a_{n,t}ᵀ as [n, c, m, d], sample by sample.

    Args:
        a: the inputs [n, t, d].
        g: [c, n, t, m].
        out: a flat buffer of at least n·c·m·d entries for the result of tensors; None: a new one.
    """
    classes, samples, positions, m = g.shape
    d = a.shape[2]
    if isinstance(a, OneHot):
        rows = by_sample(g.detach())
        values = rows * a.valid[..., None] if a.masked else rows
        first = d * torch.arange(samples, device=g.device)
        places = (a.indices.clamp(min=0) + first[:, None]).flatten()
        total = g.new_zeros(samples * d, classes * m).index_add_(0, places, values.flatten(0, 1))
        return total.view(samples, d, classes, m).permute(0, 2, 3, 1)
    shape = (samples, classes, m, d)
    V = g.new_empty(shape) if out is None else out[: samples * classes * m * d].view(shape)
    together = g.stride(0) == m * g.stride(3)  # as [n, c, m, t] in memory
    if together or samples * positions * m * d < _LARGE_PRODUCT:
        torch.bmm(by_sample(g.detach()).mT, a.detach(), out=V.flatten(1, 2))
    else:  # no copy of g
        for c in range(classes):
            torch.bmm(g[c].detach().mT, a.detach(), out=V[:, c])
    return V


def alike(what: str, *parts: Inputs | None) -> list[Any]:
    """The parts of an operator in the widest of their dtypes, float32 at least; what is None stays so.

    Raises:
        InputTypeError: one is no real tensor.
        InputError: they are on different devices.
    """
    given = [
        part if isinstance(part, OneHot) else real_tensor(what, part) for part in parts if part is not None
    ]
    devices = list(dict.fromkeys(str(part.device) for part in given))
    if len(devices) > 1:
        raise InputError(f"{what} are on {' and '.join(devices)}; bring them to one device.")
    dtype = reduce(torch.promote_types, (part.dtype for part in given), torch.float32)
    return [None if part is None else part.to(dtype) for part in parts]
