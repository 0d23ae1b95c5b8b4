"""Whether a layer's inputs a and output gradients g give the gradients of its parameters.

A block is one of parameters, and V_n = Σ_t g_nt a_ntᵀ is made of the calls of a module: they agree only where
each row of a and g belongs to one sample, and where the parameters act through these calls alone.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fisherlab.collect.batches import is_finite
from fisherlab.collect.hooks import inputs_of, outputs_of
from fisherlab.collect.refusals import own_rows, rounding
from fisherlab.collect.uses import own_rows_of, rows_of_uses
from fisherlab.gradients.inputs import Inputs, squared_norms, weighted_sum
from fisherlab.gradients.patches import Patches
from fisherlab.layers import LayerCall, LayerView, as_long
from fisherlab.linalg.numerics import dot64, norm64, spans

_CHUNK_BYTES = 32 * 2**20  # of patches unfolded, or numbers compared, at a time: a choice, a few for a look
_SEED = 20240229  # of the looks' own columns and silent samples: any number, always the same
_SINGLE = torch.finfo(torch.float32).eps

NOT_ONE_SAMPLE = "the rows that it sees do not each belong to one sample"
MIXED = "what comes back to the rows of one sample belongs to other samples"
NOT_FINITE = "what comes back to it is not finite (NaN or infinite) for some sample"
USED_ELSEWHERE = (
    "its module's calls do not give the gradient of its parameters, which are used elsewhere too, or whose "
    "inputs or outputs are changed on the way"
)


def why_not(
    view: LayerView,
    calls: Sequence[LayerCall],
    other: Sequence[LayerCall] | None,
    gradients: Sequence[Tensor | None],
    by_parameter: Mapping[str, Tensor | None],
    samples: int,
    batch_dim: int,
    silent: Tensor | None = None,
) -> str:
    """Why a layer's (a, g) do not give the gradient of its parameters, or an empty text where they do.

    A layer to which nothing comes back passes, if its parameters get nothing either: it gives no evidence.

    Args:
        view: the layer.
        calls: its calls in a forward pass of a few samples.
        other: those of the same pass with sample 0 replaced by sample 1; None leaves this test out.
        gradients: for each call what a column u at the model's outputs gives at the call's output (None
            without a path); u is random, and zero for some samples.
        by_parameter: what the same backward gives for the view's parameters, by their full names.
        samples: how many.
        batch_dim: the dimension that counts samples.
        silent: the samples for which u is zero, a bool [samples]; None: the first half of them.
    """
    if not calls:
        return "its module is not called"
    reached = any(g is not None for g in by_parameter.values())
    if reached and all(g is None for g in gradients):
        return USED_ELSEWHERE
    seen_by = ((call.use or view, call) for call in calls)
    unlike = (one.adapter.why_not(one.modules[0], call.input, call.output) for one, call in seen_by)
    reason = next(filter(None, unlike), "")
    if reason:
        return reason
    if not all_finite([*gradients, *by_parameter.values()]):
        return NOT_FINITE
    silent = torch.arange(samples, device=calls[0].output.device) < samples // 2 if silent is None else silent
    try:
        if view.of_uses:
            return _why_not_of_uses(view, calls, other, gradients, by_parameter, samples, batch_dim, silent)
        a = inputs_of(view, calls, samples, batch_dim)
        g = _outputs(view, calls, gradients, samples, batch_dim)
    except (RuntimeError, ValueError, IndexError, TypeError):
        shapes = " and ".join(dict.fromkeys(str(list(call.output.shape)) for call in calls))
        return f"it gives tensors of shape {shapes}, which do not count the {samples} samples"
    if a.shape[:2] != g.shape[:2]:
        return f"it has {a.shape[1]} rows of inputs and {g.shape[1]} of outputs a sample"
    if other is not None and samples > 1 and not _own_rows(view, calls, other, a, samples, batch_dim):
        return NOT_ONE_SAMPLE
    if reaches_silent(g, silent, rounding(g.dtype)):
        return MIXED
    expected = view.to_matrix({name: _dense(view, name, by_parameter[name]) for name in view.parameters})
    entering = 0.0
    if view.vector:  # whose g are sums over positions already
        known = (g for g in gradients if g is not None)
        entering = math.hypot(*(float(torch.linalg.vector_norm(g.double())) for g in known))
    return "" if agree(view, a, g, expected, entering) else USED_ELSEWHERE


def _why_not_of_uses(
    view: LayerView,
    calls: Sequence[LayerCall],
    other: Sequence[LayerCall] | None,
    gradients: Sequence[Tensor | None],
    by_parameter: Mapping[str, Tensor | None],
    samples: int,
    batch_dim: int,
    silent: Tensor,
) -> str:
    """The same of a matrix whose uses are of several kinds: rows use by use, and the sum of all."""
    pairs = _pairs(calls, gradients)
    for _, a, g in own_rows_of(pairs, samples, batch_dim):
        if a.shape[:2] != g.shape[1:3]:
            return f"it has {a.shape[1]} rows of inputs and {g.shape[2]} of outputs a sample"
        if reaches_silent(g[0], silent, rounding(g.dtype)):
            return MIXED
    if other is not None and samples > 1:
        if len(other) != len(calls):
            return NOT_ONE_SAMPLE
        swapped = own_rows_of(_pairs(other, [None] * len(other)), samples, batch_dim)
        both = zip(own_rows_of(pairs, samples, batch_dim), swapped, strict=True)
        if not all(own_rows(one, two) for (_, one, _), (_, two, _) in both):
            return NOT_ONE_SAMPLE
    a, g = rows_of_uses(pairs, samples, batch_dim)
    expected = view.to_matrix({name: _dense(view, name, by_parameter[name]) for name in view.parameters})
    return "" if agree(view, a, g[0], expected) else USED_ELSEWHERE


def is_mixed(
    view: LayerView,
    calls: Sequence[LayerCall],
    gradients: Sequence[Tensor | None],
    silent: Tensor,
    samples: int,
    batch_dim: int,
) -> bool:
    """Whether something comes back to the rows of silent samples; the arguments are those of `why_not`."""
    if view.of_uses:
        rows = [g[0] for _, _, g in own_rows_of(_pairs(calls, gradients), samples, batch_dim)]
    else:
        rows = [_outputs(view, calls, gradients, samples, batch_dim)]
    return any(reaches_silent(g, silent, rounding(g.dtype)) for g in rows)


def all_finite(gradients: Iterable[Tensor | None]) -> bool:
    """Whether all that came back is finite."""
    return all(is_finite(_without_zeros(g)) for g in gradients if g is not None)


def came_back(gradients: Sequence[Tensor | None], by_parameter: Mapping[str, Tensor | None]) -> bool:
    """Whether anything came back to a layer's calls or parameters: without, `why_not` has nothing to test."""
    found = [*gradients, *by_parameter.values()]
    return any(g is not None and bool(_without_zeros(g).any()) for g in found)


