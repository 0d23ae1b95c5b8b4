"""What commands print on stdout: tables, or JSON."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from fisherlab.runs.save import Result

_PIPED_WIDTH = 100  # columns where there is no terminal: the width of the help


def print_json(content: Any) -> None:
    """Prints JSON that any reader accepts."""
    escaped = not sys.stdout.encoding.lower().startswith("utf")  # no replaced character in what machines read
    click.echo(json.dumps(content, indent=2, ensure_ascii=escaped, allow_nan=False))


def print_rich(content: "RenderableType") -> None:
    """Prints tables as wide as the terminal, or 100 columns wide without one."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else _PIPED_WIDTH
    Console(file=sys.stdout, width=width, highlight=False, markup=False).print(content)


def print_result(
    result: "Result", summary: Mapping[str, Any], out: Path, *, as_json: bool, **options: str
) -> None:
    """Prints a finished run: its table, made with options, and where it is; or its summary as JSON."""
    if as_json:
        print_json(summary)
        return
    print_rich(result.table(**options))
    click.echo(f"run directory: {out}\nreport: {out / 'report.html'}")


def print_rows(
    rows: Sequence[dict[str, Any]], *, as_json: bool, below: Mapping[str, str] | None = None
) -> None:
    """Prints rows with the same keys as a table, or as a JSON list of objects.

    Args:
        rows: what is printed.
        as_json: whether as JSON.
        below: for a key the one under which the table shows it, without a column of its own.
    """
    if as_json:
        print_json(rows)
        return
    from rich import box
    from rich.table import Table

    below = below or {}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    names = [name for name in rows[0] if name not in below]
    for number, name in enumerate(names):
        table.add_column(name, no_wrap=number == 0, overflow="fold")
    for row in rows:
        lower = {upper: row[name] for name, upper in below.items()}
        table.add_row(*(_cell(row[name], lower.get(name)) for name in names))
    print_rich(table)


def _cell(value: Any, lower: Any) -> "Text":
    from rich.text import Text

    text = Text("" if value is None else str(value))
    return text if lower is None else text.append(f"\n{lower}", style="dim")
