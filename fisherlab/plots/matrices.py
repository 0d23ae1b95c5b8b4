"""Matrices as heat maps: the exact Fisher beside its approximations, and layers against layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fisherlab.errors import InputError
from fisherlab.plots import style
from fisherlab.plots.magnitudes import OVER, Window, choose_window, panels, shared_scale
from fisherlab.records.frames import Array
from fisherlab.records.labels import number, ordinal, short

MAX_PIXELS = 800
"""Larger matrices are drawn by the largest entry of each block."""
_STACKED = 2  # up to so many approximations have their square below, more have it beside

_MOST_TICKS = 5
_FEW_INPUTS = 3  # in a span, below which units are named too
_SHORT_END, _LONG_END = 0.05, 0.14  # of a span, without a tick of a short or of a long name
_EXTEND = {
    (False, False): "neither",
    (True, False): "min",
    (False, True): "max",
    (True, True): "both",
}  # the ends of the colour bar, by whether it is logarithmic and entries lie beyond it

_ANNOTATED = 14  # layers up to which each entry of their coupling has its number
_NAMED = 40  # layers that have room for their names there
_LEAST_COUPLING = 1e-3  # of logarithmic colours

# Heights and widths in a figure of heat maps, in inches.
_EDGE = 0.06
_GAP = 0.08  # between panels
_HEAD = 0.19  # a panel's title
_AXIS = 0.22  # ticks, their pad and the axis's name, without the numbers
_BAR = 0.09  # the colour bar
_BAR_WORDS = 0.42  # its numbers and what it says


@dataclass(frozen=True)
class _Grid:
    """Axes [rows, 3] of large panels and enlarged squares, that of the colour bar; a panel's side, inches."""

    figure: Figure
    large: Array
    small: Array
    bar: Axes
    side: float


