"""The eigenvectors of an operator, in the form that its structure gives them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fisherlab.linalg.factors import into_basis, rows_into_basis
from fisherlab.linalg.numerics import spans
from fisherlab.operators.layout import matrix_to_vector, vector_to_matrix

if TYPE_CHECKING:
    from fisherlab.operators.base import LinearOperator
    from fisherlab.operators.gram import GramOperator


class Eigenbasis(ABC):
    """Orthonormal eigenvectors u_j of an operator, as matrices [m, d], with their eigenvalues.

    Attributes:
        values: [r] in the order of the structure; r = D, but of a Gram operator its non-zero ones.
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values

    @abstractmethod
    def matrices(self, places: Tensor) -> Tensor:
        """The u_j with these indices [k]: [k, m, d]."""

    @abstractmethod
    def coefficients(self, X: Tensor) -> Tensor:
        """u_jᵀ vec(X) for X [..., m, d]: [..., r]."""

    def masses(self, F: LinearOperator) -> Tensor:
        """u_jᵀ F u_j of another operator of the same size, [r]."""
        places = torch.arange(len(self.values), device=self.values.device)
        pieces = spans(len(places), F.shape[0] * F.dtype.itemsize)
        return torch.cat([F.quadratic(self.matrices(places[start:stop])) for start, stop in pieces])

    def leading(self) -> Tensor:
        """The indices in descending order of the eigenvalues, [r]."""
        return self.values.argsort(descending=True, stable=True)


class FactoredBasis(Eigenbasis):
    """u = u_i ⊗ v_j with index j·d + i: columns of U_A and U_B; None is the identity."""

    def __init__(self, U_A: Tensor | None, U_B: Tensor | None, S: Tensor) -> None:
        super().__init__(S.flatten())
        self._bases, self._shape = (U_B, U_A), S.shape

    def matrices(self, places: Tensor) -> Tensor:
        """Outer products v_j u_iᵀ."""
        m, d = self._shape
        outputs, inputs = (
            torch.eye(k, dtype=self.values.dtype, device=places.device)[own] if U is None else U.T[own]
            for U, k, own in zip(self._bases, (m, d), (places // d, places % d), strict=True)
        )
        return outputs[:, :, None] * inputs[:, None, :]

    def coefficients(self, X: Tensor) -> Tensor:
        """U_Bᵀ X U_A."""
        U_B, U_A = self._bases
        return rows_into_basis(U_B, into_basis(X, U_A)).flatten(-2)

    def masses(self, F: LinearOperator) -> Tensor:
        """The diagonal of F in the basis."""
        U_B, U_A = self._bases
        return F.diagonal_in_basis(U_A, U_B).flatten()


class UnitBasis(Eigenbasis):
    """Eigenvectors of the block of each unit, values [m, d] and vectors [m, d, d]; index j·d + i."""

    def __init__(self, values: Tensor, vectors: Tensor) -> None:
        super().__init__(values.flatten())
        self._vectors = vectors

    def matrices(self, places: Tensor) -> Tensor:
        """An eigenvector in its unit's row."""
        m, d, _ = self._vectors.shape
        units = places // d
        found = self._vectors.new_zeros(len(places), m, d)
        found[torch.arange(len(places), device=places.device), units] = self._vectors[units, :, places % d]
        return found

    def coefficients(self, X: Tensor) -> Tensor:
        """Each row of X in the basis of its unit."""
        return torch.einsum("...jk,jki->...ji", X, self._vectors).flatten(-2)

    def masses(self, F: LinearOperator) -> Tensor:
        """From the blocks of F's units alone."""
        return (self._vectors * (F.unit_blocks() @ self._vectors)).sum(1).flatten()


class DenseBasis(Eigenbasis):
    """Eigenvectors in the columns of a matrix [D, D]."""

    def __init__(self, values: Tensor, vectors: Tensor, outputs: int, inputs: int) -> None:
        super().__init__(values)
        self._vectors, self._shape = vectors, (outputs, inputs)

    def matrices(self, places: Tensor) -> Tensor:
        """Columns as matrices."""
        return vector_to_matrix(self._vectors[:, places].T, *self._shape)

    def coefficients(self, X: Tensor) -> Tensor:
        """vec(X)ᵀ U."""
        return matrix_to_vector(X) @ self._vectors


class GramBasis(Eigenbasis):
    """u = Jᵀw/√(N v) of the eigenpairs (v, w) of K = JJᵀ/N with v > 0."""

    def __init__(self, gram: GramOperator) -> None:
        values, vectors = gram.eigenpairs()
        super().__init__(values)
        self._gram, self._weights = gram, vectors * (gram.weight / values).sqrt()

    def matrices(self, places: Tensor) -> Tensor:
        """Combinations of the V."""
        weights = self._weights[:, places].T.unflatten(1, self._gram.g.shape[:2])
        return self._gram.combine(weights)

    def coefficients(self, X: Tensor) -> Tensor:
        """J vec(X), combined."""
        return self._gram.rows(X).flatten(-2) @ self._weights.to(X.dtype)
