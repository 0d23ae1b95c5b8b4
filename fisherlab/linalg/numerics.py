"""Numerics shared by the operators: float64 reductions, factorisations that fail with a way out."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from fisherlab.base.memory import at_most
from fisherlab.errors import NumericalError
from fisherlab.linalg.lowrank import SMALLEST, find_range, holds, range_eigenvalues, range_eigh

CHUNK_BYTES = 256 * 2**20  # of one piece of work: a choice, a sixteenth of the memory given by default
_PIECES = 16  # parts of the memory limit of which a piece may take one: some pieces have several copies
ENTRY_COST = 50.0  # multiplications that take as long as writing one number to memory and reading it
_REDUCTION_ELEMENTS = 2**22  # brought to float64 at a time: 32 MiB, which bounds the copy of a large tensor
_PANELS = 8  # of which 9/16 of the products remain; more panels are too narrow for fast products
_FEW_PANELS = 4  # of which 5/8 remain; for a product that is taken once, whose panels should be wide
_LEAST_MIRRORED, _LEAST_ROWS = 2**23, 256  # products and rows from which panels pay
_NARROWEST = 16  # columns of a panel: a choice, the width of a kernel of a matrix product
_LEAST_PANEL = 128  # columns, for products of many pieces: a choice, below which they are not faster
_TILE = 256  # rows and columns: two tiles in float64 are 1 MiB, which stays in a core's cache
_SINGLE_ROUNDING = 1e-6  # about 8 ε of float32: what sums of products in it leave where there is a zero
_KNOWN_BYTES, _KNOWN_PART = 512 * 2**20, 8  # of eigenvectors that are remembered: a choice, one part of eight


def spans(total: int, bytes_each: int, budget: int | None = None) -> Iterator[tuple[int, int]]:
    """(start, stop) pairs that cover range(total).

    Args:
        total: how many items.
        bytes_each: bytes that one item takes.
        budget: bytes of one piece (at least one item), less where memory is short; None: `CHUNK_BYTES`.
    """
    step = max(1, at_most(budget or CHUNK_BYTES, _PIECES) // max(1, bytes_each))
    for start in range(0, total, step):
        yield start, min(total, start + step)


def dot64(x: Tensor, y: Tensor) -> Tensor:
    """Σ x∘y accumulated in float64, a 0-d tensor."""
    x, y = x.reshape(-1), y.reshape(-1)
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for start in range(0, x.numel(), _REDUCTION_ELEMENTS):
        piece = slice(start, start + _REDUCTION_ELEMENTS)
        total += torch.dot(x[piece].double(), y[piece].double())
    return total


def norm64(x: Tensor) -> Tensor:
    """‖x‖_F accumulated in float64, a 0-d tensor."""
    return dot64(x, x).sqrt()


def symmetrised(matrix: Tensor) -> Tensor:
    """(M + Mᵀ)/2 for [..., k, k]; large matrices by tiles that stay in the cache."""
    k = matrix.shape[-1]
    if matrix.ndim != 2 or k <= 2 * _TILE:
        return (matrix + matrix.mT) / 2
    out = torch.empty_like(matrix)
    tiles = [slice(*span) for span in spans(k, 1, _TILE)]
    for place, rows in enumerate(tiles):
        for columns in tiles[place:]:
            tile = torch.add(matrix[rows, columns], matrix[columns, rows].T).div_(2)
            out[rows, columns], out[columns, rows] = tile, tile.T
    return out


def symmetric_eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (ascending) and eigenvectors of symmetric matrices [..., k, k].

    Eigenvalues within rounding of zero, |v| ≤ k·ε·max|v|, are returned as exactly zero, so that a
    singular matrix is seen as one. A large matrix of exactly low rank is decomposed in its range.

    Raises:
        NumericalError: an entry is not finite, or the decomposition does not converge in float64.
    """
    remembered = _remembered.get()
    if remembered is None or matrix.ndim != 2:
        return _fresh_eigh(matrix)
    return remembered.eigh(matrix)


