"""One page from finished runs of any command: overview, tables, pictures inside it, provenance."""

import base64
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fisherlab.errors import InputError
from fisherlab.records.definitions import METRICS, MISSING, SCALE_NOTE, STAND_IN
from fisherlab.records.labels import number
from fisherlab.report.beside import PlainTable, read_table, side_by_side
from fisherlab.report.blocks import runs
from fisherlab.report.html import Image, RunTables, flat, run_tables, template, words
from fisherlab.runs.finished import FinishedRun
from fisherlab.runs.origin import provenance

_MOST_ROWS = 60
_LARGEST_WHOLE = 1e15  # of the numbers that are written as whole ones: beyond it float64 has no fractions
_UNSHOWN = ("command", "inputs", "layers", "file_names", "checkpoints", "trace_ratio")
_LOG = "log.jsonl"
_FIRST = {"represent": "moments.csv", "trace": "traces.csv"}  # tables that stand before the others


@dataclass(frozen=True)
class ShownRun:
    """What the page shows of one run.

    Attributes:
        name: what the run is called.
        run: its directory's content.
        facts: names and values of its summary.
        records: the tables of a comparison.
        tables: other tables.
        drawings: its pictures.
        config: names and values of its configuration.
        provenance: names and values of its provenance.
    """

    name: str
    run: FinishedRun
    facts: list[tuple[str, str]]
    records: list[RunTables]
    tables: list[PlainTable]
    drawings: list[Image]
    config: list[tuple[str, str]]
    provenance: list[tuple[str, str]]


def write_report(path: Path, finished: Sequence[FinishedRun], *, title: str) -> Path:
    """Writes the page of one or more finished runs; it needs no other file and no network.

    A comparison has its tables, a training its evaluations, and every other run the first rows of its
    tables. Runs of one command stand side by side before that: the settings that differ; of comparisons the
    medians over layers; of trainings how they ended and their curves in one picture.

    Args:
        path: the ``.html`` file to write.
        finished: the runs.
        title: of the page.

    Returns:
        The path written.

    Raises:
        InputError: where a file of a run is absent or damaged.
    """
    names = run_names(finished)
    text = template("runs.html").render(
        title=title,
        stand_ins=sorted({str(run.provenance.get("dataset")) for run in finished if _stands_in(run)}),
        beside=list(side_by_side(finished, names)),
        curves=list(_curves(finished, names)),
        parts=[_part(name, run) for name, run in zip(names, finished, strict=True)],
        metrics=METRICS,
        scale_note=SCALE_NOTE,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def origin(finished: Sequence[FinishedRun], seconds: float) -> dict[str, Any]:
    """What `provenance.json` of a page holds: the data sets of its runs, and the machine that wrote it."""
    labels = dict.fromkeys(str(run.provenance.get("dataset")) for run in finished)
    return provenance(
        device="cpu",
        seed=None,
        dataset=", ".join(labels),
        stand_in=any(map(_stands_in, finished)),
        checksum=None,
        checkpoint={"name": "those of the runs", "sha256": None, "step": None},
        seconds=round(seconds, 2),
    )


def run_names(finished: Sequence[FinishedRun]) -> list[str]:
    """The runs' directories, with a number where two have one name."""
    names: list[str] = []
    for run in finished:
        same = sum(other == run.name or other.startswith(f"{run.name} (") for other in names)
        names.append(f"{run.name} ({same + 1})" if same else run.name)
    return names


def _part(name: str, run: FinishedRun) -> ShownRun:
    records = read_table(run, "records.csv") if run.command == "compare" else None
    return ShownRun(
        name=name,
        run=run,
        facts=flat({key: value for key, value in run.summary.items() if key not in _UNSHOWN}),
        records=[] if records is None else [run_tables(one, {}) for one in runs(records)],
        tables=list(_tables(run)),
        drawings=[_drawing(path, run) for path in sorted(run.folder.glob("*.png"))],
        config=flat({key: value for key, value in run.config.items() if key != "command"}),
        provenance=flat(run.provenance),
    )


def _stands_in(run: FinishedRun) -> bool:
    return bool(run.provenance.get("stand_in")) or STAND_IN in str(run.provenance.get("dataset"))


def _drawing(path: Path, run: FinishedRun) -> Image:
    try:
        payload = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror}") from error
    return Image(_heading(path.stem, run.summary.get("file_names", {})), _data_uri(payload))


