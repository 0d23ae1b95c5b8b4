"""The log for TensorBoard: the same numbers, also after an interruption."""

import importlib.util

import pytest

from fisherlab.errors import InputError
from fisherlab.train import TrainConfig, resume, train
from fisherlab.train.run.board import scalars
from fisherlab.train.run.log import read

SETTINGS = {"model": "train.nets:mlp", "optimizer": "lngd", "epochs": 2, "batch": 16, "tensorboard": True}


class Killed(BaseException):
    pass


def test_without_the_package_it_is_one_sentence_and_nothing_is_written(place, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install tensorboard"):
        train(TrainConfig(**SETTINGS), place / "run")
    assert not list(place.glob("run*"))


def test_the_numbers_are_those_of_the_log(place):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def killed(progress, steps):
        if progress.step == 7:
            raise Killed

    with pytest.raises(Killed):
        train(TrainConfig(**SETTINGS), place / "run", report=killed)
    resume(place / "run")
    events = accumulator.EventAccumulator(str(place / "run" / "tensorboard"), {"scalars": 0}).Reload()
    wanted: dict[str, dict[int, float]] = {}
    for line in read(place / "run"):
        for tag, value in scalars(line):
            wanted.setdefault(tag, {})[line["step"]] = value
    assert {"step/loss", "step/lr", "evaluation/train_loss", "layers/rate/0"} <= set(wanted)
    assert set(events.Tags()["scalars"]) == set(wanted)
    for tag, values in wanted.items():
        found = {event.step: event.value for event in events.Scalars(tag)}
        assert found == pytest.approx(values, rel=1e-6)


def test_only_finite_numbers_are_written():
    line = {
        "kind": "step",
        "step": 3,
        "epoch": 0.1,
        "seconds": 1.0,
        "loss": float("nan"),
        "lr": 0.1,
        "x": "a",
    }
    assert list(scalars(line)) == [("step/lr", 0.1)]
