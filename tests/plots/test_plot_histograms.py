"""Pictures of representation vectors show the numbers that they were given."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fisherlab import plots
from fisherlab.errors import InputError


def _bins(quantity, index, values):
    count, edges = np.histogram(values, 50)
    columns = {"left": edges[:-1], "right": edges[1:], "count": count}
    return pd.DataFrame(columns).assign(quantity=quantity, index=index)


@pytest.fixture
def made():
    """Histograms, quantiles and moments: a normal, a half-zero and a constant coordinate, and the norms."""
    rng = np.random.default_rng(0)
    x = rng.normal(1, 2, size=(4000, 3))
    x[:, 1] = np.maximum(x[:, 1] - 1, 0)
    x[:, 2] = 5
    r = np.linalg.norm(x, axis=1)
    p = (np.arange(50) + 0.5) / 50
    bins, quantiles, rows = [], [], []
    for quantity, index, values in [("coordinate", 0, x[:, 0]), ("coordinate", 1, x[:, 1]), ("norm", 0, r)]:
        bins.append(_bins(quantity, index, values))
        normal = stats.norm(values.mean(), values.std()).ppf(p)
        chi = normal + 0.1 if quantity == "norm" else np.nan
        table = pd.DataFrame({"value": np.quantile(values, p), "normal": normal, "chi": chi})
        quantiles.append(table.assign(quantity=quantity, index=index))
        rows.append(
            (quantity, index, values.mean(), values.std(), stats.kurtosis(values), (values == 0).mean())
        )
    bins.append(
        pd.DataFrame(
            [("coordinate", 2, 5.0, 5.0, 4000)], columns=["quantity", "index", "left", "right", "count"]
        )
    )
    rows.append(("coordinate", 2, 5.0, 0.0, np.nan, 0.0))
    moments = pd.DataFrame(rows, columns=["quantity", "index", "mean", "std", "excess_kurtosis", "zeros"])
    moments = moments.assign(chosen=True, ks_distance=0.07, chi_freedom=4.0, chi_scale=1.0, chi_distance=0.05)
    return pd.concat(bins), pd.concat(quantiles), moments


def _panels(figure):
    return {axes.get_title().partition(":")[0]: axes for axes in figure.axes if axes.get_title()}


def test_a_panel_has_the_histogram_and_the_normal_density(made, caption):
    figure = plots.histograms(*made, layer="4", vector="output", caption=caption)
    panels = _panels(figure)
    assert set(panels) == {"coordinate 0", "coordinate 1", "coordinate 2", "norm"}
    (steps,) = panels["coordinate 0"].patches
    values, edges, _ = steps.get_data()
    assert np.sum(values * np.diff(edges)) == pytest.approx(1)
    moment = made[2].iloc[0]
    curve = panels["coordinate 0"].lines[0]
    wanted = stats.norm.pdf(curve.get_xdata(), moment["mean"], moment["std"])
    np.testing.assert_allclose(curve.get_ydata(), wanted)
    np.testing.assert_allclose(
        panels["norm"].lines[1].get_ydata(), stats.chi.pdf(panels["norm"].lines[1].get_xdata(), 4)
    )
    assert len(panels["coordinate 0"].lines) == 1


def test_quantiles_stand_below_the_histogram(made, caption):
    figure = plots.histograms(*made, layer="4", vector="output", caption=caption)
    grid = [axes for axes in figure.axes if axes.get_xlabel() == "fitted quantile"]
    assert len(grid) == 3  # the constant coordinate has none
    np.testing.assert_array_equal(grid[0].lines[0].get_xdata(), made[1]["normal"].iloc[:50])
    np.testing.assert_array_equal(grid[0].lines[0].get_ydata(), made[1]["value"].iloc[:50])


def test_cut_bars_zeros_and_constants_are_named(made, caption, texts):
    found = texts(plots.histograms(*made, layer="4", vector="activated", caption=caption))
    assert any(text.startswith("▲ cut; 5") and text.endswith("% are 0") for text in found)
    assert "all values are the same" in found
    words = " ".join(found).replace("\n", " ")
    assert caption in words
    assert "no test of p(a_l" in words


@pytest.fixture
def layers():
    rows = []
    for place in range(30):
        for vector in ("input", "output", "activated"):
            rows.append(
                (f"stage.{place}.conv", vector, 0.1 * place, 3.0 * place, 0.05, 0.2, 0.5, 0.03, 0.02, 1000)
            )
    columns = ["layer", "vector", "kurtosis_median", "kurtosis_worst", "ks_median", "ks_worst", "rejected"]
    return pd.DataFrame(rows, columns=[*columns, "norm_ks_normal", "norm_ks_chi", "tested"])


def test_every_layer_has_a_line_with_its_numbers(layers, caption, texts):
    figure = plots.normality(layers, caption=caption)
    kurtosis = figure.axes[0]
    names = [label.get_text() for label in kurtosis.get_yticklabels()]
    assert names == [f"stage.{place}.conv" for place in range(30)]
    worst, median = kurtosis.lines[:2]
    np.testing.assert_allclose(median.get_xdata(), 0.1 * np.arange(30))
    np.testing.assert_allclose(worst.get_xdata(), 3.0 * np.arange(30))
    np.testing.assert_array_equal(median.get_ydata(), np.arange(30))
    assert "no test of p(a_l" in " ".join(texts(figure)).replace("\n", " ")


def test_of_very_many_layers_every_kth_is_named(layers, caption):
    many = pd.concat([layers.assign(layer=layers["layer"] + f".{k}") for k in range(9)])
    axes = plots.normality(many, caption=caption).axes[0]
    assert axes.get_ylabel() == "270 layers, every 3rd named"
    assert len(axes.get_yticks()) == 90


def test_isotropies_stand_beside_their_limits(caption, texts):
    rows = [("0", 20, 0.3, 0.07, 0.45), ("2", 10, np.nan, 0.2, 0.9)]
    columns = ["layer", "outputs", "isotropy_population", "isotropy_samples", "isotropy_limit"]
    table = pd.DataFrame(rows, columns=columns).assign(samples=64, labels="expected")
    figure = plots.isotropies(table, caption=caption)
    drawn = [list(line.get_xdata()) for line in figure.axes[0].lines]
    for column in columns[2:]:
        assert any(np.array_equal(values, table[column], equal_nan=True) for values in drawn)
    assert [0.05, 0.1] in drawn
    assert "64 samples" in " ".join(texts(figure)).replace("\n", " ")


@pytest.mark.parametrize("draw", [plots.normality, plots.isotropies])
def test_a_missing_column_is_named(draw, caption):
    with pytest.raises(InputError, match="no column"):
        draw(pd.DataFrame({"layer": ["0"]}), caption=caption)
