"""A training followed: stages, errors, directions, spectra, and what the optimizer recorded."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fisherlab.plots import style
from fisherlab.plots.overtime import (
    EXACT,
    depth_bar,
    draw_layers,
    drawn_layers,
    finish,
    layer_key,
    look,
    name_columns,
    name_time,
    names_of,
    scale_steps,
    time_of,
)
from fisherlab.records.definitions import QUALITIES, name_of
from fisherlab.records.frames import numbers, require, table

_RECORDED = {
    "rate": "rate $\\alpha_l$",
    "trace_input": "trace of the input factor",
    "trace_output": "trace of the output factor",
    "damping_input": "damping, input",
    "damping_output": "damping, output",
    "condition": "condition of damped $\\hat{F}$",
    "direction_norm": "$\\|D\\|$",
    "gradient_norm": "$\\|\\nabla h\\|$",
}


@style.styled
def stages(frame: pd.DataFrame, *, caption: str, whole: str = "all") -> Figure:
    """Left: Σ tr F over each stage and over all layers; right: Σ tr F̂ / Σ tr F over all layers.

    Args:
        frame: columns ``checkpoint``, ``step``, ``stage``, ``approximation``, ``trace_exact``,
            ``trace_ratio``.
        caption: data, model, seed and device; written under the figure.
        whole: the stage that is all layers.

    Returns:
        The figure, 7 inches wide.

    Raises:
        InputError: A column is missing or there are no rows.
    """
    require(frame, ("checkpoint", "stage", "approximation", "trace_exact", "trace_ratio"))
    time = time_of(frame)
    parts = [str(name) for name in frame["stage"].unique() if name != whole]
    total = frame[frame["stage"] == whole]
    names = list(total["approximation"][numbers(total["trace_ratio"]).notna()].unique())
    key = [*layer_key(parts, "stage"), Line2D([], [], **{**EXACT, "label": "all layers"})]
    key += [Line2D([], [], **look(name, names, 1)) for name in names]
    figure = style.new_figure(
        style.PAGE_WIDTH, 2.5, caption=caption, title="Stages of the network", legend=key
    )
    left, right = figure.subplots(1, 2)
    sums = table(frame, "trace_exact", [*parts, whole], time.names, "stage")
    draw_layers(left, time.places, sums[:-1])
    left.plot(time.places, sums[-1], **EXACT)
    left.set_title("$\\Sigma$ tr $F$ over the layers of a stage")
    depth_bar(figure, [left], parts, "stage")
    ratio = table(total, "trace_ratio", names, time.names, "approximation")
    for name, own in zip(names, ratio, strict=True):
        right.plot(time.places, own, **look(name, names, len(time.names)))
    finish(right, ratio)
    right.axhline(1.0, color=style.MUTED, lw=0.8, ls=(0, (1, 1.5)))
    right.set_title("$\\Sigma$ tr $\\hat{F}$ / $\\Sigma$ tr $F$ over all layers")
    for axes in (left, right):
        name_time(axes, time)
    return figure


@style.styled
def quality(frame: pd.DataFrame, *, caption: str) -> Figure:
    """Scaled error, direction cosine and decrease share of few layers over the training; a column a layer.

    Args:
        frame: columns ``checkpoint``, ``step``, ``layer``, ``approximation`` and the three metrics.
        caption: data, model, seed and device; written under the figure.

    Returns:
        The figure, 7 inches wide.

    Raises:
        InputError: A column is missing or there are no rows.
    """
    require(frame, ("checkpoint", "layer", "approximation", *QUALITIES))
    layers, left = drawn_layers(frame)
    names, time = names_of(frame, layers, *QUALITIES), time_of(frame)
    figure, panels = style.layer_figure(
        layers,
        1.15 * len(QUALITIES),
        len(QUALITIES),
        caption=caption,
        title=f"Errors and directions over the training{left}",
        legend=[Line2D([], [], **look(name, names, 1)) for name in names],
    )
    lowest = {metric: float(np.nanmin(numbers(frame[metric]), initial=0.0)) for metric in QUALITIES}
    for place, (layer, own) in enumerate(zip(layers, panels, strict=True)):
        rows = frame[frame["layer"] == layer]
        for axes, metric in zip(own, QUALITIES, strict=True):
            values = table(rows, metric, names, time.names, "approximation")
            for name, line in zip(names, values, strict=True):
                axes.plot(time.places, line, **look(name, names, len(time.names)))
            finish(axes, values, logarithmic=False)
            axes.set_ylim(1.05 * lowest[metric], 1.05)
            name_time(axes, time)
            axes.set_ylabel("" if place % style.ACROSS else name_of(metric))
            if metric != QUALITIES[-1]:
                axes.set_xlabel("")
    return figure


@style.styled
def spread(frame: pd.DataFrame, *, caption: str) -> Figure:
    """Median (line) and quartiles (band) of the metrics over the layers, over the training.

    Args:
        frame: columns ``checkpoint``, ``step``, ``approximation``, ``metric``, ``low``, ``median``, ``high``.
        caption: data, model, seed and device; written under the figure.

    Returns:
        The figure, 7 inches wide.

    Raises:
        InputError: A column is missing or there are no rows.
    """
    require(frame, ("checkpoint", "approximation", "metric", "low", "median", "high"))
    names, time = list(frame["approximation"].unique()), time_of(frame)
    figure = style.new_figure(
        style.PAGE_WIDTH,
        2.3,
        caption=caption,
        title="Errors and directions over the training: median and quartiles over the layers",
        legend=[Line2D([], [], **look(name, names, 1)) for name in names],
    )
    metrics = list(frame["metric"].unique())
    grid = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axes, metric in zip(grid, metrics, strict=True):
        rows = frame[frame["metric"] == metric]
        low, middle, high = (
            table(rows, part, names, time.names, "approximation") for part in ("low", "median", "high")
        )
        for place, name in enumerate(names):
            own = look(name, names, len(time.names))
            axes.plot(time.places, middle[place], **own)
            axes.fill_between(time.places, low[place], high[place], color=own["color"], alpha=0.15, lw=0)
        finish(axes, middle, logarithmic=False)
        axes.set_ylim(1.05 * float(np.nanmin(low, initial=0.0)), 1.05)
        axes.set_title(name_of(metric))
        name_time(axes, time)
    return figure


@style.styled
def spectra(frame: pd.DataFrame, *, caption: str) -> Figure:
    """Effective rank and condition number of F, a line a layer; one checkpoint: against the layers.

    Args:
        frame: columns ``checkpoint``, ``step``, ``layer``, ``effective_rank``, ``condition``.
        caption: data, model, seed and device; written under the figure.

    Returns:
        The figure, 7 inches wide.

    Raises:
        InputError: A column is missing or there are no rows.
    """
    words = {"effective_rank": "effective rank of $F$", "condition": "condition number of $F+\\lambda I$"}
    require(frame, ("checkpoint", "layer", *words))
    time = time_of(frame)
    known = frame[frame[list(words)].notna().any(axis=1)]
    layers = [str(layer) for layer in known["layer"].unique()]
    every = frame["layer"].nunique()
    left = f" (of {len(layers)} of {every} layers; the others' were not computed)"
    alone = len(time.names) == 1
    figure = style.new_figure(
        style.PAGE_WIDTH,
        2.3,
        caption=caption,
        title="Spectra of the exact blocks" + (left if every > len(layers) else ""),
        legend=[] if alone else layer_key(layers),
    )
    grid = figure.subplots(1, 2)
    for axes, (column, title) in zip(grid, words.items(), strict=True):
        axes.set_title(title)
        values = table(known, column, layers, time.names, "layer")
        if alone:
            axes.plot(values[:, 0], "o-", color="black", markersize=3, lw=0.8)
            finish(axes, values)
            name_columns(axes, layers, "layer", style.PAGE_WIDTH / 2 - 0.5, shift=0.0)
        else:
            draw_layers(axes, time.places, values)
            name_time(axes, time)
    if not alone:
        depth_bar(figure, list(grid), layers)
    return figure


@style.styled
def optimizer(frame: pd.DataFrame, *, caption: str) -> Figure:
    """What an optimizer recorded, a panel a quantity and a line a layer.

    Args:
        frame: columns ``step``, ``layer``, and any of ``rate``, ``trace_input``, ``trace_output``,
            ``damping_input``, ``damping_output``, ``condition``, ``direction_norm``, ``gradient_norm``.
        caption: data, model, seed and device; written under the figure.

    Returns:
        The figure, 7 inches wide.

    Raises:
        InputError: A column is missing or there are no rows.
    """
    require(frame, ("step", "layer"))
    drawn = [name for name in _RECORDED if name in frame and numbers(frame[name]).notna().any()]
    layers = [str(layer) for layer in frame["layer"].unique()]
    steps = np.unique(numbers(frame["step"]))
    across = min(4, max(1, len(drawn)))
    down = max(1, -(-len(drawn) // across))
    figure = style.new_figure(
        style.PAGE_WIDTH,
        1.55 * down,
        caption=caption,
        title="What the optimizer recorded, by layer",
        legend=layer_key(layers),
    )
    grid = figure.subplots(down, across, squeeze=False).ravel()
    rows = frame.rename(columns={"step": "checkpoint"})
    for axes, column in zip(grid, drawn, strict=False):
        axes.set_title(_RECORDED[column])
        draw_layers(axes, steps, table(rows, column, layers, list(steps), "layer"))
        scale_steps(axes, steps)
        axes.set_xlabel("training step")
    style.hide(grid[len(drawn) :])
    depth_bar(figure, list(grid[: len(drawn)]), layers)
    return figure
