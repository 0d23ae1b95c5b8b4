"""Curves of several trainings in one picture."""

from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fisherlab.plots import style
from fisherlab.records.frames import numbers, require
from fisherlab.records.labels import short

_Look = dict[str, Any]

CLOCKS = {"epoch": "epochs", "seconds": "seconds of training"}
"""What a training is drawn against: the columns, and what the axes say."""
_LOSSES = {"train_loss": "training loss", "test_loss": "test loss"}
_DISTINCT = 10  # colours of the map for few runs


@style.styled
def curves(frame: pd.DataFrame, metric: str | None, *, caption: str) -> Figure:
    """Training loss, test loss and metric of several runs, against epochs (left) and seconds (right).

    Args:
        frame: columns ``run``, ``epoch``, ``seconds``, and any of ``train_loss``, ``test_loss`` and the
            metric; numbers may be NaN.
        metric: the column of the metric that all runs share; None: none.
        caption: data, models, seeds and devices; written under the figure.

    Returns:
        The figure, 7 inches wide, a row a quantity that is known.

    Raises:
        InputError: A column is missing or there are no rows.
    """
    require(frame, ("run", *CLOCKS))
    words = _LOSSES | ({metric: metric.replace("_", " ")} if metric else {})
    known = [name for name in words if name in frame and numbers(frame[name]).notna().any()]
    looks = _looks([str(name) for name in frame["run"].unique()])
    key = [Line2D([], [], **look, label=short(name, 40)) for name, look in looks.items()]
    figure = style.new_figure(
        style.PAGE_WIDTH, 1.9 * max(1, len(known)), caption=caption, title="Trainings", legend=key
    )
    grid = figure.subplots(max(1, len(known)), 2, squeeze=False, sharey="row", sharex="col")
    for row, name in zip(grid, known, strict=False):
        row[0].set_ylabel(words[name])
        for axes, clock in zip(row, CLOCKS, strict=True):
            _draw(axes, frame, clock, name, looks)
        if name in _LOSSES:
            _spread_out(row[0], numbers(frame[name]).to_numpy())
    for axes, clock in zip(grid[-1], CLOCKS.values(), strict=True):
        axes.set_xlabel(clock)
    return figure


def _looks(names: list[str]) -> dict[str, _Look]:
    """Colour and dashes of each run."""
    colors = (
        matplotlib.colormaps["tab10"](range(len(names)))
        if len(names) <= _DISTINCT
        else matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, len(names)))
    )
    return {
        name: {"color": tuple(shade), "linestyle": style.dashes(place), "linewidth": 1.1}
        for place, (name, shade) in enumerate(zip(names, colors, strict=True))
    }


def _draw(axes: Axes, frame: pd.DataFrame, clock: str, column: str, looks: dict[str, _Look]) -> None:
    axes.grid()
    for name, look in looks.items():
        rows = frame[frame["run"] == name]
        values = numbers(rows[column])
        drawn = values.notna()
        marker = "o" if drawn.sum() <= 20 else ""
        axes.plot(rows[clock][drawn], values[drawn], marker=marker, markersize=2.2, **look)


def _spread_out(axes: Axes, values: np.ndarray) -> None:
    """A logarithmic axis where positive values lie more than a decade apart."""
    finite = values[np.isfinite(values)]
    if finite.min() > 0 and finite.max() > 10 * finite.min():
        axes.set_yscale("log")
        style.name_logarithms(axes.yaxis)
