"""The damped inverse and other functions of a Gram operator, by way of its small matrix."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fisherlab.errors import NumericalError
from fisherlab.linalg.numerics import cholesky_apply, damped_cholesky
from fisherlab.operators.base import LinearOperator

if TYPE_CHECKING:
    from fisherlab.operators.gram import GramOperator


class GramInverse(LinearOperator):
    """(F + λI)⁻¹ of a Gram operator: v ↦ [v − Jᵀ(K + λI)⁻¹ J v/N]/λ (Woodbury).

    Args:
        gram: the operator F.
        damping: λ > 0.

    Raises:
        NumericalError: λ is zero, or K + λI is not finite.
    """

    def __init__(self, gram: GramOperator, damping: float):
        if damping == 0:
            raise NumericalError(
                "the inverse of a Gram operator divides by the damping λ; use a λ above zero."
            )
        super().__init__(gram.outputs, gram.inputs, gram.dtype, gram.device)
        self._source = gram
        self._damping = damping
        self._factor = damped_cholesky(gram.gram(), damping)
        self._weight = 1.0

    def apply(self, X: Tensor) -> Tensor:
        """(F + λI)⁻¹ vec(X)."""
        weights = apply_factor(self._factor, self._source.rows(X))
        correction = self._source.combine(weights) * self._source.weight
        return (X - correction) * (self._weight / self._damping)

    def scaled(self, factor: float) -> GramInverse:
        """c·(F + λI)⁻¹."""
        other = copy.copy(self)
        other._weight = self._weight * factor
        other.__dict__.pop("_dense_form", None)
        return other

    def diagonal_matrix(self) -> Tensor:
        """The diagonal, by way of the dense matrix (small layers only)."""
        return self._dense_form.diagonal_matrix()


class GramFunction(LinearOperator):
    """f(F) of a Gram operator: f(0) I + Jᵀ M J/N with M = Σ (f(v) − f(0))/v w wᵀ over the eigenpairs of K.

    Args:
        gram: the operator F.
        f: of tensors of eigenvalues; it is given zero only where F has a kernel.
    """

    def __init__(self, gram: GramOperator, f: Callable[[Tensor], Tensor]):
        super().__init__(gram.outputs, gram.inputs, gram.dtype, gram.device)
        values, vectors = gram.eigenpairs()
        kernel = values.new_zeros(min(1, self.shape[0] - len(values)))
        images = f(torch.cat([values, kernel])).double()
        self._source = gram
        self._absent = float(images[-1]) if len(kernel) else 0.0
        differences = images[: len(values)] - self._absent
        self._matrix = (vectors * (differences / values)) @ vectors.T * gram.weight
        self._weight = 1.0

    def apply(self, X: Tensor) -> Tensor:
        """f(F) vec(X)."""
        inside = self._source.combine(self._mixed(self._source.rows(X)))
        return (self._absent * X + inside) * self._weight

    def scaled(self, factor: float) -> GramFunction:
        """c·f(F)."""
        other = copy.copy(self)
        other._weight = self._weight * factor
        other.__dict__.pop("_dense_form", None)
        return other

    def diagonal_matrix(self) -> Tensor:
        """f(0) + diag(Jᵀ M J/N), by pieces of J."""
        total, start = torch.full_like(self._source.diagonal_matrix(), self._absent), 0
        classes, samples = self._source.g.shape[:2]
        for V in self._source.chunks():
            mixed = self._matrix[start : start + len(V)].view(len(V), classes, samples)
            total += (V * self._source.combine(mixed.to(V.dtype))).sum(0)
            start += len(V)
        return total * self._weight

    def _mixed(self, w: Tensor) -> Tensor:
        """M w for w [..., c, n]."""
        return (w.flatten(-2).to(self._matrix.dtype) @ self._matrix).view(w.shape).to(w.dtype)


def apply_factor(factor: Tensor, w: Tensor) -> Tensor:
    """(K + λI)⁻¹ w for w [..., c, n], from the Cholesky factor of K + λI."""
    right = w.reshape(-1, factor.shape[0]).T
    return cholesky_apply(factor, right).T.reshape(w.shape)
