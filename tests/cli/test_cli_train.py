"""`fisherlab train` as it is typed."""

import json
import tomllib
from pathlib import Path

import pytest

SMALL = ("train", "--model", "small_nets:small", "--batch", "8")


def test_a_run_writes_what_the_contract_names(run, place):
    result = run(*SMALL, "--epochs", "3", "--optimizer", "lngd", "--out", "r", code=0)
    assert "12 steps" in result.stdout
    assert "run directory: r" in result.stdout
    files = {path.name for path in (place / "r").iterdir()}
    assert files == {
        *("checkpoints", "config.toml", "log.jsonl", "loss.pdf", "loss.png"),
        *("provenance.json", "summary.json"),
    }
    names = sorted(path.name for path in (place / "r" / "checkpoints").glob("*.safetensors"))
    assert names[0] == "init.safetensors"
    assert names[-1] == "step-00000012.safetensors"


def test_json_is_the_summary_and_nothing_else(run, place):
    result = run(*SMALL, "--steps", "3", "--optimizer", "adam", "--lr", "0.01", "--json", "--out", "r", "-q")
    assert json.loads(result.stdout) == json.loads((place / "r" / "summary.json").read_text())
    assert not result.stderr


def test_a_checkpoint_is_what_compare_takes(run, place, no_pictures):
    run(*SMALL, "--epochs", "1", "--optimizer", "kfac", "--out", "r")
    checkpoint = "r/checkpoints/step-00000004.safetensors"
    run("compare", *SMALL[1:3], "--checkpoint", checkpoint, "--json", "--out", "c", code=0)
    records = (place / "c" / "records.csv").read_text().splitlines()
    columns = dict(zip(records[0].split(","), records[1].split(","), strict=False))
    assert (columns["checkpoint"], columns["step"]) == (checkpoint, "4")


def test_a_built_in_model_with_its_stand_in(run, place):
    result = run("train", "--model", "mnist-mlp", "--epochs", "2", "--out", "r", code=0)
    assert "(stand-in: digits)" in result.stdout
    assert "the network has no norm layers" in result.stderr
    summary = json.loads((place / "r" / "summary.json").read_text())
    assert summary["metric"] == "accuracy"
    assert summary["test"].endswith(", test")
    assert {path.name for path in (place / "r").glob("metric.*")} == {"metric.png", "metric.pdf"}
    assert summary["inputs"]["damping"] == [1e-5, 1.0]


def test_options_reach_the_optimizer_and_the_configuration(run, place):
    options = ["--damping", "1e-4,0.5", "--set", "max_rate=1", "--set", "rate-samples=4", "--lr", "0.2"]
    run(*SMALL, "--steps", "4", "--out", "r", *options, code=0)
    config = tomllib.loads((place / "r" / "config.toml").read_text())
    assert config["command"] == "train"
    assert config["damping"] == [1e-4, 0.5]
    assert config["options"] == {"max_rate": 1, "rate_samples": 4}


def test_run_repeats_a_training(run, place):
    run(*SMALL, "--epochs", "2", "--out", "a")
    run("run", "a/config.toml", "--out", "b", code=0)
    for path in (place / "a" / "checkpoints").glob("*.safetensors"):
        assert (place / "b" / "checkpoints" / path.name).read_bytes() == path.read_bytes()


def test_divergence_is_exit_code_1_and_one_line(run, place):
    result = run(*SMALL, "--optimizer", "sgd", "--lr", "1e6", "--epochs", "9", "--out", "r", code=1)
    assert not result.stdout
    assert len(result.stderr.splitlines()) == 1
    assert "diverged" in result.stderr
    assert (place / "r" / "summary.json").is_file()


def test_an_interruption_can_be_continued(run, place, monkeypatch):
    from fisherlab.train.run.trainer import Trainer

    step = Trainer._step

    def interrupted(self, lines):
        if self.progress.step == 6:
            raise KeyboardInterrupt
        step(self, lines)

    monkeypatch.setattr(Trainer, "_step", interrupted)
    result = run(*SMALL, "--epochs", "3", "--optimizer", "adam", "--out", "r", code=130)
    assert [line for line in result.stderr.splitlines() if line] == [
        "the run can be continued: fisherlab train --resume r",
        "fisherlab: interrupted",
    ]
    monkeypatch.setattr(Trainer, "_step", step)
    result = run("train", "--resume", "r", "--lr", "0.5", code=2)
    assert result.stderr.count("\n") == 1
    assert "lr is 0.001 there, not 0.5" in result.stderr
    result = run("train", "--resume", "r", "--optimizer", "adam", "--epochs", "3", code=0)
    assert "continues at step 4 of 12" in result.stderr
    run("train", "--resume", "r", code=2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give --model"),
        (["--model", "mnist-ml"], "did you mean mnist-mlp"),
        ([*SMALL[1:], "--optimizer", "adm"], "did you mean adam"),
        ([*SMALL[1:], "--set", "rate"], "KEY=VALUE"),
        ([*SMALL[1:], "--damping", "a"], "numbers separated by commas"),
        ([*SMALL[1:], "--epochs", "1", "--steps", "1"], "epochs or steps, not both"),
        ([*SMALL[1:], "--optimizer", "adam", "--damping", "1"], "unknown option of adam 'damping'"),
        (["--model", "small_nets:nan_weights"], "parameter '0.weight' holds values that are not finite"),
        (["--model", "small_nets:nan_inputs"], "the inputs of batch 0 hold values that are not finite"),
        (["--model", "small_nets:empty"], "the data set is empty; give at least one sample"),
        (["--model", "small_nets:narrow"], "the model fails on inputs [2, 5] torch.float32"),
        (["--model", "small_nets:wrong_labels"], "labels are 0 to 2"),
        (["--resume", "r", "--out", "s"], "leave --out and --force out"),
        (["--resume", "r"], "no interrupted run"),
        (["--recipe", "paper"], "unknown recipe"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_leaves_nothing(refused, place: Path, arguments, words):
    assert words in refused("train", *arguments)
    assert not list(place.glob("r*"))


def test_finished_runs_are_not_replaced_without_force(run):
    run(*SMALL, "--steps", "1", "--out", "r")
    run(*SMALL, "--steps", "1", "--out", "r", code=2)
    run(*SMALL, "--steps", "2", "--out", "r", "--force", code=0)


def test_list_optimizers_names_every_one_with_its_source(run):
    rows = json.loads(run("list", "optimizers", "--json").stdout)
    names = [row["name"] for row in rows]
    assert {"lngd", "lngd-lr", "lngd-sample", "kfac", "ekfac", "tkfac", "ngplus"} <= set(names)
    assert {"sgd", "adam", "adamw"} <= set(names)
    assert all(row["source"] for row in rows)
    table = run("list", "optimizers").stdout
    assert all(name in table for name in names)
    assert max(map(len, table.splitlines())) <= 100


def test_help_imports_nothing_heavy(run):
    result = run("train", "--help", code=0)
    for option in ("--optimizer", "--resume", "--checkpoint-every", "--schedule"):
        assert option in result.stdout
