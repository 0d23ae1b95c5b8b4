"""`fisherlab compare`: its options."""

from typing import Any

import click

from fisherlab.comparison.config import CompareConfig
from fisherlab.runs.config import DTYPES

from . import options
from .compare_run import perform

_DEFAULT = CompareConfig(model="")


@click.command("compare", short_help="The exact Fisher of every layer beside its approximations.")
@click.option(
    "--model", required=True, help="A built-in model (see `list models`), or package.module:factory."
)
@click.option("--checkpoint", metavar="FILE", help="Weights: .safetensors, or a state dict of torch.save.")
@click.option("--data", metavar="NAME", help="A data set (see `list data`) in place of the model's own.")
@click.option("--data-dir", metavar="DIR", help="Where to look for data first.")
@click.option("--samples", type=int, help="How many samples.  [default: the model's]")
@options.fisher
@click.option("--dtype", metavar="|".join(DTYPES), help="Of weights and data.  [default: the model's]")
@click.option(
    "--statistics",
    metavar="FILE",
    help="Approximations from these statistics; collected and saved there if there is no such file.",
)
@click.option(
    "--seed", type=int, default=_DEFAULT.seed, show_default=True, help="Of weights, samples and drawn labels."
)
@click.option("--no-spectra", is_flag=True, help="No eigenvalues: faster for large blocks.")
@click.option("--save-matrices", is_flag=True, help="Also write blocks.safetensors, the dense matrices.")
@options.output
def command(
    *,
    output: options.Output,
    no_spectra: bool,
    **values: Any,
) -> None:
    """Compare the exact Fisher of every layer with its approximations.

    Prints a table a layer and writes records.csv, summary.json, pictures and report.html into the
    run's directory.
    """
    config = CompareConfig(**values, spectra=not no_spectra)
    perform(config, output)
