"""The files of representation vectors: tables, pictures and the page."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fisherlab import plots
from fisherlab.plots.workers import saver
from fisherlab.report import Picture, write_tables
from fisherlab.representations.page import page
from fisherlab.representations.vectors import ACTIVATED, INPUT, OUTPUT
from fisherlab.runs.directory import run_directory, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    pictures = _write_pictures(result, folder, report)
    origin = result.about.provenance(result.device, started)
    write_json(folder / "provenance.json", origin)
    write_tables(folder / "report.html", page(result), pictures, origin)


def _write_pictures(result: "Representations", folder: Path, report: Callable[[int], None]) -> list[Picture]:
    """Pictures over all layers, and of the first few layers' outputs."""
    drawn = result.layers[result.layers["layer"].isin(result.names[:_MOST_DRAWN])]
    pairs = [(row["layer"], row["vector"]) for _, row in drawn.iterrows() if row["vector"] != INPUT]
    pictures = []
    with saver(len(pairs) + 2) as save:

        def written(name: str, figure: "Figure", heading: str, text: str) -> None:
            save(figure, folder / name)
            pictures.append(Picture(f"{name}.png", f"{text} {result.caption}.", heading))
            report(len(pictures))

        written(
            "normality",
            plots.normality(result.layers, caption=result.caption),
            "How far from normal",
            "Kurtosis, distances and rejected coordinates of every layer's outputs and activated outputs.",
        )
        written(
            "assumption",
            plots.isotropies(result.assumption, caption=result.caption),
            "Is the assumption true?",
            "Isotropy of what layer-wise sampling takes for I; 1 is consistent with it.",
        )
        for layer, vector in pairs:
            name = re.sub(r"[^\w.-]", "_", layer) or "root"
            written(
                f"histogram-{name}" + ("" if vector == OUTPUT else f"-{vector}"),
                result.histogram(layer, vector),
                f"Layer {layer}: {'outputs' if vector == OUTPUT else 'activated outputs'}",
                "Coordinates from the least to the largest kurtosis, and the norms, with their fits.",
            )
    return pictures
