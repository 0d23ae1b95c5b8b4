from pathlib import Path

import pytest
import torch

from fisherlab.datasets import Dataset
from fisherlab.models.preprocess import classes
from fisherlab.models.registry import ModelSpec, Recipe


@pytest.fixture(autouse=True)
def _at_home(home: Path) -> None:
    """Nothing here reads or writes a file of the user's."""


@pytest.fixture
def blobs() -> Dataset:
    """Two classes of points in the plane that a linear model tells apart."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(40) % 2
    centres = torch.tensor([[-2.0, 0.0], [2.0, 1.0]])
    return Dataset(
        name="blobs",
        inputs=centres[targets] + 0.3 * torch.randn(40, 2, generator=generator),
        targets=targets,
        split="train",
        checksum="blobs",
        stand_in="",
        source="made",
        classes=("left", "right"),
    )


@pytest.fixture
def linear() -> ModelSpec:
    """A linear model of the plane with a short recipe; not registered."""
    return ModelSpec(
        name="linear",
        build=lambda: torch.nn.Linear(2, 2),
        dataset="blobs",
        likelihood="categorical",
        preprocess=lambda data: data.inputs,
        targets=classes,
        default_samples=None,
        description="",
        source="",
        recipe=Recipe(learning_rate=0.1, warm_up=10, damping=(1e-5, 1.0), batch=16, epochs=10, least_steps=1),
    )