class _Remembered:
    """The latest eigendecompositions up to a number of bytes, and the range of the latest of low rank."""

    def __init__(self) -> None:
        self.space: tuple[Tensor, int] | None = None
        self._found: dict[Any, tuple[Tensor, Tensor]] = {}

    def eigh(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """`symmetric_eigh` of a matrix."""
        key = (matrix.shape, matrix.dtype, hashlib.blake2b(matrix.cpu().contiguous().numpy().data).digest())
        self._found[key] = self._found.pop(key) if key in self._found else _fresh_eigh(matrix)
        while len(self._found) > 1 and self._bytes() > at_most(_KNOWN_BYTES, _KNOWN_PART):
            del self._found[next(iter(self._found))]
        return self._found[key]

    def _bytes(self) -> int:
        return sum(vectors.numel() * vectors.element_size() for _, vectors in self._found.values())


_remembered: ContextVar[_Remembered | None] = ContextVar("eigenvectors", default=None)


@contextmanager
def eigenvectors_kept() -> Iterator[None]:
    """Inside, `symmetric_eigh` decomposes equal matrices once: the latest, up to 512 MiB, are remembered.

    Of matrices with one range of low rank it is looked for once too.
    """
    token = _remembered.set(_Remembered())
    try:
        yield
    finally:
        _remembered.reset(token)


def _fresh_eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = _decomposed(matrix, _eigh)
    return _without_rounding(values), vectors


def symmetric_eigenvalues(matrix: Tensor) -> Tensor:
    """The eigenvalues of `symmetric_eigh` alone, in about a third of its time."""
    return _without_rounding(_decomposed(matrix, _eigvalsh))


def _without_rounding(values: Tensor) -> Tensor:
    rounding = values.shape[-1] * torch.finfo(values.dtype).eps
    largest = values.abs().amax(-1, keepdim=True)
    return values.where(values.abs() > rounding * largest, 0.0)


def _eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    remembered = _remembered.get()
    space = None if remembered is None else remembered.space
    if space is None or not _fits(matrix, *space):
        found = find_range(matrix)
        if found is None:
            values, vectors = torch.linalg.eigh(matrix)
            return values, vectors
        space = found.whole_basis(), len(found.scales)
        if remembered is not None:
            remembered.space = space
    return range_eigh(matrix, *space)


def _fits(matrix: Tensor, basis: Tensor, rank: int) -> bool:
    """Whether a space known from another matrix holds the range of this one."""
    same = matrix.shape == basis.shape and matrix.dtype == basis.dtype and len(matrix) > SMALLEST
    return same and holds(basis[:, :rank], matrix)


def _eigvalsh(matrix: Tensor) -> Tensor:
    found = find_range(matrix)
    return torch.linalg.eigvalsh(matrix) if found is None else range_eigenvalues(matrix, found)


def _decomposed(matrix: Tensor, decompose: Callable[[Tensor], Any]) -> Any:
    """A decomposition of the symmetrised matrix, in float64 where its own dtype fails."""
    if not bool(matrix.isfinite().all()):
        raise NumericalError(
            "a matrix to decompose has entries that are not finite; check the statistics it is made of."
        )
    cause: Exception | None = None
    try:
        found = decompose(symmetrised(matrix))
        if all(bool(part.isfinite().all()) for part in (found if isinstance(found, tuple) else (found,))):
            return found  # LAPACK may leave NaN in float32 without a word
    except torch.linalg.LinAlgError as error:
        cause = error
    if matrix.dtype == torch.float64:
        raise NumericalError("the eigendecomposition of a matrix did not converge; rescale it.") from cause
    again = _decomposed(matrix.double(), decompose)
    if isinstance(again, Tensor):
        return again.to(matrix.dtype)
    return tuple(part.to(matrix.dtype) for part in again)


def damped_power(values: Tensor, damping: float | Tensor, p: float) -> Tensor:
    """(v + λ)^p for the eigenvalues v of a positive semi-definite matrix.

    Negative eigenvalues within rounding count as zero (`without_negative`).

    Raises:
        NumericalError: v + λ is not positive and p is negative or not an integer.
    """
    damped = without_negative(values) + damping
    if p < 0:
        require_positive(damped)
    elif p != int(p) and bool((damped < 0).any()):
        raise NumericalError(
            "a fractional power needs eigenvalues that are not negative; use a larger damping."
        )
    return damped.pow(p)


def damped_log(values: Tensor, damping: float | Tensor) -> Tensor:
    """log(v + λ) for the eigenvalues v of a positive semi-definite matrix, and 0 where v + λ is zero.

    Negative eigenvalues within rounding count as zero (`without_negative`).

    Raises:
        NumericalError: v + λ is negative or not finite.
    """
    damped = without_negative(values) + damping
    if not bool(((damped >= 0) & damped.isfinite()).all()):
        raise NumericalError(
            "a logarithm needs finite eigenvalues that are not negative; use a larger damping λ."
        )
    return torch.where(damped > 0, damped, 1.0).log()


def without_negative(values: Tensor) -> Tensor:
    """Eigenvalues of which negative ones within float32's rounding of zero, |v| ≤ 1e-6·max|v|, are zero.

    Sums of products in float32 leave them in the factors of a rank-deficient layer.
    """
    rounding = _SINGLE_ROUNDING * values.abs().max()
    return values.masked_fill((values < 0) & (values >= -rounding), 0.0)


def require_positive(damped: Tensor) -> None:
    """Checks the eigenvalues of F + λI.

    Raises:
        NumericalError: one is not positive or not finite.
    """
    if not bool(((damped > 0) & damped.isfinite()).all()):
        raise NumericalError("F + λI is singular, indefinite or not finite; use a larger damping λ.")


def damped_cholesky(matrix: Tensor, damping: float | Tensor) -> Tensor:
    """The Cholesky factor of (M + Mᵀ)/2 + λI, in float64 where the matrix's own dtype fails.

    Without damping, a pivot within rounding of zero counts as a failure too.

    Args:
        matrix: [..., k, k].
        damping: λ, a number or a 0-d tensor.

    Returns:
        [..., k, k] lower triangular, float64 if the retry was needed.

    Raises:
        NumericalError: it fails in float64 too.
    """
    factor = _cholesky_or_none(matrix, damping)
    if factor is None and matrix.dtype != torch.float64:
        factor = _cholesky_or_none(matrix.double(), damping)
    if factor is None:
        raise NumericalError(
            "F + λI cannot be factored: it is singular, indefinite or not finite; use a larger damping λ."
        )
    return factor


def _cholesky_or_none(matrix: Tensor, damping: float | Tensor) -> Tensor | None:
    damped = symmetrised(matrix)
    damped.diagonal(dim1=-2, dim2=-1).add_(damping)
    factor, info = torch.linalg.cholesky_ex(damped)
    pivots = factor.diagonal(dim1=-2, dim2=-1).square()
    rounding = matrix.shape[-1] * torch.finfo(matrix.dtype).eps
    undamped = torch.as_tensor(damping, device=matrix.device) == 0
    smallest_allowed = torch.where(undamped, rounding * pivots.amax(-1), 0.0)
    sound = (info == 0) & pivots.isfinite().all(-1) & (pivots.amin(-1) > smallest_allowed)
    return factor if bool(sound.all()) else None


def cholesky_apply(factor: Tensor, right: Tensor) -> Tensor:
    """(L Lᵀ)⁻¹ R in the dtype of R, computed in the dtype of L."""
    return torch.cholesky_solve(right.to(factor.dtype), factor).to(right.dtype)


def damped_inverse(matrix: Tensor, damping: float | Tensor) -> Tensor:
    """((M + Mᵀ)/2 + λI)⁻¹ for [..., k, k], by Cholesky (`damped_cholesky`).

    Where rounding has made a singular M indefinite by more than λ, by its eigenvalues (`damped_power`).

    Raises:
        NumericalError: M + λI is singular, indefinite by more than rounding, or not finite.
    """
    try:
        return torch.cholesky_inverse(damped_cholesky(matrix, damping)).to(matrix.dtype)
    except NumericalError:
        if not bool(matrix.isfinite().all()):
            raise
    values, vectors = symmetric_eigh(matrix)
    return (vectors * damped_power(values, damping, -1.0)[..., None, :]) @ vectors.mT


def sum_pieces(pieces: Iterable[Tensor], zero: Tensor | None = None) -> Tensor:
    """The sum of tensors of one shape, accumulated in float64, in their own dtype.

    Args:
        pieces: what is added.
        zero: the sum of no pieces; None: there is one at least.
    """
    iterator = iter(pieces)
    first = next(iterator, None)
    if first is None:
        assert zero is not None
        return zero
    total: Tensor | None = None
    for piece in iterator:
        total = first.to(torch.float64, copy=True) if total is None else total
        total += piece
    return first if total is None else total.to(first.dtype)


def add_product(total: Tensor, X: Tensor, Y: Tensor) -> None:
    """Adds X Y, computed in its own dtype, to a float64 total."""
    if X.dtype == torch.float64:
        total.addmm_(X, Y)
    else:
        total += X @ Y


def gram(X: Tensor) -> Tensor:
    """XᵀX for X [r, k]."""
    return symmetric_product(X, X)


def symmetric_product(X: Tensor, Y: Tensor) -> Tensor:
    """XᵀY for X and Y [r, k] where it is symmetric; most of the lower half of a large one is mirrored."""
    rows, k = X.shape
    if rows < _LEAST_ROWS or rows * k**2 < _LEAST_MIRRORED:
        return X.T @ Y
    out = X.new_empty(k, k)
    panels = list(spans(k, 1, max(_NARROWEST, -(-k // _FEW_PANELS))))
    for start, stop in panels:
        torch.mm(X[:, start:stop].T, Y[:, start:], out=out[start:stop, start:])
        out[stop:, start:stop] = out[start:stop, stop:].T
    return out


def self_product(pieces: Iterable[Tensor], size: int, device: torch.device) -> Tensor:
    """Σ XᵀX over pieces X [r, size], [size, size] float64; products are in the dtype of the pieces.

    Only panels from the diagonal to the right are computed, and mirrored: about half of the products.

    Args:
        pieces: X; each may be overwritten by the next.
        size: the width of X.
        device: of X.
    """
    total = torch.empty(size, size, dtype=torch.float64, device=device)
    panels = list(spans(size, 1, max(_LEAST_PANEL, -(-size // _PANELS))))
    pieces = iter(pieces)
    first = next(pieces, None)
    if first is None:
        return total.zero_()
    for start, stop in panels:
        total[start:stop, start:] = first[:, start:stop].T @ first[:, start:]
    for X in pieces:
        for start, stop in panels:
            add_product(total[start:stop, start:], X[:, start:stop].T, X[:, start:])
    for start, stop in panels:
        total[stop:, start:stop] = total[start:stop, stop:].T
    return total
