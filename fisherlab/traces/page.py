"""The page of a trace: what was run, tables, pictures, definitions."""

from collections.abc import Iterator
from typing import Any

from fisherlab.records.definitions import SCALE_NOTE
from fisherlab.records.labels import label
from fisherlab.report import Column, Contents, Definition, Tabular, defined
from fisherlab.report.blocks import OWN_SCALE
from fisherlab.report.overview import counted_notes
from fisherlab.traces.result import WHOLE, Traces
from fisherlab.traces.table import ARROW, first_to_last

_LAYERS = {
    "trace_exact": "tr F",
    "trace_approx": "tr F̂",
    "trace_ratio": "trace ratio",
    "scaled_error": "scaled error",
    "direction_cosine": "direction cosine",
    "decrease_share": "decrease share",
}

_SPECTRA = {"effective_rank": "effective rank", "condition": "condition number"}

_DEFINITIONS = (
    Definition(
        "tr F",
        "(1/N) Σ_n Σ_c ‖V_{n,c}‖_F²",
        "Trace of the exact Fisher of a layer: V is the gradient of its weights for sample n and label "
        "column c. The traces of the layers add up to that of the network.",
    ),
    *defined("trace_ratio", "scaled_error", "direction_cosine", "decrease_share"),
    Definition(
        "effective rank",
        "exp(−Σ_i q_i log q_i),  q_i = λ_i / Σ_j λ_j",
        "Of the eigenvalues λ_i of F: between 1 and D = m·d, and no more than the columns N·C that F is "
        "made of.",
    ),
    Definition(
        "condition number",
        "(λ_max + λ) / (λ_min + λ),  λ = 0.1 tr F / D",
        "Of F damped as for the directions. Where F has fewer columns N·C than D, λ_min is exactly 0.",
    ),
)


def page(traces: Traces) -> Contents:
    """What the page says beside its pictures."""
    return Contents(
        title=f"Trace diagnostics: {traces.about.model}",
        facts=_facts(traces),
        tables=list(_tables(traces)),
        definitions=_DEFINITIONS,
    )


def _facts(traces: Traces) -> dict[str, Any]:
    first = traces.main.iloc[0]
    return {
        "model": traces.about.model,
        "data": traces.about.dataset,
        "checkpoints": traces.checkpoint_words,
        "samples": first["samples"],
        "labels": first["target"],
        "layers": traces.main["layer"].nunique(),
        "seed": traces.about.seed,
        "dtype": first["dtype"],
        "device": traces.device,
    }


def _tables(traces: Traces) -> Iterator[Tabular]:
    yield _network(traces)
    yield _layers(traces)
    if traces.compared[list(_SPECTRA)].notna().any(axis=None):
        yield _spectra(traces)


def _network(traces: Traces) -> Tabular:
    """A row a checkpoint."""
    whole = traces.stages[traces.stages["stage"] == WHOLE]
    methods = list(whole["approximation"].unique())
    ratios = whole.pivot(index="checkpoint", columns="approximation", values="trace_ratio")
    rows = whole.drop_duplicates("checkpoint").join(ratios, on="checkpoint")
    columns = [
        Column("checkpoint", "checkpoint", "text"),
        Column("step", "step", "count"),
        Column("layers", "layers", "count"),
        Column("trace_exact", "tr F"),
        *(Column(name, f"{label(name)}: tr F̂ / tr F") for name in methods),
    ]
    lead = "Sums of the traces over all layers, and the ratio for each approximation; 1 is the right scale."
    notes = [SCALE_NOTE] if set(methods) & set(OWN_SCALE) else []
    notes.append("All numbers: stages.csv, also by stage of the network.")
    return Tabular.of(rows, columns, "The network", lead, notes)


def _layers(traces: Traces) -> Tabular:
    """A row a layer and approximation."""
    keys = ["layer", "approximation"]
    rows = first_to_last(traces.compared, keys, list(_LAYERS), traces.ends)
    rows["approximation"] = rows["approximation"].map(label)
    columns = [
        Column("layer", "layer", "text"),
        Column("approximation", "approximation", "text"),
        *(Column(key, head) for key, head in _LAYERS.items()),
    ]
    lead = (
        f"At {ARROW.join(traces.ends)}; – means not computed. Layers with the approximation diagonal alone "
        "(norms) are left out where others have more."
    )
    notes = [*counted_notes(traces.main), "All numbers: traces.csv, diagnostics.csv."]
    return Tabular.of(rows, columns, "Layers", lead, notes)


def _spectra(traces: Traces) -> Tabular:
    """A row a layer."""
    frame = traces.compared.drop_duplicates(["layer", "checkpoint"])
    frame = frame.assign(shape=[f"{m}×{d}" for m, d in zip(frame["outputs"], frame["inputs"], strict=True)])
    facts = ["layer", "shape", "method", "columns"]
    columns = [
        Column("layer", "layer", "text"),
        Column("shape", "m×d", "text"),
        Column("method", "exact by", "text"),
        Column("columns", "columns N·C", "count"),
        *(Column(key, head) for key, head in _SPECTRA.items()),
    ]
    rows = first_to_last(frame, facts, list(_SPECTRA), traces.ends)
    lead = f"Of the exact block of each layer, at {ARROW.join(traces.ends)}."
    return Tabular.of(rows, columns, "The spectrum of F", lead, ("All numbers: diagnostics.csv.",))
