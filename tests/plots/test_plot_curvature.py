import numpy as np
import pytest

from fisherlab import plots
from fisherlab.errors import InputError
from fisherlab.plots.curvature import _FAR

COLUMNS = ("scaled_error", "von_neumann_divergence", "logdet_divergence_scaled")


def drawn(axes):
    return [line for line in axes.lines if line.get_marker() == "|"]


def test_curvature_shows_every_direction_and_the_means_of_the_bands(caption, texts):
    eigenvalues = np.geomspace(10, 1e-3, 30)
    ratios = {"kfac": np.geomspace(0.5, 4, 30), "lngd": np.r_[0.0, np.ones(29)]}
    figure = plots.curvature(
        eigenvalues,
        [4, 4, 30],
        np.array([1, 5, 30]),
        ratios,
        {name: np.array([0.1, 0.5, 1.0]) for name in ratios},
        {"kfac": (0.6, None, 2.0), "lngd": (0.0, None, 1.0)},
        layer="4",
        caption=caption,
    )
    left, right = figure.axes
    dots = [line for line in left.lines if line.get_marker() == "."]
    np.testing.assert_array_equal(dots[0].get_ydata(), ratios["kfac"])
    assert dots[1].get_ydata()[0] > 0  # a logarithmic axis has no zero
    assert [line.get_ydata()[0] for line in drawn(left)][:2] == [0.6, 2.0]
    assert [line.get_xdata()[0] for line in drawn(left)][:2] == [eigenvalues[0], eigenvalues[4]]
    assert left.get_xscale() == left.get_yscale() == "log"
    assert left.get_xlim()[0] > left.get_xlim()[1]
    assert len(right.lines) == 2
    words = texts(figure)
    assert "first 50 %\n4" in words
    assert "next 9.9 %\n26" in words
    assert not any(text.startswith("next 40 %") for text in words)


def test_divergences_mark_the_ranks(make_records, caption, texts):
    records = make_records(["0", "2"], names=("kfac", "ekfac", "lngd"))
    values = np.array([0.3, 0.1, 0.2, 0.3, np.nan, 0.1])
    for factor, column in enumerate(COLUMNS, start=1):
        records[column] = factor * values
    second = records.assign(target="layerwise", scaled_error=0.0)
    figure = plots.divergences(plots_with(records, second), caption=caption)
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert len(panels) == 3
    for axes in panels:
        assert [text.get_text() for text in axes.texts] == ["3", "2", "1", "2", "1"]
        shown = axes.images[0].get_array()
        np.testing.assert_allclose(shown[:, 0], [3, 1, 2])
        assert shown.mask[:, 1].tolist() == [False, True, False]
        assert axes.images[0].norm.vmax == _FAR
    assert [text.get_text() for text in panels[0].get_yticklabels()] == ["KFAC", "EKFAC", "LNGD"]


def plots_with(*frames):
    import pandas as pd

    return pd.concat(frames, ignore_index=True)


@pytest.mark.parametrize("count", [1, 12, 60])
def test_divergences_of_any_number_of_layers(make_records, caption, count):
    records = make_records([f"layers.{k}" for k in range(count)])
    for column in COLUMNS[1:]:
        records[column] = records["scaled_error"]
    figure = plots.divergences(records, caption=caption)
    assert figure.get_figwidth() == plots.PAGE_WIDTH
    assert bool(figure.axes[0].texts) == (count < 60)


def test_divergences_without_numbers_say_so(make_records, caption, texts):
    records = make_records(["0"]).assign(**dict.fromkeys(COLUMNS))
    assert texts(plots.divergences(records, caption=caption)).count("n/a") == 3
    with pytest.raises(InputError, match="von_neumann_divergence"):
        plots.divergences(make_records(["0"]), caption=caption)
