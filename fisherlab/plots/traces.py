"""Traces of every layer over a training: curves for few layers, maps for many."""

import math

import numpy as np
import pandas as pd
import seaborn
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fisherlab.plots import style
from fisherlab.plots.overtime import (
    EXACT,
    Time,
    drawn_layers,
    finish,
    look,
    map_height,
    name_columns,
    name_rows,
    name_time,
    names_of,
    time_of,
)
from fisherlab.plots.profiles import MANY
from fisherlab.records.frames import Array, numbers, require, table
from fisherlab.records.labels import label, number

_RATIO_MAP = "RdBu_r"
_LIMITS = {
    1.25: (0.8, 0.9, 1, 1.1, 1.25),
    2.0: (0.5, 0.7, 1, 1.4, 2),
    4.0: (0.25, 0.5, 1, 2, 4),
    10.0: (0.1, 0.3, 1, 3, 10),
}  # factors at which the colours of a ratio may end, and the ticks of their bar
_COVERED = 0.75  # of all ratios lie inside
_MAPS_WIDTH = style.PAGE_WIDTH - 1.2
_FEW_COLUMNS = 12
_NUMBER_ROOM = (0.3, 0.12)  # inches of a cell that has its number in it


@style.styled
def traces(frame: pd.DataFrame, *, caption: str) -> Figure:
    """Tr F of every layer and tr F̂ of its approximations, logarithmic.

    Up to 12 layers: a panel a layer, against the training step. More: a map layer × checkpoint of tr F alone
    (`ratios` has the approximations). One checkpoint: against the position of the layer. Layers that
    have only the approximation `diagonal` (norms) are left out, and counted, where others have more;
    directions without a matrix have no trace.

    Args:
        frame: columns ``checkpoint``, ``step``, ``layer``, ``approximation``, ``trace_exact``,
            ``trace_approx``.
        caption: data, model, seed and device; written under the figure.

    Returns:
        The figure, 7 inches wide.

    Raises:
        InputError: A column is missing or there are no rows.
    """
    require(frame, ("checkpoint", "layer", "approximation", "trace_exact", "trace_approx"))
    layers, left = drawn_layers(frame)
    time = time_of(frame)
    if len(time.names) == 1:
        return _profile(frame, layers, left, caption=caption)
    if len(layers) > MANY:
        return _trace_map(frame, layers, left, time, caption=caption)
    names = names_of(frame, layers, "trace_approx")
    key = [Line2D([], [], **EXACT), *(Line2D([], [], **look(name, names, 1)) for name in names)]
    title = f"Traces over the training{left}"
    figure, panels = style.layer_figure(layers, 1.5, caption=caption, title=title, legend=key)
    for (axes,), layer in zip(panels, layers, strict=True):
        exact, values = _of_layer(frame, layer, names, time)
        axes.plot(time.places, exact, **{**EXACT, "marker": "o", "markersize": 3})
        for name, own in zip(names, values, strict=True):
            axes.plot(time.places, own, **look(name, names, len(time.names)))
        finish(axes, np.vstack([exact, values]))
        name_time(axes, time)
    for (axes,) in panels[:: style.ACROSS]:
        axes.set_ylabel("trace")
    return figure


@style.styled
def ratios(frame: pd.DataFrame, *, caption: str) -> Figure:
    """Tr F̂ / tr F as maps layer × checkpoint, one an approximation: white is 1, blue below, red above.

    Colours are logarithmic and end at a factor that three quarters of the ratios stay within; numbers stand
    in the cells where these have room. One checkpoint: one map layer × approximation.

    Args:
        frame: columns ``checkpoint``, ``step``, ``layer``, ``approximation``, ``trace_ratio``.
        caption: data, model, seed and device; written under the figure.

    Returns:
        The figure, 7 inches wide.

    Raises:
        InputError: A column is missing or there are no rows.
    """
    require(frame, ("checkpoint", "layer", "approximation", "trace_ratio"))
    layers, left = drawn_layers(frame)
    names, time = names_of(frame, layers, "trace_ratio"), time_of(frame)
    names = names or list(frame["approximation"].unique())
    if len(time.names) == 1:
        maps = [table(frame, "trace_ratio", layers, names, "layer", "approximation")]
        titles, texts, words = [""], [label(name) for name in names], ""
    else:
        rows = {name: frame[frame["approximation"] == name] for name in names}
        maps = [table(own, "trace_ratio", layers, time.names, "layer") for own in rows.values()]
        titles, texts, words = [label(name) for name in names], time.texts, time.words
    return _ratio_maps(maps, titles, texts, words, layers, left, caption=caption)


def _of_layer(frame: pd.DataFrame, layer: str, names: list[str], time: Time) -> tuple[Array, Array]:
    """Tr F [checkpoints] and tr F̂ [names, checkpoints] of a layer."""
    rows = frame[frame["layer"] == layer]
    exact = table(rows, "trace_exact", [layer], time.names, "layer")[0]
    return exact, table(rows, "trace_approx", names, time.names, "approximation")


