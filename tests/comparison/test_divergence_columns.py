"""The columns of divergences and calibration: what they hold, and what is said where they hold nothing."""

import numpy as np
import pytest
import torch
from torch import nn

import fisherlab as fl
from fisherlab import metrics
from fisherlab.comparison.measure import Target, measure
from fisherlab.divergences import BAND_NAMES, Curvature
from fisherlab.operators import DenseOperator, DiagonalOperator

NAMES = ("kfac", "ekfac", "tkfac", "tekfac", "nearest-kronecker", "lngd", "diagonal")


@pytest.fixture(scope="module")
def trained() -> fl.Comparison:
    """A trained network whose first layer has four positions, and the last one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Flatten(), nn.Linear(48, 3)).double()
    x = torch.randn(30, 4, 8, dtype=torch.float64) * torch.linspace(0.2, 3, 8)
    y = x[:, 0, :3].argmax(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return fl.compare(model, (x, y), NAMES)


def main_rows(c: fl.Comparison, layer: str):
    rows = c.records[(c.records["layer"] == layer) & (c.records["target"] == "predictive")]
    return rows.set_index("approximation")


@pytest.mark.parametrize("layer", ["0", "3"])
def test_the_columns_are_the_metrics_of_the_dense_block(trained, layer):
    operators, rows = trained.operators(layer), main_rows(trained, layer)
    F = operators["exact"]
    dense = DenseOperator(F.dense(), F.outputs, F.inputs)
    counts = Curvature(dense).directions
    for name in NAMES:
        row, made = rows.loc[name], operators[name]
        close = {"rel": 1e-9, "abs": 1e-9}
        for column in ("logdet_divergence", "logdet_divergence_scaled"):
            assert row[column] == pytest.approx(
                getattr(metrics, column)(dense, made, row["damping"]), **close
            )
        found = metrics.von_neumann_divergence(dense, made)
        assert row["von_neumann_divergence"] == pytest.approx(found, **close)
        bands = metrics.calibration(dense, made).bands
        assert [row[f"calibration_{band}"] for band in BAND_NAMES] == pytest.approx(bands, **close)
        assert [row[f"directions_{band}"] for band in BAND_NAMES] == counts


@pytest.mark.parametrize("layer", ["0", "3"])
def test_the_theorems_hold_on_a_trained_network(trained, layer):
    rows = main_rows(trained, layer)
    von_neumann, error = rows["von_neumann_divergence"], rows["relative_error"]
    for column in (von_neumann, error):
        assert column["ekfac"] <= column["kfac"]
        assert column["tekfac"] <= column["tkfac"]
    for product in ("kfac", "nearest-kronecker", "lngd"):
        assert von_neumann["tkfac"] < von_neumann[product]
        assert error["nearest-kronecker"] <= error[product]
    assert (rows["logdet_divergence_scaled"] <= rows["logdet_divergence"]).all()
    assert (rows[["logdet_divergence_scaled", "von_neumann_divergence"]] > 0).all(axis=None)


def test_what_is_empty_is_said(trained):
    second = trained.records[trained.records["target"] == "layerwise"]
    assert len(second)
    assert second["note"].str.contains("divergences and joint step: against the main target alone").all()
    assert second[["von_neumann_divergence", "calibration_top"]].isna().all(axis=None)
    model = nn.Sequential(nn.Linear(4, 3)).double()
    quick = fl.compare(
        model, (torch.randn(9, 4).double(), torch.arange(9) % 3), "kfac", spectra=False
    ).records
    assert quick["note"].str.contains("no spectra: no divergences").all()
    assert quick["logdet_divergence"].isna().all()


def test_an_infinite_divergence_is_empty_with_a_note():
    values = torch.tensor([[1e6, 1.0], [1.0, 1.0]], dtype=torch.float64)
    target = Target("predictive", DiagonalOperator(values), None, None, 2**30)
    blind = values.clone()
    blind[0, 0] = 0
    row = measure(target, DiagonalOperator(blind), None, None, None)
    assert "von_neumann_divergence" not in row.values
    assert (
        "the von Neumann divergence is infinite: F̂ is zero where F has 1 of its trace" in row.values["note"]
    )
    assert np.isfinite(row.values["logdet_divergence"])
    assert row.values["calibration_top"] == 0
    assert row.values["calibration_middle"] is None
    assert "no direction of its own in the middle of the spectrum" in row.values["note"]


def test_a_block_beyond_an_eigendecomposition_says_so(monkeypatch):
    monkeypatch.setattr("fisherlab.divergences.LARGEST_DENSE", 3)
    exact = DenseOperator(torch.eye(4, dtype=torch.float64), 2, 2)
    row = measure(Target("predictive", exact, None, None, 2**30), exact, None, None, None)
    assert "eigenvalues of a block of size 4" in row.values["note"]
    assert "logdet_divergence" not in row.values
