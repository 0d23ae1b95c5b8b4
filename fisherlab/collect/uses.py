"""A matrix that modules of several kinds share, such as an embedding and a head: V as the sum of its uses.

In the orientation [m, d] of the layer a use gives Σ_t g_t a_tᵀ, and one whose own matrix is the transpose
Σ_t a_t g_tᵀ: there the gradients stand among the inputs, and the inputs among the gradients.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fisherlab.gradients.inputs import Inputs, dense_inputs
from fisherlab.gradients.patches import Patches
from fisherlab.layers import LayerCall, LayerView

Pairs = Sequence[tuple[LayerCall, Tensor]]


def own_rows_of(
    pairs: Pairs, samples: int, batch_dim: int
) -> Iterator[tuple[LayerView, Inputs | Patches, Tensor]]:
    """Each call of a use as its own module sees it: the use, a [n, t, d'] and g [c, n, t, m'].

    Args:
        pairs: calls with C tensors [c, …] shaped as their outputs.
        samples: n.
        batch_dim: the dimension that counts samples.
    """
    for call, g in pairs:
        assert call.use is not None
        use = call.use
        yield use, use.to_inputs(call, samples, batch_dim), use.to_outputs(g, call, samples, batch_dim)


def rows_of_uses(pairs: Pairs, samples: int, batch_dim: int) -> tuple[Tensor, Tensor]:
    """The a [n, T, d] and g [c, n, T, m] with V_{n,c} = Σ_t g_{c,n,t} a_{n,t}ᵀ; as `own_rows_of`.

    A transposed use has t positions for each column, whose g are zero for the others.
    """
    inputs, gradients = [], []
    for use, own, g in own_rows_of(pairs, samples, batch_dim):
        a = dense_inputs(own.unfolded() if isinstance(own, Patches) else own)
        if use.transposed:
            columns, positions = g.shape[0], a.shape[1]
            turned = a.new_zeros(columns, samples, columns, positions, a.shape[2])
            turned.diagonal(dim1=0, dim2=2).copy_(a.unsqueeze(-1))
            a, g = g.transpose(0, 1).flatten(1, 2), turned.flatten(2, 3)
        inputs.append(a)
        gradients.append(g)
    return torch.cat(inputs, 1), torch.cat(gradients, 2)
