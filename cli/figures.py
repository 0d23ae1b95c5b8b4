"""`fisherlab figures`: its options."""

from pathlib import Path
from typing import Any

import click

from fisherlab.errors import InputError

from . import options
from .figures_run import listed, perform


@click.command("figures", short_help="The paper's figures and tables, measured beside printed.")
@click.argument("names", nargs=-1, metavar="[NAME...|all]")
@click.option("--scale", metavar="smoke|cpu|gpu|paper", help="How large the experiments are.  [default: cpu]")
@click.option("--list", "wants_list", is_flag=True, help="What can be made, and nothing else.")
@click.option(
    "--runs",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Finished training runs to use where they fit, such as OUT/runs.",
)
@click.option("--data-dir", metavar="DIR", help="Where to look for data first.")
@click.option("--device", metavar="auto|cpu|cuda[:i]", help="Where to compute.  [default: auto]")
@click.option("--seed", type=int, help="The first seed.  [default: 0]")
@options.output
def command(
    *,
    output: options.Output,
    names: tuple[str, ...],
    wants_list: bool,
    runs: Path | None,
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
    given = {name: value for name, value in values.items() if value is not None}
    if runs is not None:
        given["runs"] = str(runs)
    perform({"names": names, **given}, output)
