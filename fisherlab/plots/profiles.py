"""Networks with many layers: numbers against the position of the layer, a marker a method."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from fisherlab.plots import style
from fisherlab.records.definitions import name_of
from fisherlab.records.frames import Array, Series, pivot, with_series
from fisherlab.records.labels import label, ordinal, short

MANY = 12
"""Layers up to which a figure has a panel a layer."""

FAR = 2.0
"""An error beyond twice ‖F‖ needs a logarithmic axis, or a cut, for the others to stay readable."""

_LEAST_DRAWN = 1e-3  # of a logarithmic axis of errors
_NAME_CHARACTERS = 30
_TICK_SPACE = 1.3  # from name to name, in font sizes


def error_profiles(
    rows: pd.DataFrame,
    metrics: Sequence[str],
    layers: list[str],
    series: list[Series],
    *,
    caption: str,
    left: str,
    shaded: Collection[str],
) -> Figure:
    """A panel a metric: the errors of each approximation against the position of the layer.

    Args:
        rows: The records with their ``series``.
        metrics: Columns, one a panel.
        layers: Names in the order of the axis.
        series: The curves.
        caption: Written under the figure.
        left: What the axis says about layers that are not drawn.
        shaded: Layers whose labels are drawn.
    """
    looks = [_look(one, series, len(layers)) for one in series]
    figure = style.new_figure(
        style.PAGE_WIDTH,
        1.55 * len(metrics) + _names_height(layers),
        caption=caption,
        title="Errors of the approximations by layer",
        legend=[*_legend(series, looks), *shade_key(layers, shaded)],
    )
    grid = figure.subplots(len(metrics), 1, squeeze=False, sharex=True)[:, 0]
    for axes, metric in zip(grid, metrics, strict=True):
        axes.set_ylabel(name_of(metric))
        shade(axes, layers, shaded)
        values = pivot(rows, metric, layers, series)
        if np.isfinite(values).any():
            _draw_errors(axes, values, pivot(rows, f"{metric}_se", layers, series), looks)
        else:
            _say_not_available(axes)
    _name_layers(grid[-1], layers, left)
    return figure


def waterfall_profile(steps: pd.DataFrame, layers: list[str], *, caption: str, left: str) -> Figure:
    """The scaled error of each step against the position of the layer, the additions shaded."""
    rows = with_series(steps.rename(columns={"step": "approximation"}))
    series = list(dict.fromkeys(rows["series"]))
    looks = [_look(one, series, len(layers)) for one in series]
    figure = style.new_figure(
        style.PAGE_WIDTH,
        2.6 + _names_height(layers),
        caption=caption,
        title="Scaled error, step by step; shaded: what a step adds to the one before, or removes",
        legend=_legend(series, looks),
    )
    axes = figure.add_subplot()
    axes.set_ylabel(name_of("scaled_error"))
    values = pivot(rows, "scaled_error", layers, series)
    places = np.arange(len(layers))
    before = np.zeros(len(layers))
    for column, look in enumerate(looks):
        reached = values[:, column]
        axes.fill_between(places, before, reached, color=look["color"], alpha=0.18, lw=0)
        axes.plot(places, reached, **look)
        before = np.where(np.isfinite(reached), reached, before)
    if np.isfinite(values).any():
        axes.set_ylim(0, 1.05 * max(float(np.nanmax(values)), 1e-3))
        axes.grid(axis="y")
    else:
        _say_not_available(axes)
    _name_layers(axes, layers, left)
    return figure


def direction_profiles(
    frame: pd.DataFrame,
    metrics: Sequence[str],
    layers: list[str],
    *,
    caption: str,
    left: str,
    shaded: Collection[str],
) -> Figure:
    """A row of panels a damping, a column a metric: values against the position of the layer.

    Each layer's dampings are taken in ascending order: row k shows the k-th of each layer. The layers of
    `shaded` have drawn labels.
    """
    rows = with_series(frame)
    series = list(dict.fromkeys(rows["series"]))
    looks = [_look(one, series, 2 * len(layers)) for one in series]
    place = rows.groupby("layer", sort=False)["damping"].rank("dense")
    parts = [rows[place == k] for k in range(1, int(place.max()) + 1)]
    figure = style.new_figure(
        style.PAGE_WIDTH,
        1.05 * len(parts) + _names_height(layers),
        caption=caption,
        title="Approximate against exact natural gradient direction, at each damping",
        legend=[*_legend(series, looks), *shade_key(layers, shaded)],
    )
    grid = figure.subplots(len(parts), len(metrics), squeeze=False, sharex=True, sharey="col")
    for column, metric in enumerate(metrics):
        grid[0, column].set_title(name_of(metric))
        lowest = float(np.nanmin(rows[metric], initial=0.0))
        for axes, part in zip(grid[:, column], parts, strict=True):
            values = pivot(part, metric, layers, series)
            shade(axes, layers, shaded)
            _draw_lines(axes, values, looks)
            axes.set_ylim(1.05 * lowest, 1.05)
            axes.grid(axis="y")
        _name_layers(grid[-1, column], layers, left, width=style.PAGE_WIDTH / len(metrics))
    for k, part in enumerate(parts):
        low, high = part["damping"].min(), part["damping"].max()
        grid[k, 0].set_ylabel(f"$\\lambda$ no. {k + 1}\n{low:.0e} to\n{high:.0e}")
    return figure


def diagonal_only(layers: list[str]) -> str:
    """What an axis says about layers that are left out because they have only the diagonal."""
    return f"{len(layers)} with the diagonal only are left out" if layers else ""


def shade(axes: Axes, layers: Sequence[str], shaded: Collection[str]) -> None:
    """Shades the places of the layers whose labels are drawn."""
    for place, layer in enumerate(layers):
        if layer in shaded:
            axes.axvspan(place - 0.5, place + 0.5, color=style.SHADE, lw=0, zorder=-1)


def shade_key(layers: Sequence[str], shaded: Collection[str]) -> list[Patch]:
    """The legend's words for the shade, where any of the layers has it."""
    if not any(layer in shaded for layer in layers):
        return []
    return [Patch(facecolor=style.SHADE, label="F of drawn labels")]


