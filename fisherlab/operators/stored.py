"""What an optimizer keeps of an inverse: its tensors, for states and other processes, and its condition."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fisherlab.errors import NotSupportedError
from fisherlab.linalg.numerics import symmetric_eigenvalues
from fisherlab.operators import (
    DenseOperator,
    DiagonalOperator,
    EigenKroneckerOperator,
    KroneckerOperator,
    LinearOperator,
    blocks_of,
    joined,
)

Tensors = list[list[Tensor | None]]


def tensors_of(inverse: LinearOperator) -> Tensors:
    """The tensors that `operator_of` makes the same operator of, a list a group.

    Raises:
        NotSupportedError: for an operator that is none of dense, diagonal, Kronecker or EKFAC's.
    """
    return [_tensors(block) for block in blocks_of(inverse)]


def operator_of(tensors: Tensors, device: torch.device | None = None) -> LinearOperator:
    """The operator that `tensors_of` was given, on a device."""
    return joined([_operator([None if t is None else t.to(device) for t in block]) for block in tensors])


def condition_of(inverse: LinearOperator) -> float:
    """The condition number of an inverse, which is that of its inverse too: the mean over groups."""
    parts = [_condition(block) for block in blocks_of(inverse)]
    return sum(parts) / len(parts)


def _tensors(inverse: LinearOperator) -> list[Tensor | None]:
    m, d = inverse.outputs, inverse.inputs
    match inverse:
        case KroneckerOperator():
            return [inverse.A, inverse.B]
        case EigenKroneckerOperator():
            return [inverse.U_A, inverse.U_B, inverse.S]
        case DiagonalOperator():
            return [inverse.matrix]
        case DenseOperator():
            return [inverse.matrix.reshape(d, m, d, m)]
    raise NotSupportedError(
        f"an optimizer cannot keep an inverse of the class {type(inverse).__name__} in its state; let the "
        "approximation build a KroneckerOperator, EigenKroneckerOperator, DiagonalOperator or DenseOperator"
    )


def _operator(tensors: Sequence[Tensor | None]) -> LinearOperator:
    match tensors:
        case [A, B]:
            return KroneckerOperator(A, B)  # type: ignore[arg-type]
        case [U_A, U_B, Tensor() as S]:
            return EigenKroneckerOperator(U_A, U_B, S)
        case [Tensor() as matrix] if matrix.ndim == 4:
            d, m = matrix.shape[:2]
            return DenseOperator(matrix.reshape(d * m, d * m), m, d)
        case [Tensor() as matrix]:
            return DiagonalOperator(matrix)
    raise AssertionError(f"{len(tensors)} tensors make no operator")


def _condition(inverse: LinearOperator) -> float:
    if isinstance(inverse, KroneckerOperator):
        return math.prod(_spread(factor) for factor in (inverse.A, inverse.B))
    values = inverse.eigenvalues()
    return float(values.max() / values.min())


def _spread(factor: Tensor) -> float:
    values = factor if factor.ndim == 1 else symmetric_eigenvalues(factor)
    return float(values.max() / values.min())
