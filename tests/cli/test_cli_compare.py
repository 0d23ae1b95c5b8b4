import json
import re
import tomllib
from pathlib import Path

import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal
from safetensors.torch import load_file

from fisherlab import models
from fisherlab.models.trained import TrainedWeights

SMALL = ("compare", "--model", "small_nets:small")
RESOLVED = {
    "command": "compare",
    "model": "small_nets:small",
    "samples": 32,
    "layers": ["*"],
    "exclude": [],
    "strict": False,
    "approximations": ["kfac", "ekfac", "tkfac", "lngd"],
    "kind": "predictive",
    "likelihood": "categorical",
    "bias": "joint",
    "memory": "4GiB",
    "max_columns": 4096,
    "dtype": "float32",
    "draws": 1,
    "device": "cpu",
    "seed": 0,
    "spectra": True,
    "save_matrices": False,
}


@pytest.fixture(autouse=True)
def quick(no_pictures, monkeypatch):
    """No pictures, and the CPU for `auto` as well."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def _records(folder: str) -> pd.DataFrame:
    return pd.read_csv(Path(folder) / "records.csv").drop(columns="seconds")


def test_a_run_holds_what_the_contract_names(run, place):
    result = run(*SMALL, "--out", "run")
    assert (result.exit_code, result.stderr) == (0, "")
    written = {path.name for path in (place / "run").iterdir()}
    assert written >= {
        "config.toml",
        "provenance.json",
        "summary.json",
        "records.csv",
        "directions.csv",
        "coupling.csv",
        "report.html",
    }
    assert tomllib.loads(Path("run/config.toml").read_text()) == RESOLVED
    provenance = json.loads(Path("run/provenance.json").read_text())
    assert provenance["seed"] == 0
    assert provenance["seconds"] > 0
    assert not list(place.glob("*.part"))


def test_the_table_goes_to_stdout_and_the_directory_below_it(run):
    lines = run(*SMALL, "--out", "run").stdout.splitlines()
    assert lines[-2:] == ["run directory: run", "report: run/report.html"]
    assert any(line.startswith("KFAC") for line in lines)
    assert max(map(len, lines)) <= 100
    assert not any("\x1b" in line for line in lines)


@pytest.mark.parametrize("model", ["small", "talkative"])
def test_json_is_the_summary_and_alone_on_stdout(run, model):
    result = run("compare", "--model", f"small_nets:{model}", "--json", "--out", "run")
    summary = json.loads(result.stdout)
    assert summary == json.loads(Path("run/summary.json").read_text())
    assert summary["command"] == "compare"
    assert summary["directory"] == "run"
    assert summary["inputs"] == {k: v for k, v in summary["inputs"].items() if k in RESOLVED}
    assert set(summary["layers"]) == {"0", "2"}
    rows = _records("run").query("layer == 0 and target == 'predictive'")
    best = rows.loc[rows["relative_error"].idxmin(), "approximation"]
    assert best in summary["layers"]["0"]["relative_error"]["best"]


def test_run_repeats_a_run_with_drawn_labels_and_samples(run):
    arguments = ("--samples", "20", "--seed", "5", "--kind", "mc", "--draws", "3", "--dtype", "float64")
    run(*SMALL, *arguments, "--approximations", "kfac,lngd", "--out", "one", code=0)
    run("run", "one/config.toml", "--out", "two", code=0)
    assert_frame_equal(_records("one"), _records("two"), check_exact=True)
    assert Path("one/config.toml").read_text() == Path("two/config.toml").read_text()
    assert set(_records("two")["kind"]) == {"monte-carlo"}
    assert set(_records("two")["samples"]) == {20}


def test_another_seed_gives_other_samples(run):
    for seed in ("1", "2"):
        run(*SMALL, "--samples", "12", "--seed", seed, "--layers", "2", "--out", seed)
    assert (_records("1")["trace_exact"] != _records("2")["trace_exact"]).all()


def test_run_takes_another_device_and_refuses_one_that_is_missing(run):
    Path("config.toml").write_text(
        'command = "compare"\nmodel = "small_nets:small"\nlayers = ["2"]\ndevice = "cuda:7"\n'
    )
    run("run", "config.toml", "--out", "run", code=2)
    run("run", "config.toml", "--device", "cpu", "--out", "run", code=0)
    assert tomllib.loads(Path("run/config.toml").read_text())["device"] == "cpu"


def test_layers_and_approximations_are_those_asked_for(run):
    run(*SMALL, "--layers", "2", "--approximations", "tkfac, diagonal", "--out", "run")
    records = _records("run")
    assert set(records["layer"]) == {2}
    assert set(records["approximation"]) == {"tkfac", "diagonal"}


def test_layers_can_be_given_twice(run):
    run(*SMALL, "--layers", "2", "--layers", "[0]", "--out", "run")
    assert set(_records("run")["layer"]) == {0, 2}


@pytest.mark.parametrize(("bias", "inputs"), [("joint", 7), ("ignore", 6)])
def test_bias(run, bias, inputs):
    run(*SMALL, "--layers", "0", "--bias", bias, "--out", "run")
    assert set(_records("run")["inputs"]) == {inputs}


def test_no_spectra(run):
    run(*SMALL, "--no-spectra", "--out", "run")
    assert not list(Path("run").glob("spectrum-*"))
    assert tomllib.loads(Path("run/config.toml").read_text())["spectra"] is False


def test_save_matrices(run):
    run(*SMALL, "--layers", "2", "--approximations", "kfac", "--save-matrices", "--out", "run")
    blocks = load_file("run/blocks.safetensors")
    assert {name: tuple(block.shape) for name, block in blocks.items()} == {
        "2/exact": (15, 15),
        "2/kfac": (15, 15),
    }


def test_default_directories_do_not_collide(run, place, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda form: "20250102-030405")
    for _ in range(3):
        run(*SMALL, "--layers", "2", code=0)
    name = "compare-small_nets-small-20250102-030405"
    assert {path.name for path in (place / "runs").iterdir()} == {name, f"{name}-2", f"{name}-3"}


def test_force_replaces_a_finished_run(run):
    run(*SMALL, "--layers", "2", "--out", "run", code=0)
    Path("run/old").touch()
    run(*SMALL, "--layers", "2", "--out", "run", code=2)
    assert Path("run/old").exists()
    run(*SMALL, "--layers", "2", "--out", "run", "--force", code=0)
    assert not Path("run/old").exists()


def test_an_empty_directory_is_used(run):
    Path("run").mkdir()
    run(*SMALL, "--layers", "2", "--out", "run", code=0)
    assert Path("run/records.csv").is_file()


def test_a_checkpoint_is_kept_as_an_absolute_path_and_shown_from_here(run, place):
    state = models.load("small_nets:small").model.state_dict()
    Path("weights").mkdir()
    torch.save({name: 2 * tensor for name, tensor in state.items()}, "weights/doubled.pt")
    run(*SMALL, "--checkpoint", "weights/doubled.pt", "--out", "run")
    assert set(_records("run")["checkpoint"]) == {"weights/doubled.pt"}
    resolved = tomllib.loads(Path("run/config.toml").read_text())
    assert resolved["checkpoint"] == str(place / "weights" / "doubled.pt")
    run(*SMALL, "--out", "plain")
    traces = [_records(name).query("target == 'predictive'")["trace_exact"] for name in ("run", "plain")]
    assert (traces[0] != traces[1]).all()


@pytest.fixture
def untrained(monkeypatch):
    """The trained default network, without the training."""

    def weights(spec, dataset, seed, progress):
        progress(1, 1)
        return TrainedWeights(spec.build().state_dict(), "trained: not at all", 1, "00", False)

    monkeypatch.setattr("fisherlab.models.loading.trained_weights", weights)


MLP = ("compare", "--model", "mnist-mlp", "--samples", "16", "--layers", "6", "--no-spectra", "--out", "run")


def test_notices_say_stand_in_and_training(run, untrained):
    result = run(*MLP, code=0)
    assert re.search(r"digits stand in .*stand-in: digits", result.stderr)
    assert "the weights of mnist-mlp were trained on the spot (not at all)" in result.stderr
    assert "stand-in: digits" in result.stdout
    assert set(_records("run")["dataset"]) == {"mnist (stand-in: digits)"}
    assert json.loads(Path("run/provenance.json").read_text())["stand_in"] is True
    assert tomllib.loads(Path("run/config.toml").read_text())["data"] == "mnist"


def test_quiet_says_nothing_but_the_result(run, untrained):
    result = run(*MLP, "-q", code=0)
    assert not result.stderr
    assert "stand-in: digits" in result.stdout


def test_verbose_prints_the_plan_of_every_layer(run):
    result = run(*SMALL, "-v", "--out", "run")
    plans = [line for line in result.stderr.splitlines() if line.startswith("plan: ")]
    assert [line.split(":")[1].strip() for line in plans] == ["layer 0", "layer 2"]


def test_wide_names_do_not_break_the_line_of_the_directory(run):
    out = "a" * 120
    assert f"run directory: {out}" in run(*SMALL, "--layers", "2", "--out", out).stdout.splitlines()
