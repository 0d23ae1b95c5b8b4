"""Seeded initialisation that leaves the global random state as it was."""

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


def seeded(build: Callable[[], T], seed: int) -> T:
    """``build()`` with the CPU's random state set to `seed` for the time of the call."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build()
