"""Representation vectors: histograms with their fits, and numbers of every layer."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from scipy import stats

from fisherlab.plots import style
from fisherlab.records.frames import Array, numbers, require
from fisherlab.records.labels import number, ordinal, short

_VECTORS = {"output": "$s$", "activated": "$\\varphi(s)$"}
_PLAIN = {"input": "inputs", "output": "outputs", "activated": "activated outputs"}
_SHADES = {"output": "#0072b2", "activated": "#d55e00"}
_SHIFTS = {"output": -0.14, "activated": 0.14}  # of a line, where both have the same value
_BARS, _NORMAL, _CHI = "#b8c4d0", "#d62728", "#0072b2"
_NORM_FITS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("norm_ks_normal", {"color": "#444444", "marker": "s"}),
    ("norm_ks_chi", {"color": "#009e73", "marker": "D"}),
)
_ACROSS = 3
_LEAST_BARS = 15
_TALLEST = 2.5  # of a histogram's bars, in heights of the normal curve
_ROW = 0.135  # inches of a layer's line
_MOST_ROWS = 120  # lines of a page; with more layers every k-th is named
_NAME_CHARACTERS = 34

SAMPLING = "p(a_l ∣ a_{l−1}) = N(φ(s), I)"
"""What layer-wise sampling assumes."""
NO_TEST = f"These are marginals over the data: no test of {SAMPLING}."
_RULE = (
    "Coordinates: those at the quantiles 0, ¼, ½, ¾ and 1 of the excess kurtosis. KS: the Kolmogorov–Smirnov "
    "distance from the fit; Q–Q plots and KS are of the values tested, from different samples."
)


@style.styled
def histograms(
    bins: pd.DataFrame,
    quantiles: pd.DataFrame,
    moments: pd.DataFrame,
    *,
    layer: str,
    vector: str,
    caption: str,
    title: str | None = None,
) -> Figure:
    """Histograms of some coordinates and of the norms of a layer's vectors, and below each its Q–Q plot.

    Curves: the normal distribution, and for norms the scaled chi distribution, with the moments of all
    values. Bars more than 2.5 times as high as the normal curve are cut and marked.

    Args:
        bins: Columns ``quantity``, ``index``, ``left``, ``right``, ``count``, of one layer and vector.
        quantiles: ``quantity``, ``index``, ``value`` and the fits' ``normal`` and ``chi``.
        moments: ``quantity``, ``index``, ``chosen``, ``mean``, ``std``, ``excess_kurtosis``, ``zeros``,
            ``ks_distance``, ``chi_freedom``, ``chi_scale``, ``chi_distance``.
        layer: Name of the layer, for the title.
        vector: ``input``, ``output`` or ``activated``.
        caption: Data, model, checkpoint, seed and device; written under the figure.
        title: Replaces the title that names the layer.

    Returns:
        The figure, 7 inches wide.

    Raises:
        InputError: A column is missing or there are no rows.
    """
    require(bins, ("quantity", "index", "left", "right", "count"))
    require(moments, ("quantity", "index", "chosen", "mean", "std", "excess_kurtosis", "ks_distance"))
    chosen = moments[moments["chosen"].astype(bool)].sort_values("excess_kurtosis")
    panels = [row for _, row in chosen.iterrows() if row["quantity"] == "coordinate"]
    panels += [row for _, row in chosen.iterrows() if row["quantity"] == "norm"]
    down = -(-len(panels) // _ACROSS)
    figure = style.new_figure(
        style.PAGE_WIDTH,
        2.75 * down,
        caption=f"{caption}\n{_RULE} {NO_TEST}",
        title=title or f"Layer {short(layer, 50)}: {_PLAIN.get(vector, vector)} over the data",
        legend=[
            Patch(color=_BARS, label="all values"),
            Line2D([], [], color=_NORMAL, label="normal fit"),
            Line2D([], [], color=_CHI, ls="--", label="scaled chi fit (norms)"),
            Line2D([], [], color=_NORMAL, ls="", marker=".", markersize=4, label="Q–Q, normal"),
            Line2D([], [], color=_CHI, ls="", marker=".", markersize=4, label="Q–Q, scaled chi"),
            Line2D([], [], color=style.MUTED, lw=0.6, label="equal"),
        ],
    )
    grid = figure.subplots(2 * down, _ACROSS, squeeze=False)
    style.hide(grid.flat)
    for place, moment in enumerate(panels):
        row, column = divmod(place, _ACROSS)
        own = [_of(table, moment) for table in (bins, quantiles)]
        _draw_histogram(grid[2 * row, column], own[0], moment)
        _draw_quantiles(grid[2 * row + 1, column], own[1])
        if not column:
            grid[2 * row, 0].set_ylabel("density")
            grid[2 * row + 1, 0].set_ylabel("quantile")
    figure.align_ylabels(grid[:, 0])
    return figure


@style.styled
def normality(layers: pd.DataFrame, *, caption: str) -> Figure:
    """How far every layer's outputs are from normal: a line a layer; filled: median, hollow: worst.

    Args:
        layers: Columns ``layer``, ``vector``, ``kurtosis_median``, ``kurtosis_worst``, ``ks_median``,
            ``ks_worst``, ``rejected``, ``zeros``, ``norm_ks_normal``, ``norm_ks_chi``, ``tested``.
        caption: Data, model, checkpoint, seed and device; written under the figure.

    Returns:
        The figure, 7 inches wide.

    Raises:
        InputError: A column is missing or there are no rows.
    """
    require(layers, ("layer", "vector", "kurtosis_median", "ks_median", "rejected", "norm_ks_chi"))
    names = list(dict.fromkeys(layers["layer"]))
    kinds = [kind for kind in _SHADES if (layers["vector"] == kind).any()]
    key = [Line2D([], [], ls="", marker="o", color=_SHADES[k], label=f"{_VECTORS[k]}, median") for k in kinds]
    hollow: dict[str, Any] = {"ls": "", "marker": "o", "markerfacecolor": "white", "color": style.MUTED}
    key.append(Line2D([], [], **hollow, label="worst coordinate"))
    for (_, fit), words in zip(_NORM_FITS, ("normal", "scaled chi"), strict=True):
        key.append(Line2D([], [], ls="", label=f"norms of $s$, {words}", **fit))
    tested = int(layers["tested"].max())
    which = "outputs s and activated outputs φ(s)" if "activated" in kinds else "outputs s"
    figure, panels = _rows_of_layers(
        names,
        4,
        f"{caption}\nDistances, tests and fits: of {tested} values from different samples. {NO_TEST}",
        f"How far {which} are from normal, by layer",
        key,
    )
    kurtosis, distance, rejected, norms = panels
    for kind in kinds:
        rows = layers[layers["vector"] == kind].set_index("layer").reindex(names)
        look: dict[str, Any] = {"color": _SHADES[kind]}
        _dots(kurtosis, rows["kurtosis_worst"], hollow=True, **look)
        _dots(kurtosis, rows["kurtosis_median"], **look)
        _dots(distance, rows["ks_worst"], hollow=True, **look)
        _dots(distance, rows["ks_median"], **look)
        shift = _SHIFTS[kind] if len(kinds) > 1 else 0.0
        _dots(rejected, 100 * numbers(rows["rejected"]), shift=shift, **look)
        if kind == "output":
            for column, fit in _NORM_FITS:
                _dots(norms, rows[column], **fit)
    kurtosis.set_xscale("symlog", linthresh=1)
    kurtosis.xaxis.set_major_formatter("{x:g}")
    kurtosis.axvline(0, color=style.MUTED, lw=0.6)
    kurtosis.set_xlabel("excess kurtosis\n(normal: 0)")
    distance.set_xlabel("KS distance\nof coordinates")
    rejected.set_xlabel("% of coordinates\nrejected (Holm, 5 %)")
    norms.set_xlabel("KS distance\nof norms")
    rejected.set_xlim(-4, 104)
    for axes in (distance, norms):
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(4))
    return figure


@style.styled
def isotropies(assumption: pd.DataFrame, *, caption: str, title: str | None = None) -> Figure:
    """How close M = Σ_c q qᵀ is to a multiple of I, a line a layer; layer-wise sampling takes it for I.

    Args:
        assumption: Columns ``layer``, ``outputs``, ``isotropy_population``, ``isotropy_samples``,
            ``isotropy_limit``, ``samples``, ``labels``.
        caption: Data, model, checkpoint, seed and device; written under the figure.
        title: Replaces the title that says what M is.

    Returns:
        The figure, 7 inches wide.

    Raises:
        InputError: A column is missing or there are no rows.
    """
    columns = ("isotropy_population", "isotropy_samples", "isotropy_limit")
    require(assumption, ("layer", "outputs", "samples", "labels", *columns))
    names = list(assumption["layer"])
    figure, (axes,) = _rows_of_layers(
        names,
        1,
        f"{caption}\nM = E[Σ_c q qᵀ] of a sample, q the gradient at the activated output; positions pooled. "
        f"Gradients of {int(assumption['samples'].max()):,} samples, labels: {assumption['labels'].iloc[0]}. "
        f"This, not the histograms, tests {SAMPLING}.",
        title or "Isotropy of M = E[Σ_c q qᵀ], which layer-wise sampling takes for I",
        [
            Line2D([], [], ls="", marker="o", color=_SHADES["output"], label="of the mean M"),
            Line2D([], [], ls="", marker="D", color=_SHADES["activated"], label="of a sample's M, mean"),
            Line2D([], [], ls="", marker="|", color="black", label="the most that a sample's rank allows"),
            Line2D([], [], ls="", marker=".", color=style.MUTED, label="1/m: rank 1"),
            Line2D([], [], color=style.MUTED, ls="--", label="1: consistent with sampling"),
        ],
    )
    _dots(axes, 1 / numbers(assumption["outputs"]), color=style.MUTED, marker=".")
    _dots(axes, assumption["isotropy_limit"], color="black", marker="|", markersize=7)
    _dots(axes, assumption["isotropy_samples"], color=_SHADES["activated"], marker="D")
    _dots(axes, assumption["isotropy_population"], color=_SHADES["output"])
    axes.axvline(1, color=style.MUTED, ls="--", lw=0.8)
    axes.set_xscale("log")
    axes.set_xlim(right=1.3)
    style.name_logarithms(axes.xaxis)
    axes.set_xlabel("isotropy $(\\mathrm{tr}\\,M)^2 / (m\\,\\|M\\|^2)$")
    return figure


def _of(table: pd.DataFrame, moment: pd.Series) -> pd.DataFrame:
    return table[(table["quantity"] == moment["quantity"]) & (table["index"] == moment["index"])]


def _draw_histogram(axes: Axes, bins: pd.DataFrame, moment: pd.Series) -> None:
    axes.set_visible(True)
    norm = moment["quantity"] == "norm"
    kurtosis, distance, chi = (
        number(moment[name], digits=2) for name in ("excess_kurtosis", "ks_distance", "chi_distance")
    )
    coordinate = f"coordinate {int(moment['index'])}: kurtosis {kurtosis}, KS {distance}"
    axes.set_title(f"norm: KS {distance} normal, {chi} chi" if norm else coordinate)
    if not (bins["left"] < bins["right"]).all():
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "all values are the same", transform=axes.transAxes, ha="center", va="center")
        return
    mean, std = float(moment["mean"]), float(moment["std"])
    density, edges = _densities(bins)
    low, high = max(bins["left"].min(), mean - 5 * std), min(bins["right"].max(), mean + 5 * std)
    axes.stairs(density, edges, fill=True, color=_BARS)
    x = np.linspace(low, high, 300)
    axes.plot(x, stats.norm.pdf(x, mean, std), color=_NORMAL)
    if norm and np.isfinite(moment["chi_freedom"]):
        curve = stats.chi.pdf(x, moment["chi_freedom"], scale=moment["chi_scale"])
        axes.plot(x, curve, color=_CHI, ls="--")
    limit = _TALLEST / (std * np.sqrt(2 * np.pi))
    axes.set_xlim(low, high)
    axes.set_ylim(0, min(limit, 1.08 * max(float(density.max()), limit / _TALLEST)))
    if density.max() > limit:
        zeros = 100 * float(moment["zeros"])
        words = f"▲ cut; {zeros:.0f} % are 0" if zeros >= 0.5 else "▲ cut"
        axes.text(0.97, 0.95, words, transform=axes.transAxes, ha="right", va="top", color=style.MUTED)
    axes.set_yticks([])
    axes.set_xlabel("norm" if norm else "value")
    axes.xaxis.set_major_locator(MaxNLocator(4))


def _densities(bins: pd.DataFrame) -> tuple[Array, Array]:
    """Densities and edges, neighbours taken together where values are few: about √n bars."""
    count = numbers(bins["count"]).to_numpy()
    together = int(np.ceil(len(count) / max(_LEAST_BARS, np.sqrt(count.sum()))))
    starts = np.arange(0, len(count), together)
    edges = np.append(bins["left"].to_numpy(float)[starts], float(bins["right"].iloc[-1]))
    return np.add.reduceat(count, starts) / count.sum() / np.diff(edges), edges


def _draw_quantiles(axes: Axes, quantiles: pd.DataFrame) -> None:
    if quantiles.empty:
        return
    axes.set_visible(True)
    value = quantiles["value"].to_numpy(float)
    fits: list[tuple[str, str]] = [("normal", _NORMAL), ("chi", _CHI)]
    ends: list[float] = []
    for fit, shade in fits:
        fitted = quantiles[fit].to_numpy(float)
        if np.isfinite(fitted).any():
            axes.plot(fitted, value, ".", color=shade, markersize=2.2)
            ends += [float(fitted.min()), float(fitted.max())]
    axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color=style.MUTED, lw=0.6)
    axes.set_xlabel("fitted quantile")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(4))


def _rows_of_layers(
    names: list[str], across: int, caption: str, title: str, key: list[Line2D]
) -> tuple[Figure, Array]:
    """A figure with a line a layer, the first on top, and so many panels side by side."""
    for entry in key:
        entry.set_markersize(4)
    rows = min(len(names), _MOST_ROWS)
    height = max(1.0, _ROW * rows + 0.5)
    figure = style.new_figure(style.PAGE_WIDTH, height, caption=caption, title=title, legend=key)
    panels = figure.subplots(1, across, squeeze=False, sharey=True)[0]
    step = -(-len(names) // rows)
    places = range(0, len(names), step)
    panels[0].set_yticks(places, [short(names[k], _NAME_CHARACTERS) for k in places], parse_math=False)
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    panels[0].set_ylabel("layer" if step == 1 else f"{len(names)} layers, every {ordinal(step)} named")
    for axes in panels:
        axes.grid(axis="both")
    return figure, panels


def _dots(axes: Axes, values: pd.Series, *, hollow: bool = False, shift: float = 0.0, **look: Any) -> None:
    own = {"marker": "o", "markersize": 3.2, **look}
    if hollow:
        own["markerfacecolor"] = "white"
    axes.plot(numbers(values), np.arange(len(values)) + shift, ls="", markeredgewidth=0.7, **own)
