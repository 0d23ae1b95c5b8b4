"""Records cut into what a table shows: a block a layer, with its heading, rows and notes."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd

from fisherlab.errors import InputError
from fisherlab.records.columns import ORIGIN
from fisherlab.records.definitions import METRICS, MISSING, Metric, best_rows
from fisherlab.records.labels import named, number

Array = np.ndarray[Any, np.dtype[Any]]
Record = Mapping[str, Any]
"""A row of the records."""

_NEEDED = ("layer", "approximation")


_AND = "; "  # between the parts of a note


@dataclass(frozen=True)
class Cell:
    """The text of one number, and whether it is the best of its column."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class TableRow:
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
class LayerTable:
    """All approximations of one layer in one run.

    Attributes:
        layer: Name of the layer.
        heading: Shape, way of computing the exact block, samples and columns.
        metrics: The columns; those that no row knows are left out.
        rows: In the order of the records.
        targets: The targets that occur.
        context: Data, model, checkpoint, samples, seed and the damping of the directions.
        notes: Footnotes.
        shared: What the notes of all rows have in common, said once.
    """

    layer: str
    heading: str
    metrics: tuple[Metric, ...]
    rows: tuple[TableRow, ...]
    targets: tuple[str, ...]
    context: str
    notes: tuple[str, ...]
    shared: tuple[str, ...] = ()


def runs(records: pd.DataFrame) -> list[pd.DataFrame]:
    """The records of each run, in their order.

    Args:
        records: Rows of ``records.csv``; columns that are absent count as empty.

    Raises:
        InputError: There are no rows, or ``layer`` or ``approximation`` is absent.
    """
    absent = [column for column in _NEEDED if column not in records]
    if absent:
        raise InputError(f"the records have no column {', '.join(absent)}; give rows of compare.")
    if records.empty:
        raise InputError("the records have no rows, so there is no table to write.")
    keys = [column for column in ORIGIN if column in records]
    if not keys:
        return [records]
    return [run for _, run in records.groupby(keys, sort=False, dropna=False)]


def blocks(
    run: pd.DataFrame, layers: Collection[str], metrics: Sequence[Metric] = METRICS
) -> Iterator[LayerTable]:
    """A block for each of these layers of a run, in their order, with these metrics."""
    kept = run[run["layer"].isin(layers)]
    for _, rows in kept.groupby("layer", sort=False):
        yield _block(rows, metrics)


def diagonal_block(run: pd.DataFrame, layers: Collection[str]) -> LayerTable:
    """One block with a row a layer, for layers that have only the approximation `diagonal`.

    Nothing is marked as best, since the rows are different layers; notes are left to the caller.
    """
    rows = run[run["layer"].isin(layers)]
    metrics = tuple(metric for metric in METRICS if _known(rows, metric.column))
    made = tuple(
        TableRow(
            str(row["layer"]),
            word(row, "target"),
            tuple(Cell(_text(row, metric)) for metric in metrics),
            note=None,
            own_scale=False,
        )
        for row in _records(rows)
    )
    targets = tuple(dict.fromkeys(row.target for row in made if row.target))
    return LayerTable("", "", metrics, made, targets, run_context({**rows.iloc[0], "damping": None}), ())


def _block(rows: pd.DataFrame, wanted: Sequence[Metric]) -> LayerTable:
    metrics = tuple(metric for metric in wanted if _known(rows, metric.column))
    notes: list[str] = []
    records = _records(rows)
    shared = _shared(records)
    targets = [word(row, "target") for row in records]
    best = {m.column: _best(rows[m.column].to_numpy(), m, targets) for m in metrics}
    made = []
    for place, row in enumerate(records):
        cells = tuple(Cell(_text(row, metric), best[metric.column][place]) for metric in metrics)
        target = targets[place]
        name = named(str(row["approximation"]))
        own_scale = name.own_scale and target != "layerwise"
        made.append(TableRow(name.label, target, cells, _note(row, notes, shared), own_scale))
    first = records[0]
    return LayerTable(
        layer=str(first["layer"]),
        heading=_heading(first),
        metrics=metrics,
        rows=tuple(made),
        targets=tuple(dict.fromkeys(row.target for row in made if row.target)),
        context=run_context(first),
        notes=tuple(notes),
        shared=shared,
    )


def _records(rows: pd.DataFrame) -> list[Record]:
    return cast(list[Record], rows.to_dict("records"))


def _known(rows: pd.DataFrame, column: str) -> bool:
    return column in rows and bool(rows[column].notna().any())


def _best(values: Array, metric: Metric, targets: list[str]) -> list[bool]:
    """The best of a column's values, those of each target on their own."""
    flags = np.zeros(len(values), bool)
    for target in set(targets):
        own = np.array([other == target for other in targets])
        flags[own] = best_rows(pd.Series(values[own]), metric.better)
    return flags.tolist()


def _text(row: Record, metric: Metric) -> str:
    return metric.text(row[metric.column], row.get(metric.error or ""))


def _shared(records: list[Record]) -> tuple[str, ...]:
    """The parts of the notes that all of several rows have."""
    first, *others = (word(row, "note").split(_AND) for row in records)
    return tuple(part for part in first if part and all(part in other for other in others)) if others else ()


def _note(row: Record, notes: list[str], shared: tuple[str, ...]) -> int | None:
    """Number of the row's footnote, without what is shared; a new one is appended to ``notes``."""
    text = _AND.join(part for part in word(row, "note").split(_AND) if part not in shared)
    if not text:
        return None
    if text not in notes:
        notes.append(text)
    return notes.index(text) + 1


def word(row: Record, column: str) -> str:
    """The text of a field; empty where there is none."""
    value = row.get(column)
    return "" if value is None or pd.isna(value) else str(value)


def count(row: Record, column: str) -> str:
    """The whole number of a field; a dash where there is none."""
    text = word(row, column)
    return f"{int(float(text)):,}" if text else MISSING


def _heading(row: Record) -> str:
    shape = f"{count(row, 'outputs')}×{count(row, 'inputs')}"
    groups = count(row, "groups")
    parts = [word(row, "module"), f"m×d = {shape}"]
    parts += [f"×{groups} groups"] if groups not in (MISSING, "1") else []
    drawn = " of drawn labels" if word(row, "target") == "monte-carlo" else ""
    parts += [f"exact by {word(row, 'method')}{drawn}"] if word(row, "method") else []
    parts += [f"{count(row, 'samples')} samples", f"{count(row, 'columns')} columns"]
    return ", ".join(filter(None, parts))


def run_context(row: Record) -> str:
    """Data, model, checkpoint, samples, seed and damping of a row, as far as they are known."""
    words = {
        "data": word(row, "dataset"),
        "model": word(row, "model"),
        "checkpoint": word(row, "checkpoint"),
        "samples": count(row, "samples"),
        "seed": word(row, "seed"),
        "damping λ": number(row.get("damping"), ""),
    }
    return "; ".join(f"{name} {word}" for name, word in words.items() if word)
