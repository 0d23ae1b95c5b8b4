"""Curves: the spectra of a layer, and directions against damping."""

from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fisherlab.plots import style
from fisherlab.plots.profiles import MANY, diagonal_only, direction_profiles, shade_key
from fisherlab.records.definitions import DIRECTIONS, name_of
from fisherlab.records.frames import Array, compared_layers, numbers, require
from fisherlab.records.labels import label, number


@style.styled
def spectrum(
    exact: Array,
    approximations: Mapping[str, Array | None],
    preconditioned: Mapping[str, Array | None],
    *,
    layer: str,
    damping: float,
    caption: str,
    size: int | None = None,
) -> Figure:
    """Eigenvalues of F and F̂, and what is left of F after preconditioning by F̂.

    Left: eigenvalues in descending order; those at or below λ_max · D · ε (ε of the array's
    dtype), zero to rounding, are left out, so that a curve ends at its rank. Right: non-zero
    eigenvalues of (F̂ + λI)⁻¹ F, F̂ scaled to the trace of F; a perfect preconditioner keeps them
    near 1.

    Args:
        exact: Eigenvalues of F, any order; all, [D], or the largest where the others are zero.
        approximations: Name -> eigenvalues of F̂, all or as many of the largest as `exact` has; None where
            not computed.
        preconditioned: Name -> non-zero eigenvalues of (F̂ + λI)⁻¹ F, [k], with F̂ · tr F / tr F̂
            in the place of F̂; None where not computed.
        layer: Name of the layer, for the title.
        damping: λ.
        caption: Data, model, checkpoint, seed and device; written under the figure.
        size: D; None: the number of eigenvalues of F.

    Returns:
        The figure, 7 inches wide.
    """
    names = list(dict.fromkeys([*approximations, *preconditioned]))
    size = len(exact) if size is None else size
    key = [Line2D([], [], color="black", lw=2.4, label=f"exact F (rank {_rank(exact)} of {size})")]
    for name in names:
        values = approximations.get(name)
        rank = "" if values is None else f" ({_rank_words(values, size)})"
        key.append(Line2D([], [], **style.look(name, names), label=label(name) + rank))
    figure = style.new_figure(
        style.PAGE_WIDTH,
        2.4,
        caption=caption,
        title=f"Layer {layer}: spectra",
        legend=key,
    )
    left, right = figure.subplots(1, 2)
    left.plot(*_descending(exact), color="black", lw=2.4)
    for name in names:
        left.plot(*_descending(approximations.get(name)), **style.look(name, names))
        right.plot(*_descending(preconditioned.get(name)), **style.look(name, names))
    left.set_ylabel("eigenvalue of $F$ or $\\hat{F}$")
    right.set_ylabel("eigenvalue of $(\\hat{F}+\\lambda I)^{-1}F$")
    right.set_title(f"preconditioned, damping $\\lambda$ = {number(damping)}, $\\hat{{F}}$ trace-matched")
    for axes in (left, right):
        axes.set_xlabel("place in descending order")
        _finish_log(axes)
    if right.lines:
        right.axhline(1.0, color=style.MUTED, lw=0.8, ls=(0, (1, 1.5)))
        right.annotate(
            "1",
            (1.0, 1.0),
            xycoords=("axes fraction", "data"),
            xytext=(2, 0),
            textcoords="offset points",
            va="center",
            color=style.MUTED,
        )
    return figure


