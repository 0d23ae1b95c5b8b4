"""The picture of a sweep: every trial is in it, the best and the diverged ones marked."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from fisherlab.errors import InputError
from fisherlab.plots import style
from fisherlab.plots.sweep import sweep

TEXTS = {"metric": "test_loss", "title": "a sweep", "caption": "data, model, seed, device"}


def trials(points, values, sd=None) -> pd.DataFrame:
    frame = pd.DataFrame(points, columns=["lr", "damping"])
    return frame.assign(value=values, sd=sd)


def words(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


@pytest.mark.parametrize(("higher", "best"), [(True, (2, 0)), (False, (0, 1))])
def test_the_map_has_a_cell_a_trial_and_frames_the_best(higher, best):
    points = list(itertools.product((0.01, 0.1, 1.0), (1e-3, 1e-2)))
    values = [0.5, 0.25, 0.4, None, 0.75, 0.3]
    figure = sweep(trials(points, values).sample(frac=1, random_state=0), higher=higher, grid=True, **TEXTS)
    axes = figure.axes[0]
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    for (column, row), value in zip(itertools.product(range(3), range(2)), values, strict=True):
        assert cells[column, row] == ("×" if value is None else f"{value:.4f}")
    frames = [patch for patch in axes.patches if to_hex(patch.get_edgecolor()) == style.ACCENT]
    assert [(frame.get_x() + 0.5, frame.get_y() + 0.5) for frame in frames] == [best]
    assert isinstance(frames[0], Rectangle)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.01", "0.1", "1"]


def test_a_point_that_was_not_tried_is_empty_and_not_diverged():
    points = [(0.01, 1e-3), (0.1, 1e-3), (0.01, 1e-2)]
    figure = sweep(trials(points, [1.0, 2.0, None]), higher=False, grid=True, **TEXTS)
    assert len(words(figure.axes[0])) == 3
    labels = [text.get_text() for text in figure.legends[0].texts]
    assert labels == ["best", "× diverged", "not tried"]


def test_the_curve_shows_values_spread_and_divergence():
    points = [(1.0, None), (0.01, None), (0.1, None)]
    figure = sweep(trials(points, [None, 0.4, 0.3], [None, 0.02, 0.01]), higher=False, grid=True, **TEXTS)
    axes = figure.axes[0]
    line, best, lost = axes.lines[0], axes.lines[-2], axes.lines[-1]
    assert line.get_xdata().tolist() == [0.01, 0.1]
    assert line.get_ydata().tolist() == [0.4, 0.3]
    assert (list(best.get_xdata()), list(lost.get_xdata())) == ([0.1], [1.0])
    bars = axes.collections[0].get_segments()
    assert np.allclose([(bar[0][1], bar[1][1]) for bar in bars], [(0.38, 0.42), (0.29, 0.31)])


def test_drawn_points_lie_where_they_were_drawn():
    points = [(0.013, 2e-3), (0.2, 3e-2), (0.5, 1e-4)]
    figure = sweep(trials(points, [0.9, 0.8, None]), higher=True, grid=False, **TEXTS)
    axes = figure.axes[0]
    assert axes.collections[0].get_offsets().tolist() == [list(point) for point in points[:2]]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert list(axes.lines[-1].get_xdata()) == [0.013]


def test_values_that_differ_a_lot_have_logarithmic_colours():
    points = list(itertools.product((0.01, 0.1), (1e-3, 1e-2)))
    figure = sweep(trials(points, [1e-3, 1.0, 10.0, 0.1]), higher=False, grid=True, **TEXTS)
    assert figure.axes[1].get_yscale() == "log"
    figure = sweep(trials(points, [0.7, 0.8, 0.9, 0.95]), higher=True, grid=True, **TEXTS)
    assert figure.axes[1].get_yscale() == "linear"


def test_a_sweep_where_all_diverged_is_drawn():
    figure = sweep(trials([(0.1, None)], [None]), higher=True, grid=True, **TEXTS)
    assert list(figure.axes[0].lines[-1].get_xdata()) == [0.1]


def test_columns_are_asked_for():
    with pytest.raises(InputError, match="sd"):
        sweep(pd.DataFrame({"lr": [1], "damping": [1], "value": [1]}), higher=True, grid=True, **TEXTS)
