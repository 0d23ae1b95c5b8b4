"""Options that several commands share."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import click

from fisherlab.comparison.config import CompareConfig
from fisherlab.runs.config import BIAS_MODES

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


def fisher(callback: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of a comparison that other commands have too, with its defaults.

    The callback gets layers and approximations as tuples of names.
    """
    default = CompareConfig(model="")

    @click.option(
        "--layers",
        multiple=True,
        metavar="GLOB",
        help="Names or globs of layers; repeatable.  [default: all]",
    )
    @click.option(
        "--approximations",
        metavar="A,B,…",
        help="See `list approximations`.  [default: kfac,ekfac,tkfac,lngd]",
    )
    @click.option(
        "--kind",
        default=default.kind,
        show_default=True,
        metavar="KIND",
        help="Labels of the Fisher: predictive, monte-carlo, empirical or layerwise.",
    )
    @click.option(
        "--likelihood",
        metavar="NAME",
        help="categorical, token-categorical, bernoulli, gaussian.  [default: the model's]",
    )
    @click.option(
        "--bias",
        default=default.bias,
        show_default=True,
        metavar="|".join(BIAS_MODES),
        help="A bias as last column of the weights, as a block of its own, or left out.",
    )
    @click.option(
        "--memory",
        default=default.memory,
        show_default=True,
        metavar="SIZE",
        help="The limit for all exact blocks together.",
    )
    @click.option(
        "--max-columns",
        type=int,
        default=default.max_columns,
        show_default=True,
        help="The most columns of a block kept in factored (Gram) form.",
    )
    @click.option(
        "--draws",
        type=int,
        default=default.draws,
        show_default=True,
        help="Labels a sample for --kind monte-carlo.",
    )
    @click.option("--device", default=default.device, show_default=True, metavar="auto|cpu|cuda[:i]")
    @wraps(callback)
    def wrapped(*, layers: tuple[str, ...], approximations: str | None, **values: Any) -> Any:
        names = () if approximations is None else tuple(name.strip() for name in approximations.split(","))
        return callback(layers=layers or default.layers, approximations=names, **values)

    return wrapped


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
