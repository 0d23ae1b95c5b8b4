"""One style for all figures: fonts, colours, sizes, the caption, and how a figure is saved."""

import math
import textwrap
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import matplotlib.style
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import Bbox

from fisherlab.arguments import checked
from fisherlab.records.labels import named, plain, short

COLUMN_WIDTH = 3.4
"""Width of a figure in one column of a two-column page, in inches."""
PAGE_WIDTH = 7.0
"""Width of a figure across the page, in inches."""

ACROSS = 4
"""Layers whose panels stand side by side."""

MAGNITUDE_MAP = "viridis"
"""Perceptually uniform map for magnitudes, readable with any colour vision."""
MISSING_COLOR = "#d9d9d9"
SHADE = "#efebe2"
"""Behind what is to be read with care."""
ACCENT = "#d62728"
MUTED = "#666666"

TEXT_SIZE = 7.0
SMALL_SIZE = 6.0
TITLE_SIZE = 8.5
_LINE = 1.35  # height of a line of text, in font sizes
_CHARACTER, _BOLD_CHARACTER = 0.56, 0.62  # width of a character that few lines exceed, in font sizes
_HANDLE = 2.2  # width of a legend's line or patch, in font sizes
_KEY_GAP = 2.2  # from it to its text, and from there to the next entry
_KEY_EDGE = 1.2  # around all entries
_MANY_DECADES, _PART_OF_DECADE = 2.2, 0.7  # of a logarithmic axis
_PNG_LEVEL = 2  # of zlib: a third of the time of its default
_PDF_DPI = 300

STYLE: dict[str, object] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "mathtext.fontset": "dejavusans",
    "font.size": TEXT_SIZE,
    "axes.titlesize": TEXT_SIZE,
    "axes.labelsize": TEXT_SIZE,
    "legend.fontsize": TEXT_SIZE,
    "xtick.labelsize": SMALL_SIZE,
    "ytick.labelsize": SMALL_SIZE,
    "axes.titlepad": 4.0,
    "axes.labelpad": 2.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": False,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "xtick.major.pad": 2.0,
    "ytick.major.pad": 2.0,
    "lines.linewidth": 1.2,
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
    "figure.dpi": 200.0,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
}

_in_style = matplotlib.style.context(["default", STYLE])  # type: ignore[list-item]
F = TypeVar("F", bound=Callable[..., Any])


def styled(function: F) -> F:
    """Decorator: the function draws in this style, of arguments that have been checked.

    The caller's settings are as before afterwards.
    """
    return checked(_in_style(function))


_FALLBACK_COLORS = ("#44aa99", "#882255", "#999933", "#332288", "#cc6677", "#117733")
MARKERS = "os^DvPX<>*hp"
"""Of the curves of a figure, in turn."""
_DASHES = ("-", (0, (4, 1.2)), (0, (1.2, 1)), (0, (5, 1, 1, 1)))


def color(name: str, others: Sequence[str] = ()) -> str:
    """The colour of an approximation or an optimizer: that of its class, where it has one.

    Args:
        name: Registered name.
        others: All names in the figure; one without a colour of its own gets one by its place among
            those there.

    Returns:
        A hexadecimal colour.
    """
    own = named(name).colour
    if own is not None:
        return own
    strangers = [other for other in others if named(other).colour is None]
    place = strangers.index(name) if name in strangers else 0
    return _FALLBACK_COLORS[place % len(_FALLBACK_COLORS)]


def dashes(index: int) -> str | tuple[int, tuple[float, ...]]:
    """The line style of the ``index``-th curve, so that curves differ without colour too."""
    return _DASHES[index % len(_DASHES)]  # type: ignore[return-value]


def look(name: str, names: Sequence[str]) -> dict[str, Any]:
    """Colour and line style of a curve among those of a figure."""
    return {"color": color(name, names), "linestyle": dashes(list(names).index(name))}


