"""`fisherlab run`: repeats a run from its configuration."""

from dataclasses import replace
from pathlib import Path

import click

from fisherlab.config import read_config
from fisherlab.train import config as training

from . import options
from .compare_run import perform
from .train_run import train_config


@click.command("run", short_help="Repeat a run from its config.toml.")
@click.argument("config", metavar="CONFIG.toml")
@click.option("--device", metavar="auto|cpu|cuda[:i]", help="In place of the one in the file.")
@options.output
def command(*, config: str, device: str | None, output: options.Output) -> None:
    """Repeat the run that a config.toml describes, into a directory of its own."""
    if training.command_of(Path(config)) == training.TrainConfig.command:
        wanted_training = training.read_config(Path(config))
        train_config(replace(wanted_training, device=device or wanted_training.device), output)
        return
    wanted = read_config(config)
    perform(replace(wanted, device=device or wanted.device), output)
