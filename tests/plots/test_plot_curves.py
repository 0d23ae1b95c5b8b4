import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fisherlab import plots
from fisherlab.errors import InputError


def curves(axes):
    return [np.asarray(line.get_ydata()) for line in axes.lines if len(line.get_ydata()) > 2]


def sweep(layers, names=("kfac", "lngd")):
    rows = [
        (layer, name, damping, 0.9, 0.8)
        for layer in layers
        for name in names
        for damping in 10.0 ** np.arange(-5, 1)
    ]
    columns = ["layer", "approximation", "damping", "direction_cosine", "decrease_share"]
    return pd.DataFrame(rows, columns=columns)


@given(rank=st.integers(3, 30), zeros=st.integers(0, 20))
@settings(max_examples=20)
def test_spectrum_ends_at_the_rank(rank, zeros):
    noise = np.linspace(-1e-17, 1e-17, zeros)
    values = np.concatenate([np.geomspace(1e-6, 1.0, rank), noise])
    figure = plots.spectrum(values, {}, {}, layer="4", damping=0.1, caption="here")
    (curve,) = curves(figure.axes[0])
    np.testing.assert_array_equal(curve, np.geomspace(1e-6, 1.0, rank)[::-1])
    (entry,) = figure.legends[0].get_texts()
    assert f"rank {rank} of {rank + zeros}" in entry.get_text()


def test_a_rank_is_not_more_certain_than_the_eigenvalues_that_are_known():
    """Of a block in Gram form, and of approximations beside it, only the largest eigenvalues are known."""
    largest, fewer = np.geomspace(1e-3, 1.0, 6), np.array([0.0, 0, 0, 0.5, 0.5, 1])
    figure = plots.spectrum(
        largest, {"kfac": largest, "lngd": fewer}, {}, layer="4", damping=0.1, caption="here", size=20
    )
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words == ["exact F (rank 6 of 20)", "KFAC (rank ≥ 6)", "LNGD (rank 3)"]


def test_spectrum_draws_both_sides_and_marks_one(caption, texts):
    exact = np.geomspace(1e-3, 1, 20)
    figure = plots.spectrum(
        exact,
        {"kfac": exact * 2, "lngd": None},
        {"kfac": np.linspace(0.5, 2, 9)},
        layer="4",
        damping=3e-4,
        caption=caption,
    )
    left, right = figure.axes
    assert len(curves(left)) == 2
    np.testing.assert_allclose(curves(right)[0], np.linspace(2, 0.5, 9))
    assert left.get_yscale() == right.get_yscale() == "log"
    assert any(list(line.get_ydata()) == [1.0, 1.0] for line in right.lines)
    (title,) = [text for text in texts(figure) if text.startswith("preconditioned")]
    assert "0.0003" in title
    assert "trace-matched" in title


def test_spectrum_without_preconditioned_values_says_so(caption, texts):
    figure = plots.spectrum(np.ones(4), {}, {}, layer="4", damping=0.1, caption=caption)
    assert "n/a" in texts(figure)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 12])
def test_directions_draw_two_panels_a_layer(caption, count):
    figure = plots.directions(sweep([f"layers.{i}" for i in range(count)]), caption=caption)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert len(shown) == 2 * count
    assert all(len(curves(axes)) == 2 for axes in shown)
    assert all(axes.get_xscale() == "log" for axes in shown)


def test_directions_keep_negative_cosines_and_missing_layers(caption, texts):
    frame = sweep(["0", "2"])
    frame.loc[0, "direction_cosine"] = -0.4
    frame.loc[frame["layer"] == "2", "direction_cosine"] = np.nan
    figure = plots.directions(frame, caption=caption)
    assert figure.axes[0].get_ylim()[0] < -0.4
    assert texts(figure).count("n/a") == 1


def test_directions_refuse_an_incomplete_frame(caption):
    frame = sweep(["0"])
    with pytest.raises(InputError, match="decrease_share"):
        plots.directions(frame.drop(columns="decrease_share"), caption=caption)
    with pytest.raises(InputError, match="no rows"):
        plots.directions(frame.iloc[:0], caption=caption)
