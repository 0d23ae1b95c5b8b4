"""What a pass refuses: weights and outputs that are not finite, and models that mix samples."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fisherlab.capture import Seen
from fisherlab.data import is_finite
from fisherlab.errors import InputError, NumericalError
from fisherlab.operators.inputs import Inputs, OneHot
from fisherlab.operators.patches import Patches


def require_finite_weights(model: nn.Module) -> None:
    """Refuse a model with a parameter that is not finite, named in the error (`InputError`)."""
    for name, parameter in model.named_parameters():
        if not is_finite(parameter.detach()):
            raise InputError(
                f"parameter {name!r} holds values that are not finite (NaN or infinite); load "
                "another checkpoint"
            )


def require_own_rows(whose: str, a: Inputs | Patches, other: Inputs | Patches) -> None:
    """Refuse rows that do not each belong to one sample (`InputError`).

    Args:
        whose: who has the rows.
        a: the rows of a few samples.
        other: those of the same batch with sample 0 replaced by sample 1.
    """
    if not own_rows(a, other):
        raise InputError(
            f"the rows that {whose} do not each belong to one sample: the model mixes "
            "samples, draws random numbers, or counts samples in another dimension (batch_dim)"
        )


def own_rows(a: Inputs | Patches, other: Inputs | Patches) -> bool:
    """Whether rows are those of `other` where sample 0 is replaced by sample 1 there."""
    a, other = map(_numbers, (a, other))
    if a.shape != other.shape:
        return False
    tolerance = 0.0
    if a.is_floating_point():
        tolerance = 1e3 * torch.finfo(a.dtype).eps * max(float(a.abs().max()), 1e-30)
    expected = torch.cat([a[1:2], a[1:]])
    return torch.allclose(other.double(), expected.double(), rtol=0.0, atol=tolerance)


def not_finite(seen: Mapping[str, list[Seen]], index: int) -> NumericalError:
    """The error that names the first layer whose outputs are not finite, and the batch."""
    for name, calls in seen.items():
        if not all(is_finite(call.output.detach()) for call in calls):
            return NumericalError(
                f"layer {name!r} gives values that are not finite in batch {index}; check its "
                "weights and the scale of the data"
            )
    return NumericalError(f"the model's output is not finite in batch {index}; check the weights")


def _numbers(a: Inputs | Patches) -> Tensor:
    if isinstance(a, OneHot):
        return a.indices
    return a.images if isinstance(a, Patches) else a
