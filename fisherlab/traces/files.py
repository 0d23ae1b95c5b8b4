"""The files of a trace: tables, pictures and the page."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fisherlab.plots.workers import saver
from fisherlab.report import Picture, write_tables
from fisherlab.runs.directory import write_json
from fisherlab.traces.page import page
from fisherlab.traces.result import Traces

_PICTURES = 5


def write_traces(
    traces: Traces,
    folder: Path,
    summary: Mapping[str, Any],
    *,
    started: float | None = None,
    report: Callable[[int], None] = lambda done: None,
) -> None:
    """Writes all files of a trace but `config.toml` into an existing folder.

    Args:
        traces: what to write.
        folder: where.
        summary: what `summary.json` holds.
        started: `time.perf_counter()` at the start of the run; None: its wall time is not known.
        report: called with the number of pictures done.
    """
    traces.traces.to_csv(folder / "traces.csv", index=False)
    traces.diagnostics.to_csv(folder / "diagnostics.csv", index=False)
    traces.stages.to_csv(folder / "stages.csv", index=False)
    if traces.recorded is not None:
        traces.recorded.to_csv(folder / "optimizer.csv", index=False)
    write_json(folder / "summary.json", summary)
    pictures = []
    with saver(_PICTURES + (traces.recorded is not None)) as save:
        for done, (name, figure, heading, text) in enumerate(traces.figures()):
            save(figure, folder / name)
            pictures.append(Picture(f"{name}.png", f"{text} {traces.caption_of(name)}.", heading))
            report(done + 1)
    origin = traces.about.provenance(traces.device, started)
    write_json(folder / "provenance.json", origin)
    write_tables(folder / "report.html", page(traces), pictures, origin)
