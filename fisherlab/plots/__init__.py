"""Figures of given numbers: each function returns a ``matplotlib.figure.Figure``.

Nothing is computed here beyond the layout, nothing is shown, and no global setting of matplotlib
changes. Every figure carries a caption that says what was measured.
"""

from fisherlab.plots.bars import errors, waterfall
from fisherlab.plots.curvature import curvature, divergences
from fisherlab.plots.curves import directions, spectrum
from fisherlab.plots.histograms import histograms, isotropies, normality
from fisherlab.plots.matrices import coupling, heatmap
from fisherlab.plots.scoreboard import scoreboard
from fisherlab.plots.style import COLUMN_WIDTH, PAGE_WIDTH, color, new_figure, save, styled
from fisherlab.records.labels import label, number

__all__ = [
    "COLUMN_WIDTH",
    "PAGE_WIDTH",
    "color",
    "coupling",
    "curvature",
    "directions",
    "divergences",
    "errors",
    "heatmap",
    "histograms",
    "isotropies",
    "label",
    "new_figure",
    "normality",
    "number",
    "save",
    "scoreboard",
    "spectrum",
    "styled",
    "waterfall",
]
