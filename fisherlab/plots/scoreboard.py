"""The scoreboard: how good each approximation is on each model, before, during and after training."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from fisherlab.plots import style
from fisherlab.records.frames import require
from fisherlab.records.labels import label

_PANELS: dict[str, tuple[str, str, Normalize]] = {
    "scaled_error": ("scaled error (lower is better)", "viridis_r", Normalize(0, 1)),
    "decrease_share": ("share of the optimal decrease (higher is better)", "viridis", Normalize(0, 1)),
    "gradients": ("cost of the statistics, in gradients of the same samples", "viridis_r", LogNorm(0.3, 30)),
}
_ROW = 0.17  # height of an approximation, in inches
_HEAD = 0.62  # above and below a panel's rows


@style.styled
def scoreboard(frame: pd.DataFrame, *, caption: str) -> Figure:
    """Approximations against models × states of training, a panel a metric, each entry with its number.

    Args:
        frame: Columns ``model``, ``state``, ``approximation`` and any of ``scaled_error``,
            ``decrease_share`` and ``gradients`` (the cost of the statistics over that of a gradient of the
            same samples); a row a (model, state, approximation). Rows and columns are drawn in its order.
        caption: Data, checkpoints, seed and device; written under the figure.

    Returns:
        The figure, 7 inches wide.

    Raises:
        InputError: A column is missing or there are no rows.
    """
    require(frame, ("model", "state", "approximation"))
    metrics = [name for name in _PANELS if name in frame and frame[name].notna().any()]
    names = list(dict.fromkeys(frame["approximation"]))
    columns = list(dict.fromkeys(zip(frame["model"], frame["state"], strict=True)))
    height = len(metrics) * (_HEAD + _ROW * len(names)) + 0.4
    figure = style.new_figure(
        style.PAGE_WIDTH, height, caption=caption, title="Approximations on the built-in models"
    )
    axes = figure.subplots(len(metrics), 1, squeeze=False)[:, 0]
    for place, (panel, metric) in enumerate(zip(axes, metrics, strict=True)):
        table = frame.pivot_table(
            index="approximation", columns=["model", "state"], values=metric, sort=False
        )
        numbers = table.reindex(index=names, columns=pd.MultiIndex.from_tuples(columns)).to_numpy(float)
        _draw(panel, metric, numbers, names, columns, named=place == 0)
    return figure


def _draw(
    axes: Any,
    metric: str,
    numbers: np.ndarray[Any, np.dtype[np.float64]],
    names: list[str],
    columns: list[tuple[str, str]],
    *,
    named: bool,
) -> None:
    title, colors, norm = _PANELS[metric]
    axes.set_title(title, loc="left")
    axes.set_facecolor(style.MISSING_COLOR)
    drawn = axes.imshow(numbers, cmap=colors, norm=norm, aspect="auto", interpolation="nearest")
    for (row, column), value in np.ndenumerate(numbers):
        if np.isfinite(value):
            red, green, blue, _ = drawn.cmap(drawn.norm(value))
            dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
            axes.text(
                column,
                row,
                _text(value),
                ha="center",
                va="center",
                fontsize=style.SMALL_SIZE - 0.8,
                color="white" if dark else "black",
            )
    axes.set_yticks(range(len(names)), [label(name) for name in names])
    axes.set_xticks(range(len(columns)), [state for _, state in columns], rotation=90)
    axes.tick_params(length=0)
    models = [model for model, _ in columns]
    starts = [k for k in range(len(models)) if k == 0 or models[k] != models[k - 1]]
    for start, end in zip(starts, [*starts[1:], len(models)], strict=True):
        if start:
            axes.axvline(start - 0.5, color="white", linewidth=2)
        if named:
            axes.annotate(
                models[start].replace("cifar-", "cifar-\n").replace("-small", "-\nsmall"),
                ((start + end - 1) / 2, 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, 14),
                textcoords="offset points",
                ha="center",
                fontsize=style.SMALL_SIZE,
                fontweight="bold",
            )


def _text(value: float) -> str:
    """Two or three characters."""
    if value >= 0.995:
        return f"{value:.0f}" if value >= 9.95 or abs(value - 1) < 0.005 else f"{value:.1f}"
    return f"{value:.2f}".removeprefix("0")
