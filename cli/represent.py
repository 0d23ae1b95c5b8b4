"""`fisherlab represent`: its options."""

from typing import Any

import click

from fisherlab.representations.config import DEFAULT_SAMPLES, RepresentConfig

from . import options
from .represent_run import perform


@click.command("represent", short_help="Are layers' representation vectors Gaussian?")
@options.model
@options.flag(
    RepresentConfig,
    "samples",
    help=f"How many samples.  [default: {DEFAULT_SAMPLES:,}, or what a factory gives]",
)
@options.layers
@options.likelihood
@options.model_output
@options.dtype
@options.device
@options.seed
@options.output
def command(*, output: options.Output, layers: tuple[str, ...], **values: Any) -> None:
    """Are layers' representation vectors Gaussian, and does layer-wise sampling's assumption hold?

    Prints a row a layer and writes histograms.csv, moments.csv, assumption.csv, summary.json, pictures and
    report.html into the run's directory. Histograms are marginals over the data; assumption.csv has the
    test of the assumption itself.
    """
    perform(RepresentConfig(**values, layers=layers or RepresentConfig.layers), output)
