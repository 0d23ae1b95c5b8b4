"""The tables of representation vectors, from the sums of the passes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from fisherlab.records.columns import ORIGIN
from fisherlab.representations.isotropy import Isotropy
from fisherlab.representations.moments import Histograms, Moments
from fisherlab.representations.normality import (
    Array,
    chi_distance,
    chi_fit,
    chi_quantile,
    holm,
    lilliefors_p,
    normal_distances,
)
from fisherlab.representations.vectors import OUTPUT
from fisherlab.runs.origin import Origin

LEVEL = 0.05
"""Of the tests, after Holm's adjustment."""

HISTOGRAM_COLUMNS = ["layer", "vector", "quantity", "index", "left", "right", "count"]
QUANTILE_COLUMNS = ["layer", "vector", "quantity", "index", "probability", "value", "normal", "chi"]
_QUANTILES = 200


@dataclass(frozen=True)
class VectorFacts:
    """What was measured of one kind of vector of a layer.

    Attributes:
        coordinates: moments, [k].
        norms: moments of ‖x‖ and ‖x‖².
        chosen: the coordinates with a histogram.
        histograms: theirs.
        norm_histogram: that of the norms.
        tested: the vectors that are tested, [n, k], each from another sample.
    """

    coordinates: Moments
    norms: Moments
    chosen: list[int]
    histograms: Histograms
    norm_histogram: Histograms
    tested: Array


@dataclass(frozen=True)
class LayerFacts:
    """What was measured of a layer.

    Attributes:
        name: its name.
        module: the module's type.
        activation: φ.
        outputs: m.
        positions: T.
        samples: N.
        vectors: by kind.
        isotropy: of its M.
        columns: q a sample.
        labels: whose expectation M is: `expected`, or how many were drawn.
        note: why there is no isotropy, or empty.
    """

    name: str
    module: str
    activation: str
    outputs: int
    positions: int
    samples: int
    vectors: Mapping[str, VectorFacts]
    isotropy: Isotropy
    columns: int
    labels: str
    note: str


def tables(facts: Sequence[LayerFacts], about: Origin, device: str, dtype: str) -> dict[str, pd.DataFrame]:
    """The tables `moments`, `histograms`, `quantiles`, `assumption` and `layers`."""
    origin = {name: getattr(about, name) for name in ORIGIN} | {"dtype": dtype, "device": device}
    every = [(layer, kind, vectors) for layer in facts for kind, vectors in layer.vectors.items()]
    moments = pd.concat([_moments(layer.name, kind, v) for layer, kind, v in every], ignore_index=True)
    histograms = [part for layer, kind, v in every for part in _histograms(layer.name, kind, v)]
    quantiles = [part for layer, kind, v in every for part in _quantiles(layer.name, kind, v)]
    return {
        "moments": _labelled(moments, origin),
        "histograms": pd.concat(histograms, ignore_index=True)[HISTOGRAM_COLUMNS],
        "quantiles": pd.DataFrame(quantiles, columns=QUANTILE_COLUMNS),
        "assumption": _labelled(pd.DataFrame([_assumption(layer) for layer in facts]), origin),
        "layers": pd.DataFrame([_summary(layer, kind, moments) for layer, kind, _ in every]),
    }


def _labelled(table: pd.DataFrame, origin: Mapping[str, Any]) -> pd.DataFrame:
    return pd.concat([pd.DataFrame(dict.fromkeys(origin), index=table.index).assign(**origin), table], axis=1)


def _moments(layer: str, kind: str, facts: VectorFacts) -> pd.DataFrame:
    """A row a coordinate, and one for the norms."""
    own = {"layer": layer, "vector": kind}
    coordinates = _moment_columns(facts.coordinates).assign(**own, quantity="coordinate")
    coordinates["chosen"] = coordinates["index"].isin(facts.chosen)
    _test(coordinates, facts.tested)
    coordinates["ks_p_holm"] = holm(coordinates["ks_p"].to_numpy())
    norms = _moment_columns(facts.norms).iloc[:1].assign(**own, quantity="norm", chosen=True)
    lengths = np.linalg.norm(facts.tested, axis=1)
    _test(norms, lengths[:, None])
    freedom, scale = _chi(facts)
    norms["chi_freedom"], norms["chi_scale"] = freedom, scale
    norms["chi_distance"] = chi_distance(lengths, freedom, scale)
    columns = [
        *("layer", "vector", "quantity", "index", "chosen", "count", "mean", "std", "skewness"),
        *("excess_kurtosis", "minimum", "maximum", "zeros", "tested", "ks_distance", "ks_p", "ks_p_holm"),
        *("anderson_darling", "chi_freedom", "chi_scale", "chi_distance"),
    ]
    return pd.concat([coordinates.reindex(columns=columns), norms.reindex(columns=columns)])


