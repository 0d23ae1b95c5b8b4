"""Bars: the errors of all layers, and where LNGD's error comes from."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from fisherlab.plots import style
from fisherlab.plots.frames import require
from fisherlab.plots.labels import METRICS, label, number

Array = np.ndarray[Any, np.dtype[Any]]

_ERRORS = ("relative_error", "scaled_error", "population_error")
_NUMBERED_BARS = 54  # bars of a row that leave room for their numbers
_PLAIN_BARS = 150
_WIDEST_BAR = 0.2  # of the space of a layer
_FAR = 2.0  # an error beyond twice ‖F‖ may be cut so that the others stay readable


@style.styled
def errors(records: pd.DataFrame, *, caption: str) -> Figure:
    """Relative, scaled and population error of every layer and approximation as bars.

    Where some errors exceed 2 and others do not (LNGD has no common scale with the loss Fisher),
    the long bars are cut and marked; their numbers stand on them. Population errors carry their
    standard error.

    Args:
        records: Columns ``layer``, ``approximation``, ``relative_error``, ``scaled_error``,
            and, where known, ``population_error``, ``population_error_se`` and ``target``.
        caption: Data, model, checkpoint, seed and device; written under the figure.

    Returns:
        The figure, 7 inches wide, three bands; many layers wrap into more.

    Raises:
        InputError: A column is missing or there are no rows.
    """
    require(records, ("layer", "approximation", *_ERRORS[:2]))
    rows = records.assign(series=pd.Series(_series(records), index=records.index))
    series = list(dict.fromkeys(rows["series"]))
    layers = list(dict.fromkeys(rows["layer"]))
    slots = len(series) + 1
    numbered = len(layers) * slots <= 2 * _NUMBERED_BARS
    per_row = max(1, (_NUMBERED_BARS if numbered else _PLAIN_BARS) // slots)
    wraps = [layers[start : start + per_row] for start in range(0, len(layers), per_row)]
    turned = sum(len(str(layer)) + 3 for layer in layers[:per_row]) > 110
    figure = style.new_figure(
        style.PAGE_WIDTH if len(layers) * slots > 12 else style.COLUMN_WIDTH,
        (1.4 * len(_ERRORS) + (1.1 if turned else 0.3)) * len(wraps),
        caption=caption,
        title="Errors of the approximations by layer",
        legend=[Patch(label=_series_label(one), **_fill(one, series)) for one in series],
    )
    grid = figure.subplots(len(_ERRORS) * len(wraps), 1, squeeze=False)[:, 0]
    grid = grid.reshape(len(wraps), len(_ERRORS))
    for index, metric in enumerate(_ERRORS):
        table = _pivot(rows, metric)
        spread = _pivot(rows, "population_error_se") if metric == "population_error" else None
        limit, cut = _limit(table, spread)
        for wrap, part in enumerate(wraps):
            axes = grid[wrap, index]
            axes.set_ylabel(METRICS[metric])
            if table is None:
                style.not_available(axes)
                continue
            values = table.reindex(index=part, columns=series).to_numpy(float)
            bars = None if spread is None else spread.reindex(index=part, columns=series)
            whiskers = None if bars is None else bars.to_numpy(float)
            _draw_groups(axes, values, whiskers, series, limit, numbered=numbered)
            axes.set_xticks(range(len(part)), [])
            if cut:
                axes.set_title("▲ cut: higher than drawn", loc="right", color=style.MUTED)
    for axes in grid.flat:
        axes.set_xlim(-0.55, min(per_row, len(layers)) - 0.45)
    for axes, part in zip(grid[:, -1], wraps, strict=True):
        names = [style.short(layer, 20) for layer in part]
        axes.set_xticks(range(len(part)), names, parse_math=False, rotation=90 if turned else 0)
        axes.set_xlabel("layer")
    return figure


@style.styled
def waterfall(steps: pd.DataFrame, *, caption: str) -> Figure:
    """Where the error comes from: each step's addition to the scaled error, a panel a layer.

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
    layers, names = list(dict.fromkeys(steps["layer"])), list(dict.fromkeys(steps["step"]))
    across = min(len(layers), 4 if len(layers) <= 12 else 6)
    down = -(-len(layers) // across)
    top = 1.18 * (float(steps["scaled_error"].max()) if steps["scaled_error"].notna().any() else 1)
    figure = style.new_figure(
        style.PAGE_WIDTH if across > 2 else style.COLUMN_WIDTH,
        1.9 * down,
        caption=caption,
        title="Scaled error, step by step",
        legend=[
            Patch(color=_RISE, label="added error"),
            Patch(color=_FALL, label="removed error"),
            Patch(color=_START, label="first step"),
        ],
    )
    grid = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
    for axes, layer in zip(grid, layers, strict=False):
        own = steps[steps["layer"] == layer].set_index("step")["scaled_error"]
        _draw_waterfall(axes, own.reindex(names).to_numpy(float))
        axes.set_ylim(0, top)
        style.name_panel(axes, layer, across)
        axes.set_xticks(range(len(names)), [label(name) for name in names], rotation=90)
    for axes in grid[len(layers) :]:
        axes.set_visible(False)
    for axes in grid[::across]:
        axes.set_ylabel(METRICS["scaled_error"])
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
    axes: Axes,
    values: Array,
    whiskers: Array | None,
    series: list[tuple[str, str]],
    limit: float,
    *,
    numbered: bool,
) -> None:
    """Bars [layers, series] in groups, cut at the limit."""
    width = min(0.86 / len(series), _WIDEST_BAR)
    for column, one in enumerate(series):
        places = np.arange(len(values)) + (column - (len(series) - 1) / 2) * width
        heights = np.minimum(np.nan_to_num(values[:, column]), limit)
        axes.bar(places, heights, width * 0.9, **_fill(one, series))
        if whiskers is not None:
            drawn = np.where(values[:, column] > limit, np.nan, whiskers[:, column])
            axes.errorbar(
                places,
                values[:, column],
                drawn,
                fmt="none",
                ecolor="black",
                lw=0.7,
                capsize=1.5,
            )
        for row, place in enumerate(places):
            value, top = values[row, column], heights[row]
            if value > limit:
                axes.plot(place, limit, marker="^", color="black", markersize=2.5)
                top += 0.05 * limit
            elif whiskers is not None:
                top += np.nan_to_num(whiskers[row, column])
            if numbered:
                _write(axes, place, top, number(value), muted=not np.isfinite(value), turned=True)
    axes.set_ylim(0, limit * (1.45 if numbered else 1.08))
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


