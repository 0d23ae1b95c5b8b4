"""The damped inverse of a Gram operator, by way of its small matrix."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

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


def apply_factor(factor: Tensor, w: Tensor) -> Tensor:
    """(K + λI)⁻¹ w for w [..., c, n], from the Cholesky factor of K + λI."""
    right = w.reshape(-1, factor.shape[0]).T
    return cholesky_apply(factor, right).T.reshape(w.shape)
