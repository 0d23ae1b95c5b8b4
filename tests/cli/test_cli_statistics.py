"""Comparisons with approximations from saved statistics."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from model_cases import Net
from pandas.testing import assert_frame_equal
from torch import Tensor, nn

import fisherlab as fl
from fisherlab import metrics
from fisherlab.errors import InputError

METHODS = ("diagonal", "kfac", "ekfac", "tkfac", "lngd")
TOLERANCE = 1e-9
NOTE = "approximation from saved statistics of {} samples"


def pooled(images: bool) -> Net:
    """Convolutions, one of them grouped, or an embedding, each with a dense layer on top."""
    convolutions = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 2, groups=2), nn.Tanh())
    return Net(
        lambda net, x: net.head((net.first(x).flatten(2).mean(2) if images else net.first(x).mean(1)).tanh()),
        first=convolutions if images else nn.Embedding(6, 4),
        head=nn.Linear(4, 3),
    )


@pytest.fixture(params=["images", "texts"])
def case(request) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    images = request.param == "images"
    inputs = torch.randn(20, 2, 5, 5, dtype=torch.float64) if images else torch.randint(6, (20, 4))
    return pooled(images).double(), (inputs, torch.arange(20) % 3)


def first(data: tuple[Tensor, Tensor], samples: int) -> tuple[Tensor, Tensor]:
    return data[0][:samples], data[1][:samples]


# --- the library ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["predictive", "empirical"])
def test_rows_come_from_the_statistics(case, kind):
    model, data = case
    statistics = fl.collect_statistics(model, data, kind=kind, approximations=METHODS)
    few = first(data, 9)
    records = fl.compare(model, few, METHODS, kind=kind, statistics=statistics).records
    exact = fl.exact_fisher(model, few, kind=kind)
    rows = records[records.target == kind].set_index(["layer", "approximation"])
    assert len(rows) == len(exact) * len(METHODS)
    for name in METHODS:
        for layer, operator in statistics.build(name).items():
            row, F = rows.loc[layer, name], exact[layer]
            assert row.samples == 9
            error, scale = metrics.scaled_error(F, operator)
            assert row.relative_error == pytest.approx(metrics.relative_error(F, operator), rel=1e-9)
            assert (row.scaled_error, row.best_scale) == pytest.approx((error, scale), rel=1e-9)
            assert row.trace_approx == pytest.approx(float(operator.trace()), rel=1e-12)
            assert row.trace_exact == pytest.approx(float(F.trace()), rel=1e-12)


def test_the_population_error_is_empty_and_the_note_says_why(case):
    model, data = case
    methods = ("kfac", "lngd", "nearest-kronecker")
    statistics = fl.collect_statistics(model, data, approximations=("kfac", "lngd"))
    records = fl.compare(model, first(data, 9), methods, statistics=statistics).records
    saved = records[records.approximation != "nearest-kronecker"]
    assert saved.population_error.isna().all()
    assert saved.population_error_se.isna().all()
    assert saved.note.str.contains(NOTE.format(20)).all()
    own = records[records.approximation == "nearest-kronecker"]
    assert not own.note.fillna("").str.contains("saved statistics").any()


def test_statistics_of_the_same_samples_change_nothing_else(case):
    model, data = case
    statistics = fl.collect_statistics(model, data, approximations=METHODS)
    dropped = ["seconds", "note", "population_error", "population_error_se"]
    with_, without = (fl.compare(model, data, METHODS, statistics=s).records for s in (statistics, None))
    assert without.population_error.notna().any()
    assert_frame_equal(with_.drop(columns=dropped), without.drop(columns=dropped), rtol=1e-7, atol=1e-12)


def test_statistics_of_all_layers_serve_some(case):
    model, data = case
    statistics = fl.collect_statistics(model, data, approximations="kfac")
    some = fl.compare(model, data, "kfac", layers=["head"], statistics=statistics).records
    every = fl.compare(model, data, "kfac", statistics=statistics).records
    every = every[every.layer == "head"].reset_index(drop=True)
    others = ["seconds", "damped_step_share"]  # the joint step is one of the layers at hand
    assert_frame_equal(some.drop(columns=others), every.drop(columns=others), rtol=1e-9)


def test_statistics_that_do_not_fit_are_refused(case):
    model, data = case
    statistics = fl.collect_statistics(model, data, approximations="kfac")
    with pytest.raises(InputError, match=r"do not hold what ekfac needs; collect them with it"):
        fl.compare(model, data, ("kfac", "ekfac"), statistics=statistics)
    with pytest.raises(InputError, match="of the kind 'predictive', not 'empirical'; collect them again"):
        fl.compare(model, data, "kfac", kind="empirical", statistics=statistics)
    with pytest.raises(InputError, match="no layer 'head' of this shape; collect them again"):
        fl.compare(model, data, "kfac", layers=["head"], bias="ignore", statistics=statistics)
    with torch.no_grad():
        model.head.weight[0, 0] += 1e-9
    with pytest.raises(InputError, match="made from other weights; collect them again"):
        fl.compare(model, data, "kfac", statistics=statistics)


# --- the command line -----------------------------------------------------------------------------------

MLP = ("compare", "--model", "mnist-mlp", "--samples", "40", "--no-spectra", "--dtype", "float64")
FILE = ("--statistics", "sums.safetensors")


@pytest.fixture(autouse=True)
def quick(no_pictures, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.fixture
def done(run):
    """Runs that must end well."""

    def invoke(*arguments: str):
        result = run(*arguments, code=0)
        return result

    return invoke


def records(folder: str) -> pd.DataFrame:
    return pd.read_csv(Path(folder) / "records.csv").drop(columns="seconds")


def test_the_first_run_collects_and_the_second_uses(done, place):
    done(*MLP, *FILE, "--out", "one")
    written = (place / "sums.safetensors").read_bytes()
    assert fl.load_statistics("sums.safetensors").samples == 40
    result = done(*MLP, *FILE, "--out", "two", "-v")
    assert f"built from the statistics in {place / 'sums.safetensors'}" in result.stderr
    assert (place / "sums.safetensors").read_bytes() == written
    assert not list(place.glob("*.part"))
    assert_frame_equal(records("one"), records("two"), rtol=TOLERANCE, atol=1e-12)
    assert records("one").note.str.contains(NOTE.format(40)).all()


SMALL = ("compare", "--model", "small_nets:small", "--kind", "monte-carlo", "--no-spectra")


def test_drawn_labels_are_those_of_a_run_without_statistics(done):
    done(*SMALL, *FILE, "--out", "one")
    done(*SMALL, "--out", "plain")
    plain, one = records("plain"), records("one")
    dropped = ["note", "population_error", "population_error_se"]
    assert_frame_equal(one.drop(columns=dropped), plain.drop(columns=dropped), rtol=1e-5, atol=1e-7)


def test_a_file_that_does_not_fit_is_one_line(run, done, place):
    done(*SMALL, *FILE, "--out", "one")
    for options, message in (
        (("--approximations", "kfac,foof,tekfac"), "do not hold what tekfac needs"),
        (("--kind", "empirical"), "of the kind 'monte-carlo', not 'empirical'"),
    ):
        result = run(*SMALL, *FILE, "--out", "two", *options)
        assert (result.exit_code, result.stdout) == (2, "")
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
    (place / "sums.safetensors").write_text("no statistics")
    result = run(*SMALL, *FILE, "--out", "two", code=2)
    assert "is damaged or no safetensors file" in result.stderr
    assert not (place / "two").exists()