class _WholeFigure(Figure):
    """A figure that notebooks, which cut pictures to what the layout knows, show with its strips."""

    def get_tightbbox(self, renderer: Any = None, bbox_extra_artists: Any = None) -> Bbox:
        """The whole page, in inches."""
        return Bbox.from_bounds(0, 0, *self.get_size_inches())


def new_figure(
    width: float,
    height: float,
    *,
    caption: str,
    title: str | None = None,
    legend: Sequence[Artist] = (),
) -> Figure:
    """An empty figure with its title and legend on top and its caption below.

    Args:
        width: Width in inches.
        height: Height of the space for the panels in inches; the strips for title, legend and
            caption are added to it.
        caption: What was measured: data, model, checkpoint, seed, device.
        title: One sentence on top.
        legend: Labelled handles.

    Returns:
        A figure with constrained layout inside the strips.
    """
    title_lines = _wrap(title or "", width, TITLE_SIZE, _BOLD_CHARACTER)
    top = _strip(len(title_lines), TITLE_SIZE)
    columns = _legend_columns(legend, width)
    key = _strip(math.ceil(len(legend) / columns), TEXT_SIZE + 1)
    bottom = caption_height(caption, width)
    total = height + top + key + bottom
    figure = _WholeFigure(figsize=(width, total))
    rect = (0.0, bottom / total, 1.0, height / total)
    figure.set_layout_engine(ConstrainedLayoutEngine(rect=rect, h_pad=0.04, w_pad=0.04))
    edge = 0.04 / width
    if title_lines:
        figure.text(
            edge,
            1 - 0.04 / total,
            "\n".join(title_lines),
            ha="left",
            va="top",
            fontsize=TITLE_SIZE,
            fontweight="bold",
            parse_math=False,
        ).set_in_layout(False)
    if legend:
        figure.legend(
            handles=list(legend),
            loc="upper left",
            bbox_to_anchor=(0.0, 1 - top / total),
            ncols=columns,
            borderaxespad=0.2,
            handlelength=_HANDLE,
            columnspacing=_KEY_GAP - 0.8,
        ).set_in_layout(False)
    figure.text(
        edge,
        0.03 / total,
        "\n".join(_wrap(caption, width, SMALL_SIZE)),
        ha="left",
        va="bottom",
        fontsize=SMALL_SIZE,
        color=MUTED,
        linespacing=1.25,
        parse_math=False,
    ).set_in_layout(False)
    return figure


def caption_height(caption: str, width: float) -> float:
    """Height in inches of the strip that the caption takes of a figure so wide (inches)."""
    return _strip(len(_wrap(caption, width, SMALL_SIZE)), SMALL_SIZE)


def text_width(text: str, size: float) -> float:
    """Width in inches of a line of text, ``size`` points high."""
    font = FontProperties(family="DejaVu Sans", size=size)
    return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]) / 72


