"""Figures and tables of the paper, from what was given on the command line to what is printed."""

import sys
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from typing import Any

import click

from fisherlab.figures.catalogue import chosen
from fisherlab.figures.config import FiguresConfig

from . import rundirs
from .bars import bars
from .messages import accept
from .options import Output
from .printing import print_json, print_rows


def listed(names: Iterable[str], *, as_json: bool) -> None:
    """Prints what can be made, or those of these names."""
    rows = [{"name": entry.name, "shows": entry.title} for entry in chosen(names)]
    print_rows(rows, as_json=as_json)


def perform(given: Mapping[str, Any], output: Output) -> None:
    """Makes what was asked for."""
    make_config(FiguresConfig(**given), output)


def make_config(config: FiguresConfig, output: Output) -> None:
    """Makes what a configuration says."""
    from fisherlab.figures.run import make

    out = rundirs.names(output.out, "figures", config.scale)
    with redirect_stdout(sys.stderr), bars(output.progress) as report:
        summary = make(config, out, force=output.force, report=report, accepted=accept)
    if output.as_json:
        print_json(summary)
        return
    for name in summary["made"]:
        files = [file for file in summary["files"] if file.startswith((f"{name}-", f"{name}."))]
        click.echo(f"{name}: {', '.join(files)}")
    click.echo(f"run directory: {summary['directory']}")
