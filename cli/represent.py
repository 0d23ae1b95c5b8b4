"""`fisherlab represent`: its options."""

from typing import Any

import click

from fisherlab.representations.config import DEFAULT_SAMPLES, RepresentConfig
from fisherlab.runs.config import DTYPES

from . import options
from .represent_run import perform

_DEFAULT = RepresentConfig(model="")


@click.command("represent", short_help="Are layers' representation vectors Gaussian?")
@click.option(
    "--model", required=True, help="A built-in model (see `list models`), or package.module:factory."
)
@click.option("--checkpoint", metavar="FILE", help="Weights: .safetensors, or a state dict of torch.save.")
@click.option("--data", metavar="NAME", help="A data set (see `list data`) in place of the model's own.")
@click.option("--data-dir", metavar="DIR", help="Where to look for data first.")
@click.option(
    "--samples",
    type=int,
    help=f"How many samples.  [default: {DEFAULT_SAMPLES:,}, or what a factory gives]",
)
@click.option(
    "--layers", multiple=True, metavar="GLOB", help="Names or globs of layers; repeatable.  [default: all]"
)
@click.option(
    "--likelihood",
    metavar="NAME",
    help="categorical, token-categorical, bernoulli, gaussian.  [default: the model's]",
)
@click.option("--dtype", metavar="|".join(DTYPES), help="Of weights and data.  [default: the model's]")
@click.option("--device", default=_DEFAULT.device, show_default=True, metavar="auto|cpu|cuda[:i]")
@click.option(
    "--seed", type=int, default=_DEFAULT.seed, show_default=True, help="Of weights, samples and drawn labels."
)
@options.output
def command(*, output: options.Output, layers: tuple[str, ...], **values: Any) -> None:
    """Are layers' representation vectors Gaussian, and does layer-wise sampling's assumption hold?

    Prints a row a layer and writes histograms.csv, moments.csv, assumption.csv, summary.json, pictures and
    report.html into the run's directory. Histograms are marginals over the data; assumption.csv has the
    test of the assumption itself.
    """
    perform(RepresentConfig(**values, layers=layers or _DEFAULT.layers), output)
