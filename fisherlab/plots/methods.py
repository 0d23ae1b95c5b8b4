"""Trainings with several optimizers: curves against epochs and seconds, and bars of printed values."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fisherlab.plots import style
from fisherlab.plots.runs import CLOCKS
from fisherlab.records.frames import numbers, require
from fisherlab.records.labels import label

_PRINTED = "#bdbdbd"


def printed_number(value: float) -> str:
    """A value as a paper prints it: whole, or to two decimals."""
    return f"{value:.0f}" if value == round(value) else f"{value:.2f}"


@style.styled
def method_curves(
    frame: pd.DataFrame,
    *,
    loss: str,
    metric: str,
    title: str,
    caption: str,
    printed: Mapping[str, Mapping[str, float | None]] | None = None,
    logarithmic: bool = False,
) -> Figure:
    """Training loss (top) and a test metric (bottom) against epochs (left) and seconds (right).

    A line is the mean over the seeds, the band around it their range. Values that a paper prints stand
    greyed in a third column, on scales of their own.

    Args:
        frame: a row an evaluation: columns ``method``, ``seed``, ``epoch``, ``seconds``, ``loss`` and
            ``metric``; the evaluations of a method's seeds are at the same epochs.
        loss: name of the axis of ``loss``.
        metric: name of the axis of ``metric``.
        title: on top.
        caption: data, model, seeds and device; written under the figure.
        printed: title of a panel -> method -> printed value, None where there is a dash; the first two
            panels are drawn.
        logarithmic: whether the axis of ``metric`` is.

    Returns:
        The figure, 7 inches wide.

    Raises:
        InputError: A column is missing or there are no rows.
    """
    require(frame, ("method", "seed", *CLOCKS, "loss", "metric"))
    methods = list(dict.fromkeys(frame["method"]))
    key = [Line2D([], [], **style.look(name, methods), label=label(name)) for name in methods]
    figure = style.new_figure(style.PAGE_WIDTH, 3.9, caption=caption, title=title, legend=key)
    beside = list((printed or {}).items())[:2]
    columns = 3 if beside else 2
    grid = figure.subplots(2, columns, width_ratios=[1, 1, 0.62][:columns], squeeze=False)
    for row, (column, words) in enumerate((("loss", loss), ("metric", metric))):
        for axes, clock in zip(grid[row], CLOCKS, strict=False):
            for name in methods:
                _draw_mean(axes, frame[frame["method"] == name], clock, column, style.look(name, methods))
            axes.grid()
            axes.set_xlim(0, None)
            if column == "metric" and logarithmic:
                axes.set_yscale("log")
                style.name_logarithms(axes.yaxis)
            if row == 1:
                axes.set_xlabel(CLOCKS[clock])
        grid[row, 1].sharey(grid[row, 0])
        grid[row, 1].tick_params(labelleft=False)
        grid[row, 0].set_ylabel(words)
    for axes, (words, values) in zip(grid[:, 2:].flat, beside, strict=False):
        _draw_printed(axes, words, values)
    return figure


@style.styled
def printed_values(panels: Mapping[str, Mapping[str, float | None]], *, title: str, caption: str) -> Figure:
    """Values that a paper prints, greyed: nothing of this figure was measured.

    Args:
        panels: title of a panel -> method -> value; None where the paper has a dash.
        title: on top.
        caption: says what is printed, and why nothing was measured.

    Returns:
        The figure, 7 inches wide.
    """
    methods = len(next(iter(panels.values())))
    figure = style.new_figure(style.PAGE_WIDTH, 0.75 + 0.22 * methods, caption=caption, title=title)
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (words, values) in zip(grid, panels.items(), strict=True):
        _draw_printed(axes, words, values)
    return figure


def _draw_mean(axes: Axes, rows: pd.DataFrame, clock: str, column: str, look: dict[str, Any]) -> None:
    """The mean over seeds at each evaluation, with their range as a band."""
    known = rows.assign(value=numbers(rows[column])).dropna(subset=["value"])
    if known.empty:
        return
    grouped = known.groupby("epoch", sort=True)
    values = grouped["value"]
    x = grouped["seconds"].mean() if clock == "seconds" else values.mean().index
    if known["seed"].nunique() > 1:
        axes.fill_between(x, values.min(), values.max(), color=look["color"], alpha=0.18, lw=0)
    axes.plot(x, values.mean(), marker="o", markersize=2, **look)


def _draw_printed(axes: Axes, words: str, values: Mapping[str, float | None]) -> None:
    """Grey bars with their numbers, a method a row."""
    lengths = np.array([np.nan if value is None else value for value in values.values()], dtype=float)
    places = range(len(lengths))
    axes.barh(places, np.nan_to_num(lengths), color=_PRINTED, height=0.62)
    for place, value in zip(places, lengths, strict=True):
        text = "–" if np.isnan(value) else printed_number(value)
        axes.annotate(
            text,
            (float(np.nan_to_num(value)), place),
            xytext=(2, 0),
            textcoords="offset points",
            va="center",
            color=style.MUTED,
        )
    axes.set_yticks(places, [label(name) for name in values], color=style.MUTED)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 1.45 * max(float(np.nanmax(lengths, initial=0.0)), 1e-9))
    axes.invert_yaxis()
    axes.set_title(f"printed: {words}", loc="right", color=style.MUTED, fontsize=style.SMALL_SIZE)
