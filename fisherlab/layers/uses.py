"""The uses of a matrix that modules of several kinds share, such as an embedding and a head."""

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from fisherlab.layers.view import LayerView


def uses_of(view: LayerView, parameter: nn.Parameter, own: Sequence[LayerView]) -> tuple[LayerView, ...]:
    """How each module sees a shared matrix; none where it is no matrix, or another one, to one of them.

    Args:
        view: the layer, of this parameter alone.
        parameter: the matrix.
        own: each module's own view of it, under the layer's name.
    """
    weight = parameter.detach()
    strides = view.to_matrix({view.parameters[0]: weight}).stride()
    found = []
    for one in own:
        matrix = one.adapter.matrix(one.modules[0], weight)
        transposed = matrix.stride() != strides
        seen = matrix.mT if transposed and matrix.dim() == 2 else matrix
        same = seen.data_ptr() == weight.data_ptr() and seen.stride() == strides
        if one.weight is None or one.vector or one.groups > 1 or not same:
            return ()
        found.append(replace(one, transposed=transposed))
    return tuple(found)
