"""Random numbers that belong to samples: how a pass is cut into batches does not change them.

They are drawn sample by sample from uniform numbers in float64 on the CPU, where the generator serves one
number after another, and moved afterwards.
"""

import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fisherlab.errors import InputTypeError

_CHUNK_BYTES = 8 * 2**20  # of cumulative sums at a time: a choice, memory that is written again and again
_MOST_SAMPLES = 8192  # whose draws are passed over at a time: a choice, as many as a batch has at most


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
    values = torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")
    values.clamp_(min=2.0**-54)  # they are multiples of 2⁻⁵³: half of one stands for zero, without a quantile
    return values.transpose(0, 1).to(like.device)


def normal(like: Tensor, draws: int, numbers: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers for every sample, [draws, n, *numbers] in the dtype of `like`."""
    return torch.special.ndtri(uniform(like, draws, numbers, generator)).to(like.dtype)


def categorical(logits: Tensor, draws: int, generator: torch.Generator | None) -> Tensor:
    """Classes drawn with probabilities softmax(logits), by inversion of their cumulative sums.

    The sums are made for some rows at a time, so the memory beside the result has a bound that neither
    samples, positions nor draws raise.

    Args:
        logits: [n, …, C]: one draw has a class for each sample and position.
        draws: how many a sample.
        generator: on the CPU; None: torch's own.

    Returns:
        [draws, n, …], int64.
    """
    points = uniform(logits, draws, tuple(logits.shape[1:-1]), generator)
    rows = logits.flatten(0, -2)
    most = max(1, _CHUNK_BYTES // (points.element_size() * rows.shape[-1]))
    chunks = zip(rows.split(most), points.flatten(1).T.split(most), strict=True)
    found = torch.cat([_invert(*chunk) for chunk in chunks])
    return found.T.reshape(points.shape)


def _invert(logits: Tensor, points: Tensor) -> Tensor:
    """For points [r, k] of (0, 1) the classes [r, k] whose share of the cumulative sum they fall in."""
    cumulative = torch.softmax(logits, -1, dtype=torch.float64).cumsum_(-1)
    points = (points * cumulative[:, -1:]).contiguous()
    return torch.searchsorted(cumulative, points, right=True).clamp_(max=logits.shape[-1] - 1)


def drawn_seed(generator: torch.Generator | None) -> int:
    """A seed from a generator; 0 without one.

    Raises:
        InputTypeError: it is no generator.
    """
    if generator is None:
        return 0
    if not isinstance(generator, torch.Generator):
        raise InputTypeError(
            f"generator is a torch.Generator, not {type(generator).__name__}; for a seed give "
            "torch.Generator().manual_seed(seed)"
        )
    # below 2^63, the end of int64, with a bit to spare
    return int(torch.randint(2**62, (), generator=generator, device=generator.device))


class Generators(dict[str, torch.Generator]):
    """Generators by use, made from the seed and its name, that stand before the draws of sample `begin`."""

    def __init__(self, seed: int, begin: int = 0) -> None:
        super().__init__()
        self._seed, self._begin = seed, begin

    def ready(self, use: str, draw: Callable[[int, torch.Generator], Any]) -> torch.Generator:
        """The generator of a use; `draw(n, generator)` draws for n samples, to pass over earlier ones."""
        if use not in self:
            self[use] = torch.Generator().manual_seed(self._seed ^ zlib.crc32(use.encode()))
            for start in range(0, self._begin, _MOST_SAMPLES):
                draw(min(_MOST_SAMPLES, self._begin - start), self[use])
        return self[use]
