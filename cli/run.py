"""`fisherlab run`: repeats a run from its configuration."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
from fisherlab.figures.config import FiguresConfig

from fisherlab.config import CompareConfig, read_config
from fisherlab.representations.config import RepresentConfig
from fisherlab.traces.config import TraceConfig
from fisherlab.train import config as training
from fisherlab.train.sweep_config import SweepConfig

from . import compare_run, figures_run, options, report, represent_run, sweep_run, trace_run, train_run

Read = Callable[[Path], Any]
Perform = Callable[[Any, options.Output], None]

_COMMANDS: dict[str | None, tuple[Read, Perform]] = {
    training.TrainConfig.command: (training.read_config, train_run.train_config),
    SweepConfig.command: (partial(read_config, kind=SweepConfig), sweep_run.sweep_config),
    TraceConfig.command: (partial(read_config, kind=TraceConfig), trace_run.perform),
    RepresentConfig.command: (partial(read_config, kind=RepresentConfig), represent_run.perform),
    FiguresConfig.command: (partial(read_config, kind=FiguresConfig), figures_run.make_config),
    report.ReportConfig.command: (partial(read_config, kind=report.ReportConfig), report.perform),
}
_COMPARE: tuple[Read, Perform] = (partial(read_config, kind=CompareConfig), compare_run.perform)


@click.command("run", short_help="Repeat a run from its config.toml.")
@click.argument("config", metavar="CONFIG.toml")
@click.option("--device", metavar="auto|cpu|cuda[:i]", help="In place of the one in the file.")
@options.output
def command(*, config: str, device: str | None, output: options.Output) -> None:
    """Repeat the run that a config.toml describes, into a directory of its own."""
    path = Path(config)
    read, perform = _COMMANDS.get(training.command_of(path), _COMPARE)
    perform(_on(read(path), device), output)


def _on(config: Any, device: str | None) -> Any:
    """The configuration on a device, where it has one."""
    if not device or isinstance(config, report.ReportConfig):
        return config
    return config.on(device) if isinstance(config, SweepConfig) else replace(config, device=device)