def close(found: Tensor, expected: Tensor, scale: float) -> bool:
    """Whether two sums agree to √eps of what enters them, or of themselves where that is more.

    In half precision four times that: torch's own kernels add up many terms in it.
    """
    return _distance(found, expected) <= _allowed(expected, scale)


def _allowed(expected: Tensor, scale: float) -> float:
    eps = torch.finfo(expected.dtype).eps
    return math.sqrt(eps) * (4 if eps > _SINGLE else 1) * max(scale, float(norm64(expected)))


def _distance(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ in float64, some rows at a time, for a block may be as large as a model."""
    if not found.dim():
        return abs(float(found) - float(expected))
    width = 2 * 8 * found[0].numel() if len(found) else 1
    pieces = (slice(*part) for part in spans(len(found), width, _CHUNK_BYTES))
    apart = (found[piece].double() - expected[piece].double() for piece in pieces)
    return math.sqrt(sum(float(dot64(x, x)) for x in apart))


def _outputs(
    view: LayerView,
    calls: Sequence[LayerCall],
    gradients: Sequence[Tensor | None],
    samples: int,
    batch_dim: int,
) -> Tensor:
    """What came back to the calls as g [n, t, m]."""
    return outputs_of(view, _pairs(calls, gradients), samples, batch_dim)[0]


def _pairs(calls: Sequence[LayerCall], gradients: Sequence[Tensor | None]) -> list[tuple[LayerCall, Tensor]]:
    """Each call with what came back to it, as one column."""
    found = (None if g is None else g.detach().unsqueeze(0) for g in gradients)
    return [(call, call.gradients(g)) for call, g in zip(calls, found, strict=True)]


def silent_samples(samples: int) -> Tensor:
    """Half of the samples, at random, the first but not the last; none of one. A bool [samples]."""
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(_SEED), device="cpu")
    silent = order < samples // 2
    silent[0], silent[-1] = samples > 1, False
    return silent


def random_column(
    output: Tensor, silent: Tensor, generator: torch.Generator | None = None, dim: int | None = 0
) -> Tensor:
    """Random numbers shaped as an output, zero for the silent samples; without a generator the same ones.

    Args:
        output: of a model.
        silent: a bool [n].
        generator: draws on the CPU.
        dim: the dimension that counts samples; None: no sample is silent.
    """
    generator = torch.Generator().manual_seed(_SEED) if generator is None else generator
    column = torch.randn(output.shape, generator=generator, device="cpu")
    if dim is not None:
        column.movedim(dim, 0)[silent] = 0
    return column.to(output)


def reaches_silent(g: Tensor, silent: Tensor, share: float) -> bool:
    """Whether more than a share of the largest number comes back to silent samples; g [n, …]."""
    quiet = g[silent.to(g.device)]
    return bool(quiet.numel()) and float(quiet.abs().max()) > share * float(g.abs().max())


def _own_rows(
    view: LayerView,
    calls: Sequence[LayerCall],
    other: Sequence[LayerCall],
    a: Inputs | Patches,
    samples: int,
    batch_dim: int,
) -> bool:
    if [call.output.shape for call in calls] != [call.output.shape for call in other]:
        calls, other = as_long(calls, other)
        if [call.output.shape for call in calls] != [call.output.shape for call in other]:
            return False
        a = inputs_of(view, calls, samples, batch_dim)
    if not own_rows(a, inputs_of(view, other, samples, batch_dim)):
        return False
    if view.weight is not None and not view.vector:
        return True
    # a norm's, and a lone bias's, a are ones, which tell nothing of their rows
    return all(
        own_rows(*(view.sample_rows(one.input, samples, batch_dim) for one in pair))
        for pair in zip(calls, other, strict=True)
    )


def agree(view: LayerView, a: Inputs | Patches, g: Tensor, expected: Tensor, entering: float = 0.0) -> bool:
    """Whether Σ_n Σ_t g aᵀ is the expected matrix [m, d], up to rounding of what was summed.

    It is not where a and g have other sizes: their samples are in another dimension, or an adapter tells of
    another part of the weight.
    """
    if expected.shape != (g.shape[-1], a.shape[-1] // view.groups):
        return False
    dtype = torch.promote_types(g.dtype, torch.float32)
    if not isinstance(a, Patches) and view.groups == 1:
        return _agree_by_outputs(a.to(dtype), g.to(dtype), expected, entering)
    total, squares = torch.zeros(expected.shape, dtype=torch.float64, device=g.device), 0.0
    for part, rows in _pieces(a, g, dtype):
        by_group: Sequence[Inputs] = part.chunk(view.groups, -1) if isinstance(part, Tensor) else [part]
        pairs = zip(by_group, rows.chunk(view.groups, -1), strict=True)
        total += torch.cat([weighted_sum(own[None], inputs)[0] for inputs, own in pairs])
        squares += float((squared_norms(part) * rows.square().sum(-1)).double().sum())
    return close(total, expected, max(math.sqrt(squares), entering))


def _agree_by_outputs(a: Inputs, g: Tensor, expected: Tensor, entering: float) -> bool:
    """The same for some outputs at a time, for a block may be as large as a model."""
    if (g.shape[-1], a.shape[-1]) != expected.shape:
        return False
    squares = float((squared_norms(a) * g.square().sum(-1)).double().sum())
    apart = 0.0
    for start, stop in spans(len(expected), 3 * 8 * expected.shape[1], _CHUNK_BYTES):
        V = weighted_sum(g[None, ..., start:stop], a)[0]
        apart += _distance(V, expected[start:stop]) ** 2
    return math.sqrt(apart) <= _allowed(expected, max(math.sqrt(squares), entering))


def _pieces(a: Inputs | Patches, g: Tensor, dtype: torch.dtype) -> Iterator[tuple[Inputs, Tensor]]:
    """The inputs and g; of images a few samples at a time, so that what is unfolded stays small."""
    if not isinstance(a, Patches):
        yield a.to(dtype), g.to(dtype)
        return
    _, positions, width = a.shape
    for start, stop in spans(len(g), positions * width * g.element_size(), _CHUNK_BYTES):
        part = replace(a, images=a.images[start:stop])
        yield part.unfolded().to(dtype), g[start:stop].to(dtype)


def _dense(view: LayerView, name: str, gradient: Tensor | None) -> Tensor:
    if gradient is None:
        return torch.zeros_like(view.modules[0].get_parameter(name.rpartition(".")[2]))
    return (gradient.to_dense() if gradient.is_sparse else gradient).detach()


def _without_zeros(gradient: Tensor) -> Tensor:
    return gradient.coalesce().values() if gradient.is_sparse else gradient
