"""The random generators that a user's model may draw from, saved and set again."""

import random
from typing import Any

import numpy as np
import torch


def seed_all(seed: int, device: torch.device) -> None:
    """Seeds the generators of torch (CPU and device), NumPy and Python."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    np.random.seed(seed % 2**32)  # it takes no larger one  # noqa: NPY002
    random.seed(seed)


def random_state(device: torch.device) -> dict[str, Any]:
    """Their states, as numbers, texts and tensors."""
    name, key, *numbers = np.random.get_state()  # noqa: NPY002
    return {
        "torch": torch.default_generator.get_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": (name, torch.from_numpy(np.asarray(key, np.int64)), *numbers),
        "python": random.getstate(),
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Sets the states that `random_state` gave."""
    torch.default_generator.set_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    name, key, *numbers = state["numpy"]
    np.random.set_state((name, key.numpy().astype(np.uint32), *numbers))  # noqa: NPY002
    random.setstate(state["python"])
