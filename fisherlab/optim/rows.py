"""Which rows of a layer's inputs and gradients belong to one sample, found once from two samples.

A module is called twice with two samples of the batch, without a trace: as they are, and with the first
replaced by the second. Where both samples are the same, so must be the rows of a and g that are said to be
theirs, whatever the batch has to do with itself (batch norm, a loss of the whole batch); a dimension that
is no sample's shows differences. The first of the two calls also says whether Σ_n V_n is the parameters'
gradient.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from fisherlab.capture import capture, inputs_of, outputs_of, unchanged
from fisherlab.data import is_finite
from fisherlab.door import USED_ELSEWHERE, agree, came_back
from fisherlab.errors import InputError
from fisherlab.layers import Layers, LayerView, Use
from fisherlab.operators.inputs import OneHot
from fisherlab.operators.patches import Patches

_RAGGED = "some samples have more rows in it than others"


@dataclass(frozen=True)
class Found:
    """What two samples say of a layer.

    Attributes:
        dim: the dimension that counts samples; None where none does.
        sure: whether no other dimension could be it.
        reason: why the layer's a and g are not those of samples, or of its weight; else empty.
    """

    dim: int | None
    sure: bool
    reason: str = ""


@dataclass(frozen=True)
class _Calls:
    """A layer's calls, the gradients at their outputs, and those of its parameters."""

    uses: list[Use]
    g: list[Tensor | None]
    by_parameter: dict[str, Tensor | None]


def find_rows(
    module: nn.Module,
    args: tuple[Any, ...],
    keywords: Mapping[str, Any],
    samples: int,
    pair: tuple[int, int],
    batch_dim: int,
    layers: Layers,
    parameters: Mapping[str, nn.Parameter],
    dims: Mapping[str, int],
    shapes: Mapping[str, Sequence[torch.Size]],
) -> dict[str, Found]:
    """What two samples say of each layer that takes part; nothing is changed by it.

    Args:
        module: the module that was called, with these arguments.
        args: its arguments.
        keywords: its keyword arguments.
        samples: N of that call.
        pair: which two of them.
        batch_dim: the dimension of the arguments that counts samples.
        layers: to be looked at.
        parameters: of the model by name.
        dims: the dimension of each layer's inputs that is taken to count samples.
        shapes: of each layer's outputs for all samples.

    Raises:
        InputError: where the module cannot be called with two samples.
    """
    given = (args, dict(keywords))
    two = tree_map_only(Tensor, lambda x: _chosen(x, samples, batch_dim, pair), given)
    same = tree_map_only(Tensor, lambda x: _chosen(x, samples, batch_dim, (pair[1],) * 2), given)
    found: dict[str, Found] = {}
    for training in (False, True) if module.training else (False,):
        left = layers.select([name for name in layers if name not in found])
        if not left:
            break
        with unchanged(module):
            _prepare(module, training)
            try:
                first = _called(module, two, left, parameters, batch_dim)
                second = _called(module, same, left, parameters, batch_dim) if first else {}
            except Exception as error:
                raise InputError(
                    "which rows of the layers belong to one sample could not be found: called with two of "
                    f"the {samples} samples, the model raises {type(error).__name__}: {error}; say which "
                    "dimension counts them by batch_dim={'layer name or glob': dimension}"
                ) from error
        for name in second if first else ():
            found[name] = _judged(left[name], first[name], second[name], dims[name])
            rows = [use.output.shape for use in first[name].uses]
            if _are_ragged(rows, shapes[name], found[name].dim, samples):
                found[name] = Found(
                    None, True, f"{_RAGGED}, as the shapes {_texts([*rows, *shapes[name]])} show"
                )
    return found


def _chosen(x: Tensor, samples: int, batch_dim: int, rows: tuple[int, ...]) -> Tensor:
    chosen = x.detach()
    if x.dim() > batch_dim and x.shape[batch_dim] == samples:
        chosen = chosen.index_select(batch_dim, torch.tensor(rows, device=x.device))
    return chosen.requires_grad_(x.requires_grad)


def _prepare(module: nn.Module, training: bool) -> None:
    """Training mode where asked for, but without dropout, which differs from sample to sample."""
    module.train(training)
    for part in module.modules():
        if isinstance(part, (nn.modules.dropout._DropoutNd, nn.MultiheadAttention)):
            part.eval()


def _called(
    module: nn.Module,
    given: tuple[tuple[Any, ...], dict[str, Any]],
    layers: Layers,
    parameters: Mapping[str, nn.Parameter],
    batch_dim: int,
) -> dict[str, _Calls]:
    """The layers' calls with what a column comes back as that is the same for every sample."""
    args, keywords = given
    with capture(layers, outputs=False) as seen:
        output = module(*args, **keywords)
    outputs = [t for t in tensors_in(output) if t.requires_grad and t.is_floating_point() and t.numel()]
    seen = {name: calls for name, calls in seen.items() if calls}
    if not outputs or not seen or not all(map(is_finite, outputs)):
        return {}
    edges = [call.edge for calls in seen.values() for call in calls]
    trained = [
        p for p in dict.fromkeys(p for n in seen for p in layers[n].parameters) if parameters[p].requires_grad
    ]
    generator = torch.Generator().manual_seed(0)
    columns = [_column(t, batch_dim, generator) for t in outputs]
    ends = [*edges, *(parameters[p] for p in trained)]
    found = torch.autograd.grad(outputs, ends, columns, allow_unused=True)
    gradients, by_parameter = iter(found[: len(edges)]), dict(zip(trained, found[len(edges) :], strict=True))
    return {
        name: _Calls(
            [call.use for call in calls],
            [next(gradients) for _ in calls],
            {p: by_parameter.get(p) for p in layers[name].parameters},
        )
        for name, calls in seen.items()
    }


