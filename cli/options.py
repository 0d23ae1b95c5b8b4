"""Options that several commands share."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import click

from .messages import log, set_verbosity

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout, and nothing else.")


@dataclass(frozen=True)
class Output:
    """Where the results of a run go, and how much is said meanwhile.

    Attributes:
        out: the run's directory; None: a new one under `runs/`.
        force: whether a finished run there may be replaced.
        as_json: whether stdout gets the summary as JSON in place of the tables.
        progress: whether to show bars, on a terminal.
    """

    out: Path | None
    force: bool
    as_json: bool
    progress: bool


def verbosity(callback: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `-q` and `-v`, which set what is said on stderr; the callback gets neither."""

    @click.option("-q", "--quiet", is_flag=True, help="No messages but errors.")
    @click.option("-v", "--verbose", is_flag=True, help="More messages, and the traceback of a failure.")
    @wraps(callback)
    def wrapped(*, quiet: bool, verbose: bool, **values: Any) -> Any:
        set_verbosity(quiet=quiet, verbose=verbose)
        return callback(**values)

    return wrapped


def output(callback: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--out`, `--force`, `--json`, `-q` and `-v`; the callback gets an `Output` as `output`."""

    @click.option(
        "--out",
        type=click.Path(path_type=Path),
        help="The run's directory.  [default: a new one under runs/]",
    )
    @click.option("--force", is_flag=True, help="Replace a finished run in --out.")
    @as_json
    @verbosity
    @wraps(callback)
    def wrapped(*, out: Path | None, force: bool, as_json: bool, **values: Any) -> Any:
        progress = log.isEnabledFor(logging.INFO)
        return callback(output=Output(out, force, as_json, progress), **values)

    return wrapped
