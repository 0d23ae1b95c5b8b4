"""`fisherlab sweep`: its options."""

from pathlib import Path
from typing import Any

import click

from fisherlab.errors import InputError
from fisherlab.train.config import TrainConfig
from fisherlab.train.sweep.config import SweepConfig

from . import options, train
from .flags import given_values, options_of
from .sweep_run import continue_sweep, perform

_OWN = ("lr", "damping", "seeds", "sampler", "trials", "by", "jobs", "seed")
_CHECKPOINTS = ("checkpoint_every", "checkpoint_steps", "keep_last", "keep_best")
_OUTPUT = ("out", "force", "as_json", "quiet", "verbose")
_OF_TRAIN = [
    one
    for one in train.command.params
    if one.name not in (*_OWN, *_CHECKPOINTS, *_OUTPUT, "tensorboard", "resume", "config")
]


@click.command("sweep", short_help="Short trainings over learning rates and dampings; the best one.")
@options_of(SweepConfig, *_OWN)
@click.option(
    "--resume", metavar="RUN", type=options.PlacePath(named=True), help="Continue this interrupted sweep."
)
@options.output
def command(
    *,
    output: options.Output,
    resume: Path | None,
    recipe: str | None,
    **values: Any,
) -> None:
    """Train at every point of a grid of learning rates and dampings, and say which is the best.

    Every training starts from initial weights, in a process of its own. Writes trials.csv, trainings.csv,
    a picture, and best.toml, which `fisherlab run` and `fisherlab train --config` take. --resume OUT
    continues an interrupted sweep.
    """
    given = given_values(SweepConfig, {name: values.pop(name) for name in _OWN})
    training = given_values(TrainConfig, values)
    if resume is None:
        perform(given, training, recipe, output)
        return
    if output.out is not None or output.force:
        raise InputError("--resume writes to the sweep's own directory; leave --out and --force out")
    continue_sweep(resume, given, training, recipe, output)


command.params[:0] = _OF_TRAIN
