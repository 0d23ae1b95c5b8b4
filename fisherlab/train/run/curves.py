"""The curves of a run: loss and metric against epochs and seconds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fisherlab.plots import PAGE_WIDTH, new_figure, save, styled
from fisherlab.train.run import log

_HEIGHT = 2.4  # inches: two panels side by side, each a little wider than high
_COLORS = {"train": "#3b6ea5", "test": "#c8553d"}
_WORDS = {"train": "train: mean over the steps since the last evaluation", "test": "test"}
_CLOCKS = {"epoch": "epochs", "seconds": "seconds of training"}


def write_curves(folder: Path, metric: str, *, title: str, caption: str) -> list[Path]:
    """Writes `loss.png/.pdf`, and `metric.png/.pdf` and `bleu.png/.pdf` where there are such values."""
    rows = [line for line in log.read(folder) if line.get("kind") == "evaluation"]
    losses = {"train": "train_loss", "test": "test_loss"}
    paths = save(curves(rows, losses, title=title, label="loss", caption=caption), folder / "loss")
    for file, key, label in (("metric", metric, metric.replace("_", " ")), ("bleu", "bleu", "BLEU")):
        if any(row.get(key) is not None for row in rows):
            figure = curves(rows, {"test": key}, title=title, label=label, caption=caption)
            paths += save(figure, folder / file)
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
    key = [Line2D([], [], color=_COLORS[name], label=_WORDS[name]) for name in series if known[name]]
    figure = new_figure(PAGE_WIDTH, _HEIGHT, caption=caption, title=title, legend=key)
    panels = figure.subplots(1, 2, sharey=True)
    panels[0].set_ylabel(label)
    for axes, (clock, words) in zip(panels, _CLOCKS.items(), strict=True):
        axes.set_xlabel(words)
        axes.grid()
        for name, own in known.items():
            x = [row[clock] for row in own]
            axes.plot(x, [row[series[name]] for row in own], color=_COLORS[name], marker="o", markersize=2)
    return figure
