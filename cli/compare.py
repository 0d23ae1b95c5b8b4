"""`fisherlab compare`: its options."""

from typing import Any

import click

from fisherlab.comparison.config import CompareConfig

from . import options
from .compare_run import perform


@click.command("compare", short_help="The exact Fisher of every layer beside its approximations.")
@options.model
@options.flag(CompareConfig, "samples", help="How many samples.  [default: the model's]")
@options.fisher
@options.dtype
@options.flag(
    CompareConfig,
    "statistics",
    metavar="FILE",
    help="Approximations from these statistics; collected and saved there if there is no such file.",
)
@options.seed
@click.option("--no-spectra", is_flag=True, help="No eigenvalues: faster for large blocks.")
@click.option("--save-matrices", is_flag=True, help="Also write blocks.safetensors, the dense matrices.")
@click.option(
    "--columns",
    type=click.Choice(("chosen", "all")),
    default="chosen",
    show_default=True,
    help="Metrics of the tables that are printed; files and page have all.",
)
@options.output
def command(
    *,
    output: options.Output,
    no_spectra: bool,
    columns: str,
    **values: Any,
) -> None:
    """Compare the exact Fisher of every layer with its approximations.

    Prints a table a layer and writes records.csv, summary.json, pictures and report.html into the
    run's directory.
    """
    config = CompareConfig(**values, spectra=not no_spectra)
    perform(config, output, columns)
