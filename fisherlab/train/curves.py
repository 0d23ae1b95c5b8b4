"""The curves of a run: loss and metric against epochs and seconds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fisherlab.plots import PAGE_WIDTH, new_figure, save, styled
from fisherlab.train import log

_COLORS = {"train": "#3b6ea5", "test": "#c8553d"}
_CLOCKS = {"epoch": "epochs", "seconds": "seconds of training"}


def write_curves(folder: Path, metric: str, *, title: str, caption: str) -> list[Path]:
    """Writes `loss.png/.pdf`, and `metric.png/.pdf` where something was tested, from a run's log."""
    rows = [line for line in log.read(folder) if line.get("kind") == "evaluation"]
    losses = {"train": "train_loss", "test": "test_loss"}
    paths = save(curves(rows, losses, title=title, label="loss", caption=caption), folder / "loss")
    if any(row.get(metric) is not None for row in rows):
        name = metric.replace("_", " ")
        figure = curves(rows, {"test": metric}, title=title, label=name, caption=caption)
        paths += save(figure, folder / "metric")
    return paths


@styled
def curves(
    rows: Sequence[dict[str, Any]], series: dict[str, str], *, title: str, label: str, caption: str
) -> Figure:
    """Values against epochs (left) and seconds (right).

    Args:
        rows: with `epoch`, `seconds` and the values; None where there is no value.
        series: "train" or "test" to the name of the value.
        title: on top.
        label: of the vertical axis.
        caption: model, data, optimizer, seed and device; written below.

    Returns:
        The figure, 7 inches wide.
    """
    known = {name: [row for row in rows if row.get(key) is not None] for name, key in series.items()}
    key = [Line2D([], [], color=_COLORS[name], label=name) for name in series if known[name]]
    figure = new_figure(PAGE_WIDTH, 2.4, caption=caption, title=title, legend=key)
    panels = figure.subplots(1, 2, sharey=True)
    panels[0].set_ylabel(label)
    for axes, (clock, words) in zip(panels, _CLOCKS.items(), strict=True):
        axes.set_xlabel(words)
        axes.grid()
        for name, own in known.items():
            x = [row[clock] for row in own]
            axes.plot(x, [row[series[name]] for row in own], color=_COLORS[name], marker="o", markersize=2)
    return figure