def _heading(stem: str, files: Mapping[str, str]) -> str:
    """What a picture is called: where it shows a layer, with the layer's name as the model has it."""
    what, _, rest = stem.partition("-")
    shown = [(name, layer) for layer, name in files.items() if rest == name or rest.startswith(f"{name}-")]
    if not shown:
        return stem.replace("-", " ")
    name, layer = max(shown, key=lambda one: len(one[0]))  # "a-0123abcd" begins with "a-" too
    return " ".join(filter(None, (what, layer or name, rest.removeprefix(name).lstrip("-"))))


def _data_uri(payload: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(payload).decode()}"


def _tables(run: FinishedRun) -> Iterator[PlainTable]:
    """The evaluations of a training, or the first rows of every table that a command wrote."""
    if run.command == "compare":
        return
    log = _evaluations(run)
    if log is not None:
        yield _as_table("evaluations", log.drop(columns=["kind"]))
    first = _FIRST.get(run.command)
    for path in sorted(run.folder.glob("*.csv"), key=lambda path: (path.name != first, path.name)):
        yield _as_table(path.name, read_table(run, path.name))


def _evaluations(run: FinishedRun) -> pd.DataFrame | None:
    """The lines of a training's log with a loss and a metric; None where there is no log.

    Raises:
        InputError: where the log is damaged.
    """
    path = run.folder / _LOG
    if not path.is_file():
        return None
    try:
        lines = pd.read_json(path, lines=True)
        return lines[lines["kind"] == "evaluation"].dropna(axis="columns", how="all")
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"the run {str(run.folder)!r} is damaged: {_LOG} cannot be read") from error


def _as_table(heading: str, frame: pd.DataFrame) -> PlainTable:
    """The first rows of a table, with a note where there are more."""
    cut = len(frame) > _MOST_ROWS
    kept = frame.head(_MOST_ROWS)
    note = f"the first {_MOST_ROWS} of {len(frame):,} rows" if cut else ""
    rows = tuple(tuple(map(_cell, row)) for row in kept.itertuples(index=False, name=None))
    return PlainTable(heading, tuple(map(words, frame.columns)), rows, note)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        whole = value.is_integer() and abs(value) < _LARGEST_WHOLE
        return str(int(value)) if whole else number(value, MISSING, digits=4)
    return MISSING if value is None else str(value)


def _curves(finished: Sequence[FinishedRun], names: Sequence[str]) -> Iterator[Image]:
    """The curves of all trainings in one picture, where there is more than one."""
    runs_of_train = {name: run for name, run in zip(names, finished, strict=True) if run.command == "train"}
    logs = {name: _evaluations(run) for name, run in runs_of_train.items()}
    tables = {name: log for name, log in logs.items() if log is not None and len(log)}
    if len(tables) < 2:
        return
    frame = pd.concat([table.assign(run=name) for name, table in tables.items()], ignore_index=True)
    yield Image("Curves of all trainings", _drawn(frame, runs_of_train))


def _drawn(frame: pd.DataFrame, trainings: Mapping[str, FinishedRun]) -> str:
    from fisherlab.plots import save
    from fisherlab.plots.runs import curves

    metrics = {str(run.summary.get("metric")) for run in trainings.values()}
    shared = next(iter(metrics)) if len(metrics) == 1 else None
    data = sorted({str(run.provenance.get("dataset")) for run in trainings.values()})
    models = sorted({str(run.config.get("model")) for run in trainings.values()})
    devices = sorted({str(run.provenance.get("device")) for run in trainings.values()})
    caption = (
        f"data: {', '.join(data)}; model: {', '.join(models)}; device: {', '.join(devices)}; seeds: "
        f"{', '.join(sorted({str(run.provenance.get('seed')) for run in trainings.values()}))}; the training "
        "loss is a mean over the steps since the evaluation before"
    )
    metric = shared if shared in frame and shared not in ("train_loss", "test_loss") else None
    with tempfile.TemporaryDirectory() as folder:
        png, _ = save(curves(frame, metric, caption=caption), Path(folder) / "curves")
        return _data_uri(png.read_bytes())
