"""`fisherlab figures`: its options."""

from typing import Any

import click

from fisherlab.errors import InputError
from fisherlab.figures.config import FiguresConfig

from . import options
from .figures_run import listed, perform
from .flags import given_values, options_of


@click.command("figures", short_help="The paper's figures and tables, measured beside printed.")
@click.argument("names", nargs=-1, metavar="[NAME...|all]")
@options_of(FiguresConfig, "scale")
@click.option("--list", "wants_list", is_flag=True, help="What can be made, and nothing else.")
@options_of(FiguresConfig, "runs", "data_dir", "device", "seed")
@options.output
def command(
    *,
    output: options.Output,
    names: tuple[str, ...],
    wants_list: bool,
    **values: Any,
) -> None:
    """Make the figures and tables of the LNGD paper, measured beside printed.

    Without a name, or with `all`, every one. Writes figure-1.png/.pdf/.csv/.txt ... table-6.csv/.md and the
    training runs behind them. The directory is called OUT.part until all is made; the same command with the
    same --out continues one that was interrupted.
    """
    if wants_list:
        if output.out is not None or output.force:
            raise InputError("--list makes nothing; leave --out and --force out")
        listed(names, as_json=output.as_json)
        return
    given = given_values(FiguresConfig, values)
    perform({"names": names, **given}, output)
