"""Contractions of the samples' gradients V_{n,c} = Σ_t g_{c,n,t} a_{n,t}ᵀ, each in the cheapest of its ways.

- by positions: inner products of the positions of a sample, about t² times the width;
- by pairs: products of two positions of a sample as rows, about t²/2 times m·d, in one matrix product;
- by vectors: the V themselves, in pieces of bounded size.

Where t = 1 no V is needed; one-hot inputs are merged first, so that their positions are orthogonal.
Arguments: a [n, t, d] (`Inputs`), g [c, n, t, m], and `held`, all V [n, c, m, d] where somebody has them
already; factors and bases as in `fisherlab.linalg.factors`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fisherlab.gradients.inputs import (
    Inputs,
    OneHot,
    by_sample,
    pair_moment,
    position_products,
    rotated,
    sample_gradients,
    second_moment,
    squared_norms,
)
from fisherlab.linalg.factors import factor_times, into_basis, rows_into_basis, times_factor
from fisherlab.linalg.numerics import ENTRY_COST, add_product, spans, sum_pieces, symmetric_product

_VECTOR_BYTES = 16 * 2**20  # of V at a time: memory that is written again and again, as `sizes._TENSOR_BYTES`
_PAIR_BYTES = 64 * 2**20  # of pairs of positions, for one product: a choice, larger, for rows are short


def vector_pieces(a: Inputs, g: Tensor, held: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
    """(samples, V [n, c, m, d]) piece by piece, to be read; one not held is overwritten by the next."""
    if held is not None:
        for start, stop in spans(len(held), held[0].numel() * held.element_size(), _VECTOR_BYTES):
            yield slice(start, stop), held[start:stop]
        return
    classes, samples, positions, m = g.shape
    width = classes * m * a.shape[2]
    each = (width + classes * positions * m) * g.element_size()
    pieces = list(spans(samples, each, _VECTOR_BYTES))
    if not pieces:
        return
    buffer = None if isinstance(a, OneHot) else g.new_empty((pieces[0][1] - pieces[0][0]) * width)
    for start, stop in pieces:
        part = slice(start, stop)
        yield part, sample_gradients(a[part], g[:, part], buffer)


# --- second moments of the entries ----------------------------------------------------------------


def squared_gradients(a: Inputs, g: Tensor, held: Tensor | None = None) -> Tensor:
    """Σ_n Σ_c V∘V, [m, d]."""
    if isinstance(a, OneHot):
        a, g = a.merged(g)
        squares = by_unit_squares(g).flatten(0, 1) * a.valid.view(-1, 1)
        return g.new_zeros(a.size, g.shape[3]).index_add_(0, a.safe, squares).T
    if a.shape[1] == 1:
        return by_unit_squares(g)[:, 0].T @ a[:, 0].square()
    if held is None and _squares_by_pairs(a, g):
        total = g.new_zeros(g.shape[3], a.shape[2], dtype=torch.float64)
        for _, P, Q in _pair_pieces(a, g):
            add_product(total, Q.T, P)
        return total.to(g.dtype)
    pieces = (V.square().flatten(0, 1).sum(0) for _, V in vector_pieces(a, g, held))
    return sum_pieces(pieces, g.new_zeros(g.shape[3], a.shape[2]))


def rotated_squares(
    a: Inputs, g: Tensor, U_A: Tensor | None, U_B: Tensor | None, held: Tensor | None = None
) -> Tensor:
    """Σ_n Σ_c (U_Bᵀ V U_A)∘², [m, d]; a basis None is the identity."""
    held = held if rotates_held(a, g, U_A, U_B, held) else None
    if held is None and _rotates_parts(a, g):
        return squared_gradients(rotated(a, U_A), into_basis(g, _like(U_B, g)))
    pieces = (R.square().flatten(0, 1).sum(0) for _, R in rotated_pieces(a, g, U_A, U_B, held))
    return sum_pieces(pieces, g.new_zeros(g.shape[3], a.shape[2]))


def rotated_weighted_squares(
    a: Inputs, g: Tensor, U_A: Tensor | None, U_B: Tensor | None, S: Tensor, held: Tensor | None = None
) -> Tensor:
    """Σ_c <S, (U_Bᵀ V U_A)∘²> of each sample, [n], for S [m, d]."""
    held = held if rotates_held(a, g, U_A, U_B, held) else None
    if held is None and _rotates_parts(a, g):
        return weighted_squares(rotated(a, U_A), into_basis(g, _like(U_B, g)), S)
    out = g.new_empty(len(a))
    for part, R in rotated_pieces(a, g, U_A, U_B, held):
        out[part] = (R.square().flatten(2) @ S.flatten()).sum(1)
    return out


def rotated_pieces(
    a: Inputs, g: Tensor, U_A: Tensor | None, U_B: Tensor | None, held: Tensor | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """(samples, U_Bᵀ V U_A [n, c, m, d]) piece by piece, to be read, as `vector_pieces`.

    Of a sample, rotating a takes t·d² and rotating V by U_A c·m·d²; rotating g takes c·t·m² and rotating V by
    U_B c·d·m²: V is rotated where positions are many.
    """
    U_A, U_B = _like(U_A, g), _like(U_B, g)
    left, right = U_B, U_A
    if held is None:
        classes, _, t, m = g.shape
        if classes * m >= t:
            a, right = rotated(a, U_A), None
        if a.shape[2] >= t:
            g, left = into_basis(g, U_B), None
    for part, V in vector_pieces(a, g, held):
        yield part, rows_into_basis(left, into_basis(V, right))


def rotates_held(a: Inputs, g: Tensor, U_A: Tensor | None, U_B: Tensor | None, held: Tensor | None) -> bool:
    """Whether to rotate V that are known takes fewer operations than to make them anew from rotated parts."""
    if held is None:
        return False
    classes, _, t, m = g.shape
    d = a.shape[2]
    inputs, outputs = (0.0 if U is None else float(k) ** 2 for U, k in ((U_A, d), (U_B, m)))
    sides = min(t, classes * m) * inputs + classes * min(t, d) * outputs
    own = classes * (m * inputs + d * outputs)
    return own < sides + classes * m * d * t


def _rotates_parts(a: Inputs, g: Tensor) -> bool:
    """Whether no V are made of the rotated a and g."""
    return isinstance(a, OneHot) or g.shape[2] == 1 or _squares_by_pairs(a, g)


def _like(U: Tensor | None, g: Tensor) -> Tensor | None:
    return None if U is None else U.to(g.dtype)


def weighted_squares(a: Inputs, g: Tensor, S: Tensor, held: Tensor | None = None) -> Tensor:
    """Σ_c <S, V∘V> of each sample, [n], for S [m, d]."""
    if isinstance(a, OneHot):
        a, g = a.merged(g)
        weights = S.T.index_select(0, a.safe).view(*a.indices.shape, -1) * a.valid[..., None]
        return (by_unit_squares(g) * weights).sum((1, 2))
    if a.shape[1] == 1:
        return ((by_unit_squares(g)[:, 0] @ S) * a[:, 0].square()).sum(1)
    out = a.new_empty(len(a))
    if held is None and _squares_by_pairs(a, g):
        for part, P, Q in _pair_pieces(a, g):
            out[part] = (P @ S.T).mul_(Q).sum(1).view(-1, _pairs(a.shape[1])).sum(1)
        return out
    for part, V in vector_pieces(a, g, held):
        out[part] = (V.square().flatten(2) @ S.flatten()).sum(1)
    return out


def by_unit_squares(g: Tensor) -> Tensor:
    """Σ_c g∘g, [n, t, m]."""
    return g.square().sum(0)


def _squares_by_pairs(a: Tensor, g: Tensor) -> bool:
    """Whether products of pairs of positions cost less than the V."""
    classes, _, t, m = g.shape
    d = a.shape[2]
    by_pairs = _pairs(t) * (m * d + ENTRY_COST * (d + classes * m))
    by_vectors = classes * m * d * (t + ENTRY_COST)
    return by_pairs < by_vectors


def _pairs(positions: int) -> int:
    return positions * (positions + 1) // 2


def _pair_pieces(a: Tensor, g: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """(samples, P [n·pairs, d], Q [n·pairs, m]) with ΣV∘V = Qᵀ P; overwritten by the next piece.

    P holds a_t∘a_s and Q the sums Σ_c g_t∘g_s, twice where t < s.
    """
    pairs = _pairs(a.shape[1])
    each = pairs * (a.shape[2] + g.shape[3]) * a.element_size()
    P: Tensor | None = None
    for start, stop in spans(len(a), each, _PAIR_BYTES):
        part = slice(start, stop)
        if P is None:
            P = a.new_empty(stop - start, pairs, a.shape[2])
            Q = g.new_empty(stop - start, pairs, g.shape[3])
        _fill_pairs(P, Q, a[part].detach(), g[:, part].detach())
        yield part, P[: stop - start].flatten(0, 1), Q[: stop - start].flatten(0, 1)


def _fill_pairs(P: Tensor, Q: Tensor, a: Tensor, g: Tensor) -> None:
    count, positions = a.shape[:2]
    start = 0
    for t in range(positions):
        stop = start + positions - t
        torch.mul(a[:, t : t + 1], a[:, t:], out=P[:count, start:stop])
        products = (g[:, :, t : t + 1] * g[:, :, t:]).sum(0)
        products[:, 1:] *= 2
        Q[:count, start:stop] = products
        start = stop


# --- contractions with Kronecker factors ------------------------------------------------------------


def kronecker_quadratics(
    a: Inputs, g: Tensor, A: Tensor | None = None, B: Tensor | None = None, held: Tensor | None = None
) -> Tensor:
    """Σ_c <V, B V A> of each sample, [n]; without factors Σ_c ‖V‖²."""
    if isinstance(a, OneHot) and (A is None or A.ndim == 1):
        a, g = a.merged(g)
        weights = a.valid if A is None else a.gathered(A)
        return (weights * (times_factor(g, B) * g).sum((0, 3))).sum(1)
    if a.shape[1] == 1:
        inputs = position_products(a, A)[:, 0, 0] if isinstance(a, OneHot) else _row_quadratics(a[:, 0], A)
        return inputs * (times_factor(g, B) * g).sum((0, 2, 3))
    out = g.new_empty(len(a))
    if isinstance(a, OneHot) or _quadratics_by_positions(a, g, A, B, held):
        for part in _position_spans(a, g):
            outputs = _gradient_products(g[:, part], B)
            out[part] = (outputs * position_products(a[part], A)).sum((1, 2))
        return out
    for part, V in vector_pieces(a, g, held):
        out[part] = _vector_quadratics(V, A, B)
    return out


def input_contraction(a: Inputs, g: Tensor, B: Tensor | None = None, held: Tensor | None = None) -> Tensor:
    """Σ_n Σ_c Vᵀ B V, [d, d]."""
    if a.shape[1] == 1 and isinstance(a, Tensor):
        return second_moment(a, (times_factor(g, B) * g).sum((0, 3)))
    zero = g.new_zeros(a.shape[2], a.shape[2])
    if isinstance(a, OneHot) or _inputs_by_positions(a, g, B, held):
        parts = _position_spans(a, g)
        return sum_pieces((pair_moment(a[p], _gradient_products(g[:, p], B)) for p in parts), zero)
    pieces = (
        symmetric_product(V.flatten(0, 2), (V if B is None else factor_times(B, V)).flatten(0, 2))
        for _, V in vector_pieces(a, g, held)
    )
    return sum_pieces(pieces, zero)


def output_contraction(a: Inputs, g: Tensor, A: Tensor | None = None, held: Tensor | None = None) -> Tensor:
    """Σ_n Σ_c V A Vᵀ, [m, m]."""
    if isinstance(a, OneHot) and (A is None or A.ndim == 1):
        a, g = a.merged(g)
        return weighted_moment(g, a.valid if A is None else a.gathered(A))
    if a.shape[1] == 1:
        weights = position_products(a, A)[:, 0] if isinstance(a, OneHot) else _row_quadratics(a, A)
        return weighted_moment(g, weights)
    zero = g.new_zeros(g.shape[3], g.shape[3])
    if isinstance(a, OneHot) or _outputs_by_positions(a, g, A, held):
        parts = _position_spans(a, g)
        return sum_pieces((_pair_moment(g[:, p], position_products(a[p], A)) for p in parts), zero)
    pieces = (_outer_sum(times_factor(V, A), V) for _, V in vector_pieces(a, g, held))
    return sum_pieces(pieces, zero)


def unit_squares(a: Inputs, g: Tensor) -> Tensor:
    """Σ_n Σ_c diag(V Vᵀ), [m]."""
    if isinstance(a, OneHot):
        a, g = a.merged(g)
    if isinstance(a, OneHot) or a.shape[1] == 1:
        return squared_norms(a).flatten() @ by_unit_squares(g).flatten(0, 1)
    zero = g.new_zeros(g.shape[3])
    if _squares_of_units_by_positions(a, g):
        pieces = (g[:, p] * (position_products(a[p]) @ g[:, p]) for p in _position_spans(a, g))
        return sum_pieces((piece.sum((0, 1, 2)) for piece in pieces), zero)
    return sum_pieces((V.square().sum((0, 1, 3)) for _, V in vector_pieces(a, g)), zero)


def _pair_moment(g: Tensor, weights: Tensor) -> Tensor:
    """Σ_c Σ_n Σ_{t,s} w_{n,t,s} g_t g_sᵀ, [m, m], for weights [n, t, s]."""
    return g.flatten(0, 2).T @ (weights @ g).flatten(0, 2)


def weighted_moment(g: Tensor, weights: Tensor) -> Tensor:
    """Σ w_{n,t} g gᵀ, [m, m]."""
    return g.flatten(0, 2).T @ (g * weights[..., None]).flatten(0, 2)


def _row_quadratics(a: Tensor, A: Tensor | None) -> Tensor:
    """Rows' aᵀ A a, [...]."""
    return (times_factor(a, A) * a).sum(-1)


