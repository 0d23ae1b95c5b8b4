"""What commands print on stdout: tables, or JSON."""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import RenderableType

_PIPED_WIDTH = 100


def print_json(content: Any) -> None:
    """Prints JSON that any reader accepts."""
    click.echo(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))


def print_rich(content: "RenderableType") -> None:
    """Prints tables as wide as the terminal, or 100 columns wide without one."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else _PIPED_WIDTH
    Console(file=sys.stdout, width=width, highlight=False, markup=False).print(content)


def print_rows(rows: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    """Prints rows with the same keys as a table, or as a JSON list of objects."""
    if as_json:
        print_json(rows)
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(rows[0]):
        table.add_column(name, no_wrap=number == 0, overflow="fold")
    for row in rows:
        table.add_row(*(Text("" if value is None else str(value)) for value in row.values()))
    print_rich(table)
