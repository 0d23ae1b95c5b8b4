"""The table of representation vectors on the console: a row a layer."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pandas as pd
from rich.console import Group, RenderableType
from rich.text import Text

from fisherlab.records.definitions import Column
from fisherlab.records.labels import number
from fisherlab.records.vectors import ASSUMPTION, MARGINALS
from fisherlab.report.console import SplitTable, TextColumn, context_line
from fisherlab.report.overview import not_measured
from fisherlab.representations.vectors import ACTIVATED, OUTPUT

_LEAST_NAME = 14  # characters that a terminal leaves of a layer's name


def console_table(
    layers: pd.DataFrame, assumption: pd.DataFrame, *, caption: str, left_out: Mapping[str, str]
) -> RenderableType:
    """A row a layer: its outputs s over the data, and the isotropies that test the assumption.

    Args:
        layers: rows of `Representations.layers`.
        assumption: rows of `Representations.assumption`.
        caption: what was measured.
        left_out: layers that were not measured, and why.
    """
    tested = int(layers["tested"].max())
    labels, gradients = assumption["labels"].iloc[0], int(assumption["samples"].max())
    feet = [
        f"outputs s, marginals over the data (no test of the assumption); rejected: share of coordinates, "
        f"Lilliefors' test of {tested} values from different samples, Holm's adjustment for the layer's "
        "coordinates, 5 %",
        "isotropy (tr M)²/(m‖M‖²) of M = Σ_c q qᵀ, which layer-wise sampling takes for I (1 = consistent): "
        "of E[M], the mean over samples, and the most that a sample's rank allows; "
        f"{gradients} samples, labels: {labels}",
    ]
    notes = [f"{row['layer']}: {row['note']}" for _, row in assumption.iterrows() if row["note"]]
    return Group(
        _table(layers, assumption),
        *(Text(line, style="dim") for line in [*feet, *notes]),
        *map(Text, not_measured(left_out)),
        context_line(caption),
    )


def _table(layers: pd.DataFrame, assumption: pd.DataFrame) -> SplitTable:
    """In two tables, the second for the isotropies, where one has no room."""
    names = list(assumption["layer"])
    outputs = layers[layers["vector"] == OUTPUT].set_index("layer").loc[names]
    activated = layers[layers["vector"] == ACTIVATED].set_index("layer")["zeros"]
    outputs = outputs.assign(zeros=activated.reindex(names).fillna(outputs["zeros"]))
    outputs["activation"] = outputs["activation"].replace("identity", "–")
    layer = TextColumn(Text("layer"), [Text(name) for name in names], right=False)
    marginals = sorted(MARGINALS, key=lambda column: column.key == "zeros")  # which are those of φ(s): last
    parts = [list(_columns(outputs, marginals)), list(_columns(assumption, ASSUMPTION))]
    return SplitTable([layer], parts, least=_LEAST_NAME)


def _columns(rows: pd.DataFrame, columns: Iterable[Column]) -> Iterator[TextColumn]:
    """Those that a console shows, to two digits."""
    for column in columns:
        if column.short:
            cells = [Text(_cell(value, column)) for value in rows[column.key]]
            yield TextColumn(Text(column.short), cells, column.right)


def _cell(value: Any, column: Column) -> str:
    if column.kind == "share":
        return "n/a" if pd.isna(value) else f"{100 * value:.0f} %"
    return number(value, digits=2) if column.kind == "number" else str(value)
