"""Each operator class from random data, beside its dense matrix made with explicit NumPy loops."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from fisherlab.operators import (
    DenseOperator,
    DiagonalOperator,
    EigenKroneckerOperator,
    GramOperator,
    GroupedOperator,
    KroneckerOperator,
    LinearOperator,
    OneHot,
    PackedOperator,
    UnitBlockOperator,
    packed_size,
)

CLOSE = {"rtol": 1e-10, "atol": 1e-12}


class Case(NamedTuple):
    operator: LinearOperator
    matrix: np.ndarray  # column-vec


Builder = Callable[[np.random.Generator, int, int, torch.dtype], Case]


def positive(rng: np.random.Generator, k: int) -> np.ndarray:
    root = rng.standard_normal((k, k + 2))
    return root @ root.T / k


def column_vec(V: np.ndarray) -> np.ndarray:
    return np.concatenate([V[:, i] for i in range(V.shape[1])])


def tensor(array: np.ndarray, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(dtype)


def dense(rng: np.random.Generator, m: int, d: int, dtype: torch.dtype) -> Case:
    matrix = positive(rng, m * d)
    return Case(DenseOperator(tensor(matrix, dtype), m, d), matrix)


def diagonal(rng: np.random.Generator, m: int, d: int, dtype: torch.dtype) -> Case:
    S = rng.uniform(0.1, 2.0, (m, d))
    return Case(DiagonalOperator(tensor(S, dtype)), np.diag(column_vec(S)))


def kronecker(rng: np.random.Generator, m: int, d: int, dtype: torch.dtype) -> Case:
    A, B = positive(rng, d), positive(rng, m)
    return Case(KroneckerOperator(tensor(A, dtype), tensor(B, dtype)), np.kron(A, B))


def _diagonal_kronecker(*sides: str) -> Builder:
    """A Kronecker product with vectors for the named factors."""

    def build(rng: np.random.Generator, m: int, d: int, dtype: torch.dtype) -> Case:
        sizes = {"A": d, "B": m}
        made = {s: rng.uniform(0.1, 2.0, k) if s in sides else positive(rng, k) for s, k in sizes.items()}
        A, B = (np.diag(x) if x.ndim == 1 else x for x in (made["A"], made["B"]))
        operator = KroneckerOperator(tensor(made["A"], dtype), tensor(made["B"], dtype))
        return Case(operator, np.kron(A, B))

    return build


def _plain_basis(*sides: str) -> Builder:
    """EKFAC's form with the identity for the named bases."""

    def build(rng: np.random.Generator, m: int, d: int, dtype: torch.dtype) -> Case:
        operator = eigenkronecker(rng, m, d, dtype).operator
        S = operator.S.double().numpy()
        U_A, U_B = (None if side in sides else U for side, U in (("A", operator.U_A), ("B", operator.U_B)))
        A, B = (np.eye(k) if U is None else U.double().numpy() for U, k in ((U_A, d), (U_B, m)))
        U = np.kron(A, B)
        return Case(EigenKroneckerOperator(U_A, U_B, operator.S), U @ np.diag(column_vec(S)) @ U.T)

    return build


def _grouped(block: Builder) -> Builder:
    """Single rows as groups, so that any m can be asked for."""

    def build(rng: np.random.Generator, m: int, d: int, dtype: torch.dtype) -> Case:
        cases = [block(rng, 1, d, dtype) for _ in range(m)]
        matrix = np.zeros((d, m, d, m))
        for k, case in enumerate(cases):
            matrix[:, k, :, k] = case.matrix
        return Case(GroupedOperator([case.operator for case in cases]), matrix.reshape(m * d, m * d))

    return build


def eigenkronecker(rng: np.random.Generator, m: int, d: int, dtype: torch.dtype) -> Case:
    U_A = np.linalg.qr(rng.standard_normal((d, d)))[0]
    U_B = np.linalg.qr(rng.standard_normal((m, m)))[0]
    S = rng.uniform(0.1, 2.0, (m, d))
    matrix = np.zeros((m * d, m * d))
    for j in range(m):
        for i in range(d):
            v = np.kron(U_A[:, i], U_B[:, j])
            matrix += S[j, i] * np.outer(v, v)
    return Case(EigenKroneckerOperator(tensor(U_A, dtype), tensor(U_B, dtype), tensor(S, dtype)), matrix)


