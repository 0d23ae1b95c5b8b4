"""Several runs side by side: what their settings differ in, and their numbers in one table."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from fisherlab.errors import InputError
from fisherlab.records.definitions import MISSING, name_of
from fisherlab.records.frames import compared_layers, numbers
from fisherlab.records.labels import label, number
from fisherlab.report.html import flat, show
from fisherlab.runs.finished import FinishedRun

MEDIANS = ("scaled_error", "relative_error", "trace_ratio", "direction_cosine", "decrease_share")
"""Metrics of comparisons whose medians over layers stand side by side."""

_OUTCOME = {
    "step": "steps",
    "seconds": "seconds",
    "train_loss": "training loss",
    "test_loss": "test loss",
    "metric": "metric",
    "value": "at the end",
    "best": "best",
    "best_step": "at step",
    "outcome": "outcome",
}
_UNSHOWN = ("run", "command")


@dataclass(frozen=True)
class PlainTable:
    """A plain table: its heading, the head of each column, its rows and a remark."""

    heading: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def side_by_side(runs: Sequence[FinishedRun], names: Sequence[str]) -> Iterator[PlainTable]:
    """The tables over all runs: one of differing settings and one of numbers for each command.

    Args:
        runs: at least two of a command for it to have tables.
        names: what each run is called.
    """
    for command in dict.fromkeys(run.command for run in runs):
        chosen = [(name, run) for name, run in zip(names, runs, strict=True) if run.command == command]
        if len(chosen) < 2:
            continue
        own = dict(chosen)
        yield from _settings(command, own)
        if command == "compare":
            yield from _medians(own)
        elif command == "train":
            yield _outcomes(own)
        elif command == "trace":
            yield _ratios(own)


def read_table(run: FinishedRun, name: str) -> pd.DataFrame:
    """A table of a run; names of layers stay texts.

    Raises:
        InputError: where it is absent or damaged.
    """
    path = run.folder / name
    try:
        columns = pd.read_csv(path, nrows=0).columns
        texts = {column: str for column in columns if column in ("layer", "checkpoint", "stage", "note")}
        return pd.read_csv(path, dtype=texts)
    except (OSError, ValueError) as error:
        raise InputError(f"the run {str(run.folder)!r} is damaged: {name} cannot be read") from error


def _settings(command: str, runs: Mapping[str, FinishedRun]) -> Iterator[PlainTable]:
    """The settings that differ, a row a setting."""
    shown = {name: dict(flat(run.config)) | _sources(run) for name, run in runs.items()}
    keys = dict.fromkeys(key for own in shown.values() for key in own if key not in _UNSHOWN)
    rows = [(key, *(own.get(key, MISSING) for own in shown.values())) for key in keys]
    different = tuple(row for row in rows if len(set(row[1:])) > 1)
    if different:
        yield PlainTable(f"{command}: settings that differ", ("setting", *runs), different)


def _sources(run: FinishedRun) -> dict[str, str]:
    device, dataset = run.provenance.get("device"), run.provenance.get("dataset")
    return {"data set used": show(dataset), "device": show(device)}


def _medians(runs: Mapping[str, FinishedRun]) -> Iterator[PlainTable]:
    """For each metric the median over layers, a row an approximation and a column a run."""
    columns = {name: medians(read_table(run, "records.csv")) for name, run in runs.items()}
    approximations = dict.fromkeys(a for own in columns.values() for a in own.index)
    for metric in MEDIANS:
        cells = [
            (label(one), *(_cell(own, one, metric) for own in columns.values())) for one in approximations
        ]
        if any(cell != MISSING for row in cells for cell in row[1:]):
            heading = f"compare: {name_of(metric)}, median over the layers"
            yield PlainTable(heading, ("approximation", *runs), tuple(cells))


def medians(records: pd.DataFrame) -> pd.DataFrame:
    """The median over layers of `MEDIANS` [approximation, metric], against each layer's main target.

    Layers that have only the approximation `diagonal` (norms) are left out where others have more.
    """
    layers, _ = compared_layers(records)
    rows = records[records["layer"].isin(layers)].drop_duplicates(["layer", "approximation"])
    values = rows.assign(**{name: numbers(rows[name]) for name in MEDIANS})
    return values.groupby("approximation", sort=False)[list(MEDIANS)].median()


def _cell(table: pd.DataFrame, row: str, column: str) -> str:
    return number(table[column].get(row, math.nan), MISSING)


def _outcomes(runs: Mapping[str, FinishedRun]) -> PlainTable:
    keys = [key for key in _OUTCOME if any(key in run.summary for run in runs.values())]
    rows = [
        (name, show(run.config.get("optimizer")), *(_outcome(run.summary.get(key)) for key in keys))
        for name, run in runs.items()
    ]
    return PlainTable(
        "train: how the runs ended", ("run", "optimizer", *(_OUTCOME[k] for k in keys)), tuple(rows)
    )


def _outcome(value: Any) -> str:
    return number(value, digits=4) if isinstance(value, float) else show(value)


def _ratios(runs: Mapping[str, FinishedRun]) -> PlainTable:
    """Σ tr F̂ / Σ tr F over all layers at the first and the last checkpoint."""
    found = {name: run.summary.get("trace_ratio", {}) for name, run in runs.items()}
    approximations = dict.fromkeys(one for own in found.values() for one in own)
    rows = [(label(one), *(_ends(own.get(one, {})) for own in found.values())) for one in approximations]
    return PlainTable(
        "trace: Σ tr F̂ / Σ tr F over all layers, first → last checkpoint",
        ("approximation", *runs),
        tuple(rows),
    )


def _ends(ratios: Mapping[str, Any]) -> str:
    values = list(ratios.values())
    return " → ".join(number(value, MISSING) for value in dict.fromkeys(values[:1] + values[-1:])) or MISSING
