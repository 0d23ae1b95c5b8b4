"""A training run, from what was given on the command line to what is printed."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fisherlab.errors import InputError
from fisherlab.runs.config import read_config
from fisherlab.train.config import TrainConfig
from fisherlab.train.recipes import with_recipe

from . import rundirs
from .bars import bars
from .messages import accept, set_verbosity
from .options import Output
from .printing import print_json

if TYPE_CHECKING:
    from fisherlab.loop.progress import OnStep, Progress


def perform(given: Mapping[str, Any], recipe: str | None, output: Output) -> None:
    """Trains with the values given, those of a recipe, and the defaults."""
    values = with_recipe(recipe, given)
    if "model" not in values:
        raise InputError("give --model (see `fisherlab list models`), --recipe, or --resume RUN")
    train_config(TrainConfig(**values), output)


def with_options(path: Path, given: Mapping[str, Any]) -> TrainConfig:
    """The configuration in a file, with the values given in the place of its own.

    Raises:
        InputError: where the file cannot be read, or a value cannot be used.
    """
    found, values = read_config(path, TrainConfig), dict(given)
    for one, other in (("epochs", "steps"), ("warm_up", "warm_up_epochs")):
        if (one in given) != (other in given):
            values |= {one: given.get(one), other: given.get(other)}
    if "options" in given:
        values["options"] = {**found.options, **given["options"]}
    return replace(found, **values)


def train_config(config: TrainConfig, output: Output) -> None:
    """Trains as a configuration says."""
    from fisherlab import train

    out = rundirs.names(output.out, "train", config.model)
    _run(partial(train.train, config, out, force=output.force), output)


def continue_run(run: Path, given: Mapping[str, Any], recipe: str | None, output: Output) -> None:
    """Continues an interrupted run; what is given must be what it began with."""
    from fisherlab import train

    _run(partial(train.resume, run, with_recipe(recipe, given)), output)


def _run(training: Callable[..., dict[str, Any]], output: Output) -> None:
    """Trains, alone or under torchrun, and prints the summary; of several processes the first does."""
    from fisherlab.base import distributed

    with distributed.launched():
        first = distributed.rank() == 0
        if not first:
            set_verbosity(quiet=True, verbose=False)
        with redirect_stdout(sys.stderr), _bar(output.progress and first) as report:
            summary = training(report=report, accepted=accept)
        if first:
            _print(summary, output)


def _print(summary: Mapping[str, Any], output: Output) -> None:
    if output.as_json:
        print_json(summary)
        return
    name = str(summary["metric"]).replace("_", " ")
    where = f" on {summary['test']}" if summary["test"] else ""
    click.echo(
        f"trained {summary['inputs']['model']} on {summary['dataset']}: {summary['step']:,} steps in "
        f"{summary['seconds']:.1f} s, loss {_number(summary['train_loss'])}"
    )
    click.echo(
        f"{name}{where}: {_number(summary['value'])}, best {_number(summary['best'])} at step "
        f"{summary['best_step']}"
    )
    bleu = summary["bleu"]
    if bleu:
        click.echo(
            f"BLEU{where}, {bleu['sentences']:,} sentences, beam {bleu['beam']}: {bleu['value']:.2f} "
            f"({bleu['signature']})"
        )
    click.echo(f"run directory: {summary['directory']}")


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4g}"


@contextmanager
def _bar(wanted: bool) -> "Iterator[OnStep]":
    """A bar with the loss, the metric and steps a second."""
    with bars(wanted) as shown:
        began: list[tuple[float, int]] = []

        def report(progress: "Progress", steps: int) -> None:
            if not began:
                began.append((time.perf_counter(), progress.step - 1))
            start, first = began[0]
            speed = (progress.step - first) / max(time.perf_counter() - start, 1e-9)  # not by 0
            numbers = f"loss {_number(progress.loss)}  metric {_number(progress.value)}  {speed:.3g} steps/s"
            shown("training", progress.step, steps, numbers)

        yield report
