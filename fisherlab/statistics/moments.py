"""The sums themselves: functions of a [n, t, d] and g [c, n, t, m], linear in the samples.

V_{n,c} = Σ_t g_{c,n,t} a_{n,t}ᵀ [m, d] is a sample's gradient. None of these forms it where T = 1, and
the partial traces never do.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from fisherlab.operators.packing import packed_size, svec_gram, svec_outer

_CHUNK_BYTES = 32 * 2**20
_MOST_SAMPLES = 1024


def input_moment(a: Tensor, _: Tensor | None) -> Tensor:
    """Σ_n Σ_t a aᵀ, [d, d]."""
    return _gram(a)


def output_moment(_: Tensor, g: Tensor) -> Tensor:
    """Σ_n Σ_c Σ_t g gᵀ, [m, m]."""
    return _gram(g)


def input_moment_reduced(a: Tensor, _: Tensor | None) -> Tensor:
    """Σ_n ā āᵀ with ā the mean over positions, [d, d]."""
    return _gram(a.mean(1))


def output_moment_reduced(_: Tensor, g: Tensor) -> Tensor:
    """Σ_n Σ_c ĝ ĝᵀ with ĝ the sum over positions, [m, m]."""
    return _gram(g.sum(2))


def input_trace(a: Tensor, g: Tensor) -> Tensor:
    """Σ_n Σ_c VᵀV = Σ_n Σ_{t,t'} (Σ_c g_tᵀ g_t') a_t a_t'ᵀ, [d, d]."""
    if a.shape[1] == 1:
        return input_trace_independent(a, g)
    weights = torch.einsum("cntm,cnsm->nts", g, g)
    return _flat(a).T @ _flat(weights @ a)


def output_trace(a: Tensor, g: Tensor) -> Tensor:
    """Σ_n Σ_c V Vᵀ = Σ_n Σ_c Σ_{t,t'} (a_tᵀ a_t') g_t g_t'ᵀ, [m, m]."""
    if a.shape[1] == 1:
        return output_trace_independent(a, g)
    weights = a @ a.transpose(1, 2)
    return _flat(g).T @ _flat(weights @ g)


def input_trace_independent(a: Tensor, g: Tensor) -> Tensor:
    """Σ_n Σ_t (Σ_c ‖g_t‖²) a_t a_tᵀ, [d, d]: products of different positions are dropped."""
    weights = g.square().sum((0, 3)).unsqueeze(-1)
    return _flat(a).T @ _flat(a * weights)


def output_trace_independent(a: Tensor, g: Tensor) -> Tensor:
    """Σ_n Σ_c Σ_t ‖a_t‖² g_t g_tᵀ, [m, m]: products of different positions are dropped."""
    weights = a.square().sum(-1, keepdim=True)
    return _flat(g).T @ _flat(g * weights)


def output_trace_diagonal(a: Tensor, g: Tensor) -> Tensor:
    """Σ_n Σ_c Σ_t ‖a_t‖² g_t∘g_t, [m]: the diagonal of `output_trace_independent`."""
    weights = a.square().sum(-1).reshape(-1)
    return weights @ g.square().sum(0).reshape(-1, g.shape[-1])


def output_squares(a: Tensor, g: Tensor) -> Tensor:
    """Σ_n Σ_c diag(V Vᵀ), [m]: the diagonal of `output_trace`."""
    if a.shape[1] == 1:
        return output_trace_diagonal(a, g)
    weights = a @ a.transpose(1, 2)
    return (g * (weights @ g)).sum((0, 1, 2))


def squared_gradient(a: Tensor, g: Tensor) -> Tensor:
    """Σ_n Σ_c V∘V, [m, d]."""
    if a.shape[1] == 1:
        return _flat(g.square().sum(0)).T @ _flat(a.square())
    total = a.new_zeros(g.shape[-1], a.shape[-1])
    for part in _parts(a, g.shape[0] * g.shape[-1] * a.shape[-1]):
        total += gradients(a[part], g[:, part]).square().sum((0, 1))
    return total


def rotated_square(a: Tensor, g: Tensor, U_A: Tensor, U_B: Tensor) -> Tensor:
    """Σ_n Σ_c (U_Bᵀ V U_A)∘², [m, d]; a and g are rotated, never V."""
    return squared_gradient(a @ U_A.to(a.dtype), g @ U_B.to(g.dtype))


def gradient_sum(a: Tensor, g: Tensor) -> Tensor:
    """Σ_n Σ_c V, [m, d]."""
    return _flat(g.sum(0)).T @ _flat(a)


def packed_block(a: Tensor, g: Tensor) -> Tensor:
    """Σ_n svec(a aᵀ) svec(Σ_c g gᵀ)ᵀ for T = 1: an isometric image of Σ (a aᵀ) ⊗ (g gᵀ)."""
    a, g = a[:, 0], g[:, :, 0]
    inputs, outputs = packed_size(a.shape[-1]), packed_size(g.shape[-1])
    total = a.new_zeros(inputs, outputs)
    for part in _parts(a, inputs + 2 * outputs):
        total.addmm_(svec_outer(a[part]).T, svec_gram(g[:, part]))
    return total


def dense_block(a: Tensor, g: Tensor) -> Tensor:
    """Σ_n Σ_c vec(V) vec(V)ᵀ, [d·m, d·m], column order."""
    size = a.shape[-1] * g.shape[-1]
    total = a.new_zeros(size, size)
    for part in _parts(a, g.shape[0] * size):
        rows = gradients(a[part], g[:, part]).transpose(-1, -2).reshape(-1, size)
        total.addmm_(rows.T, rows)
    return total


def unit_blocks(a: Tensor, g: Tensor) -> Tensor:
    """Σ_n Σ_c Σ_t g_tj² svec(a_t a_tᵀ) for every unit j, [m, d(d+1)/2].

    With the slope φ'(s) as g these are the blocks of the layer-wise Fisher.
    """
    a, weights = _flat(a), _flat(g.square().sum(0))
    total = a.new_zeros(weights.shape[-1], packed_size(a.shape[-1]))
    for part in _parts(a, packed_size(a.shape[-1])):
        total.addmm_(weights[part].T, svec_outer(a[part]))
    return total


def gradients(a: Tensor, g: Tensor) -> Tensor:
    """The samples' gradients V, [c, n, m, d]."""
    return g.transpose(-1, -2) @ a


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _gram(x: Tensor) -> Tensor:
    x = _flat(x)
    return x.T @ x


def _parts(a: Tensor, width: int) -> Iterator[slice]:
    """Slices of the samples whose intermediate, `width` numbers a sample, stays in bounds."""
    step = max(1, min(_MOST_SAMPLES, _CHUNK_BYTES // (a.element_size() * width)))
    for start in range(0, len(a), step):
        yield slice(start, start + step)
