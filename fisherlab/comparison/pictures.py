"""The files of a comparison: tables, pictures, matrices and the page."""

import gc
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fisherlab.errors import NotSupportedError
from fisherlab.runs.directory import run_directory, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fisherlab.comparison.result import Comparison
    from fisherlab.plots.workers import Save
    from fisherlab.report import Picture

_LARGEST_MATRIX = 2**27
_MOST_DRAWN = 12


def save_comparison(comparison: "Comparison", directory: Path, *, matrices: bool) -> Path:
    """Writes a comparison into a new directory, complete or not at all."""
    with run_directory(directory) as part:
        write_comparison(comparison, part, matrices=matrices)
    return directory


def write_comparison(
    comparison: "Comparison",
    folder: Path,
    *,
    matrices: bool = False,
    summary: dict[str, Any] | None = None,
    started: float | None = None,
    report: Callable[[int], None] = lambda done: None,
) -> None:
    """Writes all files of a comparison but `config.toml` into an existing folder.

    Args:
        comparison: what to write.
        folder: where.
        matrices: also `blocks.safetensors`.
        summary: what `summary.json` holds; None: `comparison.summary()`.
        started: `time.perf_counter()` at the start of the run; None: its wall time is not known.
        report: called with the number of pictures done.
    """
    from fisherlab.report import write_page

    summary = comparison.summary() if summary is None else summary
    comparison.records.to_csv(folder / "records.csv", index=False)
    comparison.directions.to_csv(folder / "directions.csv", index=False)
    comparison.coupling.to_csv(folder / "coupling.csv", index=False)
    comparison.layers.coverage().to_csv(folder / "coverage.csv", index=False)
    write_json(folder / "summary.json", summary)
    if matrices:
        _write_matrices(comparison, folder / "blocks.safetensors")
    pictures = []
    with _without_collection():
        for done, picture in enumerate(_pictures(comparison, folder)):
            pictures.append(picture)
            report(done + 1)
    origin = comparison.about.provenance(comparison.device, started)
    write_json(folder / "provenance.json", origin)
    write_page(
        folder / "report.html",
        title=f"Fisher comparison: {comparison.about.model}",
        summary={key: value for key, value in summary.items() if key != "layers"},
        records=comparison.records,
        figures=pictures,
        provenance=origin,
    )


@contextmanager
def _without_collection() -> Iterator[None]:
    """Without the cyclic garbage collector, which takes a seventh of the time to draw pictures."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _pictures(comparison: "Comparison", folder: Path) -> "Iterator[Picture]":
    from fisherlab.plots.workers import saver

    with saver(4 + 3 * len(_drawn_layers(comparison))) as save:
        yield from _drawn(comparison, folder, save)


def _drawn(comparison: "Comparison", folder: Path, save: "Save") -> "Iterator[Picture]":
    from fisherlab import plots
    from fisherlab.records.frames import drawn_labels
    from fisherlab.report import Picture

    def written(
        name: str, draw: Callable[[], "Figure"], heading: str, text: str, layer: str | None = None
    ) -> "Picture":
        save(draw(), folder / name)
        return Picture(f"{name}.png", f"{text} {comparison.caption}.", heading, layer)

    caption = comparison.caption
    yield written(
        "errors",
        lambda: plots.errors(comparison.records, caption=caption),
        "Errors of every layer",
        "Relative, scaled and population error with its standard error.",
    )
    if len(comparison.waterfall):
        yield written(
            "waterfall",
            lambda: plots.waterfall(comparison.waterfall, caption=caption),
            "Where the error comes from",
            "Scaled errors from the nearest Kronecker product over KFAC and a diagonal output factor "
            "with real gradients (lngd-lr) to LNGD.",
        )
    if len(comparison.directions):
        shaded = drawn_labels(comparison.records)
        yield written(
            "directions",
            lambda: plots.directions(comparison.directions, caption=caption, shaded=shaded),
            "Quality of the damped direction",
            "Cosine with the exact step, and share of its decrease, over six dampings.",
        )
    if comparison.coupling["coupling"].notna().any():
        matrix = comparison.coupling_matrix.numpy()
        yield written(
            "coupling",
            lambda: plots.coupling(matrix, list(comparison.results), caption=caption),
            "Coupling between layers",
            "‖F_lk‖²/(‖F_l‖‖F_k‖): zero off the diagonal where the block-diagonal assumption holds.",
        )
    for layer in _drawn_layers(comparison):
        result = comparison.results[layer]
        yield from _layer_pictures(comparison, layer, f"{result.kind} labels", written)


def _drawn_layers(comparison: "Comparison") -> list[str]:
    """The layers with pictures of their own: all, or the first few that are no norms where there are many."""
    names = list(comparison.results)
    if len(names) <= _MOST_DRAWN:
        return names
    return [name for name in names if not comparison.results[name].view.vector][:_MOST_DRAWN]


def _layer_pictures(
    comparison: "Comparison",
    layer: str,
    labels: str,
    written: "Callable[..., Picture]",
) -> "Iterator[Picture]":
    name = re.sub(r"[^\w.-]", "_", layer) or "root"
    for matched in (False, True):
        scale = "trace-matched" if matched else "as computed"
        try:
            yield written(
                f"heatmap-{name}{'-matched' if matched else ''}",
                partial(comparison.heatmap, layer, trace_matched=matched),
                f"Layer {layer}: heat maps, {scale}",
                f"Exact Fisher ({labels}), approximations ({scale}) and absolute errors.",
                layer,
            )
        except NotSupportedError:
            break
    if "exact" in comparison.results[layer].spectra:
        yield written(
            f"spectrum-{name}",
            lambda: comparison.spectrum(layer),
            f"Layer {layer}: spectra",
            "Eigenvalues of F and of each approximation, and of the preconditioned block.",
            layer,
        )


def _write_matrices(comparison: "Comparison", path: Path) -> None:
    """Dense blocks in column-vec order, `<layer>/exact` and `<layer>/<approximation>`; not those let go."""
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    for layer, result in comparison.results.items():
        for name, operator in result.operators.items():
            if 8 * operator.shape[0] ** 2 <= _LARGEST_MATRIX:
                tensors[f"{layer}/{name}"] = operator.dense().contiguous().cpu()
    save_file(tensors, path, {"format": "fisherlab-blocks-1", "vec": "column"})
