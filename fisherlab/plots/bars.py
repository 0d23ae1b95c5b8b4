"""Bars: the errors of all layers, and where LNGD's error comes from."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from fisherlab.plots import style
from fisherlab.plots.profiles import (
    FAR,
    MANY,
    diagonal_only,
    error_profiles,
    series_label,
    shade,
    shade_key,
    waterfall_profile,
)
from fisherlab.records.definitions import name_of
from fisherlab.records.frames import (
    Array,
    Series,
    compared_layers,
    drawn_labels,
    numbers,
    pivot,
    require,
    with_series,
)
from fisherlab.records.labels import label, number, short

_ERRORS = ("relative_error", "scaled_error", "population_error")
_NUMBERED_BARS = 54  # bars of a row that leave room for their numbers
_WIDEST_BAR = 0.2  # of the space of a layer


@style.styled
def errors(records: pd.DataFrame, *, caption: str) -> Figure:
    """Relative, scaled and population error of every layer and approximation.

    Few layers: bars with their numbers. Where some errors exceed 2 and others do not (LNGD has no
    common scale with the loss Fisher), the long bars are cut and marked. Many layers: a marker an
    approximation against the position of the layer, on a logarithmic axis where some errors exceed
    2 and others do not. Population errors carry their standard error. Layers that have only the
    approximation `diagonal` (norms) are left out, and counted under the axis, where others have
    more. Layers whose labels are drawn are shaded: their in-sample errors mostly measure the draws.

    Args:
        records: Columns ``layer``, ``approximation``, ``relative_error``, ``scaled_error``,
            and, where known, ``population_error``, ``population_error_se``, ``target`` and ``kind``.
        caption: Data, model, checkpoint, seed and device; written under the figure.

    Returns:
        The figure, 7 inches wide, three bands, or six where the bars wrap.

    Raises:
        InputError: A column is missing or there are no rows.
    """
    require(records, ("layer", "approximation", *_ERRORS[:2]))
    layers, diagonal = compared_layers(records)
    rows = with_series(records[records["layer"].isin(layers)])
    series = list(dict.fromkeys(rows["series"]))
    left, shaded = diagonal_only(diagonal), drawn_labels(records)
    if len(layers) * (len(series) + 1) > 2 * _NUMBERED_BARS:
        return error_profiles(rows, _ERRORS, layers, series, caption=caption, left=left, shaded=shaded)
    return _error_bars(rows, layers, series, caption=caption, left=left, shaded=shaded)


@style.styled
def waterfall(steps: pd.DataFrame, *, caption: str) -> Figure:
    """Where the error comes from: each step's addition to the scaled error.

    Up to 12 layers: a panel a layer. More: a line a step against the position of the layer.
    Layers without any number (norms) are left out, and counted, where others have some.

    Args:
        steps: Columns ``layer``, ``step`` (an approximation, in the order of the steps, such as
            nearest-kronecker, kfac, lngd-lr, lngd) and ``scaled_error``; numbers may be NaN.
        caption: Data, model, checkpoint, seed and device; written under the figure.

    Returns:
        The figure, 7 inches wide.

    Raises:
        InputError: A column is missing or there are no rows.
    """
    require(steps, ("layer", "step", "scaled_error"))
    steps = steps.assign(scaled_error=numbers(steps["scaled_error"]))
    every, names = list(dict.fromkeys(steps["layer"])), list(dict.fromkeys(steps["step"]))
    known = set(steps["layer"][steps["scaled_error"].notna()])
    layers = [layer for layer in every if layer in known] or every
    left = f"{len(every) - len(layers)} without these steps are left out" if layers != every else ""
    if len(layers) > MANY:
        return waterfall_profile(steps, layers, caption=caption, left=left)
    top = 1.18 * (float(steps["scaled_error"].max()) if steps["scaled_error"].notna().any() else 1)
    figure, panels = style.layer_figure(
        layers,
        1.9,
        width=style.PAGE_WIDTH if len(layers) > 2 else style.COLUMN_WIDTH,
        sharey="all",
        caption=caption,
        title="Scaled error, step by step" + (f" (layers: {left})" if left else ""),
        legend=[
            Patch(color=_RISE, label="added error"),
            Patch(color=_FALL, label="removed error"),
            Patch(color=_START, label="first step"),
        ],
    )
    for (axes,), layer in zip(panels, layers, strict=True):
        own = steps[steps["layer"] == layer].set_index("step")["scaled_error"]
        _draw_waterfall(axes, own.reindex(names).to_numpy(float))
        axes.set_ylim(0, top)
        axes.set_xticks(range(len(names)), [label(name) for name in names], rotation=90)
    for (axes,) in panels[:: style.ACROSS]:
        axes.set_ylabel(name_of("scaled_error"))
    return figure


def _error_bars(
    rows: pd.DataFrame,
    layers: list[str],
    series: list[Series],
    *,
    caption: str,
    left: str,
    shaded: list[str],
) -> Figure:
    """Bars with their numbers, in one or two bands of layers a metric."""
    slots = len(series) + 1
    per_row = max(1, _NUMBERED_BARS // slots)
    wraps = [layers[start : start + per_row] for start in range(0, len(layers), per_row)]
    turned = sum(len(str(layer)) + 3 for layer in layers[:per_row]) > 110
    figure = style.new_figure(
        style.PAGE_WIDTH if len(layers) * slots > 12 else style.COLUMN_WIDTH,
        (1.4 * len(_ERRORS) + (1.1 if turned else 0.3)) * len(wraps),
        caption=caption,
        title="Errors of the approximations by layer",
        legend=[
            *(Patch(label=series_label(one), **_fill(one, series)) for one in series),
            *shade_key(layers, shaded),
        ],
    )
    grid = figure.subplots(len(_ERRORS) * len(wraps), 1, squeeze=False)[:, 0]
    grid = grid.reshape(len(wraps), len(_ERRORS))
    exists = np.isfinite(pivot(rows.assign(exists=1.0), "exists", layers, series))
    for index, metric in enumerate(_ERRORS):
        values = pivot(rows, metric, layers, series)
        spread = pivot(rows, f"{metric}_se", layers, series)
        limit, cut = _limit(values, spread)
        for wrap, part in enumerate(wraps):
            axes = grid[wrap, index]
            axes.set_ylabel(name_of(metric))
            if not np.isfinite(values).any():
                style.not_available(axes)
                continue
            shade(axes, part, shaded)
            own = slice(wrap * per_row, wrap * per_row + len(part))
            _draw_groups(axes, values[own], spread[own], exists[own], series, limit)
            axes.set_xticks(range(len(part)), [])
            if cut:
                axes.set_title("▲ cut: higher than drawn", loc="right", color=style.MUTED)
    for axes in grid.flat:
        axes.set_xlim(-0.55, min(per_row, len(layers)) - 0.45)
    for axes, part in zip(grid[:, -1], wraps, strict=True):
        names = [short(layer, 20) for layer in part]
        axes.set_xticks(range(len(part)), names, parse_math=False, rotation=90 if turned else 0)
    grid[-1, -1].set_xlabel(f"layer ({left})" if left else "layer")
    return figure


_START, _RISE, _FALL = "#4d4d4d", "#d55e00", "#0072b2"


def _draw_waterfall(axes: Axes, values: Array) -> None:
    """Floating bars from each known value to the next; the number on a bar is the value reached."""
    known = np.flatnonzero(np.isfinite(values))
    level = 0.0
    for place, value in enumerate(values):
        if place not in known:
            _write(axes, place, level, "n/a", muted=True)
            continue
        start = place == known[0]
        color = _START if start else _RISE if value >= level else _FALL
        axes.bar(place, value - level, bottom=level, color=color, width=0.7)
        _write(axes, place, max(value, level), number(value))
        if not start:
            before = known[np.searchsorted(known, place) - 1]
            axes.plot([before + 0.35, place - 0.35], [level, level], color=style.MUTED, lw=0.6)
        level = value


def _draw_groups(
    axes: Axes, values: Array, spread: Array, exists: Array, series: list[Series], limit: float
) -> None:
    """Bars [layers, series] in groups, cut at the limit, with numbers where there is a row."""
    width = min(0.86 / len(series), _WIDEST_BAR)
    for column, one in enumerate(series):
        places = np.arange(len(values)) + (column - (len(series) - 1) / 2) * width
        heights = np.minimum(np.nan_to_num(values[:, column]), limit)
        axes.bar(places, heights, width * 0.9, **_fill(one, series))
        far = values[:, column] > limit
        whiskers = np.where(far, np.nan, spread[:, column])
        if np.isfinite(whiskers).any():
            axes.errorbar(
                places, values[:, column], whiskers, fmt="none", ecolor="black", lw=0.7, capsize=1.5
            )
        axes.plot(places[far], heights[far], "^", color="black", markersize=2.5)
        tops = heights + np.where(far, 0.05 * limit, np.nan_to_num(whiskers))
        for row in np.flatnonzero(exists[:, column]):
            value = values[row, column]
            _write(axes, places[row], tops[row], number(value), muted=not np.isfinite(value), turned=True)
    axes.set_ylim(0, 1.45 * limit)
    axes.grid(axis="y")
    axes.tick_params(axis="x", length=0)


def _write(axes: Axes, x: float, y: float, text: str, *, muted: bool = False, turned: bool = False) -> None:
    axes.annotate(
        text,
        (x, y),
        xytext=(0, 2.5),
        textcoords="offset points",
        ha="center",
        va="bottom",
        rotation=90 if turned else 0,
        fontsize=5.5,
        color=style.MUTED if muted else "black",
    )


def _fill(one: Series, series: list[Series]) -> dict[str, Any]:
    shade = style.color(one.approximation, list(dict.fromkeys(other.approximation for other in series)))
    if one.target:
        return {"facecolor": "white", "edgecolor": shade, "hatch": "//////"}
    return {"facecolor": shade}


def _limit(values: Array, spread: Array) -> tuple[float, bool]:
    """Height up to which bars and whiskers are drawn, and whether longer bars are cut there."""
    finite = np.isfinite(values)
    if not finite.any() or values[finite].max() <= 0:
        return 1.0, False
    tops = values + np.nan_to_num(spread)
    near = finite & (values <= FAR)
    if near.sum() in (0, finite.sum()):
        return float(tops[finite].max()), False
    return max(1.2 * float(values[near].max()), float(tops[near].max()), 1e-3), True
