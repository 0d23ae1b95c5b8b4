"""Records cut into what a table shows: a block a layer, with its heading, rows and notes."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fisherlab.errors import InputError
from fisherlab.plots.labels import label, number
from fisherlab.report.definitions import METRICS, Metric, best_rows

MISSING = "–"

_RUN = ("model", "dataset", "checkpoint", "step", "seed")
_NEEDED = ("layer", "approximation")
_OWN_SCALE = ("lngd", "lngd-lr", "lngd-sample", "ngplus")


@dataclass(frozen=True)
class Cell:
    """The text of one number, and whether it is the best of its column."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Row:
    """One approximation against one target.

    Attributes:
        approximation: Its written form.
        target: The Fisher it is compared with; empty if the records do not say.
        cells: One for each metric of the block.
        note: Number of its footnote, from 1; None without one.
        own_scale: Whether it has no common scale with the target.
    """

    approximation: str
    target: str
    cells: tuple[Cell, ...]
    note: int | None
    own_scale: bool


@dataclass(frozen=True)
class Block:
    """All approximations of one layer in one run.

    Attributes:
        layer: Name of the layer.
        heading: Shape, way of computing the exact block, samples and columns.
        metrics: The columns; those that no row knows are left out.
        rows: In the order of the records.
        targets: The targets that occur.
        context: Data, model, checkpoint, samples, seed and the damping of the directions.
        notes: Footnotes.
    """

    layer: str
    heading: str
    metrics: tuple[Metric, ...]
    rows: tuple[Row, ...]
    targets: tuple[str, ...]
    context: str
    notes: tuple[str, ...]


def blocks(records: pd.DataFrame) -> Iterator[Block]:
    """The blocks of the records, in their order.

    Args:
        records: Rows of ``records.csv``; columns that are absent count as empty.

    Yields:
        One block for each layer of each run.

    Raises:
        InputError: There are no rows, or ``layer`` or ``approximation`` is absent.
    """
    absent = [column for column in _NEEDED if column not in records]
    if absent:
        raise InputError(f"the records have no column {', '.join(absent)}; give rows of compare.")
    if records.empty:
        raise InputError("the records have no rows, so there is no table to write.")
    keys = [column for column in (*_RUN, "layer") if column in records]
    for _, rows in records.groupby(keys, sort=False, dropna=False):
        yield _block(rows)


def _block(rows: pd.DataFrame) -> Block:
    metrics = tuple(metric for metric in METRICS if _known(rows, metric.column))
    notes: list[str] = []
    best = {metric.column: _best(rows, metric) for metric in metrics}
    made = []
    for place, (_, row) in enumerate(rows.iterrows()):
        cells = tuple(Cell(_text(row, metric), best[metric.column][place]) for metric in metrics)
        target = _word(row, "target")
        own_scale = row["approximation"] in _OWN_SCALE and target != "layerwise"
        name = label(str(row["approximation"]))
        made.append(Row(name, target, cells, _note(row, notes), own_scale))
    first = rows.iloc[0]
    return Block(
        layer=str(first["layer"]),
        heading=_heading(first),
        metrics=metrics,
        rows=tuple(made),
        targets=tuple(dict.fromkeys(row.target for row in made if row.target)),
        context=_context(first),
        notes=tuple(notes),
    )


def _known(rows: pd.DataFrame, column: str) -> bool:
    return column in rows and bool(rows[column].notna().any())


def _best(rows: pd.DataFrame, metric: Metric) -> list[bool]:
    """The best rows of a column, each target on its own."""
    targets = rows["target"] if "target" in rows else pd.Series("", index=rows.index)
    flags = np.zeros(len(rows), bool)
    values = rows[metric.column].reset_index(drop=True)
    for _, own in values.groupby(targets.fillna("").reset_index(drop=True), sort=False):
        flags[own.index.to_numpy()] = best_rows(own, metric.better)
    return flags.tolist()


def _text(row: pd.Series, metric: Metric) -> str:
    text = number(row[metric.column], MISSING)
    spread = number(row.get(metric.error), MISSING, digits=2) if metric.error else MISSING
    return text if MISSING in (text, spread) else f"{text}±{spread}"


def _note(row: pd.Series, notes: list[str]) -> int | None:
    """Number of the row's footnote; a new one is appended to ``notes``."""
    text = _word(row, "note")
    if not text:
        return None
    if text not in notes:
        notes.append(text)
    return notes.index(text) + 1


def _word(row: pd.Series, column: str) -> str:
    value = row.get(column)
    return "" if value is None or pd.isna(value) else str(value)


def _count(row: pd.Series, column: str) -> str:
    text = _word(row, column)
    return f"{int(float(text)):,}" if text else MISSING


def _heading(row: pd.Series) -> str:
    shape = f"{_count(row, 'outputs')}×{_count(row, 'inputs')}"
    groups = _count(row, "groups")
    parts = [_word(row, "module"), f"m×d = {shape}"]
    parts += [f"{groups} groups"] if groups not in (MISSING, "1") else []
    parts += [f"exact by {_word(row, 'method')}"] if _word(row, "method") else []
    parts += [f"{_count(row, 'samples')} samples", f"{_count(row, 'columns')} columns"]
    return ", ".join(filter(None, parts))


def _context(row: pd.Series) -> str:
    words = {
        "data": _word(row, "dataset"),
        "model": _word(row, "model"),
        "checkpoint": _word(row, "checkpoint"),
        "samples": _count(row, "samples"),
        "seed": _word(row, "seed"),
        "damping λ": number(row.get("damping"), ""),
    }
    return "; ".join(f"{name} {word}" for name, word in words.items() if word)
