import numpy as np
import pandas as pd
import pytest

from fisherlab.errors import InputError
from fisherlab.plots import label
from fisherlab.plots.methods import method_curves, printed_values
from fisherlab.plots.rates import error_bounds, quadratic_models

WORDS = {"loss": "training loss", "metric": "test accuracy, %", "title": "t", "caption": "a caption"}


@pytest.fixture
def frame() -> pd.DataFrame:
    rows = [
        (
            method,
            seed,
            epoch,
            2.0 * epoch,
            None if epoch == 0 else 1.0 / epoch + seed,
            10.0 * epoch + 2 * seed,
        )
        for method in ("sgd", "lngd")
        for seed in (0, 1)
        for epoch in range(4)
    ]
    return pd.DataFrame(rows, columns=["method", "seed", "epoch", "seconds", "loss", "metric"])


def test_lines_are_means_over_seeds_and_bands_their_range(frame) -> None:
    figure = method_curves(frame, **WORDS)
    loss, _, metric, seconds = figure.axes
    np.testing.assert_allclose(metric.lines[0].get_ydata(), [1, 11, 21, 31])
    np.testing.assert_allclose(loss.lines[0].get_ydata(), [1.5, 1.0, 1 / 3 + 0.5])
    np.testing.assert_allclose(seconds.lines[1].get_xdata(), [0, 2, 4, 6])
    low, high = metric.collections[0].get_datalim(metric.transData).intervaly
    assert (low, high) == (0, 32)


def test_printed_values_stand_greyed_with_their_numbers(frame) -> None:
    printed = {"epochs to 91 %": {"sgd": 79, "lngd": 36}, "seconds": {"sgd": 268.67, "lngd": None}}
    figure = method_curves(frame, **WORDS, printed=printed)
    texts = [[one.get_text() for one in axes.texts] for axes in figure.axes if axes.patches]
    assert texts == [["79", "36"], ["268.67", "–"]]


def test_printed_alone_has_a_panel_a_column() -> None:
    figure = printed_values({"a": {"sgd": 1.0}, "b": {"sgd": None}}, title="t", caption="nothing measured")
    assert [axes.get_title(loc="right") for axes in figure.axes] == ["printed: a", "printed: b"]
    assert any("nothing measured" in one.get_text() for one in figure.texts)


def test_a_frame_without_rows_is_refused(frame) -> None:
    with pytest.raises(InputError, match="no rows"):
        method_curves(frame.iloc[:0], **WORDS)


def test_optimizers_have_their_written_names() -> None:
    assert [label(name) for name in ("sgd", "adam", "lngd-lr", "mine")] == [
        "SGD",
        "Adam",
        "LNGD-lr",
        "mine",
    ]


def test_the_ratio_of_the_quadratic_models_is_drawn() -> None:
    values = {"layer-wise": np.array([-1.0, -2.0]), "single": np.array([-0.5, -1.5])}
    figure = quadratic_models(np.array([1, 2]), values, values, title="t", caption="c")
    np.testing.assert_allclose(figure.axes[1].lines[0].get_ydata(), [0.5, 0.75])


def test_the_bound_is_drawn_for_each_rate() -> None:
    figure = error_bounds({0.5: {"m": np.ones(3)}, 0.1: {"m": np.ones(3)}}, title="t", caption="c")
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), [1, 0.5, 0.25])
    np.testing.assert_allclose(figure.axes[1].lines[0].get_ydata(), [1, 0.9, 0.81])