@style.styled
def directions(frame: pd.DataFrame, *, caption: str, shaded: Collection[str] = ()) -> Figure:
    """How good the preconditioned directions are, against the damping.

    The cosine between (F̂ + λI)⁻¹∇h and (F + λI)⁻¹∇h, and the share of the decrease of the damped
    quadratic model that the approximate direction reaches. Up to 12 layers: two panels a layer,
    against the damping. More: two panels a damping, the k-th of each layer, against the position
    of the layer. Layers that have only the approximation `diagonal` (norms) are left out, and
    counted, where others have more.

    Args:
        frame: Columns ``layer``, ``approximation``, ``damping``, ``direction_cosine``,
            ``decrease_share``; numbers may be NaN.
        caption: Data, model, checkpoint, seed and device; written under the figure.
        shaded: Layers whose exact block has drawn labels. With few labels the gradient of the data mostly
            leaves the range of F, and the exact step is nearly its share outside over λ: the decrease share
            says little.

    Returns:
        The figure, 7 inches wide, no taller than a page for six dampings.

    Raises:
        InputError: A column is missing or the frame is empty.
    """
    require(frame, ("layer", "approximation", "damping", *DIRECTIONS))
    frame = frame.assign(**{metric: numbers(frame[metric]) for metric in DIRECTIONS})
    layers, diagonal = compared_layers(frame)
    left = diagonal_only(diagonal)
    frame = frame[frame["layer"].isin(layers)]
    if len(layers) > MANY:
        return direction_profiles(frame, DIRECTIONS, layers, caption=caption, left=left, shaded=shaded)
    names = list(frame["approximation"].unique())
    lowest = {metric: float(np.nanmin(frame[metric], initial=0.0)) * 1.03 for metric in DIRECTIONS}
    key = [Line2D([], [], **style.look(name, names), label=label(name)) for name in names]
    figure, panels = style.layer_figure(
        layers,
        2.9,
        2,
        sharey="row",
        caption=caption,
        title="Approximate against exact natural gradient direction" + (f" (layers: {left})" if left else ""),
        legend=[*key, *shade_key(layers, shaded)],
    )
    for place, (layer, pair) in enumerate(zip(layers, panels, strict=True)):
        rows = frame[frame["layer"] == layer]
        for axes, metric in zip(pair, DIRECTIONS, strict=True):
            _draw_sweep(axes, rows, metric, names)
            axes.set_ylim(lowest[metric], 1.03)
            if layer in shaded:
                axes.set_facecolor(style.SHADE)
            if place % style.ACROSS == 0:
                axes.set_ylabel(name_of(metric))
        pair[0].tick_params(labelbottom=False)
        pair[1].set_xlabel("damping $\\lambda$")
    return figure


def _draw_sweep(axes: Axes, rows: pd.DataFrame, metric: str, names: list[str]) -> None:
    """One metric of one layer against the damping."""
    known = rows.dropna(subset=[metric]).sort_values("damping")
    axes.grid(axis="y")
    if known.empty:
        style.say(axes, "n/a")
        axes.set_xticks([])
        return
    for name in names:
        own = known[known["approximation"] == name]
        if own.empty:  # a line without points would still claim room in the layout
            continue
        axes.plot(
            own["damping"],
            own[metric],
            marker="o",
            markersize=2.2,
            clip_on=False,
            **style.look(name, names),
        )
    axes.set_xscale("log")
    style.name_logarithms(axes.xaxis)


def _rank(values: Array) -> int:
    return len(_nonzero(values))


def _rank_words(values: Array, size: int) -> str:
    """The rank of F̂; its least where only the largest eigenvalues of so many are given."""
    rank = _rank(values)
    return f"rank {rank}" if rank < len(values) or rank == size else f"rank ≥ {rank}"


def _nonzero(values: Array) -> Array:
    """The finite values that are positive beyond rounding."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return finite
    epsilon = np.finfo(values.dtype).eps if values.dtype.kind == "f" else 0.0
    return finite[finite > max(float(finite.max()), 0.0) * len(values) * epsilon]


def _descending(values: Array | None) -> tuple[Array, Array]:
    """Places 1, 2, … and the non-zero values in descending order."""
    kept = np.empty(0) if values is None else np.sort(_nonzero(values))[::-1]
    return np.arange(1, len(kept) + 1), kept


def _finish_log(axes: Axes) -> None:
    """Logarithmic values, or "n/a" where there is nothing to draw."""
    drawn = [line for line in axes.lines if len(np.asarray(line.get_ydata()))]
    if not drawn:
        for line in list(axes.lines):
            line.remove()
        style.not_available(axes)
        return
    axes.set_yscale("log")
    style.name_logarithms(axes.yaxis)
    axes.grid()
    axes.set_xlim(0, None)
