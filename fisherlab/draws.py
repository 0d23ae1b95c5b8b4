"""Random numbers that belong to samples: how a pass is cut into batches does not change them.

They are drawn sample by sample from uniform numbers in float64 on the CPU, where the generator serves one
number after another, and moved afterwards.
"""

import torch
from torch import Tensor


def uniform(like: Tensor, draws: int, numbers: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Uniform numbers in (0, 1) for every sample.

    Args:
        like: its first dimension counts samples; its device is the result's.
        draws: how many a sample.
        numbers: the shape of one draw.
        generator: on the CPU; None: torch's own.

    Returns:
        [draws, n, *numbers], float64.
    """
    shape = (len(like), draws, *numbers)
    values = torch.rand(shape, generator=generator, dtype=torch.float64).clamp_(min=2.0**-54)
    return values.transpose(0, 1).to(like.device)


def normal(like: Tensor, draws: int, numbers: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers for every sample, [draws, n, *numbers] in the dtype of `like`."""
    return torch.special.ndtri(uniform(like, draws, numbers, generator)).to(like.dtype)


def categorical(log_p: Tensor, draws: int, generator: torch.Generator | None) -> Tensor:
    """Class indices [draws, n] from log-probabilities [n, C]."""
    cumulative = torch.exp(log_p.double()).cumsum(-1)
    points = uniform(log_p, draws, (1,), generator) * cumulative[:, -1:]
    edges = cumulative.expand(draws, -1, -1).contiguous()
    found = torch.searchsorted(edges, points.contiguous(), right=True)
    return found.squeeze(-1).clamp_(max=log_p.shape[-1] - 1)