def series_label(one: Series) -> str:
    """The approximation's written form, with the target where it is not the main one."""
    name = label(one.approximation)
    return f"{name} ({one.target} target)" if one.target else name


def _look(one: Series, series: list[Series], count: int) -> dict[str, Any]:
    """Colour, marker and line of a curve over so many layers; hollow for a second target."""
    names = list(dict.fromkeys(other.approximation for other in series))
    shade = style.color(one.approximation, names)
    return {
        "color": shade,
        "marker": style.MARKERS[names.index(one.approximation) % len(style.MARKERS)],
        "markersize": 3.4 if count <= 40 else 2.4 if count <= 90 else 1.7,
        "markerfacecolor": "white" if one.target else shade,
        "markeredgewidth": 0.5,
        "linewidth": 0.6 if count <= 90 else 0.4,
        "linestyle": ":" if one.target else "-",
    }


def _legend(series: list[Series], looks: list[dict[str, Any]]) -> list[Line2D]:
    pairs = zip(series, looks, strict=True)
    return [Line2D([], [], **{**look, "markersize": 4.0}, label=series_label(one)) for one, look in pairs]


def _draw_errors(axes: Axes, values: Array, spread: Array, looks: list[dict[str, Any]]) -> None:
    """Errors [layers, series] with their standard errors; logarithmic where some are far off."""
    finite = values[np.isfinite(values)]
    logarithmic = finite.max() > FAR and (finite <= FAR).any()
    if logarithmic:
        axes.set_yscale("log")
        below = f"; below {_LEAST_DRAWN:g}: drawn there" if finite.min() < _LEAST_DRAWN else ""
        values = np.maximum(values, _LEAST_DRAWN)
        axes.set_title(f"logarithmic{below}", loc="right", color=style.MUTED)
    _draw_lines(axes, values, looks)
    if logarithmic:
        style.name_logarithms(axes.yaxis)
    for column, look in enumerate(looks):
        if np.isfinite(spread[:, column]).any():
            places = np.arange(len(values))
            axes.errorbar(
                places,
                values[:, column],
                spread[:, column],
                fmt="none",
                ecolor=look["color"],
                lw=0.5,
                alpha=0.5,
            )
    if not logarithmic:
        axes.set_ylim(0, 1.05 * max(float(np.nanmax(values + np.nan_to_num(spread))), _LEAST_DRAWN))
    axes.grid(axis="y")


def _draw_lines(axes: Axes, values: Array, looks: list[dict[str, Any]]) -> None:
    for column, look in enumerate(looks):
        axes.plot(np.arange(len(values)), values[:, column], **look)


def _say_not_available(axes: Axes) -> None:
    """A panel without values, that keeps its ticks of layers."""
    axes.set_yticks([])
    style.say(axes, "n/a")


def _names_height(layers: list[str]) -> float:
    """Inches that the turned names and the axis's words take."""
    longest = max((short(layer, _NAME_CHARACTERS) for layer in layers), key=len)
    return style.text_width(longest, style.SMALL_SIZE) + 0.35


def _name_layers(axes: Axes, layers: list[str], left: str, width: float = style.PAGE_WIDTH) -> None:
    """Turned names, of every k-th layer where not all have room; the axis's words say so."""
    room = int((width - 0.6) * 72 / (style.SMALL_SIZE * _TICK_SPACE))
    step = -(-len(layers) // room)
    places = range(0, len(layers), step)
    names = [short(layers[place], _NAME_CHARACTERS) for place in places]
    axes.set_xticks(places, names, rotation=90, parse_math=False)
    axes.set_xlim(-0.8, len(layers) - 0.2)
    every = f", every {ordinal(step)} named" if step > 1 else ""
    axes.set_xlabel(f"{len(layers)} layers{every}\n{left}".rstrip())
