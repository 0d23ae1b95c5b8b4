"""Records of a network with many layers: a row a layer, and what the notes say, counted."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pandas as pd

from fisherlab.records.definitions import BY_COLUMN, MISSING, Metric, best_rows
from fisherlab.records.frames import compared_layers, numbers, table, with_series
from fisherlab.records.labels import label, named, number
from fisherlab.report.blocks import Cell, Record, count, run_context, word

_SHOWN = (BY_COLUMN["scaled_error"], BY_COLUMN["relative_error"])  # the metrics of an overview

_FACTS = {"module": "module", "shape": "m×d", "positions": "T", "groups": "groups", "method": "exact by"}
_MOST_NOTES = 10
_NUMBER = re.compile(r"(\d[\d.,]*(?:e[+−-]?\d+)?(?: [KMGT]?i?B\b)?)")


@dataclass(frozen=True)
class LayerRow:
    """One layer.

    Attributes:
        layer: Its name.
        facts: Module, shape, positions, groups and way of computing the exact block, as far as
            the overview has these columns.
        cells: Column of a metric -> one cell for each approximation.
    """

    layer: str
    facts: tuple[str, ...]
    cells: Mapping[str, tuple[Cell, ...]]


@dataclass(frozen=True)
class Overview:
    """The layers of one run beside their approximations, against the main target of each layer.

    Attributes:
        facts: Headings of the layers' facts.
        methods: Written forms of the approximations.
        own_scale: Whether an approximation has no common scale with the target.
        metrics: The metrics that are known of any layer.
        rows: One for each layer that has more than the approximation `diagonal`.
        targets: The targets that occur.
        context: Data, model, checkpoint, samples and seed.
        notes: What the records' notes say, each with the number of its layers.
    """

    facts: tuple[str, ...]
    methods: tuple[str, ...]
    own_scale: tuple[bool, ...]
    metrics: tuple[Metric, ...]
    rows: tuple[LayerRow, ...]
    targets: tuple[str, ...]
    context: str
    notes: tuple[str, ...]


def overview(run: pd.DataFrame) -> Overview:
    """The overview of the records of one run."""
    layers, _ = compared_layers(run)
    rows = with_series(run[run["layer"].isin(layers)])
    main = rows[[not one.target for one in rows["series"]]]
    methods = list(dict.fromkeys(main["approximation"]))
    metrics = tuple(m for m in _SHOWN if m.column in main and numbers(main[m.column]).notna().any())
    facts = {layer: _facts(dict(own.iloc[0])) for layer, own in main.groupby("layer", sort=False)}
    used = [key for key in _FACTS if any(one[key] not in (MISSING, "") for one in facts.values())]
    cells = {metric.column: list(_cells(main, metric, layers, methods)) for metric in metrics}
    return Overview(
        facts=tuple(_FACTS[key] for key in used),
        methods=tuple(map(label, methods)),
        own_scale=tuple(named(name).own_scale for name in methods),
        metrics=metrics,
        rows=tuple(
            LayerRow(
                str(layer),
                tuple(facts[layer][key] for key in used),
                {column: own[place] for column, own in cells.items()},
            )
            for place, layer in enumerate(layers)
        ),
        targets=tuple(str(one) for one in main["target"].dropna().unique()) if "target" in main else (),
        context=run_context({**run.iloc[0], "damping": None}),
        notes=tuple(counted_notes(run)),
    )


def diagonal_line(run: pd.DataFrame) -> str:
    """One sentence on the layers that have only the approximation `diagonal`; empty without any."""
    _, layers = compared_layers(run)
    if not layers:
        return ""
    own = run[run["layer"].isin(layers)]
    modules = ", ".join(own["module"].dropna().astype(str).unique()) if "module" in own else ""
    line = f"{_layers(len(layers))} with the approximation diagonal only"
    line += f" ({modules})" if modules else ""
    errors = numbers(own["scaled_error"]).dropna() if "scaled_error" in own else pd.Series(dtype=float)
    if len(errors):
        line += f": scaled error {number(errors.min())} to {number(errors.max())}"
    return line


def not_measured(left_out: Mapping[str, str]) -> list[str]:
    """A line a layer that could not be measured, with the reason."""
    return [f"not measured: {layer}: {reason}" for layer, reason in left_out.items()]


def counted_notes(run: pd.DataFrame) -> Iterator[str]:
    """The notes of a run, the most frequent first: how many layers, which approximations, what.

    A row's note is taken apart at "; "; parts that stand in the same rows are one. Notes that
    differ only in numbers, or in the quoted name of their layer, count as one; what differs is
    written as "…".
    """
    if "note" not in run:
        return
    noted = run[["layer", "approximation", "note"]].reset_index(drop=True).dropna()
    noted = noted.assign(note=noted["note"].astype(str).str.split("; ")).explode("note")
    noted = noted[noted["note"] != ""]
    pairs = zip(noted["layer"], noted["note"], strict=True)
    texts = [note.replace(repr(str(layer)), "…") for layer, note in pairs]
    noted = noted.assign(note=texts, key=[_NUMBER.sub("#", text) for text in texts])
    parts: dict[frozenset[int], list[str]] = {}
    for _, own in noted.groupby("key", sort=False):
        parts.setdefault(frozenset(own.index), []).append(_common(list(own["note"].unique())))
    lines = [(_of_rows(run, run.iloc[sorted(rows)]), "; ".join(words)) for rows, words in parts.items()]
    lines.sort(key=lambda line: -line[0][0])
    for (many, names), words in lines[:_MOST_NOTES]:
        yield f"{_layers(many)}{names}: {words}"
    if len(lines) > _MOST_NOTES:
        yield f"{len(lines) - _MOST_NOTES} more kinds of notes"


def _of_rows(run: pd.DataFrame, rows: pd.DataFrame) -> tuple[int, str]:
    """How many layers some rows belong to; their approximations, where these layers have others."""
    methods = list(rows["approximation"].unique())
    every = set(run.loc[run["layer"].isin(rows["layer"]), "approximation"])
    names = "" if set(methods) == every else f", {', '.join(map(label, methods))}"
    return rows["layer"].nunique(), names


def _layers(many: int) -> str:
    return f"{many} layer{'s' if many > 1 else ''}"


def _common(texts: list[str]) -> str:
    """What texts that differ only in numbers have in common."""
    parts = zip(*map(_NUMBER.split, texts), strict=True)
    return "".join(one[0] if len(set(one)) == 1 else "…" for one in parts)


def _facts(row: Record) -> dict[str, str]:
    shape = f"{count(row, 'outputs')}×{count(row, 'inputs')}"
    groups = count(row, "groups")
    return {
        "module": word(row, "module") or MISSING,
        "shape": MISSING if shape == f"{MISSING}×{MISSING}" else shape,
        "positions": count(row, "positions"),
        "groups": "" if groups in (MISSING, "1") else f"×{groups}",
        "method": word(row, "method") or MISSING,
    }


def _cells(
    main: pd.DataFrame, metric: Metric, layers: list[str], methods: list[str]
) -> Iterator[tuple[Cell, ...]]:
    """The cells of each layer; the best of a layer is marked."""
    for values in table(main, metric.column, layers, methods, "layer", "approximation"):
        flags = best_rows(pd.Series(values), metric.better)
        yield tuple(Cell(metric.text(value), best) for value, best in zip(values, flags, strict=True))
