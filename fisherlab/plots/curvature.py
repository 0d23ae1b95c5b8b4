"""Curvature as approximations see it, and which divergence prefers which of them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fisherlab.plots import style
from fisherlab.plots.profiles import diagonal_only
from fisherlab.records.definitions import name_of
from fisherlab.records.frames import Array, compared_layers, pivot, require, with_series
from fisherlab.records.labels import label, short

_BAND_SHADES = ("#e4dfd3", "#f0ede5", "#f9f8f4")  # top, middle, tail
_BAND_WORDS = ("first 50 %", "next 40 %", "next 9.9 %")
_LEAST_RATIO = 1e-4  # drawn there: far below any that tells something
_DIVERGENCES = ("scaled_error", "von_neumann_divergence", "logdet_divergence_scaled")
_DIVERGENCE_WORDS = ("Frobenius", "von Neumann", "log-det")
_NUMBERED = 14  # layers up to which each cell has room for its rank
_FAR = 3.0  # times the best: the darkest colour


@style.styled
def curvature(
    eigenvalues: Array,
    ends: list[int],
    sizes: Array,
    ratios: Mapping[str, Array],
    overlaps: Mapping[str, Array],
    bands: Mapping[str, tuple[float | None, ...]],
    *,
    layer: str,
    caption: str,
) -> Figure:
    """Left: q_i = u_iᵀF̂u_i/ℓ_i against ℓ_i. Right: how much of the leading subspaces of F and F̂ is common.

    Left: a dot a direction, and a line a band at the geometric mean of its q_i; below 1 F̂ does not see the
    curvature, and its steps are too long. Right: ‖U_kᵀÛ_k‖²/k; 1 where the subspaces are the same.

    Args:
        eigenvalues: ℓ_i, descending, [r].
        ends: How many of them the top, the middle and the tail end at.
        sizes: k, [s].
        ratios: Name -> q_i [r].
        overlaps: Name -> ‖U_kᵀÛ_k‖²/k [s].
        bands: Name -> geometric means of the three bands; None where a band has no direction.
        layer: Name of the layer, for the title.
        caption: Data, model, checkpoint, seed and device; written under the figure.

    Returns:
        The figure, 7 inches wide.
    """
    names = list(ratios)
    figure = style.new_figure(
        style.PAGE_WIDTH,
        2.6,
        caption=caption,
        title=f"Layer {layer}: curvature as the approximations see it",
        legend=[Line2D([], [], **style.look(name, names), label=label(name)) for name in names],
    )
    left, right = figure.subplots(1, 2)
    _shade_bands(left, eigenvalues, ends)
    for name in names:
        dots = np.maximum(ratios[name], _LEAST_RATIO)
        size = 2.0 if len(dots) <= 200 else 1.0
        left.plot(
            eigenvalues, dots, ".", color=style.color(name, names), ms=size, alpha=0.35, rasterized=True
        )
    for name in names:
        for (start, stop), mean in zip(_spans(ends), bands[name], strict=True):
            if mean is not None:
                reached = eigenvalues[start], eigenvalues[stop - 1]
                left.plot(reached, [max(mean, _LEAST_RATIO)] * 2, marker="|", **style.look(name, names))
    left.axhline(1.0, color=style.MUTED, lw=0.8, ls=(0, (1, 1.5)))
    left.set(xscale="log", yscale="log")
    left.invert_xaxis()
    style.name_logarithms(left.yaxis)
    left.set_xlabel("eigenvalue $\\ell_i$ of $F$, the largest first")
    left.set_ylabel("$q_i = u_i^T\\hat{F}u_i\\,/\\,\\ell_i$, $\\hat{F}$ trace-matched")
    for name in names:
        right.plot(sizes, overlaps[name], **style.look(name, names))
    right.set(xscale="log", ylim=(0, 1.03))
    right.grid(axis="y")
    right.set_xlabel("dimension $k$ of the leading subspaces")
    right.set_ylabel("$\\|U_k^T\\hat{U}_k\\|^2/k$")
    return figure


def _spans(ends: list[int]) -> list[tuple[int, int]]:
    """Where the bands start and stop."""
    return list(zip([0, *ends], ends, strict=False))


def _shade_bands(axes: Axes, eigenvalues: Array, ends: list[int]) -> None:
    """Each band of the spectrum on its shade, with its part of the trace and its directions above."""
    edges = [eigenvalues[0] * 1.15]
    for end in ends:
        after = eigenvalues[end] if end < len(eigenvalues) else eigenvalues[-1] / 1.3
        edges.append((eigenvalues[end - 1] * after) ** 0.5)
    for place, (start, stop) in enumerate(_spans(ends)):
        if stop == start:
            continue
        axes.axvspan(edges[place], edges[place + 1], color=_BAND_SHADES[place], lw=0, zorder=-1)
        axes.annotate(
            f"{_BAND_WORDS[place]}\n{stop - start:,}",
            ((edges[place] * edges[place + 1]) ** 0.5, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 1),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=style.SMALL_SIZE,
            color=style.MUTED,
        )
    axes.set_xlim(edges[-1], edges[0])


@style.styled
def divergences(records: pd.DataFrame, *, caption: str) -> Figure:
    """Which divergence prefers whom: the rank of every approximation in each of three, layer by layer.

    Frobenius (the scaled error), von Neumann and the scaled log-det divergence, none of which depends on the
    scale of F̂. The colour is the divergence as a multiple of the layer's least; rank 1 is the best. Layers
    that have only the approximation `diagonal` (norms) are left out, and counted under the axis.

    Args:
        records: Columns ``layer``, ``approximation``, ``scaled_error``, ``von_neumann_divergence`` and
            ``logdet_divergence_scaled``; numbers may be NaN. Of several targets the main one is shown.
        caption: Data, model, checkpoint, seed and device; written under the figure.

    Returns:
        The figure, 7 inches wide.

    Raises:
        InputError: A column is missing or there are no rows.
    """
    require(records, ("layer", "approximation", *_DIVERGENCES))
    layers, diagonal = compared_layers(records)
    rows = with_series(records)
    rows = rows[[not one.target for one in rows["series"]]]
    series = list(dict.fromkeys(rows["series"]))
    tables = [pivot(rows, column, layers, series).T for column in _DIVERGENCES]
    known = np.any([np.isfinite(table).any(axis=1) for table in tables], axis=0)
    names = [one.approximation for one, there in zip(series, known, strict=True) if there]
    figure = style.new_figure(
        style.PAGE_WIDTH,
        0.75 + 0.19 * max(1, len(names)) + _names_height(layers),
        caption=caption,
        title="Which divergence prefers whom: ranks of the approximations, layer by layer",
    )
    panels = list(figure.subplots(1, 3, sharey=True))
    image: Any = None
    for axes, column, words, table in zip(panels, _DIVERGENCES, _DIVERGENCE_WORDS, tables, strict=True):
        axes.set_title(f"{words}\n{name_of(column)}")
        image = _ranks(axes, table[known]) or image
        axes.set_xticks(
            range(len(layers)), [short(layer, 20) for layer in layers], rotation=90, parse_math=False
        )
        axes.tick_params(length=0)
    if names:
        panels[0].set_yticks(range(len(names)), [label(name) for name in names])
    panels[1].set_xlabel(f"layer\n{diagonal_only(diagonal)}".rstrip())
    if image is not None:
        bar = figure.colorbar(image, ax=panels, shrink=0.8, pad=0.01, ticks=[1, 1.5, 2, _FAR])
        bar.ax.minorticks_off()
        bar.set_ticklabels(["best", "1.5 ×", "2 ×", f"≥ {_FAR:g} ×"])
    return figure


def _ranks(axes: Axes, table: Array) -> Any:
    """Values [methods, layers] by their multiple of the least, with their ranks where there is room."""
    if not np.isfinite(table).any():
        style.not_available(axes)
        return None
    with np.errstate(invalid="ignore", divide="ignore"):
        least = np.fmin.reduce(table, axis=0)
        multiples = np.where(table == least, 1.0, table / least)
    axes.set_facecolor(style.MISSING_COLOR)
    image = axes.imshow(
        np.ma.masked_invalid(multiples), cmap="viridis_r", norm=LogNorm(1.0, _FAR), aspect="auto"
    )
    for spine in axes.spines.values():
        spine.set_visible(False)
    if table.shape[1] <= _NUMBERED:
        for (row, column), value in np.ndenumerate(table):
            if np.isfinite(value):
                rank = 1 + int((table[:, column] < value).sum())
                dark = multiples[row, column] > _FAR**0.5
                axes.text(
                    column,
                    row,
                    str(rank),
                    ha="center",
                    va="center",
                    fontsize=style.SMALL_SIZE,
                    fontweight="bold" if rank == 1 else "normal",
                    color="white" if dark else "black",
                )
    return image


def _names_height(layers: list[str]) -> float:
    """Inches that the turned names take."""
    return max(style.text_width(short(layer, 20), style.SMALL_SIZE) for layer in layers) + 0.3
