"""The theorems on rates: what a step reaches in the quadratic model, and errors against a bound."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fisherlab.plots import style
from fisherlab.records.frames import Array

_LAYERWISE, _SINGLE, _BOUND = "#d55e00", "#0072b2", "black"
_METHODS = ("#0072b2", "#d55e00", "#8c3a00", "#009e73")


@style.styled
def quadratic_models(
    steps: Array,
    block_diagonal: Mapping[str, Array],
    full: Mapping[str, Array],
    *,
    title: str,
    caption: str,
) -> Figure:
    """The quadratic model's change of the loss in each step, by layer-wise rates and by one rate.

    Args:
        steps: [k].
        block_diagonal: "layer-wise" and "single" -> the change in the block-diagonal model, [k], below 0.
        full: the same in the model with the products of different layers, of any sign.
        title: on top.
        caption: data, model, seed and device; written under the figure.

    Returns:
        The figure, 7 inches wide: the block-diagonal model, the ratio of its two values, the full model.
    """
    colors = {"layer-wise": _LAYERWISE, "single": _SINGLE}
    key = [
        Line2D([], [], color=_LAYERWISE, label="a rate a layer (LNGD's)"),
        Line2D([], [], color=_SINGLE, ls="--", label="the best single rate"),
    ]
    figure = style.new_figure(style.PAGE_WIDTH, 2.3, caption=caption, title=title, legend=key)
    left, middle, right = figure.subplots(1, 3)
    for axes, models in ((left, block_diagonal), (right, full)):
        for name, values in models.items():
            axes.plot(steps, values, color=colors[name], ls="-" if name == "layer-wise" else "--")
        axes.axhline(0.0, color=style.MUTED, lw=0.6)
        axes.set_ylabel("change of $h$ in the quadratic model")
    left.set_title("block-diagonal model: the theorem's")
    right.set_title("products of layers too: no theorem")
    middle.plot(steps, block_diagonal["single"] / block_diagonal["layer-wise"], color=_SINGLE)
    middle.axhline(1.0, color=style.MUTED, lw=0.8, ls=(0, (1, 1.5)))
    middle.set_ylim(0, 1.05)
    middle.set_title("the theorem: at most 1")
    middle.set_ylabel("single / layer-wise")
    for axes in (left, middle, right):
        axes.set_xlabel("step")
        axes.grid()
    return figure


@style.styled
def error_bounds(panels: Mapping[float, Mapping[str, Array]], *, title: str, caption: str) -> Figure:
    """‖y − v_k‖²/‖y − v_0‖² of some methods against the step k, with the bound (1 − α)^k.

    Args:
        panels: α -> method -> values for k = 0, 1, …, [k].
        title: on top.
        caption: network, seed and device; written under the figure.

    Returns:
        The figure, 7 inches wide, a panel an α, logarithmic.
    """
    methods = list(next(iter(panels.values())))
    looks: dict[str, dict[str, Any]] = {
        name: {"color": _METHODS[i], "ls": style.dashes(i)} for i, name in enumerate(methods)
    }
    key = [Line2D([], [], color=_BOUND, lw=0.9, label="bound $(1-\\alpha)^k$")]
    key += [Line2D([], [], **looks[name], label=name) for name in methods]
    figure = style.new_figure(style.PAGE_WIDTH, 2.4, caption=caption, title=title, legend=key)
    for axes, (alpha, paths) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        steps = np.arange(len(paths[methods[0]]))
        axes.plot(steps, (1 - alpha) ** steps, color=_BOUND, lw=0.9)
        for name, values in paths.items():
            axes.plot(steps, values, **looks[name])
        axes.set_yscale("log")
        style.name_logarithms(axes.yaxis)
        axes.set_title(f"$\\alpha$ = {alpha:g}")
        axes.set_xlabel("step $k$")
        axes.grid()
    figure.axes[0].set_ylabel("$\\|y-v_k\\|^2\\,/\\,\\|y-v_0\\|^2$")
    return figure
