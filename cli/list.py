"""`fisherlab list`: what is registered, with sources."""

import click

from . import options
from .groups import Group
from .printing import print_rows


@click.group("list", cls=Group, short_help="What is registered: models, data, approximations, optimizers.")
def command() -> None:
    """List what is registered, with sources."""


@command.command("models")
@options.as_json
@options.verbosity
def list_models(*, as_json: bool) -> None:
    """The built-in models: samples and weights are those of `compare` where you give none."""
    from fisherlab import models

    rows = [
        {
            "name": spec.name,
            "description": spec.description,
            "data": spec.dataset,
            "likelihood": spec.likelihood,
            "samples": spec.default_samples or "all",
            "weights": "trained" if spec.recipe else "initial",
            "source": spec.source,
        }
        for spec in map(models.spec, models.names())
    ]
    print_rows(rows, as_json=as_json, below={"source": "description", "likelihood": "data"})


@command.command("data")
@options.as_json
@options.verbosity
def list_data(*, as_json: bool) -> None:
    """The known data sets."""
    from fisherlab import datasets

    rows = [
        {"name": spec.name, "description": spec.description, "source": spec.origin}
        for spec in map(datasets.spec, datasets.names())
    ]
    print_rows(rows, as_json=as_json)


@command.command("approximations")
@options.as_json
@options.verbosity
def list_approximations(*, as_json: bool) -> None:
    """The approximations of a layer's Fisher."""
    from fisherlab.approximations import registered

    rows = [
        {
            "name": name,
            "formula": cls.formula,
            "labels": (cls.own_kind or "as asked") if cls.matrix else "none",
            "source": cls.source,
        }
        for name, cls in sorted(registered().items())
    ]
    print_rows(rows, as_json=as_json)


@command.command("optimizers")
@options.as_json
@options.verbosity
def list_optimizers(*, as_json: bool) -> None:
    """The optimizers of `train`: fisherlab's own and torch.optim's; others are package.module:Class."""
    from fisherlab.train.optimizers import named_optimizers

    rows = [
        {
            "name": one.name,
            "description": one.description,
            "lr": one.options().get("lr"),
            "source": one.source,
        }
        for one in named_optimizers().values()
    ]
    print_rows(rows, as_json=as_json)
