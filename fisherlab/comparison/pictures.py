"""The pictures of a comparison, and the file of its matrices."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fisherlab.errors import NotSupportedError
from fisherlab.runs.names import file_names
from fisherlab.runs.save import Plate

if TYPE_CHECKING:
    from fisherlab.comparison.result import Comparison

_LARGEST_MATRIX = 2**27
_MOST_DRAWN = 12


def figures(comparison: "Comparison") -> Iterator[Plate]:
    """Each picture of a comparison, drawn when it is asked for: of all layers, then of each that is drawn."""
    from fisherlab import plots
    from fisherlab.records.frames import drawn_labels

    caption = comparison.caption
    yield Plate(
        "errors",
        plots.errors(comparison.records, caption=caption),
        "Errors of every layer",
        "Relative, scaled and population error with its standard error.",
    )
    if len(comparison.waterfall):
        yield Plate(
            "waterfall",
            plots.waterfall(comparison.waterfall, caption=caption),
            "Where the error comes from",
            "Scaled errors from the nearest Kronecker product over KFAC and a diagonal output factor "
            "with real gradients (lngd-lr) to LNGD.",
        )
    if len(comparison.directions):
        shaded = drawn_labels(comparison.records)
        yield Plate(
            "directions",
            plots.directions(comparison.directions, caption=caption, shaded=shaded),
            "Quality of the damped direction",
            "Cosine with the exact step, and share of its decrease, over six dampings.",
        )
    if comparison.records["von_neumann_divergence"].notna().any():
        yield Plate(
            "divergences",
            plots.divergences(comparison.records, caption=caption),
            "Which divergence prefers whom",
            "Ranks in Frobenius norm, von Neumann and log-det divergence, each at its own best scale or at "
            "equal traces; the colour says how far from the best.",
        )
    if comparison.coupling["coupling"].notna().any():
        yield Plate(
            "coupling",
            plots.coupling(comparison.coupling_matrix.numpy(), list(comparison.results), caption=caption),
            "Coupling between layers",
            "‖F_lk‖²/(‖F_l‖‖F_k‖): zero off the diagonal where the block-diagonal assumption holds.",
        )
    for layer, name in layer_files(comparison).items():
        yield from _layer_figures(comparison, layer, name)


def layer_files(comparison: "Comparison") -> dict[str, str]:
    """The layers with pictures of their own, and what stands for them in the names of these.

    All, or the first few that are no norms where there are many.
    """
    names = list(comparison.results)
    if len(names) > _MOST_DRAWN:
        names = [name for name in names if not comparison.results[name].view.vector][:_MOST_DRAWN]
    return file_names(names)


def _layer_figures(comparison: "Comparison", layer: str, name: str) -> Iterator[Plate]:
    result = comparison.results[layer]
    for matched, scale, ending in ((False, "as computed", ""), (True, "trace-matched", "-matched")):
        try:
            figure = comparison.heatmap(layer, trace_matched=matched)
        except NotSupportedError:
            break
        yield Plate(
            f"heatmap-{name}{ending}",
            figure,
            f"Layer {layer}: heat maps, {scale}",
            f"Exact Fisher ({result.kind} labels), approximations ({scale}) and absolute errors.",
            layer,
        )
    if "exact" in result.spectra:
        yield Plate(
            f"spectrum-{name}",
            comparison.spectrum(layer),
            f"Layer {layer}: spectra",
            "Eigenvalues of F and of each approximation, and of the preconditioned block.",
            layer,
        )
    if result.curvature is not None and comparison.calibrations(layer):
        yield Plate(
            f"curvature-{name}",
            comparison.curvature(layer),
            f"Layer {layer}: curvature as the approximations see it",
            "q_i = u_iᵀF̂u_i/ℓ_i for the eigenpairs of F that carry 99.9 % of its trace, in three bands of "
            "the spectrum with their geometric means; and the overlap of the leading subspaces of F and F̂.",
            layer,
        )


def write_matrices(comparison: "Comparison", folder: Path) -> None:
    """Writes `blocks.safetensors`: the dense blocks that fit, in column-vec order, by `<layer>/<name>`.

    The names are `exact` and those of the approximations; blocks that were let go are left out.
    """
    from fisherlab.base.tensorfiles import write_tensors

    tensors: dict[str, torch.Tensor] = {}
    for layer, result in comparison.results.items():
        for name, operator in result.operators.items():
            if 8 * operator.shape[0] ** 2 <= _LARGEST_MATRIX:
                tensors[f"{layer}/{name}"] = operator.dense().contiguous().cpu()
    header = {"format": "fisherlab-blocks-1", "vec": "column"}
    write_tensors(folder / "blocks.safetensors", tensors, header)
