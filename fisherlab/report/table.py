"""The table on the console."""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pandas as pd
from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from fisherlab.plots.profiles import MANY
from fisherlab.records.definitions import SCALE_NOTE, STAND_IN
from fisherlab.records.frames import compared_layers
from fisherlab.records.labels import short
from fisherlab.report.blocks import MISSING, Cell, LayerTable, TableRow, blocks, runs
from fisherlab.report.overview import Overview, diagonal_line, overview

BEST = "*"
OWN_SCALE = "†"

Column = list[Text]
"""Heading and cells."""

_LEAST_NAME = 16  # characters that a narrow terminal leaves of a layer's name

_NOTEBOOK_WIDTH = 110
_THEME = TerminalTheme(
    (255, 255, 255), (0, 0, 0), [(0, 0, 0), (190, 60, 50), (26, 150, 65), (160, 115, 0)]
)  # its green and yellow are legible on white and on black
_PRE = '<pre style="white-space:pre;overflow-x:auto;line-height:1.35;font-family:monospace">{code}</pre>'

_SHORT_TARGETS = {
    "predictive": "pred.",
    "layerwise": "layer.",
    "empirical": "empir.",
    "monte-carlo": "m.-c.",
}


def console_table(
    records: pd.DataFrame, *, device: str | None = None, left_out: Mapping[str, str] | None = None
) -> RenderableType:
    """The records as tables for a terminal.

    Up to 12 layers: a block a layer with all metrics. More: one table with a row a layer and the
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

    Returns:
        Something that a ``rich`` console prints.

    Raises:
        InputError: There are no rows, or ``layer`` or ``approximation`` is absent.
    """
    parts: list[RenderableType] = []
    best, own_scale = "column", False
    for run in runs(records):
        layers, _ = compared_layers(run)
        if len(layers) > MANY:
            best = "row"
            view = overview(run)
            parts += _overview_parts(view, device)
            own_scale = own_scale or any(view.own_scale)
        else:
            for block in blocks(run, layers):
                parts += [_heading(block), _Columns(block), *_foot(block, device), Text()]
                own_scale = own_scale or any(row.own_scale for row in block.rows)
        if line := diagonal_line(run):
            parts += [Text(f"{line}; all numbers: records.csv", style="dim"), Text()]
    parts += [Text(f"not measured: {layer}: {reason}") for layer, reason in (left_out or {}).items()]
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
    yield _Rows(view)
    yield _foot_line(view.targets, view.context, device)
    for note in view.notes:
        yield Text(note, style="dim")
    yield Text("all numbers of every layer: records.csv (in Python: .records)", style="dim")
    yield Text()


@dataclass(frozen=True)
class _Rows:
    """An overview in one table, or, on a narrow console, the facts of the layers in tables below."""

    view: Overview

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        facts = [
            [Text(head), *(Text(row.facts[place]) for row in self.view.rows)]
            for place, head in enumerate(self.view.facts)
        ]
        errors = [self._errors(place) for place in range(len(self.view.methods))]
        wanted = sum(map(_room, facts + errors))
        names = [row.layer for row in self.view.rows]
        most = max(_LEAST_NAME, min(max(map(cell_len, names)), options.max_width - wanted))
        layers = [Text("layer"), *(Text(short(name, most)) for name in names)]
        free = options.max_width - most
        for place, columns in enumerate(_split(facts + errors if wanted <= free else errors + facts, free)):
            if place:
                yield Text()
            yield _rows_table([layers, *columns])

    def _errors(self, place: int) -> Column:
        """Heading and scaled errors of an approximation."""
        mark = OWN_SCALE if self.view.own_scale[place] else " "
        head = Text("\n".join(self.view.methods[place].split(" ")) + mark, justify="right")
        cells = [row.cells.get("scaled_error") for row in self.view.rows]
        return [head, *(_cell(cell[place] if cell else Cell(MISSING)) for cell in cells)]


def _room(column: Column) -> int:
    """Width of a column and the space before it."""
    return 1 + max(cell_len(line) for text in column for line in text.plain.split("\n"))


def _split(columns: list[Column], free: int) -> Iterator[list[Column]]:
    """The columns that fit side by side, in turn; at least one."""
    chosen: list[Column] = []
    used = 0
    for column in columns:
        if chosen and used + _room(column) > free:
            yield chosen
            chosen, used = [], 0
        chosen.append(column)
        used += _room(column)
    if chosen:
        yield chosen


def _rows_table(columns: list[Column]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    for head, *_ in columns:
        right = head.justify == "right" or head.plain == "T"
        table.add_column(head, no_wrap=True, vertical="bottom", justify="right" if right else "left")
    for cells in zip(*(column[1:] for column in columns), strict=True):
        table.add_row(*cells)
    return table


@dataclass(frozen=True)
class _Columns:
    """The columns of a block, in as many tables as the width of the console asks for."""

    block: LayerTable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        names = _names(self.block)
        metrics = [_column(self.block, place) for place in range(len(self.block.metrics))]
        free = options.max_width - sum(map(_room, names)) + 1
        for place, chosen in enumerate(_split(metrics, free) if metrics else [[]]):
            if place:
                yield Text()
            yield _table(names, chosen)


def _table(names: list[Column], metrics: list[Column]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    for head, *_ in names:
        table.add_column(head, overflow="fold", vertical="bottom")
    for head, *_ in metrics:
        table.add_column(head, justify="right", no_wrap=True, vertical="bottom")
    for cells in zip(*(column[1:] for column in names + metrics), strict=True):
        table.add_row(*cells)
    return table


def _names(block: LayerTable) -> list[Column]:
    """Columns that name a row: its approximation and, where there are two, its target."""
    columns = [[Text(), *(Text(_name(row)) for row in block.rows)]]
    if len(block.targets) > 1:
        targets = (_SHORT_TARGETS.get(row.target, row.target) for row in block.rows)
        columns.append([Text("target"), *map(Text, targets)])
    return columns


def _column(block: LayerTable, place: int) -> Column:
    """Heading and numbers of a metric; each ends in the mark of the best, or a space."""
    heading = "\n".join(block.metrics[place].heading)
    return [Text(heading), *(_cell(row.cells[place]) for row in block.rows)]


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
    line = f"{target}{context}{where}"
    return Text(line, style="yellow" if STAND_IN in line else "dim")
