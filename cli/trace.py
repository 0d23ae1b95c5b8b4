"""`fisherlab trace`: its options."""

from pathlib import Path
from typing import Any

import click

from fisherlab.config import BIAS_MODES, DTYPES
from fisherlab.traces.config import DEFAULT_SAMPLES, TraceConfig

from . import options
from .trace_run import perform

_DEFAULT = TraceConfig(model="")


@click.command("trace", short_help="Traces of the Fisher and its approximations over a training.")
@click.option("--run", metavar="RUN", help="A finished run of `train`: every checkpoint of it is measured.")
@click.option(
    "--model", metavar="M", help="In place of --run: a built-in model (see `list models`), or module:factory."
)
@click.option(
    "--checkpoint", metavar="FILE", help="Weights of --model.  [default: trained, or as initialised]"
)
@click.option("--data", metavar="NAME", help="A data set in place of that of the run or the model.")
@click.option("--data-dir", metavar="DIR", help="Where to look for data first.")
@click.option(
    "--samples", type=int, help=f"The same ones at every checkpoint.  [default: at most {DEFAULT_SAMPLES:,}]"
)
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
@click.option("--likelihood", metavar="NAME", help="In place of the model's own.")
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
@click.option("--dtype", metavar="|".join(DTYPES), help="Of weights and data.  [default: the run's]")
@click.option(
    "--draws",
    type=int,
    default=_DEFAULT.draws,
    show_default=True,
    help="Labels a sample for --kind monte-carlo.",
)
@click.option("--device", default=_DEFAULT.device, show_default=True, metavar="auto|cpu|cuda[:i]")
@click.option("--seed", type=int, help="Of samples and drawn labels.  [default: the run's, or 0]")
@click.option("--no-spectra", is_flag=True, help="No effective ranks and condition numbers: faster.")
@options.output
def command(
    *,
    output: options.Output,
    layers: tuple[str, ...],
    approximations: str | None,
    no_spectra: bool,
    run: str | None,
    **values: Any,
) -> None:
    """Tr F, tr F̂ and their ratio for every layer and approximation, at every checkpoint of a training.

    Prints a table and writes traces.csv, diagnostics.csv, stages.csv, pictures and report.html into the
    run's directory.
    """
    names = () if approximations is None else tuple(name.strip() for name in approximations.split(","))
    config = TraceConfig(
        **values,
        run=None if run is None else str(Path(run)),
        layers=layers or _DEFAULT.layers,
        approximations=names,
        spectra=not no_spectra,
    )
    perform(config, output)