def unit_block(rng: np.random.Generator, m: int, d: int, dtype: torch.dtype) -> Case:
    blocks = np.stack([positive(rng, d) for _ in range(m)])
    matrix = np.zeros((m * d, m * d))
    for j in range(m):
        for i in range(d):
            for k in range(d):
                matrix[i * m + j, k * m + j] = blocks[j, i, k]
    return Case(UnitBlockOperator(tensor(blocks, dtype)), matrix)


def loop_svec(S: np.ndarray) -> np.ndarray:
    k = len(S)
    return np.array([S[i, j] * (1 if i == j else np.sqrt(2)) for i in range(k) for j in range(i, k)])


def packed(rng: np.random.Generator, m: int, d: int, dtype: torch.dtype) -> Case:
    M = np.zeros((packed_size(d), packed_size(m)))
    matrix = np.zeros((m * d, m * d))
    for _ in range(m * d + 2):
        a, g = rng.standard_normal(d), rng.standard_normal(m)
        M += np.outer(loop_svec(np.outer(a, a)), loop_svec(np.outer(g, g)))
        matrix += np.kron(np.outer(a, a), np.outer(g, g))
    return Case(PackedOperator(tensor(M, dtype), m, d), matrix)


def _gram(positions: int, samples: int | None) -> Builder:
    def build(rng: np.random.Generator, m: int, d: int, dtype: torch.dtype) -> Case:
        classes, n = 2, m * d
        a = rng.standard_normal((n, positions, d))
        g = rng.standard_normal((classes, n, positions, m))
        matrix = np.zeros((m * d, m * d))
        for c in range(classes):
            for s in range(n):
                V = sum(np.outer(g[c, s, t], a[s, t]) for t in range(positions))
                matrix += np.outer(column_vec(V), column_vec(V))
        return Case(GramOperator(tensor(a, dtype), tensor(g, dtype), samples), matrix / (samples or n))

    return build


def _gram_one_hot(positions: int) -> Builder:
    """One-hot inputs, some of them zero rows, with positions that repeat."""

    def build(rng: np.random.Generator, m: int, d: int, dtype: torch.dtype) -> Case:
        n = m * d + 2
        indices = rng.integers(-1, d, (n, positions))
        indices[:d, 0] = np.arange(d)
        a = OneHot(torch.from_numpy(indices), d, dtype)
        g = rng.standard_normal((2, n, positions, m))
        matrix = np.zeros((m * d, m * d))
        for c in range(2):
            for s in range(n):
                V = np.zeros((m, d))
                for t in range(positions):
                    if indices[s, t] >= 0:
                        V[:, indices[s, t]] += g[c, s, t]
                matrix += np.outer(column_vec(V), column_vec(V))
        return Case(GramOperator(a, tensor(g, dtype)), matrix / n)

    return build


BUILDERS: dict[str, Builder] = {
    "dense": dense,
    "diagonal": diagonal,
    "kronecker": kronecker,
    "eigenkronecker": eigenkronecker,
    "unit-block": unit_block,
    "packed": packed,
    "gram-1": _gram(1, None),
    "gram-3": _gram(3, 7),
    "gram-12": _gram(12, None),
    "gram-one-hot-1": _gram_one_hot(1),
    "gram-one-hot-4": _gram_one_hot(4),
    "kronecker-diagonal-A": _diagonal_kronecker("A"),
    "kronecker-diagonal-B": _diagonal_kronecker("B"),
    "kronecker-diagonals": _diagonal_kronecker("A", "B"),
    "eigenkronecker-plain-A": _plain_basis("A"),
    "eigenkronecker-plain-B": _plain_basis("B"),
    "eigenkronecker-plain": _plain_basis("A", "B"),
    "grouped-kronecker": _grouped(kronecker),
    "grouped-dense": _grouped(dense),
    "grouped-gram": _grouped(_gram(3, None)),
}