def _moment_columns(moments: Moments) -> pd.DataFrame:
    names = ("mean", "std", "skewness", "excess_kurtosis", "minimum", "maximum", "zeros")
    table = pd.DataFrame({name: getattr(moments, name).cpu().numpy() for name in names})
    return table.assign(index=range(len(table)), count=moments.count)


def _test(table: pd.DataFrame, values: Array) -> None:
    """Adds how far values [n, rows of the table] are from normal distributions."""
    table["tested"] = len(values)
    table["ks_distance"], table["anderson_darling"] = normal_distances(values)
    table["ks_p"] = lilliefors_p(table["ks_distance"].to_numpy(), len(values))


def _chi(facts: VectorFacts) -> tuple[float, float]:
    square = facts.norms.mean[1], facts.norms.std[1] ** 2
    return chi_fit(float(square[0]), float(square[1]))


def _histograms(layer: str, kind: str, facts: VectorFacts) -> Iterator[pd.DataFrame]:
    columns = [("coordinate", facts.histograms, place, index) for place, index in enumerate(facts.chosen)]
    for quantity, histograms, place, index in [("norm", facts.norm_histogram, 0, 0), *columns]:
        left, right, count = (part.numpy() for part in histograms.column(place))
        table = pd.DataFrame({"left": left, "right": right, "count": count})
        yield table.assign(layer=layer, vector=kind, quantity=quantity, index=index)


def _quantiles(layer: str, kind: str, facts: VectorFacts) -> Iterator[tuple[Any, ...]]:
    """Quantiles of the values tested, beside those of the fits to all values."""
    if not len(facts.tested):
        return
    count = min(len(facts.tested), _QUANTILES)
    p = (np.arange(count) + 0.5) / count
    normal = torch.special.ndtri(torch.from_numpy(p)).numpy()
    lengths = np.linalg.norm(facts.tested, axis=1)
    freedom, scale = _chi(facts)
    columns = [("coordinate", index, facts.tested[:, index], facts.coordinates) for index in facts.chosen]
    for quantity, index, values, moments in [("norm", 0, lengths, facts.norms), *columns]:
        fitted = float(moments.mean[index]) + float(moments.std[index]) * normal
        chi = chi_quantile(p, freedom, scale) if quantity == "norm" else np.full(count, np.nan)
        for row in zip(p, np.quantile(values, p, method="hazen"), fitted, chi, strict=True):
            yield (layer, kind, quantity, index, *row)


def _assumption(layer: LayerFacts) -> dict[str, Any]:
    isotropy = layer.isotropy
    return {
        "layer": layer.name,
        "module": layer.module,
        "activation": layer.activation,
        "outputs": layer.outputs,
        "positions": layer.positions,
        "samples": isotropy.samples,
        "columns": layer.columns,
        "labels": layer.labels,
        "isotropy_mean": isotropy.of_mean,
        "isotropy_population": isotropy.of_population,
        "isotropy_samples": isotropy.mean_of_samples,
        "isotropy_limit": isotropy.limit,
        "note": layer.note,
    }


def _summary(layer: LayerFacts, kind: str, moments: pd.DataFrame) -> dict[str, Any]:
    own = moments[(moments["layer"] == layer.name) & (moments["vector"] == kind)]
    coordinates, norm = own[own["quantity"] == "coordinate"], own[own["quantity"] == "norm"].iloc[0]
    kurtosis = coordinates["excess_kurtosis"].dropna()
    p = coordinates["ks_p_holm"].dropna()
    return {
        "layer": layer.name,
        "vector": kind,
        "module": layer.module,
        "activation": layer.activation if kind == OUTPUT else "",
        "coordinates": len(coordinates),
        "constant": int((coordinates["minimum"] == coordinates["maximum"]).sum()),
        "samples": layer.samples,
        "count": int(norm["count"]),
        "tested": int(norm["tested"]),
        "skewness_median": coordinates["skewness"].abs().median(),
        "kurtosis_median": kurtosis.median(),
        "kurtosis_worst": kurtosis.iloc[int(kurtosis.abs().argmax())] if len(kurtosis) else np.nan,
        "ks_median": coordinates["ks_distance"].median(),
        "ks_worst": coordinates["ks_distance"].max(),
        "rejected": float((p < LEVEL).mean()) if len(p) else np.nan,
        "zeros": coordinates["zeros"].mean(),
        "norm_ks_normal": norm["ks_distance"],
        "norm_ks_chi": norm["chi_distance"],
        "norm_freedom": norm["chi_freedom"] / len(coordinates),
    }
