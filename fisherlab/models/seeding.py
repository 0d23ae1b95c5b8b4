"""Seeded initialisation on the CPU that leaves the global random state as it was."""

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


def seeded(build: Callable[[], T], seed: int) -> T:
    """``build()`` on the CPU, with its random state set to `seed` for the time of the call."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        return build()
