"""Matrices as heat maps: the exact Fisher beside its approximations, and layers against layers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fisherlab.errors import InputError
from fisherlab.plots import style
from fisherlab.plots.labels import label, number

Array = np.ndarray[Any, np.dtype[Any]]

MAX_PIXELS = 800
"""Larger matrices are drawn by the largest entry of each block."""
_STACKED = 2  # up to so many approximations have their square below, more have it beside
_DECADES = (2, 6)  # fewest and most decades of a logarithmic scale
_LINEAR_MEDIAN = 0.05  # a median entry above this share of the largest needs no logarithm


@dataclass(frozen=True)
class _Window:
    """A square on the diagonal: rows and columns ``start`` to ``start + size - 1``."""

    start: int
    size: int

    def of(self, matrix: Array) -> Array:
        span = slice(self.start, self.start + self.size)
        return matrix[span, span]


@dataclass(frozen=True)
class _Panel:
    """The magnitudes of one matrix as they are drawn: all of it, and the square."""

    title: str
    whole: Array | None
    square: Array | None


@style.styled
def heatmap(
    exact: Array,
    approximations: Mapping[str, Array | None],
    *,
    layer: str,
    outputs: int,
    inputs: int,
    caption: str,
    title: str | None = None,
    cutout: int = 40,
    corner: int | None = None,
    scale_note: str | None = None,
) -> Figure:
    """Exact Fisher F, approximation F̂ and error ∣F − F̂∣ as heat maps, one row an approximation.

    All panels show absolute values on one colour scale, which the colour bar states in words:
    linear, or logarithmic where most entries would otherwise look like zero. A square on the
    diagonal, marked in red, is drawn enlarged in a second block of panels. After figures 1 and 5
    of Liu et al., A Layer-Wise Natural Gradient Optimizer for Training Deep Neural Networks,
    NeurIPS 2024.

    Args:
        exact: F, [D, D] with D = outputs · inputs, in column-vec order: the index of a weight is
            input · outputs + output.
        approximations: Name -> F̂, [D, D] in the same order; None where it was not computed.
        layer: Name of the layer, for the title.
        outputs: Number m of outputs of the layer.
        inputs: Number d of inputs of the layer; a bias counts as the last one.
        caption: Data, model, checkpoint, seed and device; written under the figure.
        title: Replaces the title that names the layer.
        cutout: Side of the enlarged square; a matrix that is no larger has none.
        corner: First row of the square; by default the square with the largest sum of ∣F∣.
        scale_note: How F̂ is scaled ("as computed", "trace-matched"); ends the title.

    Returns:
        The figure, 7 inches wide.

    Raises:
        InputError: A matrix is not [D, D], no approximation is given, or the square does not fit.
    """
    size = outputs * inputs
    _check_shapes(exact, approximations, size)
    window = _choose_window(exact, cutout, corner)
    step = -(-size // MAX_PIXELS)
    rows = _panels(exact, approximations, step, window)
    norm = _shared_scale(exact, rows)
    heading = title or f"Layer {layer}: exact Fisher and approximation, {size}×{size}"
    figure, large, small = _grid(
        len(rows),
        window,
        caption=caption,
        title=f"{heading} ({scale_note})" if scale_note else heading,
    )
    turned = len(rows) > _STACKED
    for index, row in enumerate(rows):
        last = index == len(rows) - 1
        for axes, panel in zip(large[index], row, strict=True):
            _draw(axes, panel.whole, norm, _Window(0, size), title=panel.title)
            if window is not None and panel.whole is not None:
                _mark(axes, window)
        _label_rows(large[index], _Window(0, size), outputs, bottom=last, turned=turned)
        if window is None:
            continue
        for axes, panel in zip(small[index], row, strict=True):
            _draw(axes, panel.square, norm, window, title=panel.title)
            _frame(axes)
        _label_rows(small[index], window, outputs, bottom=last, turned=turned)
    _add_color_bar(figure, [*large.flat, *small.flat], norm, step, window)
    return figure


@style.styled
def coupling(matrix: Array, layers: Sequence[str], *, caption: str) -> Figure:
    """How much of the whole Fisher lies between layers, as an annotated layer × layer map.

    Args:
        matrix: [L, L], entry (l, k) is ‖F_lk‖² / (‖F_ll‖ ‖F_kk‖), 1 for l = k; NaN where it was
            not computed.
        layers: Names of the L layers.
        caption: Data, model, checkpoint, seed and device; written under the figure.

    Returns:
        The figure, one column wide for few layers, a page for many.

    Raises:
        InputError: The matrix is not [L, L].
    """
    import seaborn

    count = len(layers)
    if matrix.shape != (count, count):
        raise InputError(f"the coupling matrix is {matrix.shape}, but {count} layers are named; give [L, L].")
    width = style.COLUMN_WIDTH if count <= 6 else min(style.PAGE_WIDTH, 1.6 + 0.42 * count)
    figure = style.new_figure(width, width * 0.86, caption=caption, title="Coupling between layers")
    axes = figure.add_subplot()
    axes.set_facecolor(style.MISSING_COLOR)
    annotated = count <= 14
    seaborn.heatmap(
        matrix,
        ax=axes,
        vmin=0,
        vmax=max(1.0, float(np.nanmax(matrix, initial=0.0))),
        cmap=style.MAGNITUDE_MAP,
        square=True,
        annot=np.vectorize(number)(matrix) if annotated else False,
        fmt="",
        annot_kws={"fontsize": style.SMALL_SIZE},
        linewidths=0.5 if annotated else 0,
        xticklabels=_thin(layers),
        yticklabels=_thin(layers),
        cbar_kws={"label": r"$\|F_{lk}\|^2\,/\,(\|F_{ll}\|\,\|F_{kk}\|)$", "shrink": 0.8},
        rasterized=True,
    )
    axes.tick_params(length=0)
    axes.tick_params(axis="x", rotation=90)
    axes.tick_params(axis="y", rotation=0)
    for row, column in np.argwhere(np.isnan(matrix)) if annotated else ():
        axes.text(column + 0.5, row + 0.5, "n/a", ha="center", va="center", fontsize=style.SMALL_SIZE)
    return figure


def _check_shapes(exact: Array, approximations: Mapping[str, Array | None], size: int) -> None:
    if not approximations:
        raise InputError("no approximation to draw; give at least one.")
    for name, matrix in {"exact": exact, **approximations}.items():
        if matrix is not None and matrix.shape != (size, size):
            raise InputError(
                f"the matrix of {name!r} is {tuple(matrix.shape)}, but outputs · inputs = {size}; "
                f"give [{size}, {size}] in column-vec order."
            )


def _choose_window(exact: Array, side: int, corner: int | None) -> _Window | None:
    """The square to enlarge: the given one, or that with the largest sum of magnitudes."""
    size = len(exact)
    if size <= side:
        return None
    if corner is None:
        row, column = exact.strides
        squares = np.lib.stride_tricks.as_strided(
            exact,
            shape=(size - side + 1, side, side),
            strides=(row + column, row, column),
            writeable=False,
        )
        corner = int(np.argmax(np.nansum(np.abs(squares), axis=(1, 2))))
    if not 0 <= corner <= size - side:
        raise InputError(f"corner is {corner}; it must lie between 0 and {size - side}.")
    return _Window(corner, side)


def _panels(
    exact: Array, approximations: Mapping[str, Array | None], step: int, window: _Window | None
) -> list[list[_Panel]]:
    """Exact, approximation and error of each row, as magnitudes."""

    def panel(title: str, matrix: Array | None) -> _Panel:
        if matrix is None:
            return _Panel(title, None, None)
        square = None if window is None else np.abs(window.of(matrix))
        return _Panel(title, _block_maximum(np.abs(matrix), step), square)

    first = panel("exact $|F|$", exact)
    return [
        [
            first,
            panel(f"{label(name)} $|\\hat{{F}}|$", matrix),
            panel("error $|F-\\hat{F}|$", None if matrix is None else exact - matrix),
        ]
        for name, matrix in approximations.items()
    ]


def _block_maximum(matrix: Array, step: int) -> Array:
    """The largest entry of each step×step block."""
    if step == 1:
        return matrix
    starts = np.arange(0, len(matrix), step)
    return np.maximum.reduceat(np.maximum.reduceat(matrix, starts, axis=0), starts, axis=1)


def _shared_scale(exact: Array, rows: list[list[_Panel]]) -> Normalize:
    """One scale for all panels: linear, or logarithmic if most entries of F are small."""
    drawn = [panel.whole for row in rows for panel in row if panel.whole is not None]
    largest = max(
        (float(np.max(whole, where=np.isfinite(whole), initial=0.0)) for whole in drawn),
        default=0.0,
    )
    if largest == 0.0:
        return Normalize(0.0, 1.0)
    entries = np.abs(exact[np.isfinite(exact) & (exact != 0)])
    if entries.size == 0 or np.median(entries) >= _LINEAR_MEDIAN * largest:
        return Normalize(0.0, largest)
    decades = math.ceil(math.log10(largest / float(np.percentile(entries, 10))))
    return LogNorm(largest * 10.0 ** -min(max(decades, _DECADES[0]), _DECADES[1]), largest)


def _colormap() -> Colormap:
    """The map for magnitudes: zeros in its darkest colour, missing entries grey."""
    colormap = matplotlib.colormaps[style.MAGNITUDE_MAP]
    return colormap.with_extremes(under=colormap(0.0), bad=style.MISSING_COLOR)


def _grid(rows: int, window: _Window | None, *, caption: str, title: str) -> tuple[Figure, Array, Array]:
    """Axes [rows, 3] of the large panels and of the enlarged squares.

    The squares stand below for few approximations, beside for more.
    """
    squares = window is not None
    across, down = (6, rows) if squares and rows > _STACKED else (3, rows * (2 if squares else 1))
    height = {6: 1.3, 3: 2.25 if down <= 2 else 1.95}[across] * down
    figure = style.new_figure(style.PAGE_WIDTH, height + 0.55, caption=caption, title=title)
    axes = figure.subplots(down, across, squeeze=False)
    if not squares:
        return figure, axes, np.empty((0, 3), object)
    return (figure, axes[:, :3], axes[:, 3:]) if across == 6 else (figure, axes[::2], axes[1::2])


def _draw(axes: Axes, matrix: Array | None, norm: Normalize, span: _Window, *, title: str) -> None:
    axes.set_title(title)
    axes.set_box_aspect(1)
    axes.spines[["top", "right"]].set_visible(True)
    if matrix is None or not np.isfinite(matrix).any():
        style.not_available(axes)
        return
    first, last = span.start - 0.5, span.start + span.size - 0.5
    step = -(-span.size // len(matrix))
    edges = (first, first + step * len(matrix))
    darkest = float(norm.vmin or 0.0) * 0.1
    axes.imshow(
        np.ma.masked_invalid(np.where(matrix == 0, darkest, matrix)),
        norm=norm,
        cmap=_colormap(),
        extent=(*edges, *edges[::-1]),
        aspect="auto",
        rasterized=True,
    )
    axes.set(xlim=(first, last), ylim=(last, first))


def _mark(axes: Axes, window: _Window) -> None:
    corner = (window.start - 0.5, window.start - 0.5)
    axes.add_patch(Rectangle(corner, window.size, window.size, fill=False, edgecolor=style.ACCENT, lw=1.0))


def _frame(axes: Axes) -> None:
    axes.spines[:].set(color=style.ACCENT, linewidth=1.0, visible=True)


def _label_rows(axes: Array, span: _Window, outputs: int, *, bottom: bool, turned: bool) -> None:
    """Ticks "input, unit" on the left panel, and under all panels of the bottom row."""
    places = _tick_places(span, outputs)
    texts = [f"{place // outputs}, {place % outputs}" for place in places]
    for column, panel in enumerate(axes):
        if not panel.images:
            continue
        below = texts if bottom else [""] * len(places)
        panel.set_xticks(places, below, rotation=90 if turned else 0)
        panel.set_yticks(places, texts if column == 0 else [""] * len(places))
    axes[0].set_ylabel("input, unit")
    if bottom:
        axes[1].set_xlabel("input, unit")


def _tick_places(span: _Window, outputs: int, most: int = 5) -> list[int]:
    """At most ``most`` indices of the span: first units of inputs, where there are enough."""
    end = span.start + span.size
    first = -(-span.start // outputs) * outputs
    starts = range(first, end, outputs)
    if len(starts) >= 3:
        return list(starts[:: -(-len(starts) // most)])
    step = max(1, -(-span.size // most))
    return list(range(span.start, end, step))


def _add_color_bar(
    figure: Figure, axes: list[Axes], norm: Normalize, step: int, window: _Window | None
) -> None:
    logarithmic = isinstance(norm, LogNorm)
    words = "absolute value of an entry, one scale for all panels, "
    words += "logarithmic; smaller entries and zeros: darkest" if logarithmic else "linear"
    notes = [f"red: the marked {window.size}×{window.size} square, enlarged"] if window else []
    if step > 1:
        notes.append(f"large panels: each pixel is the largest of {step}×{step} entries")
    bar = figure.colorbar(
        ScalarMappable(norm, _colormap()),
        ax=axes,
        location="bottom",
        aspect=60,
        shrink=0.8,
        pad=0.02,
        extend="min" if logarithmic else "neither",
    )
    bar.set_label("\n".join([words, "; ".join(notes)]).rstrip())


def _thin(names: Sequence[str], most: int = 40) -> list[str]:
    """The names, with those between left blank where there are more than ``most``."""
    step = -(-len(names) // most)
    return [style.short(name, 24) if index % step == 0 else "" for index, name in enumerate(names)]
