"""`fisherlab run`: repeats a run from its configuration."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import click

from fisherlab.comparison.config import CompareConfig
from fisherlab.errors import InputError, unknown
from fisherlab.figures.config import FiguresConfig
from fisherlab.representations.config import RepresentConfig
from fisherlab.runs.config import Config, command_of, read_config
from fisherlab.traces.config import TraceConfig
from fisherlab.train.config import TrainConfig
from fisherlab.train.sweep.config import SweepConfig

from . import compare_run, figures_run, options, report, represent_run, sweep_run, trace_run, train_run

Perform = Callable[[Any, options.Output], None]

_COMMANDS: dict[str, tuple[type[Config], Perform]] = {
    kind.command: (kind, perform)
    for kind, perform in (
        (CompareConfig, compare_run.perform),
        (TrainConfig, train_run.train_config),
        (SweepConfig, sweep_run.sweep_config),
        (TraceConfig, trace_run.perform),
        (RepresentConfig, represent_run.perform),
        (FiguresConfig, figures_run.make_config),
        (report.ReportConfig, report.perform),
    )
}


@click.command("run", short_help="Repeat a run from its config.toml.")
@click.argument("config", metavar="CONFIG.toml")
@click.option("--device", metavar="auto|cpu|cuda[:i]", help="In place of the one in the file.")
@options.output
def command(*, config: str, device: str | None, output: options.Output) -> None:
    """Repeat the run that a config.toml describes, into a directory of its own."""
    # a file that names no command is refused when it is read
    name = command_of(config) or CompareConfig.command
    if name not in _COMMANDS:
        raise InputError(f"in {config!r}: {unknown('command', name, _COMMANDS)}")
    kind, perform = _COMMANDS[name]
    perform(_on(read_config(config, kind), device), output)


def _on(config: Any, device: str | None) -> Any:
    """The configuration on a device, where it has one."""
    if not device or isinstance(config, report.ReportConfig):
        return config
    return config.on(device) if isinstance(config, SweepConfig) else replace(config, device=device)
