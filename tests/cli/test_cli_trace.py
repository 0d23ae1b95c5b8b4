"""`fisherlab trace` as it is typed."""

import csv
import json
import shutil
import tomllib

import pytest

COLUMNS = ["checkpoint", "layer", "approximation", "trace_exact", "trace_approx", "trace_ratio"]


@pytest.fixture
def plain(monkeypatch):
    """Leaves out the pictures, which take most of the time."""
    monkeypatch.setattr("fisherlab.traces.result.Traces.figures", lambda self: iter(()))


@pytest.fixture
def training(run, place):
    """A run of three epochs of which the checkpoints init, 4 and 12 stay."""
    options = (
        "--batch",
        "8",
        "--epochs",
        "3",
        "--checkpoint-steps",
        "4",
        "--keep-last",
        "1",
        "--no-keep-best",
    )
    run("train", "--model", "small_nets:small", *options, "--out", "r", "-q", code=0)
    return place / "r"


def rows(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_run_is_traced_at_every_checkpoint(run, place, training):
    result = run("trace", "--run", "r", "--out", "t", "--approximations", "kfac,tkfac", code=0)
    assert "init → step-00000012 (3 checkpoints)" in result.stdout
    assert "run directory: t" in result.stdout
    assert "checkpoint 2 of 3" in result.stderr
    table = rows(place / "t" / "traces.csv")
    assert list(table[0]) == COLUMNS
    assert [row["checkpoint"] for row in table[::4]] == ["init", "step-00000004", "step-00000012"]
    assert {row["layer"] for row in table} == {"0", "2"}
    assert all(abs(float(row["trace_ratio"]) - 1) < 1e-5 for row in table if row["approximation"] == "tkfac")
    diagnostics = rows(place / "t" / "diagnostics.csv")
    assert {row["step"] for row in diagnostics} == {"0", "4", "12"}
    assert {row["stage"] for row in rows(place / "t" / "stages.csv")} == {"0", "2", "all"}
    names = {path.name for path in (place / "t").iterdir()}
    pictures = ("traces", "trace-ratio", "stages", "quality", "spectra", "optimizer")
    assert {f"{name}.{end}" for name in pictures for end in ("png", "pdf")} <= names
    assert {"config.toml", "provenance.json", "summary.json", "optimizer.csv", "report.html"} <= names


def test_the_samples_are_those_that_the_run_learned_from(run, place, training, plain):
    result = run("trace", "--run", "r", "--out", "t", "--json", "-q")
    summary = json.loads(result.stdout)
    assert summary == json.loads((place / "t" / "summary.json").read_text())
    assert summary["inputs"]["samples"] == 32
    trained, traced = (json.loads((place / d / "provenance.json").read_text()) for d in "rt")
    assert traced["checksum"] == trained["checksum"]
    assert traced["seed"] == trained["seed"]
    assert traced["checkpoint"]["sha256"] == trained["checkpoint"]["sha256"]
    assert [one["step"] for one in summary["checkpoints"]] == [0, 4, 12]


def test_a_trace_is_what_compare_says_of_the_checkpoint(run, place, training, plain, no_pictures):
    run("trace", "--run", "r", "--out", "t", "--samples", "20", "-q")
    checkpoint = "r/checkpoints/step-00000012.safetensors"
    options = ("--model", "small_nets:small", "--checkpoint", checkpoint, "--samples", "20", "--no-spectra")
    run("compare", *options, "--out", "c", "-q")
    records = [row for row in rows(place / "c" / "records.csv") if row["target"] == "predictive"]
    traced = [row for row in rows(place / "t" / "traces.csv") if row["checkpoint"] == "step-00000012"]
    for one, other in zip(records, traced, strict=True):
        assert [one[name] for name in COLUMNS[1:]] == [other[name] for name in COLUMNS[1:]]


def test_the_configuration_repeats_the_trace(run, place, training, plain):
    run("trace", "--run", "r", "--out", "t", "--layers", "2", "--seed", "5", "--samples", "16", "-q")
    config = tomllib.loads((place / "t" / "config.toml").read_text())
    assert config["command"] == "trace"
    assert config["run"] == str(training)
    run("run", "t/config.toml", "--out", "again", "-q", code=0)
    assert (place / "again" / "traces.csv").read_bytes() == (place / "t" / "traces.csv").read_bytes()


def test_a_model_alone_has_one_checkpoint(run, place, plain):
    run("trace", "--model", "small_nets:small", "--out", "t", "--approximations", "kfac", code=0)
    assert {row["checkpoint"] for row in rows(place / "t" / "traces.csv")} == {"init"}
    config = tomllib.loads((place / "t" / "config.toml").read_text())
    assert (config["model"], config["samples"], config["seed"]) == ("small_nets:small", 32, 0)


def test_a_stand_in_is_said_in_words(run, place, plain):
    options = ("--model", "mnist-mlp", "--layers", "6", "--samples", "20", "--approximations", "kfac")
    result = run("trace", *options, "--out", "t", code=0)
    assert "stand-in: digits" in " ".join(result.stdout.split())
    assert "stand-in: digits" in (place / "t" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give --run RUN"),
        (["--run", "r", "--model", "small_nets:small"], "not both"),
        (["--run", "r", "--checkpoint", "x"], "with --model only"),
        (["--run", "nowhere"], "nowhere"),
        (["--run", "r", "--layers", "9"], "unknown layer '9'"),
        (["--run", "r", "--approximations", "kfca"], "did you mean kfac"),
        (["--run", "r", "--samples", "33"], "learned from 32 samples"),
        (["--run", "r", "--samples", "0"], "samples must be at least 1"),
        (["--run", "r", "--data", "mnits"], "did you mean mnist"),
        (["--run", "r", "--kind", "predictiv"], "did you mean predictive"),
        (["--run", "r", "--memory", "1KiB"], "memory"),
        (["--run", "r", "--seed", "-1"], "seed must be at least 0"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(refused, place, training, arguments, words):
    before = {path for path in place.rglob("*") if "__pycache__" not in path.parts}
    assert words in refused("trace", *arguments)
    assert {path for path in place.rglob("*") if "__pycache__" not in path.parts} == before


def test_damaged_and_foreign_runs_are_one_sentence(run, refused, place, training, plain):
    damaged = place / "d"

    def broken(change):
        shutil.rmtree(damaged, ignore_errors=True)
        shutil.copytree(training, damaged)
        change(damaged)
        return refused("trace", "--run", "d", "--out", "t")

    weights = "checkpoints/init.safetensors"
    last = "checkpoints/step-00000012.safetensors"
    assert f"{weights}' is not a file" in broken(lambda d: (d / weights).unlink())
    assert "damaged" in broken(lambda d: (d / last).write_bytes(b"x" * 99))
    assert "is damaged: its sha256" in broken(lambda d: shutil.copy(d / weights, d / last))
    assert "damaged" in broken(lambda d: (d / "checkpoints/index.json").write_text("{"))
    assert "no checkpoints" in broken(lambda d: (d / "checkpoints/index.json").unlink())
    assert "config.toml" in broken(lambda d: (d / "config.toml").write_text("x"))
    assert "no finished run" in broken(lambda d: (d / "summary.json").unlink())
    run("trace", "--model", "small_nets:small", "--out", "other", "--approximations", "kfac", "-q")
    assert "run of `fisherlab trace`, which has no checkpoints" in refused("trace", "--run", "other")
    training.rename(place / "r.part")
    assert "has not ended" in refused("trace", "--run", "r")


def test_other_data_than_those_of_the_run_are_refused(refused, place, training):
    module = place / "small_nets.py"
    module.write_text(module.read_text().replace("manual_seed(3)", "manual_seed(4)"))
    import sys

    sys.modules.pop("small_nets", None)
    assert "are not those that the run learned from" in refused("trace", "--run", "r", "--out", "t")
