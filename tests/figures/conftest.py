from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fisherlab.figures.method_runs import MethodRuns
from fisherlab.figures.scales import SMOKE, Scale
from fisherlab.figures.workshop import Workshop


@pytest.fixture(autouse=True)
def place(tmp_path: Path, home: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory and cache, and no data but the stand-in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "fisherlab.train.run.training.write_curves", lambda *given, **named: []
    )  # most of a short run
    return tmp_path


@pytest.fixture
def unsaved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are drawn, but not written, which takes most of the time of large ones."""
    monkeypatch.setattr("fisherlab.figures.workshop.save", lambda figure, path: [])


@pytest.fixture
def tiny() -> Scale:
    """The smoke scale with a few steps."""
    few = {"samples": 256, "epochs": 2, "batch": 64, "warm_up": 8}
    slow = {method: {**own, "warm_up": 8} for method, own in SMOKE.images.own.items()}
    return replace(
        SMOKE,
        digits=replace(SMOKE.digits, common={**SMOKE.digits.common, **few}, rates={"lngd": 0.02}),
        images=replace(
            SMOKE.images,
            common={**SMOKE.images.common, **few},
            rates={**SMOKE.images.rates, "lngd": 0.02, "lngd-lr": 0.02},
            own=slow,
            seeds=2,
        ),
        samples=32,
        vectors=32,
        theorem_steps=3,
    )


@pytest.fixture
def work(tiny: Scale, tmp_path: Path) -> Workshop:
    """The means of a script at the tiny scale."""
    return _work_in(tmp_path / "out", tiny)


@pytest.fixture
def work_in() -> Callable[..., Workshop]:
    """From a folder, a scale and directories of other runs to the means of a script."""
    return _work_in


def _work_in(folder: Path, scale: Scale, *others: Path) -> Workshop:
    folder.mkdir(exist_ok=True)
    runs = MethodRuns(
        folder / "runs", others, seed=0, device="cpu", data_dir=None, report=lambda what, step, steps: None
    )
    return Workshop(scale, 0, "cpu", None, folder, runs)
