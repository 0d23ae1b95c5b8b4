"""`fisherlab represent` and its run directory."""

import json
import tomllib
from pathlib import Path

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

SMALL = ("represent", "--model", "small_nets:small")
TABLES = (
    "histograms",
    "histograms-activated",
    "histograms-input",
    "moments",
    "quantiles",
    "assumption",
    "layers",
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Pictures are named and not drawn, and the CPU stands for `auto` as well."""
    monkeypatch.setattr("fisherlab.plots.workers.save", lambda figure, path: path.with_suffix(".png").touch())
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def test_a_run_holds_what_the_contract_names(run, place):
    result = run(*SMALL, "--out", "run")
    assert (result.exit_code, result.stderr) == (0, "")
    written = {path.name for path in (place / "run").iterdir()}
    assert written >= {f"{name}.csv" for name in TABLES}
    assert written >= {"config.toml", "provenance.json", "summary.json", "normality.png", "report.html"}
    assert tomllib.loads(Path("run/config.toml").read_text()) == {
        "command": "represent",
        "model": "small_nets:small",
        "samples": 32,
        "layers": ["*"],
        "exclude": [],
        "strict": False,
        "likelihood": "categorical",
        "dtype": "float32",
        "device": "cpu",
        "seed": 0,
    }
    bins = pd.read_csv("run/histograms.csv")
    assert list(bins) == ["layer", "quantity", "index", "left", "right", "count"]
    assert set(bins.groupby(["layer", "quantity", "index"])["count"].sum()) == {32}
    moments = pd.read_csv("run/moments.csv")
    assert set(moments["model"]) == {"small_nets:small"}
    assert set(moments["seed"]) == {0}
    assert json.loads(Path("run/provenance.json").read_text())["seconds"] > 0
    assert not list(place.glob("*.part"))


def test_the_table_has_a_row_a_layer_and_says_what_is_no_test(run):
    result = run(*SMALL, "--out", "run")
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines if line[:2] in ("0 ", "2 ")] == ["0", "2"]
    assert "no test of the assumption" in result.stdout.replace("\n", " ")
    assert lines[-2:] == ["run directory: run", "report: run/report.html"]
    assert max(map(len, lines)) <= 100
    assert "…" not in result.stdout


@pytest.mark.parametrize("model", ["small", "talkative"])
def test_json_is_the_summary_and_alone_on_stdout(run, model):
    result = run("represent", "--model", f"small_nets:{model}", "--json", "--out", "run")
    summary = json.loads(result.stdout)
    assert summary == json.loads(Path("run/summary.json").read_text())
    assert (summary["command"], summary["samples"]) == ("represent", 32)
    isotropy = pd.read_csv("run/assumption.csv").set_index("layer")["isotropy_samples"]
    assert summary["layers"]["2"]["assumption"]["isotropy_samples"] == pytest.approx(isotropy[2])


def test_run_repeats_it_from_its_configuration(run):
    run(*SMALL, "--samples", "20", "--layers", "0", "--seed", "3", "--out", "first", code=0)
    run("run", "first/config.toml", "--out", "second", code=0)
    assert Path("first/config.toml").read_text() == Path("second/config.toml").read_text()
    for name in TABLES:
        first, second = (pd.read_csv(f"{folder}/{name}.csv") for folder in ("first", "second"))
        assert_frame_equal(first, second)
    assert set(first["samples"]) == {20}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "mnist-mpl"), "did you mean mnist-mlp"),
        (("--model", "small_nets:small", "--layers", "fc"), "unknown layer 'fc'"),
        (("--model", "mnist-mlp", "--layers", "fc"), "unknown layer 'fc'"),
        (("--model", "small_nets:small", "--samples", "0"), "samples must be at least 1"),
        (("--model", "small_nets:small", "--samples", "33"), "33"),
        (("--model", "small_nets:small", "--likelihood", "normal"), "unknown likelihood"),
        (("--model", "small_nets:small", "--dtype", "float16"), "unknown dtype"),
        (("--model", "small_nets:small", "--device", "cuda"), "not on this machine"),
        (("--model", "small_nets:nan_weights"), "not finite"),
        (("--model", "small_nets:warns"), "not finite"),
        (("--model", "small_nets:empty"), "the data set is empty; give at least one sample"),
        (("--model", "small_nets:small", "--checkpoint", "none.safetensors"), "none.safetensors"),
        ((), "--model"),
    ],
)
def test_bad_input_is_one_line(refused, place, arguments, words):
    assert words in refused("represent", *arguments, "--out", "run")
    assert not (place / "run").exists()


def test_a_stand_in_is_named(run):
    small = ("--samples", "40", "--layers", "*0")
    result = run("represent", "--model", "mnist-autoencoder", *small, "--out", "run", code=0)
    assert "stand-in: digits" in result.stdout
    assert set(pd.read_csv("run/moments.csv")["dataset"]) == {"mnist (stand-in: digits)"}
    assert json.loads(Path("run/provenance.json").read_text())["stand_in"] is True
    assert (
        '<p class="banner"><strong>mnist (stand-in: digits)</strong>' in Path("run/report.html").read_text()
    )
