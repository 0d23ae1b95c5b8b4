"""`fisherlab sweep`: its options."""

from pathlib import Path
from typing import Any

import click

from fisherlab.errors import InputError
from fisherlab.train.sweep.config import CRITERIA, PAPER_DAMPING, PAPER_LR, SAMPLERS

from . import options, train
from .sweep_run import continue_sweep, perform

_OWN = ("lr", "damping", "seed", "resume", "config")
_CHECKPOINTS = ("checkpoint_every", "checkpoint_steps", "keep_last", "keep_best")
_OUTPUT = ("out", "force", "as_json", "quiet", "verbose")
_OF_TRAIN = [
    one for one in train.command.params if one.name not in (*_OWN, *_CHECKPOINTS, *_OUTPUT, "tensorboard")
]


def _paper(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)


@click.command("sweep", short_help="Short trainings over learning rates and dampings; the best one.")
@click.option("--lr", metavar="X,Y,…", help=f"Learning rates.  [default: the paper's {_paper(PAPER_LR)}]")
@click.option(
    "--damping",
    metavar="X,Y,…",
    help="Dampings; for LNGD its ν₂.  [default: for KFAC and its kin the paper's "
    f"{_paper(PAPER_DAMPING)}; else the optimizer's own]",
)
@click.option("--seeds", metavar="N,N,…", help="Of a trial's trainings; their mean counts.  [default: 0]")
@click.option(
    "--sampler",
    metavar="|".join(SAMPLERS),
    help="grid: every pair; random, tpe: between the least and the largest value.  [default: grid]",
)
@click.option("--trials", type=int, metavar="N", help="How many.  [default: the whole grid]")
@click.option(
    "--by",
    metavar="|".join(CRITERIA),
    help="What is compared, at the last evaluation.  [default: metric, such as accuracy on the test split]",
)
@click.option("--jobs", type=int, metavar="N", help="Trials at a time.  [default: 1]")
@click.option("--seed", type=int, help="Of the sampler.  [default: 0]")
@click.option(
    "--resume", metavar="RUN", type=click.Path(path_type=Path), help="Continue this interrupted sweep."
)
@options.output
def command(
    *,
    output: options.Output,
    resume: Path | None,
    recipe: str | None,
    assignments: tuple[str, ...],
    lr: str | None,
    damping: str | None,
    seeds: str | None,
    **values: Any,
) -> None:
    """Train at every point of a grid of learning rates and dampings, and say which is the best.

    Every training starts from initial weights, in a process of its own. Writes trials.csv, trainings.csv,
    a picture, and best.toml, which `fisherlab run` and `fisherlab train --config` take. --resume OUT
    continues an interrupted sweep.
    """
    own = {name: values.pop(name) for name in ("sampler", "trials", "by", "jobs", "seed")}
    given = {name: value for name, value in own.items() if value is not None}
    for name, text, convert in (("lr", lr, float), ("damping", damping, float), ("seeds", seeds, int)):
        if text is not None:
            given[name] = train.listed(name, text, convert)
    training = train.gathered(values, assignments)
    if resume is None:
        perform(given, training, recipe, output)
        return
    if output.out is not None or output.force:
        raise InputError("--resume writes to the sweep's own directory; leave --out and --force out")
    continue_sweep(resume, given, training, recipe, output)


command.params[:0] = _OF_TRAIN
