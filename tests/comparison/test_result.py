"""What a comparison shows and writes: operators, summary, pictures, table and files."""

import io
import json

import pandas as pd
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import fisherlab as fl
from fisherlab import metrics
from fisherlab.comparison import layer as measured_layer
from fisherlab.errors import InputError, InputTypeError, NotSupportedError

NAMES = ("kfac", "ekfac", "tkfac", "lngd", "nearest-kronecker")


@pytest.fixture(scope="module")
def comparison(categorical) -> fl.Comparison:
    return fl.compare(categorical.model, categorical.data, NAMES)


def rows_of(c: fl.Comparison, layer: str) -> pd.DataFrame:
    records = c.records
    rows = records[(records["layer"] == layer) & (records["target"] == "predictive")]
    return rows.set_index("approximation")


def test_operators_are_those_behind_the_numbers(comparison):
    operators = comparison.operators("2")
    assert list(operators) == ["exact", *NAMES]
    found = metrics.relative_error(operators["exact"], operators["kfac"])
    assert rows_of(comparison, "2").loc["kfac", "relative_error"] == found


def test_summary_names_the_best(comparison):
    summary = comparison.summary()
    assert list(summary["layers"]) == ["0", "2", "4"]
    best = summary["layers"]["2"]["scaled_error"]
    assert best["best"] == ["nearest-kronecker"]
    assert best["value"] == pytest.approx(rows_of(comparison, "2")["scaled_error"].min())
    assert json.loads(json.dumps(summary)) == summary


def test_pictures_and_names(comparison):
    assert len(comparison.heatmap("0", "lngd").axes) >= 3
    assert comparison.heatmap("0", ("kfac", "lngd"), trace_matched=True)
    assert comparison.spectrum("2").axes
    for call in (comparison.heatmap, comparison.spectrum, comparison.operators):
        with pytest.raises(InputError, match="unknown layer '3'"):
            call("3")
    with pytest.raises(InputTypeError, match="layer must be a string, not 0"):
        comparison.heatmap(0)
    with pytest.raises(InputError, match="unknown approximation 'kfacs'; did you mean kfac"):
        comparison.heatmap("0", "kfacs")
    with pytest.raises(InputError, match="name at least one approximation"):
        comparison.heatmap("0", ())


def test_what_was_not_computed_cannot_be_drawn(categorical):
    c = fl.compare(categorical.model, categorical.data, "kfac", spectra=False)
    with pytest.raises(NotSupportedError, match="the eigenvalues of layer '0' were not computed"):
        c.spectrum("0")
    assert all(
        measured.preconditioned is None for r in c.results.values() for measured in r.measured.values()
    )


def test_the_table_shows_every_approximation(comparison):
    console = Console(width=250, record=True, file=io.StringIO())
    console.print(comparison.table())
    text = console.export_text()
    for label in ("KFAC", "EKFAC", "TKFAC", "LNGD"):
        assert any(line.startswith(label) for line in text.splitlines())


def test_save_writes_all_files(categorical, tmp_path):
    c = fl.compare(categorical.model, categorical.data, ("kfac", "lngd"), layers="2")
    folder = c.save(tmp_path / "run", matrices=True)
    found = {path.name for path in folder.iterdir()}
    expected = {
        "records.csv",
        "directions.csv",
        "coupling.csv",
        "summary.json",
        "provenance.json",
        "report.html",
        "heatmap-2.png",
        "heatmap-2.pdf",
        "spectrum-2.png",
        "spectrum-2.pdf",
        "blocks.safetensors",
    }
    assert expected <= found
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    read = pd.read_csv(folder / "records.csv", dtype={"layer": str}, keep_default_na=True)
    assert list(read.columns) == list(c.records.columns)
    assert read["relative_error"].tolist() == pytest.approx(c.records["relative_error"].tolist())
    blocks = load_file(folder / "blocks.safetensors")
    assert set(blocks) == {"2/exact", "2/kfac", "2/lngd"}
    assert torch.equal(blocks["2/exact"], c.operators("2")["exact"].dense())
    assert json.loads((folder / "summary.json").read_text()) == c.summary()
    with pytest.raises(InputError, match="run"):
        c.save(folder)


@pytest.mark.parametrize(("largest", "kept"), [(15, {"4/exact", "4/kfac"}), (0, set())])
def test_matrices_of_layers_that_were_let_go_are_left_out(categorical, tmp_path, monkeypatch, largest, kept):
    monkeypatch.setattr(measured_layer, "_LARGEST_DRAWN", largest)
    c = fl.compare(categorical.model, categorical.data, "kfac", spectra=False)
    assert {name for name, result in c.results.items() if result.operators} == {k.split("/")[0] for k in kept}
    folder = c.save(tmp_path / "run", matrices=True)
    assert set(load_file(folder / "blocks.safetensors")) == kept


def test_spectra_of_a_gram_block_say_the_size_of_the_block():
    torch.manual_seed(0)
    model = (
        torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3))
        .append(torch.nn.Flatten())
        .append(torch.nn.Linear(64, 3))
    )
    data = torch.randn(5, 3, 4, 4), torch.arange(5) % 3
    c = fl.compare(model, data, "kfac", layers="0", memory="2MiB")
    assert c.records["method"].tolist() == ["gram"]
    assert "exact F (rank 10 of 448)" in [t.get_text() for t in c.spectrum("0").legends[0].get_texts()]
