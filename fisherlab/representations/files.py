"""The files of representation vectors: tables and pictures."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fisherlab.representations.vectors import ACTIVATED, INPUT, OUTPUT
from fisherlab.rundir import run_directory, write_json

if TYPE_CHECKING:
    from fisherlab.representations.result import Representations

_MOST_DRAWN = 12
_FILES = {OUTPUT: "histograms.csv", ACTIVATED: "histograms-activated.csv", INPUT: "histograms-input.csv"}


def save_representations(result: "Representations", directory: Path) -> Path:
    """Writes a result into a new directory, complete or not at all."""
    with run_directory(directory) as part:
        write_representations(result, part, result.summary())
    return directory


def write_representations(
    result: "Representations",
    folder: Path,
    summary: dict[str, Any],
    *,
    started: float | None = None,
    report: Callable[[int], None] = lambda done: None,
) -> None:
    """Writes all files of a result but `config.toml` into an existing folder.

    `histograms.csv` has the outputs s of every layer; the activated outputs and the inputs have files of
    their own with the same columns.

    Args:
        result: what to write.
        folder: where.
        summary: what `summary.json` holds.
        started: `time.perf_counter()` at the start of the run; None: its wall time is not known.
        report: called with the number of pictures done.
    """
    for vector, name in _FILES.items():
        own = result.histograms[result.histograms["vector"] == vector]
        own.drop(columns="vector").to_csv(folder / name, index=False)
    for name in ("moments", "quantiles", "assumption", "layers"):
        getattr(result, name).to_csv(folder / f"{name}.csv", index=False)
    write_json(folder / "summary.json", summary)
    _write_pictures(result, folder, report)
    write_json(folder / "provenance.json", result.about.provenance(result.device, started))


def _write_pictures(result: "Representations", folder: Path, report: Callable[[int], None]) -> None:
    """Pictures over all layers, and of the first few layers' outputs."""
    from fisherlab import plots
    from fisherlab.plots.workers import saver

    drawn = result.layers[result.layers["layer"].isin(result.names[:_MOST_DRAWN])]
    pairs = [(row["layer"], row["vector"]) for _, row in drawn.iterrows() if row["vector"] != INPUT]
    with saver(len(pairs) + 2) as save:
        save(plots.normality(result.layers, caption=result.caption), folder / "normality")
        save(plots.isotropies(result.assumption, caption=result.caption), folder / "assumption")
        for done, (layer, vector) in enumerate(pairs, start=3):
            name = re.sub(r"[^\w.-]", "_", layer) or "root"
            ending = "" if vector == OUTPUT else f"-{vector}"
            save(result.histogram(layer, vector), folder / f"histogram-{name}{ending}")
            report(done)