def _column(output: Tensor, batch_dim: int, generator: torch.Generator) -> Tensor:
    """Random numbers shaped as an output, the same for both samples."""
    shape = list(output.shape)
    if output.dim() > batch_dim and shape[batch_dim] == 2:
        shape[batch_dim] = 1
    else:  # rows that may be in any order
        shape[:-1] = [1] * len(shape[:-1])
    column = torch.randn(shape, generator=generator, device="cpu")
    return column.to(output).expand(output.shape).contiguous()


def _judged(view: LayerView, first: _Calls, second: _Calls, declared: int) -> Found:
    dims = [dim for dim in _dims(view, second, declared) if _is_alike(view, second, dim)]
    if not dims:
        shapes = _texts([use.output.shape for use in second.uses])
        return Found(
            None, True, f"two samples give it outputs of shape {shapes}, none of whose dimensions counts them"
        )
    # rows of different samples differ; where they do not, nothing was seen of this dimension
    telling = [dim for dim in dims if not _is_alike(view, first, dim)]
    dim = (telling or dims)[0]
    frozen = any(p not in first.by_parameter or first.by_parameter[p] is None for p in view.parameters)
    if not frozen and came_back(first.g, first.by_parameter) and not _is_of_weight(view, first, dim):
        return Found(dim, True, USED_ELSEWHERE)
    return Found(dim, bool(telling))


def _are_ragged(
    two: Sequence[torch.Size], every: Sequence[torch.Size], dim: int | None, samples: int
) -> bool:
    """Whether samples do not all have as many rows, from the shapes for two samples and for all."""
    if dim is None or len(two) != len(every):
        return False
    return any(few[dim] * samples != 2 * many[dim] for few, many in zip(two, every, strict=True))


def _texts(shapes: Iterable[torch.Size]) -> str:
    return " and ".join(dict.fromkeys(str(list(shape)) for shape in shapes))


def sample_dim(view: LayerView, declared: int) -> int:
    """The dimension that counts samples in a layer's inputs, where another is declared for its model."""
    if view.adapter is not None and view.adapter.sample_first:
        return 0
    return declared if view.batch_dim is None else view.batch_dim


def _dims(view: LayerView, calls: _Calls, declared: int) -> list[int]:
    """The dimensions that may count samples, the one in use first."""
    own = sample_dim(view, declared)
    if view.batch_dim is not None or (view.adapter is not None and view.adapter.sample_first):
        return [own]
    most = min(use.output.dim() for use in calls.uses) - 1
    return [own, *(dim for dim in range(most) if dim != own)]


def _is_alike(view: LayerView, calls: _Calls, dim: int) -> bool:
    """Whether the rows of both samples, which are the same, are alike."""
    try:
        a, g = _of_layer(view, calls, dim)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return False
    if a.shape[:2] != g.shape[1:3]:
        return False
    values = a.indices if isinstance(a, OneHot) else a.images if isinstance(a, Patches) else a
    return _same(values) and _same(g.transpose(0, 1))


def _of_layer(view: LayerView, calls: _Calls, dim: int) -> tuple[Any, Tensor]:
    pairs = [
        (use, (use.output.new_zeros(use.output.shape) if g is None else g).unsqueeze(0))
        for use, g in zip(calls.uses, calls.g, strict=True)
    ]
    return inputs_of(view, calls.uses, 2, dim), outputs_of(view, pairs, 2, dim)


def _same(rows: Tensor) -> bool:
    if not rows.numel():
        return True
    if not rows.is_floating_point():
        return torch.equal(rows[0], rows[1])
    rows = rows.nan_to_num()  # the step says of values that are not finite where they come from
    tolerance = math.sqrt(torch.finfo(rows.dtype).eps) * float(rows.abs().max())
    return float((rows[0] - rows[1]).abs().max()) <= tolerance


def _is_of_weight(view: LayerView, calls: _Calls, dim: int) -> bool:
    a, g = _of_layer(view, calls, dim)
    gradients = {name: g for name, g in calls.by_parameter.items() if g is not None}
    return agree(view, a, g[0], view.to_matrix(gradients))


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in a model's argument or result, however nested."""
    return [leaf for leaf in _leaves(value) if isinstance(leaf, Tensor)]


def _leaves(value: Any) -> Iterable[Any]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [leaf for one in value.values() for leaf in _leaves(one)]
    if isinstance(value, (tuple, list)):
        return [leaf for one in value for leaf in _leaves(one)]
    if hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
        return [leaf for one in vars(value).values() for leaf in _leaves(one)]
    return []
