"""Numbers over a training: the axis of steps, a line a layer or an approximation, and maps of layers."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fisherlab.plots import style
from fisherlab.plots.profiles import MANY, diagonal_only
from fisherlab.records.frames import Array, compared_layers, numbers
from fisherlab.records.labels import label, ordinal, short

_FAR_APART = 50.0  # last step over first one after 0, from which the axis is logarithmic
_MOST_DECADES = 3  # named on it
_DEPTH_MAP = "viridis"
_DEPTH_SPAN = (0.0, 0.88)  # of the map: its yellow end is too light for a line
_ROW = 0.101  # of a map, in inches: the least height of a row
_NAME_ROOM = 0.1  # between two names
_TALLEST = 6.5

EXACT: dict[str, Any] = {"color": "black", "lw": 2.2, "label": "exact $F$"}
"""The look of the exact block's curve."""


class Time(NamedTuple):
    """Where checkpoints stand on an axis.

    Attributes:
        names: the checkpoints in their order.
        places: their positions: steps, or 0, 1, … where a step is not known.
        texts: what a tick says.
        words: what the axis says.
        stepped: whether positions are steps.
    """

    names: list[str]
    places: Array
    texts: list[str]
    words: str
    stepped: bool


def time_of(frame: pd.DataFrame) -> Time:
    """The axis of a frame with the columns ``checkpoint`` and, where known, ``step``."""
    rows = frame.drop_duplicates("checkpoint")
    names = [str(name) for name in rows["checkpoint"]]
    steps = numbers(rows["step"]).to_numpy() if "step" in rows else np.full(len(rows), np.nan)
    if np.isfinite(steps).all() and len(set(steps)) == len(steps):
        return Time(names, steps, [f"{int(step)}" for step in steps], "training step", True)
    return Time(names, np.arange(len(names), dtype=float), [short(n, 14) for n in names], "checkpoint", False)


def name_time(axes: Axes, time: Time) -> None:
    """Ticks and words of the axis of a panel with curves."""
    axes.set_xlabel(time.words)
    if not time.stepped:
        axes.set_xticks(time.places, time.texts, rotation=90, parse_math=False)
        return
    scale_steps(axes, time.places)