def _series(records: pd.DataFrame) -> list[tuple[str, str]]:
    """(approximation, target) of each row; the target is empty where it is the first row's."""
    if "target" not in records:
        return [(name, "") for name in records["approximation"]]
    usual = next(iter(records["target"].dropna()), "")
    return [
        (name, "" if target == usual or pd.isna(target) else str(target))
        for name, target in zip(records["approximation"], records["target"], strict=True)
    ]


def _series_label(one: tuple[str, str]) -> str:
    name, target = one
    return f"{label(name)} ({target} target)" if target else label(name)


def _fill(one: tuple[str, str], series: list[tuple[str, str]]) -> dict[str, Any]:
    shade = style.color(one[0], list(dict.fromkeys(name for name, _ in series)))
    if one[1]:
        return {"facecolor": "white", "edgecolor": shade, "hatch": "//////"}
    return {"facecolor": shade}


def _pivot(rows: pd.DataFrame, metric: str) -> pd.DataFrame | None:
    """[layer, series] of one metric; None where nothing of it is known."""
    if metric not in rows or not pd.to_numeric(rows[metric]).notna().any():
        return None
    kept = rows.drop_duplicates(["layer", "series"])
    table = {
        one: own.set_index("layer")[metric].astype(float) for one, own in kept.groupby("series", sort=False)
    }
    return pd.DataFrame(table, columns=pd.Index(list(table), tupleize_cols=False))


def _limit(table: pd.DataFrame | None, spread: pd.DataFrame | None) -> tuple[float, bool]:
    """Height up to which bars and whiskers are drawn, and whether longer bars are cut there."""
    if table is None:
        return 1.0, False
    values = table.to_numpy(float)
    finite = np.isfinite(values)
    if not finite.any() or values[finite].max() <= 0:
        return 1.0, False
    whiskers = 0.0 if spread is None else np.nan_to_num(spread.reindex_like(table).to_numpy(float))
    tops = values + whiskers
    near = finite & (values <= _FAR)
    if near.sum() in (0, finite.sum()):
        return float(tops[finite].max()), False
    return max(1.2 * float(values[near].max()), float(tops[near].max()), 1e-3), True
