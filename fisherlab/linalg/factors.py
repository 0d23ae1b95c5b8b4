"""Factors that may be diagonal, and bases that may be the identity.

A symmetric factor is a matrix [k, k], or a vector [k]: the diagonal of a diagonal matrix. A basis is an
orthogonal matrix [k, k], or None: the identity.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fisherlab.linalg.numerics import (
    damped_inverse,
    damped_power,
    dot64,
    symmetric_eigh,
)
from fisherlab.linalg.packing import packed_size, packing_index, svec


def as_matrix(factor: Tensor) -> Tensor:
    """The factor as a matrix [k, k]."""
    return torch.diag(factor) if factor.ndim == 1 else factor


def factor_diagonal(factor: Tensor) -> Tensor:
    """The diagonal of the factor, [k]."""
    return factor if factor.ndim == 1 else factor.diagonal()


def factor_inner(first: Tensor, second: Tensor) -> Tensor:
    """<F, G> of two factors, 0-d float64."""
    if first.ndim == second.ndim:
        return dot64(first, second)
    return dot64(factor_diagonal(first), factor_diagonal(second))


def factor_difference(first: Tensor, second: Tensor) -> Tensor:
    """F − G, a vector where both factors are diagonal."""
    if first.ndim == second.ndim:
        return first - second
    return as_matrix(first) - as_matrix(second)


def factor_svec(factor: Tensor) -> Tensor:
    """`svec` of the factor, [k(k+1)/2]."""
    if factor.ndim == 2:
        return svec(factor)
    k = len(factor)
    out = factor.new_zeros(packed_size(k))
    out[packing_index(k, factor.device).diagonal] = factor
    return out


def factor_eigh(factor: Tensor) -> tuple[Tensor, Tensor | None]:
    """Eigenvalues and basis; a diagonal factor has its entries, in their order, and the identity."""
    return (factor, None) if factor.ndim == 1 else symmetric_eigh(factor)


def factor_inverse(factor: Tensor, damping: Tensor) -> Tensor:
    """(F + λI)⁻¹, of the factor's own form.

    Raises:
        NumericalError: F + λI is singular or not finite.
    """
    if factor.ndim == 1:
        return damped_power(factor, damping, -1.0)
    return damped_inverse(factor, damping)


def damped_factor(factor: Tensor, damping: Tensor) -> Tensor:
    """F + λI, of the factor's own form."""
    if factor.ndim == 1:
        return factor + damping
    return factor + damping * torch.eye(len(factor), dtype=factor.dtype, device=factor.device)


def times_factor(X: Tensor, factor: Tensor | None) -> Tensor:
    """X F for X [..., k]; None is the identity."""
    if factor is None:
        return X
    return X * factor if factor.ndim == 1 else X @ factor


def factor_times(factor: Tensor, X: Tensor) -> Tensor:
    """F X for X [..., k, q]."""
    return factor[:, None] * X if factor.ndim == 1 else factor @ X


def into_basis(X: Tensor, U: Tensor | None) -> Tensor:
    """X U for X [..., k]; where X lies column by column in memory so does the result."""
    if U is None:
        return X
    if X.dim() < 3 or X.stride(-2) != 1 or X.stride(-1) == 1:
        return X @ U
    return rows_into_basis(U, X.mT).mT


def rows_into_basis(U: Tensor | None, X: Tensor) -> Tensor:
    """Uᵀ X for X [..., k, q]."""
    return X if U is None else U.T @ X


def squares_of(U: Tensor | None, X: Tensor) -> Tensor:
    """(U∘U) X for X [k, q]."""
    return X if U is None else U.square() @ X


def with_eigenvalues(U: Tensor | None, values: Tensor) -> Tensor:
    """U diag(v) Uᵀ [..., k, k] for v [..., k]."""
    return torch.diag_embed(values) if U is None else (U * values[..., None, :]) @ U.T


def diagonal_in(U: Tensor | None, factor: Tensor) -> Tensor:
    """diag(Uᵀ F U), [k]."""
    if U is None:
        return factor_diagonal(factor)
    return (U * factor_times(factor, U)).sum(0)
