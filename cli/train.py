"""`fisherlab train`: its options."""

from pathlib import Path
from typing import Any

import click

from fisherlab.errors import InputError
from fisherlab.train.config import TrainConfig
from fisherlab.train.recipes import RECIPES

from . import options
from .flags import given_values, options_of
from .train_run import continue_run, perform, train_config, with_options


@click.command("train", short_help="Train a model to checkpoints, with any optimizer.")
@options_of(TrainConfig)
@click.option(
    "--config",
    metavar="CONFIG.toml",
    help="A configuration of train, such as a sweep's best.toml; options overrule it.",
    type=options.PlacePath(),
)
@click.option(
    "--recipe", metavar="|".join(RECIPES), help="Settings that belong together; options overrule it."
)
@click.option(
    "--resume", metavar="RUN", type=options.PlacePath(named=True), help="Continue this interrupted run."
)
@options.output
def command(
    *,
    output: options.Output,
    resume: Path | None,
    config: Path | None,
    recipe: str | None,
    **values: Any,
) -> None:
    """Train a model to checkpoints, with the optimizers of fisherlab and of PyTorch.

    Writes log.jsonl, checkpoints/ and curves into the run's directory, which is called OUT.part until the
    run has ended; --resume OUT continues an interrupted run.
    """
    given = given_values(TrainConfig, values)
    if resume is not None:
        if output.out is not None or output.force:
            raise InputError("--resume writes to the run's own directory; leave --out and --force out")
        if config is not None:
            raise InputError("--resume takes the run's own configuration; leave --config out")
        continue_run(resume, given, recipe, output)
    elif config is not None:
        if recipe is not None:
            raise InputError("give --config or --recipe, not both")
        train_config(with_options(config, given), output)
    else:
        perform(given, recipe, output)