def _gradient_products(g: Tensor, B: Tensor | None) -> Tensor:
    """Σ_c g_tᵀ B g_s, [n, t, s]."""
    return by_sample(times_factor(g, B)) @ by_sample(g).mT


def _vector_quadratics(V: Tensor, A: Tensor | None, B: Tensor | None) -> Tensor:
    """Σ_c <V, B V A> for V [n, c, m, d], [n]."""
    W = times_factor(V, A)
    if B is not None and B.ndim == 2:
        return ((W.flatten(0, 1) @ V.flatten(0, 1).mT) * B).sum((1, 2)).view(V.shape[:2]).sum(1)
    by_unit = (W * V).sum((1, 3))
    return by_unit.sum(1) if B is None else by_unit @ B


def _outer_sum(W: Tensor, V: Tensor) -> Tensor:
    """Σ W Vᵀ over all matrices [..., m, d]: [m, m]."""
    return (W.flatten(0, 1) @ V.flatten(0, 1).mT).sum(0)


def _position_spans(a: Inputs, g: Tensor) -> Iterator[slice]:
    """Samples whose products of positions stay in bounds."""
    classes, samples, t, m = g.shape
    numbers = t * (2 * t + 2 * classes * m + (0 if isinstance(a, OneHot) else 2 * a.shape[2]))
    for start, stop in spans(samples, numbers * g.element_size()):
        yield slice(start, stop)


