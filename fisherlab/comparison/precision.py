"""Where a number type is too narrow for a network: told from what was summed, and mended by a wider copy.

A block is a sum of products of four numbers, a a g g. Where a network is sure of its labels, or its inputs or
gradients are very small or large, these fall below the smallest numbers of float32, or above its largest, and
what is left is no Fisher but the edge of the type. Such layers are done again in float64.
"""

import copy
import math
from functools import partial

import torch
from torch import Tensor, nn

from fisherlab.comparison.measure import Target
from fisherlab.exact.edges import bounds, size_of
from fisherlab.gradients.inputs import OneHot
from fisherlab.layers import Layers
from fisherlab.statistics import SplitSums

HALF = (torch.float16, torch.bfloat16)
"""The types of three digits, in which no sums are made."""

_MOST_SPREAD = 0.01  # of a factor's rounding beside what makes up F: a choice, as far as 1 % of it


def why_noise(target: Target, gathered: SplitSums, dtype: torch.dtype) -> str:
    """Why the numbers of a layer would be rounding in this type, or an empty text.

    Args:
        target: the exact block.
        gathered: what the passes gathered.
        dtype: of the inputs and gradients.
    """
    low, high = bounds(dtype)
    sizes = {"gradients of weights": size_of(target.trace, target.exact.shape[0])}
    if gathered.kept is not None:
        a = gathered.kept.a
        if not isinstance(a, OneHot):
            sizes["inputs"] = _rms(a)
        sizes |= {f"output gradients ({kind} labels)": _rms(g) for kind, g in gathered.kept.g.items()}
    for what, size in sizes.items():
        exact_zero = size == 0 and dtype == torch.float64
        if not size and not exact_zero:
            return f"{what} are zero in {_name(dtype)}, or too small for it"
        if not (low <= size <= high or exact_zero):
            return f"{what} are of size {size:.1g}, whose products {_name(dtype)} does not hold"
    if dtype == torch.float64:
        return ""
    if gathered.kept is not None and not isinstance(gathered.kept.a, OneHot):
        most = _MOST_SPREAD / torch.finfo(dtype).eps
        for kind, g in gathered.kept.g.items():
            if side := _outlier(gathered.kept.a, g, most):
                return f"few {side} ({kind} labels) are so large that {_name(dtype)} loses the others in sums"
    if target.halves is not None and target.halves.lost:
        return f"few samples make up the block, and the others are lost in sums in {_name(dtype)}"
    return ""


def _outlier(a: Tensor, g: Tensor, most: float) -> str:
    """Which factors, A or B, are made of other samples than the block.

    The largest ‖a‖² is compared with the mean of ‖a‖² weighted by ‖g‖², that of what makes up F; and the
    other way round.

    Args:
        a: inputs [n, t, d].
        g: output gradients [c, n, t, m].
        most: the largest ratio.
    """
    norm = partial(torch.linalg.vector_norm, dtype=torch.float64)
    inputs, gradients = norm(a, dim=-1).square(), norm(g, dim=(0, -1)).square()
    weight = float((inputs * gradients).sum())
    if float(inputs.max() * gradients.sum()) > most * weight:
        return "inputs"
    return "output gradients" if float(gradients.max() * inputs.sum()) > most * weight else ""


def widened(model: nn.Module, layers: Layers, dtype: torch.dtype) -> tuple[nn.Module, Layers] | None:
    """A copy of a model in a wider type, and its layers; None where it cannot be copied."""
    try:
        copied, own = copy.deepcopy((model, layers))  # together: the layers know the modules
        return copied.to(dtype), own
    except Exception:  # whatever a model's own copying raises
        return None


def _rms(values: Tensor) -> float:
    """The root of the mean square, of values of any size."""
    largest = float(values.abs().amax()) if values.numel() else 0.0
    if not 0 < largest < math.inf:
        return largest
    return largest * float((values.double() / largest).square().mean().sqrt())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def half_precision(dtype: torch.dtype) -> str:
    """Why a model in this type is done in float32, or an empty text."""
    return f"computed in float32: {_name(dtype)} holds three digits" if dtype in HALF else ""
