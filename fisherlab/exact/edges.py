"""The sizes whose products a number type holds: beyond them a block is the edge of the type."""

import math
import warnings
from collections.abc import Mapping

import torch

from fisherlab.operators import LinearOperator


def bounds(dtype: torch.dtype) -> tuple[float, float]:
    """Between which sizes x the squares x² of numbers down to √ε·x, and sums of them, are held."""
    info = torch.finfo(dtype)
    return math.sqrt(info.tiny / info.eps), math.sqrt(info.max * info.eps)


def size_of(trace: float, dimension: int) -> float:
    """The root of the mean of a block's diagonal, the size of a gradient of one weight."""
    return math.sqrt(trace / dimension) if trace >= 0 else math.nan


def warn_of_edges(blocks: Mapping[str, LinearOperator], dtype: torch.dtype) -> None:
    """Warns of blocks that are zero or rounding because the model's type is too narrow for its gradients."""
    if dtype == torch.float64:
        return
    low, high = bounds(dtype)
    sizes = {name: size_of(float(block.trace()), block.shape[0]) for name, block in blocks.items()}
    beyond = [name for name, size in sizes.items() if not low <= size <= high]
    if beyond:
        name, digits = ", ".join(map(repr, beyond[:3])), str(dtype).removeprefix("torch.")
        more = f" and {len(beyond) - 3} more" if len(beyond) > 3 else ""
        warnings.warn(
            f"gradients of {name}{more} are zero or beyond what {digits} holds squares of (size "
            f"{sizes[beyond[0]]:.1g}): the blocks may be rounding; give the model in float64",
            stacklevel=4,
        )
