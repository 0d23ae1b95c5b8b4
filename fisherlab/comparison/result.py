"""What a comparison gives: records, the operators behind them, pictures and files."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pandas as pd
import torch
from torch import Tensor

from fisherlab.arguments import AnyPath, OneOf, checked
from fisherlab.comparison.measure import Row
from fisherlab.divergences import Calibration, CurvatureScale
from fisherlab.errors import InputError, InputTypeError, NotSupportedError, bytes_text, unknown
from fisherlab.exact.plans import BlockPlan
from fisherlab.layers import Layers, LayerView
from fisherlab.operators import LinearOperator
from fisherlab.records.columns import DIRECTION_COLUMNS, ORIGIN, RECORD_COLUMNS, RECORD_TYPES
from fisherlab.records.definitions import METRICS, best_rows
from fisherlab.runs.origin import Origin
from fisherlab.runs.part import RunPart
from fisherlab.runs.save import Picture, Plate, Result, save_result

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from rich.console import RenderableType

Columns = Annotated[str, OneOf(("chosen", "all"))]

_LARGEST_PICTURE = 4096


@dataclass
class LayerResult:
    """Everything measured for one layer.

    Attributes:
        view: the layer.
        plan: how its exact block was computed.
        samples: N.
        positions: T.
        columns: N·C as used.
        kind: the labels of the exact block.
        damping: λ of the rows.
        dtype: in which it was computed; that of the model, or a wider one.
        operators: F (under the name `exact`) and F̂ by approximation; empty where they were let go to
            stay under the memory limit.
        measured: numbers by (approximation, target).
        waterfall: scaled errors of nearest → KFAC → lngd-lr → LNGD.
        spectra: eigenvalues of `exact` and of each F̂ (as many leading ones as the exact block has); empty
            where they were not computed.
        curvature: the leading eigenvalues of F and their bands; None where they were not computed.
        drawable: whether the dense matrices fit the memory limit.
    """

    view: LayerView
    plan: BlockPlan
    samples: int
    positions: int
    columns: int
    kind: str
    damping: float
    dtype: torch.dtype
    operators: dict[str, LinearOperator] = field(default_factory=dict)
    measured: dict[tuple[str, str], Row] = field(default_factory=dict)
    waterfall: dict[str, float | None] = field(default_factory=dict)
    spectra: dict[str, Tensor] = field(default_factory=dict)
    curvature: CurvatureScale | None = None
    drawable: bool = True

    @property
    def approximations(self) -> list[str]:
        """The approximations that were built and measured."""
        built = (name for (name, _), measured in self.measured.items() if "trace_approx" in measured.values)
        return list(dict.fromkeys(built))


@dataclass
class Comparison(Result):
    """The result of `fisherlab.compare`.

    Attributes:
        layers: the layers; `.layers.coverage()` says what of every parameter.
        results: by layer.
        coupling_matrix: ‖F_lk‖²/(‖F_l‖‖F_k‖), [L, L].
        about: names of model, data and checkpoint.
        device: where it was computed.
        dtype: the model's dtype.
    """

    layers: Layers
    results: Mapping[str, LayerResult]
    coupling_matrix: Tensor
    about: Origin
    device: str
    dtype: str
    _drawn: "tuple[str, dict[str, np.ndarray]] | None" = field(default=None, repr=False)

    @cached_property
    def records(self) -> pd.DataFrame:
        """A row a (layer, approximation, target): the columns of `records.csv`."""
        rows = [
            self._row(result, approximation, target, measured.values)
            for result in self.results.values()
            for (approximation, target), measured in result.measured.items()
        ]
        return pd.DataFrame(rows, columns=list(RECORD_COLUMNS)).astype(RECORD_TYPES)

    @cached_property
    def directions(self) -> pd.DataFrame:
        """A row a (layer, approximation, damping): `direction_cosine` and `decrease_share`."""
        rows = [
            {"layer": name, "approximation": approximation, **point}
            for name, result in self.results.items()
            for (approximation, target), measured in result.measured.items()
            if target == result.kind
            for point in measured.sweep
        ]
        return pd.DataFrame(rows, columns=list(DIRECTION_COLUMNS))

    @cached_property
    def coupling(self) -> pd.DataFrame:
        """A row a pair of layers: `layer, other, coupling`."""
        names = list(self.results)
        rows = [
            (one, other, float(self.coupling_matrix[i, j]))
            for i, one in enumerate(names)
            for j, other in enumerate(names)
        ]
        return pd.DataFrame(rows, columns=["layer", "other", "coupling"])

    @cached_property
    def waterfall(self) -> pd.DataFrame:
        """A row a (layer, step): the scaled errors from the nearest Kronecker product to LNGD."""
        rows = [
            (name, step, error)
            for name, result in self.results.items()
            for step, error in result.waterfall.items()
        ]
        return pd.DataFrame(rows, columns=["layer", "step", "scaled_error"])

    @property
    def caption(self) -> str:
        """One line that says what was measured, and on how many samples."""
        return self._caption(*self.results.values())

    @checked
    def operators(self, layer: str) -> dict[str, LinearOperator]:
        """F (under the name `exact`) and every F̂ of one layer.

        Raises:
            InputError: for an unknown layer.
            NotSupportedError: where they were let go to stay under the memory limit.
        """
        result = self._result(layer)
        if not result.operators:
            raise NotSupportedError(
                f"the operators of layer {layer!r} were let go to stay under the memory limit; compare it "
                "alone, or use exact_fisher and approximate"
            )
        return dict(result.operators)

    @checked
    def table(self, columns: Columns = "chosen") -> "RenderableType":
        """The records as tables for a terminal; `rich.print(c.table())`.

        Args:
            columns: ``all`` metrics, or those ``chosen`` for the width of a terminal.
        """
        from fisherlab.report import console_table

        left_out = self.layers.left_out
        return console_table(self.records, device=self.device, left_out=left_out, columns=columns)

    def _repr_html_(self) -> str:
        """What a notebook shows: the tables of `table()`."""
        from fisherlab.report import html_table

        return html_table(self.records, device=self.device, left_out=self.layers.left_out)

    @checked
    def heatmap(
        self,
        layer: str,
        approximations: Iterable[str] | str | None = None,
        *,
        trace_matched: bool = False,
    ) -> "Figure":
        """F, F̂ and ∣F − F̂∣ as heat maps, in the manner of figures 1 and 5 of the paper.

        Args:
            layer: its name.
            approximations: which; None: all.
            trace_matched: show F̂ · tr F / tr F̂.

        Raises:
            InputError: for an unknown layer or approximation.
            NotSupportedError: for a block too large to draw.
        """
        from fisherlab import plots

        result = self._result(layer)
        names = self._names(result, approximations)
        size = result.view.size
        if size > _LARGEST_PICTURE or not result.drawable:
            raise NotSupportedError(
                f"the block of layer {layer!r} has size {size} ({bytes_text(8.0 * size**2)}); blocks above "
                f"{_LARGEST_PICTURE}, or above the memory limit, are not drawn"
            )
        exact = self.operators(layer)["exact"]
        matrices = self._matrices(layer)
        shown = {name: matrices[name] for name in names}
        if trace_matched:
            scales = {name: _trace_scale(exact, result.operators[name]) for name in names}
            shown = {name: matrices[name] * scales[name] for name in names}
        return plots.heatmap(
            matrices["exact"],
            shown,
            layer=layer,
            outputs=exact.outputs,
            inputs=exact.inputs,
            caption=self._caption(result),
            scale_note="trace-matched" if trace_matched else "as computed",
        )

    def _matrices(self, layer: str) -> "dict[str, np.ndarray]":
        """The dense matrices of a layer; the last layer's are kept, for its next picture."""
        if self._drawn is None or self._drawn[0] != layer:
            self._drawn = None
            made = {name: op.dense().cpu().numpy() for name, op in self.operators(layer).items()}
            self._drawn = layer, made
        return self._drawn[1]

    @checked
    def spectrum(self, layer: str) -> "Figure":
        """Eigenvalues of F and of every F̂, and of F̂_λ⁻¹F beside them.

        Raises:
            InputError: for an unknown layer.
            NotSupportedError: where the eigenvalues were not computed.
        """
        from fisherlab import plots

        result = self._result(layer)
        if "exact" not in result.spectra:
            raise NotSupportedError(f"the eigenvalues of layer {layer!r} were not computed")
        preconditioned = {
            name: measured.preconditioned.cpu().numpy()
            for (name, target), measured in result.measured.items()
            if target == result.kind and measured.preconditioned is not None
        }
        spectra = {name: values.cpu().numpy() for name, values in result.spectra.items()}
        return plots.spectrum(
            spectra.pop("exact"),
            spectra,
            preconditioned,
            layer=layer,
            damping=result.damping,
            caption=self._caption(result),
            size=result.view.size,
        )

    def calibrations(self, layer: str) -> dict[str, Calibration]:
        """How each approximation of a layer sees the curvature of F, where that was computed."""
        result = self._result(layer)
        return {
            name: row.calibration
            for (name, target), row in result.measured.items()
            if target == result.kind and row.calibration is not None
        }

    @checked
    def curvature(self, layer: str) -> "Figure":
        """The curvature along the eigenvectors of F that each F̂ sees, and the overlap of leading subspaces.

        Raises:
            InputError: for an unknown layer.
            NotSupportedError: where the eigenvectors were not computed.
        """
        from fisherlab import plots

        result, seen = self._result(layer), self.calibrations(layer)
        if result.curvature is None or not seen:
            raise NotSupportedError(f"the eigenvectors of layer {layer!r} were not computed")
        eigenvalues, ends, sizes = result.curvature
        return plots.curvature(
            eigenvalues.cpu().numpy(),
            ends,
            sizes.cpu().numpy(),
            {name: one.ratios.cpu().numpy() for name, one in seen.items()},
            {name: one.overlap.cpu().numpy() for name, one in seen.items()},
            {name: one.bands for name, one in seen.items()},
            layer=layer,
            caption=self._caption(result),
        )

    def summary(self) -> dict[str, Any]:
        """For each layer the best approximation by each metric, and what names its pictures' files.

        Under `not_measured` stands why other layers have none.
        """
        from fisherlab.comparison.pictures import layer_files

        best: dict[str, dict[str, Any]] = {}
        main = self.records
        for name, result in self.results.items():
            rows = main[(main["layer"] == name) & (main["target"] == result.kind)]
            best[name] = _best(rows)
        return {
            "model": self.about.model,
            "dataset": self.about.dataset,
            "checkpoint": self.about.checkpoint,
            "seed": self.about.seed,
            "dtype": self.dtype,
            "device": self.device,
            "layers": best,
            "file_names": layer_files(self),
            **({"not_measured": dict(self.layers.left_out)} if self.layers.left_out else {}),
        }

    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables by the names of their files."""
        return {
            "records.csv": self.records,
            "directions.csv": self.directions,
            "coupling.csv": self.coupling,
            "coverage.csv": self.layers.coverage(),
        }

    def figures(self) -> Iterator[Plate]:
        """Each picture with its words: over all layers, and of the first dozen that are no norms."""
        from fisherlab.comparison.pictures import figures

        return figures(self)

    def write_page(
        self, path: Path, summary: Mapping[str, Any], pictures: Sequence[Picture], origin: Mapping[str, Any]
    ) -> Path:
        """Writes the page, with pictures that have been written and the content of `provenance.json`."""
        from fisherlab.report import write_page

        return write_page(
            path,
            title=f"Fisher comparison: {self.about.model}",
            summary={key: value for key, value in summary.items() if key not in ("layers", "file_names")},
            records=self.records,
            figures=pictures,
            provenance=origin,
        )

    @checked
    def save(self, directory: AnyPath, *, matrices: bool = False) -> Path:
        """Writes records, summary, pictures and the page into a directory that it makes.

        Args:
            directory: must not exist, or be empty.
            matrices: also write `blocks.safetensors` with the dense matrices that fit.

        Raises:
            InputError: where the directory holds something already.
        """
        from fisherlab.comparison.pictures import write_matrices

        with RunPart.claim(Path(directory)) as part:
            save_result(self, part, more=partial(write_matrices, self) if matrices else None)
        return Path(directory)

    def _row(
        self, result: LayerResult, approximation: str, target: str, values: Mapping[str, Any]
    ) -> dict[str, Any]:
        view = result.view
        return {
            **{name: getattr(self.about, name) for name in ORIGIN},
            "dtype": str(result.dtype).removeprefix("torch."),
            "layer": view.name,
            "module": view.family,
            "outputs": view.outputs,
            "inputs": view.inputs,
            "positions": result.positions,
            "groups": view.groups,
            "approximation": approximation,
            "kind": result.kind,
            "target": target,
            "samples": result.samples,
            "columns": result.columns,
            "method": result.plan.method,
            **values,
        }

    def _result(self, layer: str) -> LayerResult:
        if not isinstance(layer, str):
            raise InputTypeError(
                f"a layer is named by a string such as {next(iter(self.results))!r}, not {layer!r}"
            )
        if layer not in self.results:
            raise unknown("layer", layer, self.results)
        return self.results[layer]

    def _names(self, result: LayerResult, names: Iterable[str] | str | None) -> list[str]:
        if names is None:
            return result.approximations
        chosen = [names] if isinstance(names, str) else list(names)
        for name in chosen:
            if name not in result.approximations:
                raise unknown("approximation", name, result.approximations)
        if not chosen:
            raise InputError("name at least one approximation")
        return chosen

    def _caption(self, *results: LayerResult) -> str:
        made = dict.fromkeys(f"{result.kind} labels, {result.samples:,} samples" for result in results)
        return "; ".join([self.about.caption(self.device), *made])


def _trace_scale(exact: LinearOperator, operator: LinearOperator) -> float:
    trace = float(operator.trace())
    return float(exact.trace()) / trace if trace > 0 else 1.0


def _best(rows: pd.DataFrame) -> dict[str, Any]:
    """For each metric the approximations with the best value (to three digits), and the value."""
    found: dict[str, Any] = {}
    for metric in METRICS:
        values = pd.to_numeric(rows[metric.column], errors="coerce").reset_index(drop=True)
        marked = best_rows(values, metric.better)
        if any(marked):
            names = [n for n, best in zip(rows["approximation"], marked, strict=True) if best]
            value = float(values[marked.index(True)])
            found[metric.column] = {"best": names, "value": value}
    return found
