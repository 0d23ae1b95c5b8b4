"""A sweep, from what was given on the command line to what is printed."""

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click

from fisherlab.errors import InputError
from fisherlab.train.recipes import with_recipe
from fisherlab.train.sweep.config import SWEPT, SweepConfig

from . import rundirs
from .messages import accept
from .options import Output
from .printing import print_json, print_rows

_SHOWN = 12  # trials in the terminal: what fits half a screen


def perform(
    given: Mapping[str, Any], training: Mapping[str, Any], recipe: str | None, output: Output
) -> None:
    """Sweeps with the values given, those of a recipe, and the defaults."""
    values = _with_recipe(recipe, training)
    if "model" not in values:
        raise InputError("give --model (see `fisherlab list models`), --recipe, or --resume RUN")
    sweep_config(SweepConfig(**{"train": values, **given}), output)


def sweep_config(config: SweepConfig, output: Output) -> None:
    """Sweeps as a configuration says."""
    out = rundirs.names(output.out, "sweep", config.base().model)
    from fisherlab.train import sweep

    with redirect_stdout(sys.stderr):  # a model of the user's own may print
        summary = sweep.run(config, out, force=output.force, accepted=accept)
    _print(summary, output)


def continue_sweep(
    run: Path,
    given: Mapping[str, Any],
    training: Mapping[str, Any],
    recipe: str | None,
    output: Output,
) -> None:
    """Continues an interrupted sweep; what is given must be what it began with, but for the jobs."""
    from fisherlab.train import sweep

    values = _with_recipe(recipe, training)
    with redirect_stdout(sys.stderr):
        summary = sweep.resume(run, {**given, "train": values}, accepted=accept)
    _print(summary, output)


def _with_recipe(recipe: str | None, training: Mapping[str, Any]) -> dict[str, Any]:
    values = with_recipe(recipe, training)
    return {name: value for name, value in values.items() if name not in SWEPT}


def _print(summary: Mapping[str, Any], output: Output) -> None:
    if output.as_json:
        print_json(summary)
        return
    inputs, metric = summary["inputs"], summary["metric"].replace("_", " ")
    training = inputs["train"]
    where = f" on {summary['test']}" if summary["test"] and summary["metric"] != "train_loss" else ""
    seeds = f"seed{'s' * (len(inputs['seeds']) > 1)} {', '.join(map(str, inputs['seeds']))}"
    click.echo(
        f"{training['optimizer']} on {training['model']}, data {summary['dataset']}: {metric}{where}, {seeds}"
    )
    rows = _rows(Path(summary["directory"]), summary)
    print_rows(rows[:_SHOWN], as_json=False)
    if len(rows) > _SHOWN:
        click.echo(f"{len(rows) - _SHOWN} more trials are in trials.csv")
    for line in _remarks(summary):
        click.echo(line)
    click.echo(f"run directory: {summary['directory']}")


def _rows(folder: Path, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The trials from the best to the worst, then those that diverged."""
    import pandas

    table = pandas.read_csv(folder / "trials.csv")
    table = table.sort_values("value", ascending=not summary["higher_is_better"], kind="stable")
    metric = summary["metric"].replace("_", " ")
    columns = {"trial": "trial", "lr": "lr", "damping": "damping", "value": metric, "sd": "sd"}
    shown = [name for name in columns if name != "damping" or table[name].notna().any()]
    shown = [name for name in shown if name != "sd" or table[name].notna().any()]
    return [
        {columns[name]: _text(row[name]) for name in shown}
        | {"seconds": f"{row['seconds']:.1f}", "outcome": row["outcome"]}
        for _, row in table.iterrows()
    ]


def _text(value: Any) -> str:
    return "" if value != value else f"{value:.4g}"


def _remarks(summary: Mapping[str, Any]) -> list[str]:
    best = summary["best"]
    point = ", ".join(f"{name} {best[name]:.4g}" for name in ("lr", "damping") if best[name] is not None)
    found = [f"best: {point} (trial {best['trial']}); its configuration is best.toml"]
    if summary["diverged"]:
        found.append(f"{summary['diverged']} of {summary['trials']} trials diverged")
    for name in best["at_an_end"]:
        found.append(f"the best {name} is an end of its range: look beyond it")
    return found