def _profile(frame: pd.DataFrame, layers: list[str], left: str, *, caption: str) -> Figure:
    """One checkpoint: traces against the position of the layer."""
    names = names_of(frame, layers, "trace_approx")
    looks = [look(name, names, 1) | {"markersize": 3.4, "lw": 0.8} for name in names]
    key = [Line2D([], [], **EXACT), *(Line2D([], [], **one) for one in looks)]
    figure = style.new_figure(
        style.PAGE_WIDTH, 2.8, caption=caption, title=f"Traces by layer{left}", legend=key
    )
    axes = figure.add_subplot()
    first = frame.drop_duplicates("layer").set_index("layer")["trace_exact"]
    exact = numbers(first.reindex(layers)).to_numpy()
    drawn = table(frame, "trace_approx", names, layers, "approximation", "layer")
    axes.plot(exact, marker="o", markersize=4, **EXACT)
    for own, one in zip(drawn, looks, strict=True):
        axes.plot(own, **one)
    finish(axes, np.vstack([exact, drawn]))
    axes.set_ylabel("trace")
    name_columns(axes, layers, "layer", style.PAGE_WIDTH - 0.6, shift=0.0)
    return figure


def _trace_map(frame: pd.DataFrame, layers: list[str], left: str, time: Time, *, caption: str) -> Figure:
    """Many layers: tr F layer × checkpoint, logarithmic."""
    values = table(frame, "trace_exact", layers, time.names, "layer")
    height = map_height(len(layers))
    figure = style.new_figure(
        style.PAGE_WIDTH, height + 0.6, caption=caption, title=f"Trace of the exact Fisher{left}"
    )
    axes = figure.add_subplot()
    axes.set_facecolor(style.MISSING_COLOR)
    positive = values[np.isfinite(values) & (values > 0)]
    low, high = (positive.min(), positive.max()) if len(positive) else (1.0, 10.0)
    seaborn.heatmap(
        np.where(values > 0, values, np.nan),
        ax=axes,
        norm=LogNorm(low, max(high, 1.001 * low)),
        vmin=low,  # or seaborn looks for the least number, of which there may be none
        vmax=high,
        cmap=style.MAGNITUDE_MAP,
        xticklabels=False,
        yticklabels=False,
        cbar_kws={"label": "tr $F$, logarithmic; grey: 0 or n/a"},
        rasterized=True,
    )
    name_rows(axes, layers, height)
    name_columns(axes, time.texts, time.words, style.PAGE_WIDTH - 2.5)
    return figure


def _ratio_maps(
    maps: list[Array],
    titles: list[str],
    texts: list[str],
    words: str,
    layers: list[str],
    left: str,
    *,
    caption: str,
) -> Figure:
    """Maps of ratios side by side, with one colour bar."""
    height = map_height(len(layers))
    across, numbered = _arranged(len(maps), len(texts), height / len(layers))
    down = -(-len(maps) // across)
    figure = style.new_figure(
        style.PAGE_WIDTH,
        (height + 0.55) * down + 0.5,
        caption=caption,
        title=f"Trace ratio tr F̂ / tr F: 1 is the exact scale{left}",
    )
    grid = figure.subplots(down, across, squeeze=False, sharey=True)
    factor = _limit(maps)
    limit = math.log10(factor)
    for axes, values, title in zip(grid.flat, maps, titles, strict=False):
        logs = np.log10(np.where(values > 0, values, np.nan))
        axes.set_facecolor(style.MISSING_COLOR)
        seaborn.heatmap(
            logs,
            ax=axes,
            norm=Normalize(-limit, limit),
            vmin=-limit,  # or seaborn looks for the least number, of which there may be none
            vmax=limit,
            cmap=_RATIO_MAP,
            annot=np.vectorize(number)(values) if numbered else False,
            fmt="",
            annot_kws={"fontsize": 5.5},
            xticklabels=False,
            yticklabels=False,
            cbar=False,
            rasterized=True,
        )
        axes.set_title(title if numbered or not title else f"{title}\n{_range(values)}")
        axes.tick_params(length=0)
        name_columns(axes, texts, words, _MAPS_WIDTH / across)
    for axes in grid[:, 0]:
        name_rows(axes, layers, height)
    style.hide(grid.flat[len(maps) :])
    _ratio_bar(figure, grid, factor)
    return figure


def _arranged(maps: int, columns: int, row: float) -> tuple[int, bool]:
    """How many maps stand in a row, and whether cells have room for their numbers."""
    wide, high = _NUMBER_ROOM
    for across in range(min(maps, 4), 0, -1):
        if _MAPS_WIDTH / across / columns >= wide and row >= high:
            down = -(-maps // across)
            return -(-maps // down), True
    return min(maps, 4 if columns <= _FEW_COLUMNS else 2), False


def _limit(maps: list[Array]) -> float:
    """The factor at which colours end."""
    values = np.concatenate([values.ravel() for values in maps])
    logs = np.abs(np.log10(values[np.isfinite(values) & (values > 0)]))
    needed = 10 ** float(np.quantile(logs, _COVERED)) if len(logs) else 1.0
    return next((limit for limit in _LIMITS if limit >= needed), max(_LIMITS))


def _range(values: Array) -> str:
    """The least and the largest ratio of a map, whose colours end at a factor."""
    known = values[np.isfinite(values)]
    ends = dict.fromkeys(number(one) for one in (known.min(), known.max())) if len(known) else ["n/a"]
    return " to ".join(ends)


def _ratio_bar(figure: Figure, grid: Array, factor: float) -> None:
    image = next(axes.collections[0] for axes in grid.flat if axes.collections)
    bar = figure.colorbar(
        image, ax=grid.ravel().tolist(), orientation="horizontal", extend="both", shrink=0.5, aspect=40
    )
    ticks = _LIMITS[factor]
    bar.set_ticks([math.log10(tick) for tick in ticks], labels=[f"{tick:g}" for tick in ticks])
    bar.set_label(f"tr $\\hat{{F}}$ / tr $F$, logarithmic; beyond a factor {factor:g}: darkest; grey: n/a")