# --- operations of one sample -----------------------------------------------------------------------


def _factor_cost(factor: Tensor | None, k: int) -> float:
    """Multiplications of a factor with a vector [k]."""
    if factor is None:
        return 0.0
    return float(k) ** factor.ndim


def _making(positions: int, held: Tensor | None) -> float:
    """Multiplications for each entry of V."""
    return positions + ENTRY_COST if held is None else ENTRY_COST


def _quadratics_by_positions(
    a: Tensor, g: Tensor, A: Tensor | None, B: Tensor | None, held: Tensor | None
) -> bool:
    c, _, t, m = g.shape
    d = a.shape[2]
    inputs, outputs = _factor_cost(A, d), _factor_cost(B, m)
    positions = t * inputs + c * t * outputs + t**2 * (d + c * m)
    return positions < c * m * d * _making(t, held) + c * (m * inputs + d * outputs)


def _inputs_by_positions(a: Tensor, g: Tensor, B: Tensor | None, held: Tensor | None) -> bool:
    c, _, t, m = g.shape
    d = a.shape[2]
    outputs = _factor_cost(B, m)
    positions = c * t * outputs + t**2 * (d + c * m) + t * d**2
    return positions < c * m * d * (_making(t, held) + d) + c * d * outputs


def _outputs_by_positions(a: Tensor, g: Tensor, A: Tensor | None, held: Tensor | None) -> bool:
    c, _, t, m = g.shape
    d = a.shape[2]
    inputs = _factor_cost(A, d)
    positions = t * inputs + t**2 * (d + c * m) + c * t * m**2
    return positions < c * m * d * (_making(t, held) + m) + c * m * inputs


def _squares_of_units_by_positions(a: Tensor, g: Tensor) -> bool:
    c, _, t, m = g.shape
    d = a.shape[2]
    return t**2 * (d + c * m) < c * m * d * (t + ENTRY_COST)
