import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fisherlab.train import TrainConfig, train


@pytest.fixture(autouse=True)
def place(tmp_path: Path, home: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory and cache, one thread, no network, no pictures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fisherlab.train.run.training.write_curves", lambda *arguments, **options: [])
    return tmp_path


@pytest.fixture
def trained(place: Path) -> Callable[..., dict[str, Any]]:
    """Trains a small model into a directory; returns the summary."""

    def run(out: str = "run", **settings: Any) -> dict[str, Any]:
        given = {"model": "train.nets:mlp", "epochs": 2, "batch": 16, **settings}
        return train(TrainConfig(**given), place / out)

    return run


@pytest.fixture(scope="session")
def processes() -> Any:
    """Processes that start at once, because their parent has everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train.nets", "fisherlab.train.run.training", "lightning_fabric"])
    return context