@dataclass(frozen=True)
class _Ticks:
    """Places on an axis of a panel, their names, and what the axis says."""

    places: list[int]
    names: list[str]
    words: str

    @property
    def widths(self) -> list[float]:
        """Of the names, in inches."""
        return [style.text_width(name, style.SMALL_SIZE) for name in self.names]

    def crowded(self, side: float) -> bool:
        """Whether the names must be turned to stand below a panel of so many inches."""
        return 1.25 * sum(self.widths) > side


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
    linear, or logarithmic where most entries would otherwise look like zero; it ends at ten times
    the largest ∣F∣, so that F̂ on another scale does not darken F. A square on the diagonal,
    marked in red, is drawn enlarged in a second block of panels. After figures 1 and 5 of Liu et
    al., A Layer-Wise Natural Gradient Optimizer for Training Deep Neural Networks, NeurIPS 2024.

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
    window = choose_window(exact, cutout, corner)
    step = -(-size // MAX_PIXELS)
    rows = panels(exact, approximations, step, window)
    norm, beyond = shared_scale(exact, rows)
    heading = title or f"Layer {layer}: exact Fisher and approximation, {size}×{size}"
    whole = Window(0, size)
    ticks = [_ticks(span, outputs, single=inputs == 1) for span in (whole, window) if span is not None]
    grid = _grid(
        len(rows),
        ticks,
        caption=caption,
        title=f"{heading} ({scale_note})" if scale_note else heading,
    )
    for axes, panel in zip(grid.large.flat, (panel for row in rows for panel in row), strict=True):
        _draw(axes, panel.whole, norm, whole, title=panel.title)
        if window is not None and panel.whole is not None:
            _mark(axes, window)
    _label(grid.large, ticks[0], grid.side)
    if window is not None:
        for axes, panel in zip(grid.small.flat, (panel for row in rows for panel in row), strict=True):
            _draw(axes, panel.square, norm, window, title=panel.title)
            axes.spines[:].set(color=style.ACCENT, linewidth=1.0)
        _label(grid.small, ticks[1], grid.side)
    _draw_color_bar(grid, norm, step, window, beyond=beyond)
    return grid.figure


@style.styled
def coupling(matrix: Array, layers: Sequence[str], *, caption: str) -> Figure:
    """How much of the whole Fisher lies between layers, as a layer × layer map.

    Up to 14 layers: linear colours, each entry with its number. More: logarithmic colours from
    0.001, names of at most 40 layers at even steps. Entries that are not known are grey.

    Args:
        matrix: [L, L], entry (l, k) is ‖F_lk‖² / (‖F_l‖ ‖F_k‖), 1 for l = k (F_l = F_ll is the
            block of a layer); NaN where it was not computed.
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
    annotated = count <= _ANNOTATED
    top = max(1.0, float(np.nanmax(matrix, initial=0.0)))
    words = r"$\|F_{lk}\|^2\,/\,(\|F_l\|\,\|F_k\|)$"
    words += "" if annotated else f"; logarithmic, at or below {_LEAST_COUPLING:g}: darkest"
    words += "; grey: not computed" if np.isnan(matrix).any() and not annotated else ""
    seaborn.heatmap(
        matrix if annotated else np.maximum(matrix, _LEAST_COUPLING),
        ax=axes,
        norm=Normalize(0, top) if annotated else LogNorm(_LEAST_COUPLING, top),
        cmap=style.MAGNITUDE_MAP,
        square=True,
        annot=np.vectorize(number)(matrix) if annotated else False,
        fmt="",
        annot_kws={"fontsize": style.SMALL_SIZE},
        linewidths=0.5 if annotated else 0,
        xticklabels=False,
        yticklabels=False,
        cbar_kws={"label": words, "shrink": 0.8},
        rasterized=True,
    )
    step = -(-count // _NAMED)
    names = [short(layer, 24) for layer in layers[::step]]
    places = np.arange(0, count, step) + 0.5
    axes.set_xticks(places, names, parse_math=False)
    axes.set_yticks(places, names, parse_math=False)
    axes.set_xlabel(f"layer $k$ ({count} layers, every {ordinal(step)} named)" if step > 1 else "layer $k$")
    axes.set_ylabel("layer $l$")
    axes.tick_params(length=0)
    longest = max(style.text_width(name, style.SMALL_SIZE) for name in names)
    axes.tick_params(axis="x", rotation=90 if longest * len(names) > 0.6 * width else 0)
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


def _colormap() -> Colormap:
    """The map for magnitudes: zeros in its darkest colour, missing entries grey."""
    colormap = matplotlib.colormaps[style.MAGNITUDE_MAP]
    return colormap.with_extremes(under=colormap(0.0), bad=style.MISSING_COLOR)


def _grid(rows: int, ticks: list[_Ticks], *, caption: str, title: str) -> _Grid:
    """The figure with its axes, all in places that follow from the number of rows.

    The squares, if there are ticks for them, stand below for few approximations, beside for more.
    Numbers stand at the left of each block of panels and below its last row.
    """
    squares = len(ticks) > 1
    beside = squares and rows > _STACKED
    blocks = 2 if beside else 1
    bands = rows * (2 if squares and not beside else 1)
    tick_width = max(width for one in ticks for width in one.widths)
    left = _EDGE + _AXIS + tick_width
    block = (style.PAGE_WIDTH - _EDGE) / blocks
    side = (block - left - 2 * _GAP) / 3
    turned = any(one.crowded(side) for one in ticks)
    foot = _AXIS + (tick_width if turned else style.SMALL_SIZE / 72)
    steps = [_HEAD + side + (foot if band >= bands - bands // rows else _GAP) for band in range(bands)]
    height = sum(steps) + _BAR + _BAR_WORDS
    figure = style.new_figure(style.PAGE_WIDTH, height, caption=caption, title=title)
    figure.set_layout_engine("none")
    bottom = style.caption_height(caption, style.PAGE_WIDTH)

    def add(x: float, y: float, wide: float, high: float) -> Axes:
        width, total = figure.get_size_inches()
        return figure.add_axes((x / width, y / total, wide / width, high / total))

    axes = np.empty((bands, 3 * blocks), object)
    for band, column in np.ndindex(axes.shape):
        x = column // 3 * block + left + column % 3 * (side + _GAP)
        axes[band, column] = add(x, bottom + height - sum(steps[:band]) - _HEAD - side, side, side)
    bar = add(0.1 * style.PAGE_WIDTH, bottom + _BAR_WORDS, 0.8 * style.PAGE_WIDTH, _BAR)
    if beside:
        return _Grid(figure, axes[:, :3], axes[:, 3:], bar, side)
    if squares:
        return _Grid(figure, axes[::2], axes[1::2], bar, side)
    return _Grid(figure, axes, axes[:0], bar, side)


def _draw(axes: Axes, matrix: Array | None, norm: Normalize, span: Window, *, title: str) -> None:
    axes.set_title(title)
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
        interpolation_stage="data",
    )
    axes.set(xlim=(first, last), ylim=(last, first), xticks=[], yticks=[])


def _mark(axes: Axes, window: Window) -> None:
    corner = (window.start - 0.5, window.start - 0.5)
    axes.add_patch(Rectangle(corner, window.size, window.size, fill=False, edgecolor=style.ACCENT, lw=1.0))


def _label(panels: Array, ticks: _Ticks, side: float) -> None:
    """Ticks at the left panels [:, 0] and under those of the last row."""
    for axes in panels[:, 0]:
        axes.set_ylabel(ticks.words)
        if axes.images:
            axes.set_yticks(ticks.places, ticks.names)
    for axes in panels[-1]:
        if axes.images:
            axes.set_xticks(ticks.places, ticks.names, rotation=90 if ticks.crowded(side) else 0)
    panels[-1, 1].set_xlabel(ticks.words)


def _ticks(span: Window, outputs: int, *, single: bool) -> _Ticks:
    """About five indices of the span, none so near its end that its name meets the next panel's.

    They are inputs at even steps, each at its first unit, or, where the span has fewer than three
    inputs, pairs of input and unit; of a parameter that is a vector (`single`) they are its entries.
    """
    inputs = span.size / outputs
    every = range(-(-span.start // outputs), -(-(span.start + span.size) // outputs))
    if inputs >= _FEW_INPUTS:
        step = _even_step(inputs / _MOST_TICKS)
        end = span.start + (1 - _SHORT_END) * span.size
        kept = [one for one in every if one % step == 0 and one * outputs <= end]
        words = f"input ({outputs} unit{'s' * (outputs > 1)} each)"
        return _Ticks([one * outputs for one in kept], [str(one) for one in kept], words)
    step = -(-outputs // max(1, min(outputs, int(_MOST_TICKS / inputs))))
    end = span.start + (1 - _LONG_END) * span.size
    places = [
        one * outputs + unit
        for one in range(span.start // outputs, every.stop)
        for unit in range(0, outputs - step // 2, step)
        if span.start <= one * outputs + unit <= end
    ]
    if single:
        return _Ticks(places, list(map(str, places)), "entry")
    return _Ticks(places, [f"{place // outputs}, {place % outputs}" for place in places], "input, unit")


def _even_step(least: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, … that is no less."""
    return next(
        factor * 10**power for power in range(20) for factor in (1, 2, 5) if factor * 10**power >= least
    )


def _draw_color_bar(grid: _Grid, norm: Normalize, step: int, window: Window | None, *, beyond: bool) -> None:
    logarithmic = isinstance(norm, LogNorm)
    words = "absolute value of an entry, one scale for all panels, "
    words += "logarithmic; smaller entries and zeros: darkest" if logarithmic else "linear"
    words += f"; above {OVER:g} max $|F|$: brightest" if beyond else ""
    notes = [f"red: the marked {window.size}×{window.size} square, enlarged"] if window else []
    if step > 1:
        notes.append(f"large panels: each pixel is the largest of {step}×{step} entries")
    bar = grid.figure.colorbar(
        ScalarMappable(norm, _colormap()),
        cax=grid.bar,
        orientation="horizontal",
        extend=_EXTEND[logarithmic, beyond],
    )
    bar.set_label("\n".join([words, "; ".join(notes)]).rstrip())
