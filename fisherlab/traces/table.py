"""The table of a trace on the console."""

import pandas as pd
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fisherlab.plots.profiles import MANY
from fisherlab.records.definitions import SCALE_NOTE, STAND_IN
from fisherlab.records.labels import label, number, short
from fisherlab.report.blocks import MISSING
from fisherlab.traces.result import Traces

ARROW = " → "
_NAME = 26


def first_to_last(frame: pd.DataFrame, keys: list[str], columns: list[str], ends: list[str]) -> pd.DataFrame:
    """A row a combination of `keys`: the numbers of each column at the checkpoints `ends`, as one text."""
    rows = []
    for names, own in frame.groupby(keys, sort=False):
        at = own.set_index("checkpoint").reindex(ends)
        rows.append([*names, *(ARROW.join(number(x, MISSING) for x in at[column]) for column in columns)])
    return pd.DataFrame(rows, columns=[*keys, *columns])


def console_table(traces: Traces) -> RenderableType:
    """A row a layer and approximation, from the first checkpoint to the last; many layers: a row a stage.

    Layers that have only the approximation `diagonal` (norms) are left out where others have more.
    """
    by_layer = traces.compared["layer"].nunique() <= MANY
    frame = traces.compared if by_layer else traces.stages
    key = "layer" if by_layer else "stage"
    count = len(traces.checkpoints)
    heading = f"{key}s, {ARROW.join(traces.ends)}" + (f" ({count} checkpoints)" if count > 2 else "")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    columns = {"trace_exact": "tr F", "trace_approx": "tr F̂", "trace_ratio": "ratio"}
    columns |= {"scaled_error": "scaled error"} if by_layer else {}
    table.add_column(key, overflow="fold")
    table.add_column("approximation", no_wrap=True)
    for words in columns.values():
        table.add_column(words, justify="right", no_wrap=True)
    rows = first_to_last(frame, [key, "approximation"], list(columns), traces.ends)
    for row, approximation, *cells in rows.itertuples(index=False):
        table.add_row(short(row, _NAME), label(approximation), *cells)
    foot = Text(traces.caption, style="yellow" if STAND_IN in traces.caption else "dim")
    note = Text(f"all numbers: traces.csv, diagnostics.csv, stages.csv; {SCALE_NOTE}", style="dim")
    return Group(Text(heading, style="bold"), table, foot, note)
