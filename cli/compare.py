"""`fisherlab compare`: its options."""

from typing import Any

import click

from fisherlab.config import BIAS_MODES, DTYPES, CompareConfig

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
@click.option(
    "--layers", multiple=True, metavar="GLOB", help="Names or globs of layers; repeatable.  [default: all]"
)
@click.option(
    "--approximations", metavar="A,B,…", help="See `list approximations`.  [default: kfac,ekfac,tkfac,lngd]"
)
@click.option(
    "--kind",
    default=_DEFAULT.kind,
    show_default=True,
    metavar="KIND",
    help="Labels of the Fisher: predictive, monte-carlo, empirical or layerwise.",
)
@click.option(
    "--likelihood",
    metavar="NAME",
    help="categorical, token-categorical, bernoulli, gaussian.  [default: the model's]",
)
@click.option(
    "--bias",
    default=_DEFAULT.bias,
    show_default=True,
    metavar="|".join(BIAS_MODES),
    help="A bias as last column of the weights, as a block of its own, or left out.",
)
@click.option(
    "--memory",
    default=_DEFAULT.memory,
    show_default=True,
    metavar="SIZE",
    help="The limit for all exact blocks together.",
)
@click.option(
    "--max-columns",
    type=int,
    default=_DEFAULT.max_columns,
    show_default=True,
    help="The most columns of a block kept in factored (Gram) form.",
)
@click.option("--dtype", metavar="|".join(DTYPES), help="Of weights and data.  [default: the model's]")
@click.option(
    "--draws",
    type=int,
    default=_DEFAULT.draws,
    show_default=True,
    help="Labels a sample for --kind monte-carlo.",
)
@click.option(
    "--statistics",
    metavar="FILE",
    help="Approximations from these statistics; collected and saved there if there is no such file.",
)
@click.option("--device", default=_DEFAULT.device, show_default=True, metavar="auto|cpu|cuda[:i]")
@click.option(
    "--seed", type=int, default=_DEFAULT.seed, show_default=True, help="Of weights, samples and drawn labels."
)
@click.option("--no-spectra", is_flag=True, help="No eigenvalues: faster for large blocks.")
@click.option("--save-matrices", is_flag=True, help="Also write blocks.safetensors, the dense matrices.")
@options.output
def command(
    *,
    output: options.Output,
    layers: tuple[str, ...],
    approximations: str | None,
    no_spectra: bool,
    **values: Any,
) -> None:
    """Compare the exact Fisher of every layer with its approximations.

    Prints a table a layer and writes records.csv, summary.json, pictures and report.html into the
    run's directory.
    """
    names = () if approximations is None else tuple(name.strip() for name in approximations.split(","))
    config = CompareConfig(
        **values, layers=layers or _DEFAULT.layers, approximations=names, spectra=not no_spectra
    )
    perform(config, output)
