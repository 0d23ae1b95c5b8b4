"""The table on the console."""

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from fisherlab.report.blocks import Block, Row, blocks
from fisherlab.report.definitions import SCALE_NOTE, STAND_IN

BEST = "*"
OWN_SCALE = "†"

_SHORT_TARGETS = {
    "predictive": "pred.",
    "layerwise": "layer.",
    "empirical": "empir.",
    "monte-carlo": "m.-c.",
}


def console_table(records: pd.DataFrame, *, device: str | None = None) -> RenderableType:
    """The records as tables for a terminal, one block a layer.

    The best value of a column (each target on its own) is bold and carries a ``*``. A terminal
    too narrow for all columns gets them in two or more tables, one below the other; no number is
    ever folded.

    Args:
        records: Rows of ``records.csv``; columns that are absent count as empty.
        device: Where it was computed, for the line under each table.

    Returns:
        Something that a ``rich`` console prints.

    Raises:
        InputError: There are no rows, or ``layer`` or ``approximation`` is absent.
    """
    parts: list[RenderableType] = []
    own_scale = False
    for block in blocks(records):
        parts += [_heading(block), _Columns(block), *_foot(block, device), Text()]
        own_scale = own_scale or any(row.own_scale for row in block.rows)
    parts.append(Text(f"{BEST} best of its column, to the digits shown", style="dim"))
    if own_scale:
        parts.append(Text(f"{OWN_SCALE} {SCALE_NOTE}", style="dim"))
    return Group(*parts)


@dataclass(frozen=True)
class _Columns:
    """The columns of a block, in as many tables as the width of the console asks for."""

    block: Block

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for place, chosen in enumerate(self._split(options.max_width)):
            if place:
                yield Text()
            yield _table(self.block, chosen)

    def _split(self, width: int) -> Iterator[list[int]]:
        """Places of the metrics that fit beside the names, in turn."""
        free = width - sum(_width(column) for column in _names(self.block))
        free -= len(_names(self.block)) - 1
        chosen: list[int] = []
        used = 0
        for place in range(len(self.block.metrics)):
            need = 1 + _width(_column(self.block, place))
            if chosen and used + need > free:
                yield chosen
                chosen, used = [], 0
            chosen.append(place)
            used += need
        if chosen or not self.block.metrics:
            yield chosen


def _table(block: Block, chosen: list[int]) -> Table:
    names = _names(block)
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    for heading, *_ in names:
        table.add_column(heading, overflow="fold", vertical="bottom")
    for place in chosen:
        heading = _column(block, place)[0]
        table.add_column(heading, justify="right", no_wrap=True, vertical="bottom")
    for index, row in enumerate(block.rows, start=1):
        words = (Text(column[index]) for column in names)
        table.add_row(*words, *(_number(row, place) for place in chosen))
    return table


def _names(block: Block) -> list[list[str]]:
    """Columns that name a row: its approximation and, where there are two, its target."""
    columns = [["", *(_name(row) for row in block.rows)]]
    if len(block.targets) > 1:
        targets = (_SHORT_TARGETS.get(row.target, row.target) for row in block.rows)
        columns.append(["target", *targets])
    return columns


def _column(block: Block, place: int) -> list[str]:
    """Heading and numbers of a metric; each ends in the mark of the best, or a space."""
    heading = "\n".join(block.metrics[place].heading)
    return [heading, *(_number(row, place).plain for row in block.rows)]


def _width(column: list[str]) -> int:
    return max(cell_len(line) for text in column for line in text.split("\n"))


def _name(row: Row) -> str:
    scale = OWN_SCALE if row.own_scale else ""
    note = f" [{row.note}]" if row.note else ""
    return f"{row.approximation}{scale}{note}"


def _number(row: Row, place: int) -> Text:
    cell = row.cells[place]
    if cell.best:
        return Text(cell.text + BEST, style="bold green")
    return Text(cell.text + " ")


def _heading(block: Block) -> Text:
    return Text.assemble((f"Layer {block.layer}", "bold"), f"  {block.heading}")


def _foot(block: Block, device: str | None) -> Iterator[Text]:
    target = f"target {' and '.join(block.targets)}; " if block.targets else ""
    where = f"; device {device}" if device else ""
    line = f"{target}{block.context}{where}"
    yield Text(line, style="yellow" if STAND_IN in line else "dim")
    for place, note in enumerate(block.notes, start=1):
        yield Text(f"[{place}] {note}", style="dim")
