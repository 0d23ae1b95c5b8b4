"""The page of representation vectors: what was run, tables, pictures, definitions."""

from typing import TYPE_CHECKING, Any

from fisherlab.plots.histograms import NO_TEST
from fisherlab.records.vectors import ASSUMPTION, DEFINITIONS, MARGINALS
from fisherlab.report import Contents, Tabular
from fisherlab.report.overview import not_measured
from fisherlab.representations.vectors import ACTIVATED, INPUT, OUTPUT

if TYPE_CHECKING:
    from fisherlab.representations.result import Representations

_VECTORS = {INPUT: "input a", OUTPUT: "output s", ACTIVATED: "φ(s)"}


def page(result: "Representations") -> Contents:
    """What the page says beside its pictures."""
    return Contents(
        title=f"Representation vectors: {result.about.model}",
        facts=_facts(result),
        tables=(_marginals(result), _assumption(result)),
        definitions=DEFINITIONS,
    )


def _facts(result: "Representations") -> dict[str, Any]:
    about, assumption = result.about, result.assumption
    return {
        "model": about.model,
        "data": about.dataset,
        "checkpoint": about.checkpoint,
        "step": about.step,
        "samples": result.samples,
        "layers": len(result.names),
        "samples with gradients": int(assumption["samples"].max()),
        "labels of the gradients": assumption["labels"].iloc[0],
        "seed": about.seed,
        "dtype": assumption["dtype"].iloc[0],
        "device": result.device,
    }


def _marginals(result: "Representations") -> Tabular:
    rows = result.layers.assign(vector=result.layers["vector"].map(_VECTORS))
    tested = int(rows["tested"].max())
    lead = (
        "How each layer's vectors of k coordinates are distributed over all samples and positions: inputs a, "
        "outputs s and, where an element-wise φ alone takes s, activated outputs φ(s). Distances and tests "
        f"are of {tested:,} values of a coordinate, each from another sample. {NO_TEST}"
    )
    notes = (
        "Rejected: tests at 5 %, adjusted for the coordinates of a row (Holm), not for the number of rows.",
        "All numbers: layers.csv, moments.csv with a row a coordinate, quantiles.csv, histograms*.csv.",
        *not_measured(result.left_out),
    )
    return Tabular.of(rows, MARGINALS, "Marginals", lead, notes)


def _assumption(result: "Representations") -> Tabular:
    lead = (
        "Layer-wise sampling draws a layer's activated output from N(φ(s), I): it takes each sample's M, the "
        "second moment of the gradients there, for I. An isotropy of 1 is consistent with that; 1/m is as "
        "far from it as can be. Positions are pooled: 1 is necessary and, with several positions, not "
        "sufficient."
    )
    return Tabular.of(
        result.assumption, ASSUMPTION, "The assumption", lead, ("All numbers: assumption.csv.",)
    )
