"""A sweep's outcome: a value against the learning rate, or against learning rate and damping."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from fisherlab.plots import style
from fisherlab.records.frames import Array, numbers, require
from fisherlab.records.labels import number

_LINE = "#0072b2"
_FAR = 20.0  # a range of values that needs a logarithmic scale
_CELL = 0.19  # height of a row of the map in inches
_AROUND = 0.45  # inches above and below the cells
_POINT = 24.0


@style.styled
def sweep(
    trials: pd.DataFrame,
    *,
    metric: str,
    higher: bool,
    grid: bool,
    second: str = "damping",
    title: str,
    caption: str,
) -> Figure:
    """What each trial of a sweep has reached.

    One damping: the value against the learning rate, with the standard deviation over seeds. Several on a
    grid: a map with the value in each cell. Several drawn at random: points with the value as colour. What
    diverged is marked, and so is the best trial.

    Args:
        trials: columns ``lr``, ``damping`` (empty where none is swept), ``value`` (empty where it diverged),
            ``sd`` (empty with one seed); a row a trial.
        metric: what the value is.
        higher: whether more of it is better.
        grid: whether the points are those of a grid.
        second: what the damping is called.
        title: on top.
        caption: data, model, seeds and device; written under the figure.

    Returns:
        The figure: 3.4 inches wide, the map 7.

    Raises:
        InputError: A column is missing or there are no rows.
    """
    require(trials, ("lr", "damping", "value", "sd"))
    table = trials.assign(**{name: numbers(trials[name]) for name in ("lr", "damping", "value", "sd")})
    name = metric.replace("_", " ")
    if table["damping"].nunique() < 2:
        return _curve(table, name, higher, title, caption)
    if grid:
        return _map(table, name, higher, second, title, caption)
    return _points(table, name, higher, second, title, caption)


def _curve(table: pd.DataFrame, name: str, higher: bool, title: str, caption: str) -> Figure:
    table = table.sort_values("lr")
    known, lost = table[table["value"].notna()], table[table["value"].isna()]
    value_key = Line2D([], [], color=_LINE, marker="o", ms=3, label=_with_spread(name, known))
    key = [value_key, _best_key()] if len(known) else []
    key += [_lost_key()] if len(lost) else []
    figure = style.new_figure(style.COLUMN_WIDTH, 2.2, caption=caption, title=title, legend=key)
    axes = figure.subplots()
    axes.set_xscale("log")
    if table["lr"].nunique() == 1:
        axes.set_xlim(table["lr"].iloc[0] / 3, table["lr"].iloc[0] * 3)
    if len(known):
        axes.errorbar(
            known["lr"], known["value"], known["sd"].fillna(0), color=_LINE, marker="o", ms=3, lw=1.2
        )
        best = _best(known, higher)
        axes.plot(best["lr"], best["value"], "o", ms=8, mfc="none", mec=style.ACCENT, mew=1.1)
        if _is_far(known["value"]):
            axes.set_yscale("log")
    else:
        axes.set_yticks([])
    axes.plot(
        lost["lr"],
        np.full(len(lost), 0.03 if higher else 0.97),
        "x",
        ms=4.5,
        color=style.MUTED,
        transform=axes.get_xaxis_transform(),
    )
    axes.set(xlabel="learning rate", ylabel=name)
    _name_logarithms(axes)
    axes.grid()
    return figure


def _map(table: pd.DataFrame, name: str, higher: bool, second: str, title: str, caption: str) -> Figure:
    rates, dampings = sorted(table["lr"].unique()), sorted(table["damping"].unique())
    values = np.full((len(dampings), len(rates)), np.nan)
    tried = np.zeros(values.shape, bool)
    places = (
        [dampings.index(one) for one in table["damping"]],
        [rates.index(one) for one in table["lr"]],
    )
    values[places], tried[places] = table["value"], True
    lost = tried & np.isnan(values)
    key = [Patch(fc="none", ec=style.ACCENT, lw=1.2, label="best")]
    key += [Patch(fc=style.MISSING_COLOR, label="× diverged")] if lost.any() else []
    key += [Patch(fc="white", ec="#bbbbbb", lw=0.5, label="not tried")] if not tried.all() else []
    words = max(style.text_width(one, style.TEXT_SIZE) for one in (second, name))
    height = _AROUND + max(_CELL * len(dampings), words + 0.05)
    figure = style.new_figure(style.PAGE_WIDTH, height, caption=caption, title=title, legend=key)
    axes = figure.subplots()
    colors = _colors(values, higher)
    background = np.ones((*values.shape, 4))
    background[lost] = to_rgba(style.MISSING_COLOR)
    known = ~np.isnan(values)
    background[known] = colors.to_rgba(values[known])
    axes.imshow(background, origin="lower", aspect="auto", interpolation="nearest")
    _write_cells(axes, values, lost, background)
    if known.any():
        row, column = np.unravel_index(np.nanargmax(values) if higher else np.nanargmin(values), values.shape)
        edge = (float(column) - 0.5, float(row) - 0.5)
        axes.add_patch(Rectangle(edge, 1, 1, fc="none", ec=style.ACCENT, lw=1.6, clip_on=False))
        figure.colorbar(colors, ax=axes, label=name, pad=0.015, aspect=12)
    axes.spines[:].set_visible(False)
    axes.set_xticks(range(len(rates)), [f"{one:g}" for one in rates])
    axes.set_yticks(range(len(dampings)), [f"{one:g}" for one in dampings])
    axes.tick_params(length=0)
    axes.set(xlabel="learning rate", ylabel=second)
    return figure


def _points(table: pd.DataFrame, name: str, higher: bool, second: str, title: str, caption: str) -> Figure:
    known, lost = table[table["value"].notna()], table[table["value"].isna()]
    key = [_best_key()] if len(known) else []
    key += [_lost_key()] if len(lost) else []
    figure = style.new_figure(style.COLUMN_WIDTH, 2.4, caption=caption, title=title, legend=key)
    axes = figure.subplots()
    axes.set(xscale="log", yscale="log", xlabel="learning rate", ylabel=second)
    axes.plot(lost["lr"], lost["damping"], "x", ms=4.5, color=style.MUTED)
    if len(known):
        colors = _colors(known["value"].to_numpy(), higher)
        shades = colors.to_rgba(known["value"].to_numpy())
        axes.scatter(known["lr"], known["damping"], _POINT, c=shades, edgecolors="white", linewidths=0.4)
        best = _best(known, higher)
        axes.plot(best["lr"], best["damping"], "o", ms=8.5, mfc="none", mec=style.ACCENT, mew=1.2)
        figure.colorbar(colors, ax=axes, label=name, pad=0.02)
    _name_logarithms(axes)
    axes.grid()
    return figure


def _name_logarithms(axes: Axes) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            style.name_logarithms(axis)


def _best(known: pd.DataFrame, higher: bool) -> pd.Series:
    values = known["value"].to_numpy()
    return known.iloc[int(values.argmax() if higher else values.argmin())]


def _best_key() -> Line2D:
    return Line2D([], [], ls="", marker="o", ms=6, mfc="none", mec=style.ACCENT, mew=1.1, label="best")


def _lost_key() -> Line2D:
    return Line2D([], [], ls="", marker="x", ms=4.5, color=style.MUTED, label="diverged")


def _with_spread(name: str, known: pd.DataFrame) -> str:
    return f"{name}, mean ± sd over seeds" if known["sd"].notna().any() else name


def _is_far(values: pd.Series | Array) -> bool:
    low, high = np.nanmin(values), np.nanmax(values)
    return bool(low > 0 and high > _FAR * low)


def _colors(values: Array, higher: bool) -> ScalarMappable:
    """Colours from the worst (dark) to the best (bright)."""
    known = values[~np.isnan(values)]
    low, high = (known.min(), known.max()) if known.size else (0.0, 1.0)
    norm = LogNorm(low, high) if known.size and _is_far(known) else Normalize(low, high)
    return ScalarMappable(norm, style.MAGNITUDE_MAP if higher else f"{style.MAGNITUDE_MAP}_r")


def _write_cells(axes: Axes, values: Array, lost: Array, background: Array) -> None:
    """The value of each cell in black or white, a cross where it diverged."""
    luminance = background[..., :3] @ np.array([0.299, 0.587, 0.114])
    for row, column in np.argwhere(lost | ~np.isnan(values)):
        text = "×" if lost[row, column] else number(values[row, column], digits=4)
        shade = "white" if luminance[row, column] < 0.5 else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize=style.SMALL_SIZE, color=shade)
