"""What `represent` gives: tables, pictures and files."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from fisherlab.errors import unknown
from fisherlab.records.columns import ORIGIN
from fisherlab.representations.vectors import ACTIVATED, INPUT, OUTPUT
from fisherlab.runs.names import file_names
from fisherlab.runs.origin import Origin
from fisherlab.runs.save import Picture, Plate, Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import RenderableType


@dataclass(frozen=True, eq=False)
class Representations(Result):
    """The result of `fisherlab.represent`.

    A row is of one kind of `vector`: `input` a_{l−1}, `output` s, `activated` φ(s) (only where φ is not the
    identity). Layers that see indices have no input vectors.

    Attributes:
        moments: a row a coordinate, and one for the norms of a layer's vectors: moments of all `count`
            values, and, of `tested` values from different samples, `ks_distance`, its p value with estimated
            mean and deviation (`ks_p`), that adjusted for the number of the layer's coordinates
            (`ks_p_holm`), and the Anderson–Darling statistic; for norms the scaled chi distribution with
            their moments.
        histograms: counts of the norms, and of the coordinates at the quantiles 0, ¼, ½, ¾ and 1 of the
            excess kurtosis.
        quantiles: of the values tested, beside those of the fits.
        assumption: a row a layer: the isotropy (tr M)²/(m‖M‖²) of what layer-wise sampling takes for I.
        layers: a row a layer and vector: medians and worst values over the coordinates.
        about: names of model, data and checkpoint.
        device: where it was computed.
        samples: N.
        left_out: the layers that could not be measured, and why.
    """

    moments: pd.DataFrame
    histograms: pd.DataFrame
    quantiles: pd.DataFrame
    assumption: pd.DataFrame
    layers: pd.DataFrame
    about: Origin
    device: str
    samples: int
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The layers."""
        return list(self.assumption["layer"])

    @property
    def caption(self) -> str:
        """One line that says what was measured."""
        return f"{self.about.caption(self.device)}; {self.samples} samples"

    def table(self) -> "RenderableType":
        """A row a layer, for a terminal; `rich.print(r.table())`."""
        from fisherlab.representations.console import console_table

        return console_table(self.layers, self.assumption, caption=self.caption, left_out=self.left_out)

    def histogram(self, layer: str, vector: str = OUTPUT) -> "Figure":
        """Histograms and quantiles of a layer's vectors with their fits, as in the paper's figure 6.

        Raises:
            InputError: for an unknown layer, or a vector that it does not have.
        """
        from fisherlab import plots

        if layer not in self.names:
            raise unknown("layer", layer, self.names)
        tables = [
            table[(table["layer"] == layer) & (table["vector"] == vector)]
            for table in (self.histograms, self.quantiles, self.moments)
        ]
        if tables[0].empty:
            raise unknown("vector", vector, list(self.layers["vector"][self.layers["layer"] == layer]))
        return plots.histograms(*tables, layer=layer, vector=vector, caption=self.caption)

    def summary(self) -> dict[str, Any]:
        """The content of `summary.json`."""
        isotropies = {row["layer"]: row for row in self.assumption.to_dict("records")}
        return {
            **{name: getattr(self.about, name) for name in ORIGIN},
            "device": self.device,
            "samples": self.samples,
            "layers": {
                name: {
                    "vectors": {
                        row["vector"]: _plain({key: row[key] for key in row if key not in _CONTEXT})
                        for row in self.layers[self.layers["layer"] == name].to_dict("records")
                    },
                    "assumption": _plain({key: isotropies[name][key] for key in _ASSUMPTION}),
                }
                for name in self.names
            },
            **({"not_measured": dict(self.left_out)} if self.left_out else {}),
            "file_names": file_names(self.names[:_MOST_DRAWN]),
        }

    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables by the names of their files.

        `histograms.csv` has the outputs s of every layer; the activated outputs and the inputs have files of
        their own with the same columns.
        """
        kinds = self.histograms["vector"]
        own = {
            name: self.histograms[kinds == vector].drop(columns="vector") for vector, name in _FILES.items()
        }
        whole = ("moments", "quantiles", "assumption", "layers")
        return own | {f"{name}.csv": getattr(self, name) for name in whole}

    def figures(self) -> Iterator[Plate]:
        """Pictures over all layers, and of the first few layers' outputs and activated outputs."""
        from fisherlab import plots

        caption = self.caption
        yield Plate(
            "normality",
            plots.normality(self.layers, caption=caption),
            "How far from normal",
            "Kurtosis, distances and rejected coordinates of every layer's outputs and activated outputs.",
        )
        yield Plate(
            "assumption",
            plots.isotropies(self.assumption, caption=caption),
            "Is the assumption true?",
            "Isotropy of what layer-wise sampling takes for I; 1 is consistent with it.",
        )
        files = file_names(self.names[:_MOST_DRAWN])
        drawn = self.layers[self.layers["layer"].isin(files)]
        for layer, vector in zip(drawn["layer"], drawn["vector"], strict=True):
            if vector != INPUT:
                yield Plate(
                    f"histogram-{files[layer]}" + ("" if vector == OUTPUT else f"-{vector}"),
                    self.histogram(layer, vector),
                    f"Layer {layer}: {'outputs' if vector == OUTPUT else 'activated outputs'}",
                    "Coordinates from the least to the largest kurtosis, and the norms, with their fits.",
                )

    def write_page(
        self, path: Path, summary: Mapping[str, Any], pictures: Sequence[Picture], origin: Mapping[str, Any]
    ) -> Path:
        """Writes the page, with pictures that have been written and the content of `provenance.json`."""
        from fisherlab.report import write_tables
        from fisherlab.representations.page import page

        return write_tables(path, page(self), pictures, origin)


_MOST_DRAWN = 12
_FILES = {OUTPUT: "histograms.csv", ACTIVATED: "histograms-activated.csv", INPUT: "histograms-input.csv"}
_CONTEXT = ("layer", "vector", "module", "activation")
_ASSUMPTION = [
    *("activation", "outputs", "positions", "samples", "columns", "labels"),
    *("isotropy_mean", "isotropy_population", "isotropy_samples", "isotropy_limit", "note"),
]


def _plain(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Values that JSON has: a number that is not known is None."""
    return {str(key): None if pd.isna(value) else value for key, value in row.items()}
