"""What a pass refuses: numbers that are not finite, models that mix samples, reentrant checkpointing."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fisherlab.collect.batches import is_finite
from fisherlab.collect.hooks import REENTRANT, inputs_of
from fisherlab.errors import InputError, NumericalError
from fisherlab.gradients.inputs import Inputs, OneHot
from fisherlab.gradients.patches import Patches
from fisherlab.layers import LayerCall, LayerView, nodes_behind


def require_finite_weights(model: nn.Module) -> None:
    """Refuse a model with a parameter that is not finite, named in the error (`InputError`)."""
    for name, parameter in model.named_parameters():
        if not is_finite(parameter.detach()):
            raise InputError(
                f"parameter {name!r} holds values that are not finite (NaN or infinite); load "
                "another checkpoint"
            )


def own_rows(a: Inputs | Patches, other: Inputs | Patches) -> bool:
    """Whether rows each belong to one sample: `other` are those of a batch with sample 0 replaced by 1."""
    a, other = map(numbers_of, (a, other))
    if a.shape != other.shape:
        return False
    tolerance = 0.0
    if a.is_floating_point():
        tolerance = rounding(a.dtype) * max(float(a.abs().max()), 1e-30)  # above zero, where all numbers are
    expected = torch.cat([a[1:2], a[1:]])
    return torch.allclose(other.double(), expected.double(), rtol=0.0, atol=tolerance)


def rounding(dtype: torch.dtype) -> float:
    """What two numbers that are one may differ by, relative to the largest; below 0.1 in any precision."""
    eps = torch.finfo(dtype).eps
    return min(1e3 * eps, math.sqrt(eps))  # 1e3: that of a sum of 10⁶ terms, which grows as √n


def require_same_outputs(outputs: Tensor, other: Tensor) -> None:
    """Refuse other outputs of the same samples, called again or apart, but for rounding (`InputError`)."""
    tolerance = math.sqrt(torch.finfo(outputs.dtype).eps) * float(outputs.abs().max())
    if outputs.shape != other.shape or not torch.allclose(other, outputs, rtol=0.0, atol=tolerance):
        raise _mixes("the model gives")


def _mixes(whose: str) -> InputError:
    return InputError(
        f"the rows that {whose} do not each belong to one sample: the model mixes samples, draws random "
        "numbers, or counts samples in another dimension (batch_dim)"
    )


def require_own_outputs(
    layers: Mapping[str, LayerView],
    found: tuple[Tensor, Mapping[str, list[LayerCall]]],
    other: tuple[Tensor, Mapping[str, list[LayerCall]]],
    samples: int,
    batch_dim: int,
) -> None:
    """Refuse a model whose outputs' rows do not each belong to one sample (`InputError`).

    Args:
        layers: the first of them that sees such rows is named.
        found: the model's outputs and the layers' calls for a few samples.
        other: the same with sample 0 replaced by sample 1.
        samples: how many.
        batch_dim: the dimension that counts samples.
    """
    if own_rows(found[0].detach(), other[0].detach()):
        return
    for name, view in layers.items():
        if view.of_uses:
            continue
        try:
            calls = (seen[name] for _, seen in (found, other))
            a, swapped = (inputs_of(view, own, samples, batch_dim) for own in calls)
        except (RuntimeError, ValueError, IndexError):  # not called, or no rows of samples at all
            continue
        if not own_rows(a, swapped):
            raise _mixes(f"layer {name!r} sees")
    raise _mixes("the model gives")


def require_no_reentrant_checkpoint(outputs: Tensor) -> None:
    """Refuse a model with reentrant activation checkpointing, found in its graph (`InputError`)."""
    if "CheckpointFunctionBackward" in node_names(outputs):
        raise InputError(REENTRANT)


def node_names(outputs: Tensor) -> set[str]:
    """The names of all nodes of a graph."""
    return {node.name() for node in nodes_behind([outputs.grad_fn])}


def require_finite(outputs: Tensor, seen: Mapping[str, list[LayerCall]], index: int) -> None:
    """Refuse outputs that are not finite; names the first such layer and the batch (`NumericalError`)."""
    if is_finite(outputs.detach()):
        return
    for name, calls in seen.items():
        if not all(is_finite(call.output) for call in calls):
            raise NumericalError(
                f"layer {name!r} gives values that are not finite in batch {index}; check its "
                "weights and the scale of the data"
            )
    raise NumericalError(f"the model's output is not finite in batch {index}; check the weights")


def not_finite(name: str, index: int) -> NumericalError:
    """The error about gradients of a layer that are not finite."""
    return NumericalError(
        f"what comes back to layer {name!r} is not finite in batch {index}; look for a function without a "
        "slope there, such as a root or a norm of zero"
    )


def longer(name: str, positions: int, index: int) -> InputError:
    """The error about a batch with more positions than Kronecker accumulation is right for."""
    return InputError(
        f"layer {name!r} has one position a sample in the first samples and {positions} in batch {index}, "
        "for which Kronecker accumulation is not right; put a batch of the longest length first, or use "
        "method='per-sample'"
    )


def numbers_of(a: Inputs | Patches) -> Tensor:
    """The numbers that inputs are kept as: indices, images, or themselves."""
    if isinstance(a, OneHot):
        return a.indices
    return a.images if isinstance(a, Patches) else a
