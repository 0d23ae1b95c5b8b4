"""Figures and tables of the paper, from what was given on the command line to what is printed."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

import click
from fisherlab.figures.catalogue import chosen
from fisherlab.figures.config import FiguresConfig

from . import rundirs
from .messages import accept
from .options import Output
from .printing import print_json, print_rows

if TYPE_CHECKING:
    from fisherlab.figures.runs import Report


def listed(names: Iterable[str], *, as_json: bool) -> None:
    """Prints what can be made, or those of these names."""
    rows = [{"name": entry.name, "shows": entry.title} for entry in chosen(names)]
    print_rows(rows, as_json=as_json)


def perform(given: Mapping[str, Any], output: Output) -> None:
    """Makes what was asked for."""
    make_config(FiguresConfig(**given), output)


def make_config(config: FiguresConfig, output: Output) -> None:
    """Makes what a configuration says."""
    from fisherlab.figures.making import make

    out = rundirs.choose(output.out, "figures", config.scale, force=output.force)
    with redirect_stdout(sys.stderr), _bars(output.progress) as report:
        summary = make(config, out, force=output.force, report=report, accepted=accept)
    if output.as_json:
        print_json(summary)
        return
    for name in summary["made"]:
        files = [file for file in summary["files"] if file.startswith((f"{name}-", f"{name}."))]
        click.echo(f"{name}: {', '.join(files)}")
    click.echo(f"run directory: {summary['directory']}")


@contextmanager
def _bars(wanted: bool) -> "Iterator[Report]":
    """A bar for the training that is under way, on a terminal."""
    if not wanted or not sys.stderr.isatty():
        yield lambda what, step, steps: None
        return
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        tasks: dict[str, bars.TaskID] = {}

        def report(what: str, step: int, steps: int) -> None:
            if what not in tasks:
                for old in tasks.values():
                    shown.update(old, visible=False)
                tasks[what] = shown.add_task(what, total=steps)
            shown.update(tasks[what], completed=step)

        yield report
