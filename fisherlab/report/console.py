"""Tables on the console: one that splits where the terminal is narrow, and those of a comparison."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd
from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from fisherlab.plots.profiles import MANY
from fisherlab.records.definitions import METRICS, MISSING, SCALE_NOTE, STAND_IN
from fisherlab.records.frames import compared_layers
from fisherlab.records.labels import short
from fisherlab.report.blocks import Cell, LayerTable, TableRow, blocks, runs
from fisherlab.report.overview import Overview, diagonal_line, not_measured, overview

BEST = "*"
OWN_SCALE = "†"

_LEAST_NAME = 16  # characters that a narrow terminal leaves of a layer's name

_NOTEBOOK_WIDTH = 110
_THEME = TerminalTheme(
    (255, 255, 255), (0, 0, 0), [(0, 0, 0), (190, 60, 50), (26, 150, 65), (160, 115, 0)]
)  # its green and yellow are legible on white and on black
_PRE = '<pre style="white-space:pre;overflow-x:auto;line-height:1.35;font-family:monospace">{code}</pre>'


class TextColumn(NamedTuple):
    """A column of a `SplitTable`: its heading and its cells."""

    head: Text
    cells: list[Text]
    right: bool = True

    @property
    def room(self) -> int:
        """Its width and the space before it."""
        return 1 + max(cell_len(line) for text in (self.head, *self.cells) for line in text.plain.split("\n"))


@dataclass(frozen=True)
class SplitTable:
    """A table that a terminal too narrow for it gets in two or more, one below the other.

    No number is ever folded.

    Attributes:
        names: the columns that name a row, at the left of each table.
        parts: the other columns; those of a part stay together.
        narrow: the parts in the order of a narrow terminal; None: the same.
        least: characters that stay of a text of the first column, as `short` cuts it; None: all of them, on
            two lines where they have no room.
    """

    names: Sequence[TextColumn]
    parts: Sequence[Sequence[TextColumn]]
    narrow: Sequence[Sequence[TextColumn]] | None = None
    least: int | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        first, *others = self.names
        kept = first.room - 1 if self.least is None else min(first.room - 1, self.least)
        free = options.max_width - kept - sum(column.room for column in others)
        every = [column for part in self.parts for column in part]
        whole = sum(column.room for column in every) <= max(free, 0)
        for place, chosen in enumerate([every] if whole else _split(self.narrow or self.parts, free)):
            if place:
                yield Text()
            yield self._table(chosen, kept + max(0, free - sum(column.room for column in chosen)))

    def _table(self, columns: Sequence[TextColumn], most: int) -> Table:
        """Names and these columns, with so many characters for a text of the first."""
        table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
        for place, (head, _, right) in enumerate((*self.names, *columns)):
            folded = self.least is None and place < len(self.names)
            table.add_column(
                head,
                no_wrap=not folded,
                overflow="fold" if folded else "ellipsis",
                vertical="bottom",
                justify="right" if right else "left",
            )
        names = [column.cells for column in self.names]
        if self.least is not None:
            names[0] = [Text(short(text.plain, most)) for text in names[0]]
        for cells in zip(*names, *(column.cells for column in columns), strict=True):
            table.add_row(*cells)
        return table


def _split(parts: Sequence[Sequence[TextColumn]], free: int) -> Iterator[list[TextColumn]]:
    """The columns of the parts that fit side by side, in turn; at least one part."""
    chosen: list[TextColumn] = []
    for part in parts:
        if chosen and sum(column.room for column in (*chosen, *part)) > free:
            yield chosen
            chosen = []
        chosen = [*chosen, *part]
    if chosen:
        yield chosen


def context_line(line: str) -> Text:
    """What was measured, below a table; data that stand in for others stand out."""
    return Text(line, style="yellow" if STAND_IN in line else "dim")


_SHORT_TARGETS = {
    "predictive": "pred.",
    "layerwise": "layer.",
    "empirical": "empir.",
    "monte-carlo": "m.-c.",
}


def console_table(
    records: pd.DataFrame,
    *,
    device: str | None = None,
    left_out: Mapping[str, str] | None = None,
    columns: str = "chosen",
) -> RenderableType:
    """The records as tables for a terminal.

    Up to 12 layers: a block a layer with its metrics. More: one table with a row a layer and the
    scaled error of each approximation against the layer's main target; the notes are counted
    below it. Layers that have only the approximation `diagonal` (norms) are one line, where
    others have more.

    The best value of a column of a block (each target on its own), or of a row of the one table,
    is bold and carries a ``*``. A terminal too narrow for all columns gets them in two or more
    tables, one below the other; no number is ever folded.

    Args:
        records: Rows of ``records.csv``; columns that are absent count as empty.
        device: Where it was computed, for the line under each table.
        left_out: Layers that were not measured, and why.
        columns: ``all`` metrics, or those ``chosen`` for tables of a terminal.

    Returns:
        Something that a ``rich`` console prints.

    Raises:
        InputError: There are no rows, or ``layer`` or ``approximation`` is absent.
    """
    parts: list[RenderableType] = []
    metrics = [metric for metric in METRICS if metric.shown or columns == "all"]
    best, own_scale = "column", False
    for run in runs(records):
        layers, _ = compared_layers(run)
        if len(layers) > MANY:
            best = "row"
            view = overview(run)
            parts += _overview_parts(view, device)
            own_scale = own_scale or any(view.own_scale)
        else:
            for block in blocks(run, layers, metrics):
                parts += [_heading(block), _block_table(block), *_foot(block, device), Text()]
                own_scale = own_scale or any(row.own_scale for row in block.rows)
        if line := diagonal_line(run):
            parts += [Text(f"{line}; all numbers: records.csv", style="dim"), Text()]
    parts += map(Text, not_measured(left_out or {}))
    parts.append(Text(f"{BEST} best of its {best}, to the digits shown", style="dim"))
    if own_scale:
        parts.append(Text(f"{OWN_SCALE} {SCALE_NOTE}", style="dim"))
    return Group(*parts)


def html_table(
    records: pd.DataFrame, *, device: str | None = None, left_out: Mapping[str, str] | None = None
) -> str:
    """The tables of `console_table` for a notebook: the same text, escaped, with its own styles.

    Args:
        records: Rows of ``records.csv``.
        device: Where it was computed.
        left_out: Layers that were not measured, and why.

    Returns:
        One ``<pre>`` element.

    Raises:
        InputError: As of `console_table`.
    """
    console = Console(
        record=True, file=io.StringIO(), width=_NOTEBOOK_WIDTH, force_jupyter=False, force_terminal=True
    )
    console.print(console_table(records, device=device, left_out=left_out))
    return console.export_html(theme=_THEME, code_format=_PRE, inline_styles=True)


def _overview_parts(view: Overview, device: str | None) -> Iterator[RenderableType]:
    yield Text.assemble(
        (f"{len(view.rows)} layers", "bold"), "  scaled error min_c ‖F − c F̂‖ / ‖F‖ of each approximation"
    )
    yield _overview_table(view)
    yield _foot_line(view.targets, view.context, device)
    for note in view.notes:
        yield Text(note, style="dim")
    yield Text("all numbers of every layer: records.csv (in Python: .records)", style="dim")
    yield Text()


def _overview_table(view: Overview) -> SplitTable:
    """A row a layer; on a narrow console the facts of the layers stand below the errors."""
    facts = [
        TextColumn(Text(head), [Text(row.facts[place]) for row in view.rows], right=head == "T")
        for place, head in enumerate(view.facts)
    ]
    errors = [_error_column(view, place) for place in range(len(view.methods))]
    layers = TextColumn(Text("layer"), [Text(row.layer) for row in view.rows], right=False)
    wide, narrow = ([[column] for column in columns] for columns in (facts + errors, errors + facts))
    return SplitTable([layers], wide, narrow, least=_LEAST_NAME)


def _error_column(view: Overview, place: int) -> TextColumn:
    """Scaled errors of an approximation."""
    mark = OWN_SCALE if view.own_scale[place] else " "
    cells = [row.cells.get("scaled_error") for row in view.rows]
    return TextColumn(
        Text("\n".join(view.methods[place].split(" ")) + mark),
        [_cell(cell[place] if cell else Cell(MISSING)) for cell in cells],
    )


def _block_table(block: LayerTable) -> SplitTable:
    """A row an approximation and target, a column a metric; each number ends in the mark of the best."""
    names = [TextColumn(Text(), [Text(_name(row)) for row in block.rows], right=False)]
    if len(block.targets) > 1:
        targets = [Text(_SHORT_TARGETS.get(row.target, row.target)) for row in block.rows]
        names.append(TextColumn(Text("target"), targets, right=False))
    metrics = [
        TextColumn(Text("\n".join(metric.heading)), [_cell(row.cells[place]) for row in block.rows])
        for place, metric in enumerate(block.metrics)
    ]
    return SplitTable(names, [[metric] for metric in metrics])


def _name(row: TableRow) -> str:
    scale = OWN_SCALE if row.own_scale else ""
    note = f" [{row.note}]" if row.note else ""
    return f"{row.approximation}{scale}{note}"


def _cell(cell: Cell) -> Text:
    if cell.best:
        return Text(cell.text + BEST, style="bold green")
    return Text(cell.text + " ")


def _heading(block: LayerTable) -> Text:
    return Text.assemble((f"Layer {block.layer}", "bold"), f"  {block.heading}")


def _foot(block: LayerTable, device: str | None) -> Iterator[Text]:
    yield _foot_line(block.targets, block.context, device)
    for note in block.shared:
        yield Text(f"all rows: {note}", style="dim")
    for place, note in enumerate(block.notes, start=1):
        yield Text(f"[{place}] {note}", style="dim")


def _foot_line(targets: tuple[str, ...], context: str, device: str | None) -> Text:
    target = f"target {' and '.join(targets)}; " if targets else ""
    where = f"; device {device}" if device else ""
    return context_line(f"{target}{context}{where}")
