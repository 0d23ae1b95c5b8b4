"""`fisherlab trace`: its options."""

from functools import partial
from pathlib import Path
from typing import Any

import click

from fisherlab.runs.config import DTYPES
from fisherlab.traces.config import DEFAULT_SAMPLES, TraceConfig

from . import options
from .trace_run import perform

_flag = partial(options.flag, TraceConfig)


@click.command("trace", short_help="Traces of the Fisher and its approximations over a training.")
@_flag("run", metavar="RUN", help="A finished run of `train`: every checkpoint of it is measured.")
@_flag(
    "model",
    metavar="M",
    help="In place of --run: a built-in model (see `list models`), or module:factory.",
)
@_flag(
    "checkpoint",
    metavar="FILE",
    help="Weights of --model.  [default: trained, or as initialised]",
)
@_flag("data", metavar="NAME", help="A data set in place of that of the run or the model.")
@options.data_dir
@_flag("samples", help=f"The same ones at every checkpoint.  [default: at most {DEFAULT_SAMPLES:,}]")
@options.fisher
@_flag("dtype", metavar="|".join(DTYPES), help="Of weights and data.  [default: the run's]")
@_flag("seed", help="Of samples and drawn labels.  [default: the run's, or 0]")
@click.option("--no-spectra", is_flag=True, help="No effective ranks and condition numbers: faster.")
@options.output
def command(
    *,
    output: options.Output,
    no_spectra: bool,
    run: str | None,
    **values: Any,
) -> None:
    """Tr F, tr F̂ and their ratio for every layer and approximation, at every checkpoint of a training.

    Prints a table and writes traces.csv, diagnostics.csv, stages.csv, pictures and report.html into the
    run's directory.
    """
    config = TraceConfig(
        **values,
        run=None if run is None else str(Path(run)),
        spectra=not no_spectra,
    )
    perform(config, output)
