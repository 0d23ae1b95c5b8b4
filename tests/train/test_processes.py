"""Several processes take the steps of one, on the same batches."""

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor
from train import nets

from fisherlab.train import TrainConfig, train
from fisherlab.train.run.log import read

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")

DUE = {"statistics_every": 2, "inverse_every": 2}
RESNET = {"model": "train.nets:resnet8", "batch": 9, "epochs": 1, "precision": "64"}  # 9, 9 and 5 samples
EMPIRICAL = {"options": {"source": "empirical"}}
TOKENS = {"model": "train.nets:tokens", "optimizer": "lngd", "epochs": 2, "precision": "64"}  # of 40
ALIKE = {
    "sgd": {**RESNET, "optimizer": "sgd", "lr": 0.05},
    "lngd": {**RESNET, "optimizer": "lngd", "lr": 0.01, **DUE},
    "kfac": {**RESNET, "optimizer": "kfac", **DUE},
    "tkfac, labels of the loss": {**RESNET, "optimizer": "tkfac", **DUE, **EMPIRICAL},
    # moments of the first batch alone: where an eigenspace has several dimensions, its basis goes by rounding
    "ekfac, labels of the loss": {**RESNET, "optimizer": "ekfac", **EMPIRICAL},
    "accumulated": {**RESNET, "optimizer": "lngd", "lr": 0.01, "accumulation": 2, **DUE},
    "augmented": {**RESNET, "optimizer": "ngplus", "augment": ("crop", "flip"), **DUE},
    "tokens": {**TOKENS, "batch": 11},
}
DROPOUT = {"model": "train.nets:with_dropout", "optimizer": "lngd", "epochs": 1, "batch": 14}
OTHERS = {
    "local": {**ALIKE["sgd"], "local_batch_norm": True},
    "whole": DROPOUT,
    "cut": {**DROPOUT, "checkpoint_every": 2, "stop": 3},
    "rest": {**TOKENS, "batch": 13},
    "own norm": {"model": "train.nets:own_norm", "optimizer": "sgd", "epochs": 1},
}


@pytest.fixture(scope="module")
def start(processes) -> Callable[..., list[Any]]:
    """Starts two processes with the runs given."""

    def started(folder: Path, runs: dict[str, dict]) -> list[Any]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        arguments = (2, port, str(folder), runs)
        found = [processes.Process(target=nets.train_as, args=(rank, *arguments)) for rank in range(2)]
        for process in found:
            process.start()
        return found

    return started


@pytest.fixture(scope="module")
def together(start, tmp_path_factory) -> Path:
    """Where two processes have written all runs."""
    folder = tmp_path_factory.mktemp("together")
    started = start(folder, {**ALIKE, **OTHERS})
    for process in started:
        process.join(200)
        process.kill()
    assert [process.exitcode for process in started] == [0, 0]
    return folder


def last_weights(run: Path) -> dict[str, Tensor]:
    return load_file(sorted((run / "checkpoints").glob("step-*"))[-1])


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read(run) if line["kind"] == "step"]


def apart(one: dict[str, Tensor], two: dict[str, Tensor]) -> dict[str, float]:
    """By name ‖one − two‖ / ‖one‖."""
    return {
        name: float((value - two[name]).double().norm() / value.double().norm().clamp(min=1e-30))
        for name, value in one.items()
    }


@pytest.mark.parametrize("name", ALIKE)
def test_two_processes_take_the_steps_of_one(together, place, name):
    """Weights, running moments and losses; uneven shares, micro-batches and augmentation included."""
    train(TrainConfig(**ALIKE[name]), place / "alone")
    weights = last_weights(place / "alone")
    assert last_weights(together / name).keys() == weights.keys()  # one process goes on with them
    assert max(apart(weights, last_weights(together / name)).values()) < 1e-8
    assert losses(together / name) == pytest.approx(losses(place / "alone"), rel=1e-9)


def test_local_batch_norms_are_another_training(together):
    assert max(apart(last_weights(together / "sgd"), last_weights(together / "local")).values()) > 1e-2


def test_what_was_shared_is_in_the_provenance(together):
    found = {
        run: json.loads((together / run / "provenance.json").read_text())["processes"]
        for run in ("kfac", "local", "tokens")
    }
    norms = {"kfac": "synchronised", "local": "local", "tokens": "none"}
    assert found == {run: {"count": 2, "batch_norms": norms[run], "seeds": [0, 1]} for run in norms}


def test_a_rest_of_less_than_a_sample_a_process_is_no_step(together):
    """The warm-up, which is made for the number of steps, knows it."""
    assert len(losses(together / "rest")) == 6


def test_dropout_goes_on_to_the_same_bits_in_every_process(together):
    """Weights depend on the masks of both."""
    whole, cut = (last_weights(together / run) for run in ("whole", "cut"))
    assert all(torch.equal(cut[key], value) for key, value in whole.items())


def test_dropout_is_another_one_in_every_process(together, place):
    train(TrainConfig(**DROPOUT), place / "alone")
    assert max(apart(last_weights(place / "alone"), last_weights(together / "whole")).values()) > 1e-4


def test_a_batch_norm_that_cannot_be_shared_is_refused_by_name(together):
    for rank in range(2):
        said = (together / f"own norm-{rank}.txt").read_text()
        assert said.startswith("batch norm '0' (OwnNorm) has a forward pass of its own")
        assert said.endswith("give --local-batch-norm")


def test_a_process_that_dies_ends_the_others(start, place):
    """Soon, with an error, and the run can be continued."""
    started = start(place, {"run": {**DROPOUT, "epochs": 1000, "checkpoint_every": 5, "dies": 12}})
    began = time.monotonic()
    for process in started:
        process.join(60)
        process.kill()
    assert started[1].exitcode == 9
    assert started[0].exitcode == 1
    assert time.monotonic() - began < 60
    assert (place / "run.part" / "checkpoints" / "step-00000010.safetensors").is_file()
