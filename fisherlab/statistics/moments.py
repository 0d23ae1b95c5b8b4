"""The sums themselves: functions of a [n, t, d] and g [c, n, t, m], linear in the samples.

V_{n,c} = Σ_t g_{c,n,t} a_{n,t}ᵀ [m, d] is a sample's gradient. It is formed only where that is cheapest
(see `fisherlab.gradients.contractions`). Inputs a may be one-hot; what is then a diagonal matrix, the sums of
a aᵀ without products of different positions, is given as the vector of its diagonal.

Products are in the dtype of a; chunks are added in float64, and the sum has the dtype of a again, but for
`dense_block`, which stays in float64.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from fisherlab.base.memory import at_most
from fisherlab.gradients.contractions import (
    input_contraction,
    output_contraction,
    rotated_squares,
    squared_gradients,
    unit_squares,
    vector_pieces,
    weighted_moment,
)
from fisherlab.gradients.inputs import (
    Inputs,
    OneHot,
    pair_moment,
    row_moment,
    sample_gradients,
    second_moment,
    squared_norms,
    weighted_sum,
)
from fisherlab.gradients.patches import Patches
from fisherlab.linalg.numerics import self_product
from fisherlab.linalg.packing import packed_size, packing_index, svec_gram, svec_outer

_CHUNK_BYTES = 32 * 2**20  # of an intermediate, a choice: a third of a batch at most
_MOST_SAMPLES = 1024  # a choice, where samples are small


def input_moment(a: Inputs | Patches, _: Tensor | None) -> Tensor:
    """Σ_n Σ_t a aᵀ, [d, d]; [d] for one-hot inputs."""
    return a.second_moment() if isinstance(a, Patches) else second_moment(a)


def output_moment(_: Inputs | None, g: Tensor) -> Tensor:
    """Σ_n Σ_c Σ_t g gᵀ, [m, m]."""
    return row_moment(g)


def input_moment_reduced(a: Inputs | Patches, valid: Tensor | None) -> Tensor:
    """Σ_n ā āᵀ with ā the mean over the positions that count, [d, d]; a is zero at the others."""
    if isinstance(a, Patches):
        a = a.unfolded()
    samples, positions, _d = a.shape
    if valid is None:
        shares = torch.full((samples,), 1 / positions, dtype=a.dtype, device=a.device)
    else:
        shares = valid.sum(1).clamp(min=1).to(a.dtype).reciprocal()
    if isinstance(a, OneHot):
        return pair_moment(a, shares.square().view(-1, 1, 1).expand(samples, positions, positions))
    return row_moment(a.sum(1) * shares.unsqueeze(1))


def output_moment_reduced(_: Inputs | None, g: Tensor) -> Tensor:
    """Σ_n Σ_c ĝ ĝᵀ with ĝ the sum over positions, [m, m]."""
    return row_moment(g.sum(2))


def input_trace(a: Inputs, g: Tensor) -> Tensor:
    """Σ_n Σ_c VᵀV = Σ_n Σ_{t,t'} (Σ_c g_tᵀ g_t') a_t a_t'ᵀ, [d, d] for one-hot inputs too."""
    return input_contraction(a, g)


def output_trace(a: Inputs, g: Tensor) -> Tensor:
    """Σ_n Σ_c V Vᵀ = Σ_n Σ_c Σ_{t,t'} (a_tᵀ a_t') g_t g_t'ᵀ, [m, m]."""
    return output_contraction(a, g)


def input_trace_independent(a: Inputs | Patches, g: Tensor) -> Tensor:
    """Σ_n Σ_t (Σ_c ‖g_t‖²) a_t a_tᵀ, [d, d]; [d] for one-hot inputs.

    Products of different positions are dropped.
    """
    if _is_constant(g):
        return input_moment(a, None) * (g.shape[0] * g.shape[3] * g[0, 0, 0, 0].square())
    a = a.unfolded() if isinstance(a, Patches) else a
    return second_moment(a, g.square().sum((0, 3)))


def output_trace_independent(a: Inputs, g: Tensor) -> Tensor:
    """Σ_n Σ_c Σ_t ‖a_t‖² g_t g_tᵀ, [m, m]: products of different positions are dropped."""
    return weighted_moment(g, squared_norms(a))


