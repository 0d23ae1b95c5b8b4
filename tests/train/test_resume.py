"""A run that was interrupted is one that was not, to the bit."""

import hashlib
import json
import random
import shutil
import time
from pathlib import Path

import pytest
import torch
from train import nets

from fisherlab.errors import FisherlabError, InputError
from fisherlab.models import load_weights
from fisherlab.runs.part import RunPart
from fisherlab.train import TrainConfig, resume, train
from fisherlab.train.run.checkpoints import Checkpoints

IMAGES = {"model": "train.nets:images", "augment": ("crop", "flip"), "accumulation": 2}
REFRESHED = {"statistics_every": 3, "inverse_every": 4}
SETTINGS = {
    "lngd": {"optimizer": "lngd", **IMAGES},
    "ekfac": {"optimizer": "ekfac", **IMAGES, **REFRESHED},
    "adam": {"optimizer": "adam", **IMAGES},
    "muon": {"optimizer": "torch.optim.Muon", **IMAGES, "model": "train.nets:filters", "clip": 0.5},
    "soap": {
        "optimizer": "pytorch_optimizer:SOAP",
        **IMAGES,
        "schedule": "cosine",
        "options": {"precondition_frequency": 3, "betas": (0.9, 0.99)},
    },
    "dropout": {"model": "train.nets:with_dropout", "optimizer": "sgd", "lr": 0.05, "clip": 1.0},
    "lngd-lr": {"model": "train.nets:mlp", "optimizer": "lngd-lr", "schedule": "cosine", "warm_up": 4},
    "kfac": {"model": "train.nets:mlp", "optimizer": "kfac", **REFRESHED},
    "tkfac": {"model": "train.nets:mlp", "optimizer": "tkfac", **REFRESHED},
    "ngplus": {"model": "train.nets:mlp", "optimizer": "ngplus", **REFRESHED},
}
COMMON = {"epochs": 3, "batch": 16, "checkpoint_every": 2, "checkpoint_steps": (3,)}


class Killed(BaseException):
    pass


def killed_at(step: int):
    def report(progress, steps):
        if progress.step == step:
            raise Killed

    return report


def contents(run: Path) -> tuple[dict[str, str], list[dict]]:
    """The sums of the weights, and the log without seconds."""
    sums = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (run / "checkpoints").glob("*.safetensors")
    }
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return sums, [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.mark.parametrize("name", SETTINGS)
def test_resumed_is_uninterrupted(name, place):
    config = TrainConfig(**{**COMMON, **SETTINGS[name]})
    train(config, place / "whole")
    with pytest.raises(Killed):
        train(config, place / "cut", report=killed_at(1))
    for stop in (6, 11):
        with pytest.raises(Killed):
            resume(place / "cut", report=killed_at(stop))
    assert (place / "cut.part" / "states").is_dir()
    resume(place / "cut.part")
    assert contents(place / "cut") == contents(place / "whole")
    assert not (place / "cut.part").exists()
    names = sorted(path.name for path in (place / "cut").iterdir())
    assert names == ["checkpoints", "config.toml", "log.jsonl", "provenance.json", "summary.json"]


def test_cut_off_before_the_second_checkpoint(place):
    """The evaluation before the first step, of a run with a test split, is in the log once."""
    config = TrainConfig(model="mnist-mlp", samples=64, batch=16, steps=4, log_every=2)
    train(config, place / "whole")
    with pytest.raises(Killed):
        train(config, place / "cut", report=killed_at(1))
    resume(place / "cut")
    assert contents(place / "cut") == contents(place / "whole")


def _kill_until_done(place: Path, processes, settings: dict, kills: int, seed: int) -> int:
    """Kills a run at random moments; returns how many times it was under way then."""
    draw, hit = random.Random(seed), 0
    for _ in range(kills):
        begun = (place / "cut.part" / "config.toml").exists()
        process = processes.Process(target=nets.train_there, args=(str(place), settings, begun))
        process.start()
        log = place / "cut.part" / "log.jsonl"
        before = log.stat().st_size if log.exists() else 0
        deadline = time.monotonic() + 30
        while process.is_alive() and time.monotonic() < deadline:
            if log.exists() and log.stat().st_size != before:
                break
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.15))
        process.kill()
        process.join()
        hit += process.exitcode == -9
        if (place / "cut").exists():
            break
    if not (place / "cut").exists():
        resume(place / "cut")
    return hit


