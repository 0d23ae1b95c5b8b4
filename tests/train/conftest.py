import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fisherlab.train import TrainConfig, train


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Slow tests run where they are asked for by -m."""
    for item in items:
        if item.get_closest_marker("slow") and not config.option.markexpr:
            item.add_marker(pytest.mark.skip(reason="slow; run with -m slow"))


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory and cache, one thread, no network, no pictures."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("FISHERLAB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("FISHERLAB_DATA", raising=False)
    monkeypatch.setattr("fisherlab.train.run.training.write_curves", lambda *arguments, **options: [])
    yield tmp_path
    torch.set_num_threads(threads)


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
