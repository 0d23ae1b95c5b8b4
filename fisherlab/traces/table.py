"""The table of a trace on the console."""

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fisherlab.plots.labels import label, number, short
from fisherlab.plots.profiles import MANY
from fisherlab.report.definitions import SCALE_NOTE, STAND_IN
from fisherlab.traces.result import Traces

_ARROW = " → "
_NAME = 26


def console_table(traces: Traces) -> RenderableType:
    """A row a layer and approximation, from the first checkpoint to the last; many layers: a row a stage.

    Layers that have only the approximation `diagonal` (norms) are left out where others have more.
    """
    by_layer = traces.compared["layer"].nunique() <= MANY
    frame = traces.compared if by_layer else traces.stages
    key = "layer" if by_layer else "stage"
    names = list(traces.checkpoints["checkpoint"])
    ends = list(dict.fromkeys([names[0], names[-1]]))
    heading = f"{key}s, {_ARROW.join(ends)}" + (f" ({len(names)} checkpoints)" if len(names) > 2 else "")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    columns = {"trace_exact": "tr F", "trace_approx": "tr F̂", "trace_ratio": "ratio"}
    columns |= {"scaled_error": "scaled error"} if by_layer else {}
    table.add_column(key, overflow="fold")
    table.add_column("approximation", no_wrap=True)
    for words in columns.values():
        table.add_column(words, justify="right", no_wrap=True)
    for (row, approximation), own in frame.groupby([key, "approximation"], sort=False):
        at = own.set_index("checkpoint").reindex(ends)
        cells = [_ARROW.join(number(at[column][end], "–") for end in ends) for column in columns]
        table.add_row(short(row, _NAME), label(str(approximation)), *cells)
    foot = Text(traces.caption, style="yellow" if STAND_IN in traces.caption else "dim")
    note = Text(f"all numbers: traces.csv, diagnostics.csv, stages.csv; {SCALE_NOTE}", style="dim")
    return Group(Text(heading, style="bold"), table, foot, note)
