"""The table of a trace on the console."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pandas as pd
from rich.console import Group, RenderableType
from rich.text import Text

from fisherlab.plots.profiles import MANY
from fisherlab.records.definitions import MISSING, name_of, scale_notes
from fisherlab.records.labels import label, number, short
from fisherlab.report.console import SplitTable, TextColumn, context_line
from fisherlab.report.overview import not_measured

if TYPE_CHECKING:
    from fisherlab.traces.result import Traces

ARROW = " → "
NO_DIVERGENCES = "a trace makes no divergences (compare does)"
_NAME = 26
_OF_STEPS = ("direction_cosine", "decrease_share")  # all that a direction without a matrix has


def first_to_last(frame: pd.DataFrame, keys: list[str], columns: list[str], ends: list[str]) -> pd.DataFrame:
    """A row a combination of `keys`: the numbers of each column at the checkpoints `ends`, as one text."""
    rows = []
    for names, own in frame.groupby(keys, sort=False):
        at = own.set_index("checkpoint").reindex(ends)
        rows.append([*names, *(ARROW.join(number(x, MISSING) for x in at[column]) for column in columns)])
    return pd.DataFrame(rows, columns=[*keys, *columns])


def console_table(traces: "Traces") -> RenderableType:
    """A row a layer and approximation, from the first checkpoint to the last; many layers: a row a stage.

    Layers that have only the approximation `diagonal` (norms) are left out where others have more. Where a
    direction without a matrix is there, the numbers of the steps are shown too; rows of nothing are left out.
    """
    by_layer = traces.compared["layer"].nunique() <= MANY
    frame = traces.compared if by_layer else traces.stages
    key = "layer" if by_layer else "stage"
    count = len(traces.checkpoints)
    heading = f"{key}s, {ARROW.join(traces.ends)}" + (f" ({count} checkpoints)" if count > 2 else "")
    columns = {"trace_exact": "tr F", "trace_approx": "tr F̂", "trace_ratio": "ratio"}
    columns |= {"scaled_error": name_of("scaled_error")} if by_layer else {}
    directions = frame["trace_approx"].isna()
    if by_layer and frame[list(_OF_STEPS)][directions].notna().any(axis=None):
        columns |= {column: name_of(column) for column in _OF_STEPS}
    frame = frame[frame[list(columns)].drop(columns="trace_exact").notna().any(axis=1)]
    rows = first_to_last(frame, [key, "approximation"], list(columns), traces.ends)
    names = [
        _column(f"{key} ", [f"{short(name, _NAME)} " for name in rows[key]], right=False),
        _column("approximation", map(label, rows["approximation"]), right=False),
    ]
    parts = [
        [_column(f" {words}", (f" {text}" for text in rows[column]))] for column, words in columns.items()
    ]
    table = SplitTable(names, parts)
    words = ["all numbers: traces.csv, diagnostics.csv, stages.csv", NO_DIVERGENCES]
    note = Text("; ".join([*words, *scale_notes(frame["approximation"])]), style="dim")
    missing = map(Text, not_measured(traces.left_out))
    return Group(Text(heading, style="bold"), table, *missing, context_line(traces.caption), note)


def _column(head: str, cells: Iterable[str], right: bool = True) -> TextColumn:
    return TextColumn(Text(head), list(map(Text, cells)), right)
