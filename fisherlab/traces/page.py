"""The page of a trace: what was run, tables, pictures, definitions."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fisherlab.records.definitions import QUALITIES, Column, defined, name_of, scale_notes
from fisherlab.records.labels import label
from fisherlab.report import Contents, Tabular
from fisherlab.report.overview import counted_notes, not_measured
from fisherlab.traces.table import ARROW, NO_DIVERGENCES, first_to_last

if TYPE_CHECKING:
    from fisherlab.traces.result import Traces

_SHARED = ("trace_ratio", *QUALITIES)  # with a comparison
_SPECTRA = ("effective_rank", "condition")


def page(traces: "Traces") -> Contents:
    """What the page says beside its pictures."""
    return Contents(
        title=f"Trace diagnostics: {traces.about.model}",
        facts=_facts(traces),
        tables=list(_tables(traces)),
        definitions=defined("trace_exact", *_SHARED, *_SPECTRA),
    )


def _facts(traces: "Traces") -> dict[str, Any]:
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


def _tables(traces: "Traces") -> Iterator[Tabular]:
    yield _network(traces)
    yield _layers(traces)
    if traces.compared[list(_SPECTRA)].notna().any(axis=None):
        yield _spectra(traces)


def _network(traces: "Traces") -> Tabular:
    """A row a checkpoint."""
    whole = traces.network
    methods = list(whole["approximation"][whole["trace_ratio"].notna()].unique())
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
    notes = scale_notes(methods)
    notes.append("All numbers: stages.csv, also by stage of the network.")
    return Tabular.of(rows, columns, "The network", lead, notes)


def _layers(traces: "Traces") -> Tabular:
    """A row a layer and approximation."""
    keys, heads = ["layer", "approximation"], {"trace_exact": "tr F", "trace_approx": "tr F̂"}
    heads |= {column: name_of(column) for column in _SHARED}
    rows = first_to_last(traces.compared, keys, list(heads), traces.ends)
    rows["approximation"] = rows["approximation"].map(label)
    columns = [
        Column("layer", "layer", "text"),
        Column("approximation", "approximation", "text"),
        *(Column(key, head) for key, head in heads.items()),
    ]
    lead = (
        f"At {ARROW.join(traces.ends)}; – means not computed. Layers with the approximation diagonal alone "
        "(norms) are left out where others have more."
    )
    notes = [*counted_notes(traces.main), *not_measured(traces.left_out)]
    notes.append(f"All numbers: traces.csv, diagnostics.csv; {NO_DIVERGENCES}.")
    return Tabular.of(rows, columns, "Layers", lead, notes)


def _spectra(traces: "Traces") -> Tabular:
    """A row a layer."""
    frame = traces.compared.drop_duplicates(["layer", "checkpoint"])
    frame = frame.assign(shape=[f"{m}×{d}" for m, d in zip(frame["outputs"], frame["inputs"], strict=True)])
    facts = ["layer", "shape", "method", "columns"]
    columns = [
        Column("layer", "layer", "text"),
        Column("shape", "m×d", "text"),
        Column("method", "exact by", "text"),
        Column("columns", "columns N·C", "count"),
        *(Column(key, name_of(key)) for key in _SPECTRA),
    ]
    rows = first_to_last(frame, facts, list(_SPECTRA), traces.ends)
    lead = f"Of the exact block of each layer, at {ARROW.join(traces.ends)}."
    return Tabular.of(rows, columns, "The spectrum of F", lead, ("All numbers: diagnostics.csv.",))
