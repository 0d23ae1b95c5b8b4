"""Whole runs of the command's work at a tiny scale."""

import json
from dataclasses import replace

import pandas as pd
import pytest

from fisherlab.errors import FisherlabError, InputError
from fisherlab.figures import figure_1, figure_5, figure_6, run, theorem_1, theorem_2
from fisherlab.figures.config import FiguresConfig
from fisherlab.figures.run import make
from fisherlab.figures.scales import SMOKE
from fisherlab.figures.workshop import TABLE_COLUMNS


def test_scripts_without_training_write_their_files(tmp_path) -> None:
    out = tmp_path / "out"
    summary = make(FiguresConfig(names=("table-2", "table-4", "figure-3"), scale="smoke"), out)
    assert list(summary["made"]) == ["figure-3", "table-2", "table-4"]
    for table in ("table-2", "table-4"):
        assert tuple(pd.read_csv(out / f"{table}.csv").columns) == TABLE_COLUMNS
        assert (out / f"{table}.md").read_text().startswith(f"# {table.replace('-', ' ').capitalize()}: ")
    assert "the scale smoke trains no ResNet-50 on ImageNet" in (out / "figure-3.txt").read_text()
    assert json.loads((out / "summary.json").read_text()) == summary
    assert {"git", "device", "seed", "stand_in"} <= set(json.loads((out / "provenance.json").read_text()))


def test_a_finished_directory_is_not_replaced_unasked(tmp_path) -> None:
    config = FiguresConfig(names=("table-4",), scale="smoke")
    make(config, tmp_path / "out")
    with pytest.raises(InputError, match="--force"):
        make(config, tmp_path / "out")
    make(config, tmp_path / "out", force=True)


def test_an_interrupted_one_is_continued_with_its_runs(tmp_path, tiny, monkeypatch) -> None:
    monkeypatch.setattr(run, "SCALES", {"smoke": tiny})
    out = tmp_path / "out"
    config = FiguresConfig(names=("table-5",), scale="smoke")
    trained: list[str] = []

    def stop(what: str, step: int, steps: int) -> None:
        trained.append(what)
        if what.endswith("lngd-seed1") and step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(config, out, report=stop)
    assert not out.exists()
    before = set(trained)
    with pytest.raises(InputError, match="begun with scale smoke and seed 0"):
        make(FiguresConfig(names=("table-5",), scale="smoke", seed=1), out)
    trained.clear()
    make(config, out, report=lambda what, step, steps: trained.append(what))
    assert before & set(trained) == {"images-mnist-mlp-lngd-seed1"}
    assert trained.count("images-mnist-mlp-lngd-seed1") == 4  # of 8: it goes on from its checkpoint
    assert (out / "table-5.md").exists()


def test_what_cannot_be_made_does_not_stop_the_rest(tmp_path, monkeypatch) -> None:
    def broken(work):
        raise InputError("there is no such data")

    monkeypatch.setattr("fisherlab.figures.theorem_2.make", broken)
    config = FiguresConfig(names=("table-4", "theorem-2"), scale="smoke")
    with pytest.raises(FisherlabError, match=r"1 of 2 were made.*theorem-2: there is no such data"):
        make(config, tmp_path / "out")
    assert (tmp_path / "out" / "table-4.csv").exists()
    with pytest.raises(InputError, match="there is no such data"):
        make(FiguresConfig(names=("theorem-2",), scale="smoke"), tmp_path / "alone")
    assert not (tmp_path / "alone.part").exists()


def test_the_heat_maps_name_their_layers_and_the_stand_in(work, unsaved) -> None:
    """Trace-matched: the entries of figure 5 keep the trace ratios that figure 1's numbers say."""
    first, fifth = figure_1.make(work), figure_5.make(work)
    assert first["layers"]["2"]["lngd"] == fifth["layers"]["2"]["lngd"]
    nearest = fifth["layers"]["2"]["nearest-kronecker"]["relative_error"]
    assert (
        nearest
        <= min(fifth["layers"]["2"][name]["scaled_error"] for name in ("kfac", "tkfac", "lngd")) + 1e-9
    )
    computed = pd.read_csv(work.folder / "figure-1.csv")
    matched = pd.read_csv(work.folder / "figure-1-trace-matched.csv")
    assert len(computed) == 40 * 40
    largest = computed["LNGD"].abs().idxmax()
    ratio = computed["LNGD"][largest] / matched["LNGD"][largest]
    assert ratio == pytest.approx(first["layers"]["2"]["lngd"]["trace_ratio"])
    text = (work.folder / "figure-1-first-layer.txt").read_text()
    for words in ("3920×3920", "stand-in: digits", "scale smoke", "reading 6", "seed 0"):
        assert words in text


def test_a_network_that_diverged_is_not_drawn(tmp_path, tiny, work_in) -> None:
    wild = replace(tiny, digits=replace(tiny.digits, rates={"lngd": 1e4}))
    with pytest.raises(FisherlabError, match="diverged"):
        figure_1.make(work_in(tmp_path / "wild", wild))


def test_theorem_2_is_below_its_bound(work) -> None:
    assert theorem_2.make(work)["below_the_bound"]
    rows = pd.read_csv(work.folder / "theorem-2.csv")
    assert list(rows.groupby("alpha")["step"].max()) == [30, 30]


def test_theorem_1_on_the_stand_in(work) -> None:
    assert theorem_1.make(work)["largest_ratio"] <= 1 + 1e-9
    assert "stand-in: digits" in (work.folder / "theorem-1.txt").read_text()
    assert len(pd.read_csv(work.folder / "theorem-1.csv")) == work.scale.theorem_steps


def test_the_histograms_say_that_they_are_marginals(work, unsaved) -> None:
    figure_6.make(work)
    rows = pd.read_csv(work.folder / "figure-6.csv")
    assert set(rows["quantity"]) == {"norm", "coordinate"}
    assert rows.groupby(["quantity", "index"])["count"].sum().eq(work.scale.vectors).all()
    assert "marginals over the data" in (work.folder / "figure-6.txt").read_text()


def test_the_smoke_scale_is_small() -> None:
    assert SMOKE.images.common["samples"] * SMOKE.images.common["epochs"] <= 50_000
