"""The magnitudes of matrices as a heat map shows them: panels, the enlarged square, the colour scale."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.colors import LogNorm, Normalize

from fisherlab.errors import InputError
from fisherlab.records.frames import Array
from fisherlab.records.labels import label

OVER = 10.0
"""Largest ∣F∣ to the end of the colour scale: what lies beyond (F̂ on a scale of its own) is brightest."""
_DECADES = (2, 6)  # fewest and most decades of a logarithmic scale
_LINEAR_MEDIAN = 0.05  # a median entry above this share of the largest needs no logarithm
_SAMPLE = 2**20  # entries that the quantiles of a large matrix are taken from


@dataclass(frozen=True)
class Window:
    """A square on the diagonal: rows and columns ``start`` to ``start + size - 1``."""

    start: int
    size: int

    def of(self, matrix: Array) -> Array:
        """The part of the matrix inside the square."""
        span = slice(self.start, self.start + self.size)
        return matrix[span, span]


@dataclass(frozen=True)
class Panel:
    """The magnitudes of one matrix as they are drawn: all of it, and the square."""

    title: str
    whole: Array | None
    square: Array | None


def choose_window(exact: Array, cutout: int, corner: int | None) -> Window | None:
    """The given square, or that with the largest sum of ∣F∣; None where F is no larger.

    Raises:
        InputError: The square does not fit.
    """
    size, side = len(exact), cutout
    if size <= side:
        return None
    if corner is None:
        row, column = exact.strides
        squares = np.lib.stride_tricks.as_strided(
            exact,
            shape=(size - side + 1, side, side),
            strides=(row + column, row, column),
            writeable=False,
        )
        corner = int(np.argmax(np.nansum(np.abs(squares), axis=(1, 2))))
    if not 0 <= corner <= size - side:
        raise InputError(f"corner is {corner}; it must lie between 0 and {size - side}.")
    return Window(corner, side)


def panels(
    exact: Array, approximations: Mapping[str, Array | None], step: int, window: Window | None
) -> list[list[Panel]]:
    """Exact, approximation and error of each row, as the largest magnitude of step×step entries."""

    def panel(title: str, matrix: Array | None, minus: Array | None = None) -> Panel:
        if matrix is None:
            return Panel(title, None, None)
        square = None
        if window is not None:
            square = np.abs(window.of(matrix) - (0 if minus is None else window.of(minus)))
        return Panel(title, block_maximum(matrix, step, minus), square)

    first = panel("exact $|F|$", exact)
    return [
        [
            first,
            panel(f"{label(name)} $|\\hat{{F}}|$", matrix),
            panel("error $|F-\\hat{F}|$", None if matrix is None else exact, matrix),
        ]
        for name, matrix in approximations.items()
    ]


def block_maximum(matrix: Array, step: int, minus: Array | None = None) -> Array:
    """The largest ∣matrix − minus∣ of each step×step block; the last blocks may be smaller.

    It goes by bands of rows, so that no second large matrix is made.
    """
    if step == 1:
        return np.abs(matrix if minus is None else matrix - minus)
    starts = np.arange(0, len(matrix), step)
    reduced = []
    for start in starts:
        band = matrix[start : start + step]
        if minus is not None:
            band = band - minus[start : start + step]
        reduced.append(np.maximum.reduceat(np.abs(band).max(axis=0), starts))
    return np.array(reduced)


def shared_scale(exact: Array, rows: list[list[Panel]]) -> tuple[Normalize, bool]:
    """One scale for all panels, and whether entries lie above it.

    Linear, or logarithmic if most entries of F are small. It ends at the largest entry, at most
    `OVER` times that of F.
    """
    drawn = {id(panel.whole): panel.whole for row in rows for panel in row if panel.whole is not None}
    largest = max(_largest(whole) for whole in drawn.values())
    if largest == 0.0:
        return Normalize(0.0, 1.0), False
    top = min(largest, OVER * _largest(drawn[id(rows[0][0].whole)]) or largest)
    entries = _sample(exact)
    if entries.size == 0 or np.median(entries) >= _LINEAR_MEDIAN * top:
        return Normalize(0.0, top), largest > top
    decades = math.ceil(math.log10(top / float(np.percentile(entries, 10))))
    return LogNorm(top * 10.0 ** -min(max(decades, _DECADES[0]), _DECADES[1]), top), largest > top


def _largest(magnitudes: Array) -> float:
    return float(np.max(magnitudes, where=np.isfinite(magnitudes), initial=0.0))


def _sample(matrix: Array) -> Array:
    """Finite magnitudes other than zero: all, or of a large matrix a part evenly from all columns."""
    least = -(-matrix.size // _SAMPLE)
    stride = next(n for n in itertools.count(least) if math.gcd(n, len(matrix)) == 1)
    entries = np.abs(matrix.ravel()[::stride])
    return entries[np.isfinite(entries) & (entries != 0)]