def _check_kills(place: Path, processes, kills: int, epochs: int) -> None:
    settings = {**COMMON, **SETTINGS["adam"], "epochs": epochs, "optimizer": "lngd"}
    train(TrainConfig(**settings), place / "whole")
    assert _kill_until_done(place, processes, settings, kills, seed=epochs) >= kills // 2
    assert contents(place / "cut") == contents(place / "whole")


def test_killed_at_random_moments(place, processes):
    _check_kills(place, processes, 3, 20)


@pytest.mark.slow
def test_killed_at_random_moments_many_times(place, processes):
    _check_kills(place, processes, 20, 200)


def test_killed_between_any_two_writes(place, monkeypatch):
    """The process ends before any one of the renames that put files in their places."""
    config = TrainConfig(**{**COMMON, "epochs": 1, "model": "train.nets:mlp", "optimizer": "adam"})
    train(config, place / "whole")
    original, count = Path.replace, 0

    def replace(self, target):
        nonlocal count
        count -= 1
        if count == 0:
            raise Killed
        return original(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    for stop in range(1, 14):
        count = stop
        with pytest.raises(Killed):
            train(config, place / "cut", force=True)
        count = -1
        if (place / "cut.part").exists():
            resume(place / "cut")
            assert contents(place / "cut") == contents(place / "whole")
            shutil.rmtree(place / "cut")
        else:
            assert stop <= 4  # before the first checkpoint nothing stays


@pytest.mark.parametrize("moment", ["drop_states", "finish"])
def test_killed_when_all_is_written(place, monkeypatch, moment):
    from fisherlab.train.run import training

    config = TrainConfig(**{**COMMON, "model": "train.nets:mlp", "optimizer": "adam"})
    train(config, place / "whole")
    owner = {"drop_states": Checkpoints, "finish": RunPart}[moment]

    def killed(self):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(owner, moment, killed)
        with pytest.raises(Killed):
            train(config, place / "cut")
    monkeypatch.setattr(training, "TrainingRun", None)  # nothing is trained again
    assert resume(place / "cut")["outcome"] == "finished"
    assert contents(place / "cut") == contents(place / "whole")
    assert not (place / "cut" / "states").exists()


def stopped(place: Path, at: int = 7, **settings) -> Path:
    config = {**COMMON, "model": "train.nets:mlp", "optimizer": "adam", **settings}
    with pytest.raises(Killed):
        train(TrainConfig(**config), place / "cut", report=killed_at(at))
    return place / "cut.part"


@pytest.mark.parametrize("what", ["checkpoints", "states"])
@pytest.mark.parametrize("damage", ["changed", "short", "gone"])
def test_a_damaged_newest_checkpoint_falls_back_and_says_so(place, caplog, what, damage):
    train(TrainConfig(**{**COMMON, "model": "train.nets:mlp", "optimizer": "adam"}), place / "whole")
    part = stopped(place)
    newest = sorted((part / "states").iterdir())[-1].name
    file = part / what / newest
    payload = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    elif damage == "short":
        file.write_bytes(payload[:-9])
    else:
        payload[-3] ^= 1
        file.write_bytes(payload)
    resume(place / "cut")
    assert f"the checkpoint at step {int(newest[5:13])} is damaged ({what}/{newest})" in caplog.text
    assert "continues from the checkpoint before, at step" in caplog.text
    assert contents(place / "cut") == contents(place / "whole")


def test_when_all_are_damaged_nothing_is_guessed(place):
    part = stopped(place)
    for file in (part / "states").iterdir():
        file.write_bytes(b"")
    with pytest.raises(InputError, match=r"every checkpoint .* is damaged"):
        resume(place / "cut")
    assert part.is_dir()


def test_a_damaged_index_is_named(place):
    part = stopped(place)
    (part / "checkpoints" / "index.json").write_text("{")
    with pytest.raises(InputError, match=r"index\.json' is damaged"):
        resume(place / "cut")


def test_another_configuration_is_refused_by_name(place):
    stopped(place)
    given = {"lr": 0.5, "batch": 16, "schedule": "step", "steps": 4}
    with pytest.raises(InputError) as caught:
        resume(place / "cut", given)
    message = str(caught.value)
    assert "lr is 0.001 there, not 0.5" in message
    assert "schedule is 'constant' there, not 'step'" in message
    assert "steps is not set there, not 4" in message
    assert "batch" not in message
    resume(place / "cut", {"model": "train.nets:mlp", "batch": 16, "device": "auto", "optimizer": "adam"})


def test_other_data_are_refused(place, monkeypatch):
    stopped(place)
    monkeypatch.setattr(nets, "vectors", lambda: (torch.zeros(70, 6), torch.zeros(70, dtype=torch.int64)))
    with pytest.raises(InputError, match="data have changed"):
        resume(place / "cut")


def test_a_run_that_is_being_written_is_refused_while_its_process_lives(place, processes):
    settings = {**COMMON, "model": "train.nets:mlp", "optimizer": "adam", "epochs": 100_000}
    process = processes.Process(target=nets.train_there, args=(str(place), settings, False))
    process.start()
    index = place / "cut.part" / "checkpoints" / "index.json"
    deadline = time.monotonic() + 60
    while not index.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    for attempt in (
        lambda: resume(place / "cut"),
        lambda: train(TrainConfig(**settings), place / "cut", force=True),
    ):
        with pytest.raises(InputError, match=rf"being written by another process \({process.pid}\)"):
            attempt()
    assert process.is_alive()
    process.kill()
    process.join()
    RunPart.reopen(place / "cut").release()


def test_what_cannot_be_resumed_says_why(place, trained):
    with pytest.raises(InputError, match="no interrupted run"):
        resume(place / "nowhere")
    trained("done")
    with pytest.raises(InputError, match="has ended"):
        resume(place / "done")
    (place / "empty.part").mkdir()
    with pytest.raises(InputError, match="had not begun"):
        resume(place / "empty")
    stopped(place)
    with pytest.raises(InputError, match=r"continue it with --resume .*cut"):
        trained("cut")


def test_a_full_disk_is_one_sentence_and_the_run_can_go_on(place, monkeypatch):
    import safetensors.torch

    config = TrainConfig(**{**COMMON, "model": "train.nets:mlp", "optimizer": "adam"})
    original, written = safetensors.torch.save_file, []

    def full(tensors, path, metadata):
        written.append(path)
        if len(written) == 6:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        original(tensors, path, metadata=metadata)

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(FisherlabError, match=r"step 3 of .* cannot be written \(No space left on device\)"):
        train(config, place / "cut")
    assert not list((place / "cut.part").rglob("*.part"))
    resume(place / "cut")
    train(config, place / "whole")
    assert contents(place / "cut") == contents(place / "whole")


def test_a_log_that_cannot_be_written_is_one_sentence(place, monkeypatch):
    def report(progress, steps):
        if progress.step == 5:
            monkeypatch.setattr("fisherlab.train.run.log._text", no_space)

    def no_space(line):
        raise OSError(28, "No space left on device")

    config = TrainConfig(**{**COMMON, "model": "train.nets:mlp", "optimizer": "adam"})
    with pytest.raises(FisherlabError, match=r"cannot write .*log\.jsonl': No space left"):
        train(config, place / "cut", report=report)


def test_kept_are_the_first_the_last_the_best_and_those_asked_for(place, trained):
    trained(optimizer="adam", epochs=6, checkpoint_steps=(3, 7), keep_last=2)
    index = json.loads((place / "run" / "checkpoints" / "index.json").read_text())["checkpoints"]
    best = [entry["step"] for entry in index if entry["best"]][-1]
    assert {entry["step"] for entry in index} == {0, 3, 7, 25, 30, best}
    for entry in index:
        path = place / "run" / entry["weights"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == entry["weights_sha256"]
        assert load_weights(nets.mlp()[0], path).step == entry["step"]
    names = {path.name for path in (place / "run" / "checkpoints").iterdir()}
    assert names == {"index.json", *(Path(entry["weights"]).name for entry in index)}


def test_files_that_no_index_names_are_removed(place):
    part = stopped(place)
    stray = part / "checkpoints" / ".step-00000009.safetensors.x.part"
    stray.write_bytes(b"half")
    assert Checkpoints(part, 2, True, ()).newest() is not None
    assert not stray.exists()


@pytest.mark.parametrize("file", ["write_curves", "write_json"])
def test_a_full_disk_at_the_very_end_says_how_to_go_on(place, monkeypatch, file):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    config = TrainConfig(**{**COMMON, "model": "train.nets:mlp", "optimizer": "adam", "epochs": 1})
    with monkeypatch.context() as patched:
        patched.setattr(f"fisherlab.train.run.training.{file}", full)
        with pytest.raises(FisherlabError, match=r"No space left on device\); mend .* --resume .*cut"):
            train(config, place / "cut")
    assert resume(place / "cut")["outcome"] == "finished"