def scale_steps(axes: Axes, steps: Array) -> None:
    """A logarithmic axis, linear up to the first step, where steps lie far apart."""
    later = steps[steps > 0]
    if not len(later) or later.max() <= _FAR_APART * later.min():
        return
    first, last = float(later.min()), float(later.max())
    axes.set_xscale("symlog", linthresh=first, linscale=0.5)
    decades = 10.0 ** np.arange(np.ceil(np.log10(first)), np.floor(np.log10(last)) + 1)
    kept = decades[:: -(-len(decades) // _MOST_DECADES)]
    axes.set_xticks([0.0, *kept] if steps.min() == 0 else kept)
    axes.minorticks_off()
    axes.set_xlim(-0.25 * first if steps.min() == 0 else 0.8 * first, 1.4 * last)


def look(name: str, names: Sequence[str], points: int) -> dict[str, Any]:
    """Colour, dashes and marker of an approximation's curve."""
    return {
        **style.look(name, names),
        "marker": style.MARKERS[list(names).index(name) % len(style.MARKERS)],
        "markersize": 2.6 if points <= 30 else 0.0,
        "label": label(name),
    }


def depth_colors(count: int) -> Array:
    """[count, 4] colours from the first layer (dark) to the last (light)."""
    return matplotlib.colormaps[_DEPTH_MAP](np.linspace(*_DEPTH_SPAN, max(count, 2)))[:count]


def layer_key(layers: Sequence[str], what: str = "layer") -> list[Line2D]:
    """Legend entries of few layers, a bare number with what it is; many have a colour bar."""
    if len(layers) > MANY:
        return []
    names = [f"{what} {layer}" if str(layer).isdigit() else short(layer, 28) for layer in layers]
    pairs = zip(names, depth_colors(len(layers)), strict=True)
    return [Line2D([], [], color=shade, label=name) for name, shade in pairs]


def draw_layers(axes: Axes, x: Array, values: Array) -> None:
    """A line a layer of values [layers, len(x)], coloured by depth; logarithmic where all are positive."""
    for row, shade in zip(values, depth_colors(len(values)), strict=True):
        marker = "o" if len(x) <= 30 else ""
        axes.plot(x, row, color=shade, marker=marker, markersize=2, lw=1.2 if len(values) <= MANY else 0.7)
    finish(axes, values)


def depth_bar(figure: Figure, panels: Sequence[Axes], layers: Sequence[str], what: str = "layer") -> None:
    """A colour bar that says which line is which layer, where they are many."""
    if len(layers) <= MANY:
        return
    colors = matplotlib.colors.ListedColormap(depth_colors(len(layers)))
    mappable = ScalarMappable(Normalize(0.5, len(layers) + 0.5), colors)
    bar = figure.colorbar(mappable, ax=list(panels), fraction=0.03, pad=0.01)
    places = [1, len(layers)]
    bar.set_ticks(places, labels=[f"{place} {short(layers[place - 1], 16)}" for place in places])
    bar.set_label(f"{what}, in order")


def finish(axes: Axes, values: Array, *, logarithmic: bool = True) -> None:
    """Grid, and a logarithmic axis where every value is positive; "n/a" without values."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        style.not_available(axes)
        return
    if logarithmic and finite.min() > 0:
        if finite.max() > 1.0001 * finite.min():
            axes.set_yscale("log")
            style.name_logarithms(axes.yaxis)
        else:
            axes.set_ylim(0, 2 * finite.max())
    axes.grid()


def map_height(rows: int) -> float:
    """Inches of a map with so many rows."""
    return min(_TALLEST, max(0.9, rows * (0.17 if rows <= MANY else _ROW)))


def name_rows(axes: Axes, layers: Sequence[str], height: float) -> None:
    """Names at the left of a map: all, or of every k-th layer, and the axis says so."""
    step = max(1, int(np.ceil(len(layers) * _NAME_ROOM / height)))
    places = range(0, len(layers), step)
    names = [short(layers[place], 26) for place in places]
    axes.set_yticks([place + 0.5 for place in places], names, rotation=0, parse_math=False)
    axes.set_ylabel(f"{len(layers)} layers, every {ordinal(step)} named" if step > 1 else "layer")


def name_columns(axes: Axes, texts: Sequence[str], words: str, width: float, shift: float = 0.5) -> None:
    """Names below a panel of so many inches: all, turned where they are long, or every k-th.

    Args:
        axes: the panel.
        texts: the names.
        words: what the axis says.
        width: of the panel.
        shift: from the place of a column to its middle.
    """
    names = [short(text, 26) for text in texts]
    level = max(style.text_width(name, style.SMALL_SIZE) for name in names) * 1.25 * len(names) <= width
    step = 1 if level else max(1, int(np.ceil(len(texts) * 1.25 * _NAME_ROOM / width)))
    places = [place + shift for place in range(0, len(texts), step)]
    axes.set_xticks(places, names[::step], rotation=0 if level else 90, parse_math=False)
    axes.set_xlabel(f"{len(texts)} {words}s, every {ordinal(step)} named" if step > 1 else words)


def drawn_layers(frame: pd.DataFrame) -> tuple[list[str], str]:
    """The layers that are drawn, and what the title says of the others."""
    layers, diagonal = compared_layers(frame)
    return layers, f" (layers: {diagonal_only(diagonal)})" if diagonal else ""


def names_of(frame: pd.DataFrame, layers: Sequence[str], *columns: str) -> list[str]:
    """The approximations with a number of these layers in one of the columns; a direction has no traces."""
    rows = frame[frame["layer"].isin(layers)]
    known = np.any([numbers(rows[column]).notna() for column in columns], axis=0)
    found = set(rows["approximation"][known])
    return [str(name) for name in rows["approximation"].unique() if name in found]
