"""`fisherlab run`: repeats a run from its configuration."""

from dataclasses import replace
from pathlib import Path

import click
from fisherlab.figures.config import FiguresConfig

from fisherlab.config import CompareConfig, read_config
from fisherlab.representations.config import RepresentConfig
from fisherlab.traces.config import TraceConfig
from fisherlab.train import config as training
from fisherlab.train.sweep_config import SweepConfig

from . import figures_run, options, report, represent_run, sweep_run, trace_run
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
    if training.command_of(Path(config)) == TraceConfig.command:
        traced = read_config(config, TraceConfig)
        trace_run.perform(replace(traced, device=device or traced.device), output)
        return
    if training.command_of(Path(config)) == SweepConfig.command:
        swept = read_config(config, SweepConfig)
        sweep_run.sweep_config(swept.on(device) if device else swept, output)
        return
    if training.command_of(Path(config)) == RepresentConfig.command:
        represented = read_config(config, RepresentConfig)
        represent_run.perform(replace(represented, device=device or represented.device), output)
        return
    if training.command_of(Path(config)) == FiguresConfig.command:
        drawn = read_config(config, FiguresConfig)
        figures_run.make_config(replace(drawn, device=device or drawn.device), output)
        return
    if training.command_of(Path(config)) == report.ReportConfig.command:
        report.perform(read_config(config, report.ReportConfig), output)
        return
    wanted = read_config(config, CompareConfig)
    perform(replace(wanted, device=device or wanted.device), output)