def output_trace_diagonal(a: Inputs | Patches, g: Tensor) -> Tensor:
    """Σ_n Σ_c Σ_t ‖a_t‖² g_t∘g_t, [m]: the diagonal of `output_trace_independent`."""
    norms = a.squared_norms() if isinstance(a, Patches) else squared_norms(a)
    if _is_constant(g):
        return (norms.sum() * g.shape[0] * g[0, 0, 0, 0].square()).expand(g.shape[3]).clone()
    return norms.flatten() @ g.square().sum(0).flatten(0, 1)


def output_squares(a: Inputs, g: Tensor) -> Tensor:
    """Σ_n Σ_c diag(V Vᵀ), [m]: the diagonal of `output_trace`."""
    return unit_squares(a, g)


def squared_gradient(a: Inputs, g: Tensor) -> Tensor:
    """Σ_n Σ_c V∘V, [m, d]."""
    return squared_gradients(a, g)


def rotated_square(a: Inputs, g: Tensor, U_A: Tensor | None, U_B: Tensor | None) -> Tensor:
    """Σ_n Σ_c (U_Bᵀ V U_A)∘², [m, d]. A basis None is the identity."""
    return rotated_squares(a, g, U_A, U_B)


def gradient_sum(a: Inputs, g: Tensor) -> Tensor:
    """Σ_n Σ_c V, [m, d]."""
    return weighted_sum(g.sum(0)[None], a)[0]


def packed_block(a: Inputs, g: Tensor) -> Tensor:
    """Σ_n svec(a aᵀ) svec(Σ_c g gᵀ)ᵀ for T = 1: an isometric image of Σ (a aᵀ) ⊗ (g gᵀ)."""
    inputs, outputs = packed_size(a.shape[2]), packed_size(g.shape[3])
    total = g.new_zeros(inputs, outputs)
    for part in _parts(g, inputs + 2 * outputs):
        columns = svec_gram(g[:, part, 0])
        if isinstance(a, OneHot):
            places = packing_index(a.size, a.device).diagonal[a[part].safe]
            total.index_add_(0, places, columns * a[part].valid)
        else:
            total.addmm_(svec_outer(a[part][:, 0]).T, columns)
    return total


def dense_block(a: Inputs, g: Tensor) -> Tensor:
    """Σ_n Σ_c vec(V) vec(V)ᵀ, [d·m, d·m], column order, float64."""
    rows = (V.flatten(0, 1).mT.flatten(1) for _, V in vector_pieces(a, g))
    return self_product(rows, a.shape[2] * g.shape[3], g.device)


def unit_blocks(a: Inputs, g: Tensor) -> Tensor:
    """Σ_n Σ_c Σ_t g_tj² svec(a_t a_tᵀ) for every unit j, [m, d(d+1)/2].

    With the slope φ'(s) as g these are the blocks of the layer-wise Fisher.
    """
    weights = _flat(g.square().sum(0))
    total = g.new_zeros(weights.shape[-1], packed_size(a.shape[2]))
    if isinstance(a, OneHot):
        squares = g.new_zeros(a.size, g.shape[3]).index_add_(0, a.safe, weights * a.valid.view(-1, 1))
        total[:, packing_index(a.size, a.device).diagonal] = squares.T
        return total
    rows = _flat(a)
    for part in _parts(weights[None], packed_size(a.shape[2])):
        total.addmm_(weights[part].T, svec_outer(rows[part]))
    return total


def gradients(a: Inputs, g: Tensor) -> Tensor:
    """The samples' gradients V, [c, n, m, d]."""
    return sample_gradients(a, g).transpose(0, 1)


def _is_constant(g: Tensor) -> bool:
    """Whether g is one number, expanded: the slope of the identity."""
    return not any(g.stride())


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _parts(g: Tensor, width: int) -> Iterator[slice]:
    """Slices of the samples of g whose intermediate, `width` numbers a sample, stays in bounds."""
    step = max(1, min(_MOST_SAMPLES, at_most(_CHUNK_BYTES, 16) // (g.element_size() * width)))
    for start in range(0, g.shape[1], step):
        yield slice(start, start + step)