def layer_figure(
    layers: Sequence[str],
    height: float,
    panels: int = 1,
    *,
    width: float = PAGE_WIDTH,
    sharey: Literal["none", "all", "row"] = "none",
    **words: Any,
) -> tuple[Figure, list[list[Axes]]]:
    """A figure with a stack of panels a layer under the layer's name, up to `ACROSS` layers side by side.

    Args:
        layers: names.
        height: of a stack in inches.
        panels: of a stack.
        width: in inches.
        sharey: as of ``subplots``.
        words: caption, title and legend, as of `new_figure`.

    Returns:
        The figure, and the panels of each layer.
    """
    across = min(ACROSS, len(layers))
    down = -(-len(layers) // across)
    figure = new_figure(width, height * down, **words)
    grid = figure.subplots(panels * down, across, squeeze=False, sharey=sharey)
    stacks = [list(stack) for band in np.split(grid, down) for stack in band.T]
    for stack, layer in zip(stacks, layers, strict=False):
        name_panel(stack[0], layer, across)
    hide(axes for stack in stacks[len(layers) :] for axes in stack)
    return figure, stacks[: len(layers)]


def hide(panels: Iterable[Axes]) -> None:
    """Leaves out panels that nothing is drawn in."""
    for axes in panels:
        axes.set_visible(False)


def name_panel(axes: Axes, layer: object, across: int) -> None:
    """Title "layer …" of a panel, cut to its share of a figure with so many panels in a row."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    room = int((figure.get_figwidth() / across - 0.25) * 72 / (TEXT_SIZE * 0.62))
    axes.set_title(f"layer {short(layer, max(4, room - 6))}", parse_math=False)


def name_logarithms(axis: Axis) -> None:
    """Ticks of a logarithmic axis on which all is drawn: decades, or plain numbers where it has few.

    Less than about two decades get 1, 2, 5, 10, …; less than two thirds of one, a few even steps.
    """
    low, high = axis.get_view_interval()
    decades = math.log10(high / low)
    axis.set_minor_formatter(NullFormatter())
    if decades >= _MANY_DECADES:
        return
    few = decades < _PART_OF_DECADE
    axis.set_major_locator(MaxNLocator(4) if few else LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(_plain_tick))
    if few:
        axis.set_minor_locator(NullLocator())


def _plain_tick(value: float, _place: int | None) -> str:
    return plain(value)  # a function of the module: figures go to other processes


def not_available(axes: Axes) -> None:
    """Empty panel: no ticks, and "n/a" in its middle."""
    axes.set(xticks=[], yticks=[])
    say(axes, "n/a")


def say(axes: Axes, words: str) -> None:
    """Words in the middle of an empty panel."""
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color=MUTED)


def save(figure: Figure, path_without_suffix: str | Path, png_dpi: int = 200) -> list[Path]:
    """Write a figure as ``.png`` and ``.pdf``, the same bytes each time.

    The layout is settled while the ``.png`` is drawn and then kept, so that both files show the
    same picture. Text in the PDF stays text; matrices are images of 300 dpi there. No date or
    version is written into the files.

    Args:
        figure: The figure.
        path_without_suffix: Where to write; missing folders are made.
        png_dpi: Pixels per inch of the ``.png``.

    Returns:
        The two paths.
    """
    base = Path(path_without_suffix)
    base.parent.mkdir(parents=True, exist_ok=True)
    png, pdf = base.with_name(base.name + ".png"), base.with_name(base.name + ".pdf")
    canvas, dpi = figure.canvas, figure.dpi
    with matplotlib.style.context(["default", STYLE]), warnings.catch_warnings():  # type: ignore[list-item]
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a layer's name may have any letters
        try:
            figure.dpi = png_dpi
            FigureCanvasAgg(figure).print_png(
                png, metadata={"Software": None}, pil_kwargs={"compress_level": _PNG_LEVEL}
            )
            figure.set_layout_engine("none")
            figure.dpi = _PDF_DPI
            FigureCanvasPdf(figure).print_pdf(
                pdf, metadata={"CreationDate": None, "Creator": None, "Producer": None}
            )
        finally:
            figure.dpi = dpi
            figure.set_canvas(canvas)
    return [png, pdf]


def _wrap(text: str, width: float, size: float, character: float = _CHARACTER) -> list[str]:
    characters = max(20, int((width - 0.1) * 72 / (size * character)))
    return [line for part in text.splitlines() for line in textwrap.wrap(part, characters)]


def _strip(lines: int, size: float) -> float:
    """Height in inches of so many lines of text; zero lines take no space."""
    return (lines * size * _LINE + 5) / 72 if lines else 0.0


def _legend_columns(legend: Sequence[Artist], width: float) -> int:
    """The most columns whose widest entries stand side by side in so many inches."""
    room = width - _KEY_EDGE * TEXT_SIZE / 72
    handle = (_HANDLE + _KEY_GAP) * TEXT_SIZE / 72
    entries = [text_width(str(one.get_label()), TEXT_SIZE) + handle for one in legend]
    for columns in range(len(entries), 1, -1):
        if sum(max(part) for part in np.array_split(entries, columns)) <= room:
            return columns
    return 1
