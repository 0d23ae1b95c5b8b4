"""Options that several commands share."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial, wraps
from pathlib import Path
from typing import Any, get_type_hints

import click

from fisherlab.arguments import AnyPath, check
from fisherlab.comparison.config import CompareConfig
from fisherlab.errors import InputError
from fisherlab.exact.options import BIAS_MODES
from fisherlab.runs.config import DTYPES, Config

from .messages import log, set_verbosity

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

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


def flag(config: type[Config], name: str, **words: Any) -> Decorator:
    """An option with the type and the default of a configuration's field; `words` are click's own."""
    field = next(field for field in fields(config) if field.name == name)
    if get_type_hints(config)[name] in (int, int | None):
        words["type"] = int
    if isinstance(field.default, (str, int)):
        words |= {"default": field.default, "show_default": True}
    return click.option(f"--{name.replace('_', '-')}", **words)


class PlacePath(click.Path):
    """The path of a file or folder, which it may have (`InputError`); `named`: one that is not the root."""

    def __init__(self, *, named: bool = False) -> None:
        super().__init__(path_type=Path)
        self._named = named

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path as a `Path`."""
        what = "the path" if param is None else param.opts[0]
        check(what, value, AnyPath)
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        path = path if path.name else path.absolute()
        if self._named and not path.name:
            raise InputError(f"{what} must be a path with a name, not {str(value)!r}")
        return path


_flag = partial(flag, CompareConfig)


def together(*options: Decorator) -> Decorator:
    """Several options as one decorator, in the order in which `--help` lists them."""

    def added(callback: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            callback = option(callback)
        return callback

    return added


data_dir = _flag("data_dir", metavar="DIR", help="Where to look for data first.")
layers = together(
    _flag(
        "layers", multiple=True, metavar="GLOB", help="Names or globs of layers; repeatable.  [default: all]"
    ),
    _flag("exclude", multiple=True, metavar="GLOB", help="Layers to leave out; repeatable."),
    click.option(
        "--strict", is_flag=True, help="Stop where a layer cannot be done, instead of leaving it out."
    ),
)
model_output = click.option(
    "--output",
    "model_output",
    metavar="NAME",
    help="Of a model that returns several things.  [default: logits, or the only tensor]",
)
likelihood = _flag(
    "likelihood",
    metavar="NAME",
    help="categorical, token-categorical, bernoulli, gaussian.  [default: the model's]",
)
device = _flag("device", metavar="auto|cpu|cuda[:i]")
dtype = _flag("dtype", metavar="|".join(DTYPES), help="Of weights and data.  [default: the model's]")
seed = _flag("seed", help="Of weights, samples and drawn labels.")
model = together(
    click.option(
        "--model",
        required=True,
        help="A built-in model (see `list models`); package.module:factory, which returns model, (model, "
        "data) or (model, data, likelihood); torchvision:NAME, timm:NAME, transformers:CONFIG_OR_PATH.",
    ),
    _flag("checkpoint", metavar="FILE", help="Weights: .safetensors, or a state dict of torch.save."),
    _flag("data", metavar="NAME", help="A data set (see `list data`) in place of the model's own."),
    data_dir,
)
_FISHER = together(
    layers,
    click.option(
        "--approximations",
        metavar="A,B,…",
        help="See `list approximations`.  [default: kfac,ekfac,tkfac,lngd]",
    ),
    _flag(
        "kind", metavar="KIND", help="Labels of the Fisher: predictive, monte-carlo, empirical or layerwise."
    ),
    likelihood,
    model_output,
    _flag(
        "bias",
        metavar="|".join(BIAS_MODES),
        help="A bias as last column of the weights, as a block of its own, or left out.",
    ),
    _flag("memory", metavar="SIZE", help="The limit for all that the analysis holds."),
    _flag("max_columns", help="The most columns of a block kept in factored (Gram) form."),
    _flag("draws", help="Labels a sample for --kind monte-carlo."),
    device,
)


def fisher(callback: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of a comparison that other commands have too, with its defaults.

    The callback gets layers and approximations as tuples of names.
    """

    @_FISHER
    @wraps(callback)
    def wrapped(*, layers: tuple[str, ...], approximations: str | None, **values: Any) -> Any:
        names = () if approximations is None else tuple(name.strip() for name in approximations.split(","))
        return callback(layers=layers or CompareConfig.layers, approximations=names, **values)

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
        type=PlacePath(),
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
