"""`fisherlab train`: its options."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from fisherlab.errors import InputError
from fisherlab.loop.schedules import SCHEDULES
from fisherlab.train.config import NO_SPLIT, PRECISIONS, TrainConfig
from fisherlab.train.recipes import RECIPES

from . import options
from .train_run import continue_run, perform, train_config, with_options

_DEFAULT = TrainConfig(model="")


def _option(flag: str, help_text: str, **more: Any) -> Any:
    """An option whose value is None unless it is given; the default is shown if there is one."""
    name = flag.removeprefix("--").replace("-", "_")
    default = getattr(_DEFAULT, name, None)
    shown = "" if default in (None, (), False, "") else f"  [default: {default}]"
    return click.option(flag, help=help_text + shown, default=None, **more)


@click.command("train", short_help="Train a model to checkpoints, with any optimizer.")
@_option("--model", "A built-in model (see `list models`), or package.module:factory.")
@_option("--data", "A data set (see `list data`) in place of the model's own.", metavar="NAME")
@_option("--data-dir", "Where to look for data first.", metavar="DIR")
@_option("--samples", "How many training samples.  [default: all]", type=int)
@_option("--split", "The training split.", metavar="NAME")
@_option("--test-split", f"The split that is evaluated, or {NO_SPLIT}.  [default: test]", metavar="NAME")
@_option("--optimizer", "See `list optimizers`.", metavar="NAME")
@_option("--lr", "The first learning rate.  [default: the optimizer's]", type=float)
@_option("--momentum", "Of the optimizer.", type=float)
@_option("--weight-decay", "Of the optimizer.", type=float)
@_option("--damping", "A number, or LOW,HIGH for LNGD.", metavar="X[,Y]")
@_option("--statistics-every", "Steps between refreshes of the statistics.", type=int)
@_option("--inverse-every", "Steps between inverses.", type=int)
@click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any other option of the optimizer."
)
@_option("--epochs", "Passes over the data.  [default: 10]", type=int)
@_option("--steps", "In place of --epochs.", type=int)
@_option("--batch", "Samples a step.", type=int)
@_option("--accumulation", "Micro-batches a step.", type=int)
@_option("--clip", "The largest norm of the gradient.", type=float)
@_option("--label-smoothing", "The share of a label that is spread over all classes.", type=float)
@_option("--schedule", "Of the learning rate.", metavar="|".join(SCHEDULES))
@_option("--step-every", "Epochs between drops (x 0.1) of the schedule `step`.", type=float)
@_option("--power", "E of the schedule `polynomial`, (1 - t/T)^E.", type=float)
@_option("--warm-up", "Steps of linear warm-up.", type=int)
@_option("--warm-up-epochs", "In place of --warm-up.", type=float)
@_option("--augment", "Any of crop,flip, for images.", metavar="A,B")
@_option("--precision", "Of weights and sums.", metavar="|".join(PRECISIONS))
@_option("--device", "Where to train.", metavar="auto|cpu|cuda[:i]")
@_option("--seed", "Of weights, order, augmentation and drawn labels.", type=int)
@_option("--evaluate-every", "Epochs between evaluations, such as 0.5.", type=float)
@_option("--eval-samples", "Test sentences translated at each evaluation, for BLEU; 0: none.", type=int)
@_option("--beam", "Of the translations of all test sentences at the end.", type=int)
@_option("--log-every", "Steps between lines of log.jsonl.", type=int)
@_option("--diagnostics-every", "Steps between lines with every layer's rate and damping.", type=int)
@_option("--checkpoint-every", "Steps between checkpoints.  [default: one an epoch]", type=int)
@_option("--checkpoint-steps", "Steps whose checkpoints stay.", metavar="N,N,...")
@_option("--keep-last", "How many of the last checkpoints stay.", type=int)
@click.option("--keep-best/--no-keep-best", default=None, help="Whether the best one stays.  [default: yes]")
@click.option(
    "--tensorboard", is_flag=True, default=None, help="Write the log for TensorBoard too, where installed."
)
@click.option(
    "--config",
    metavar="CONFIG.toml",
    help="A configuration of train, such as a sweep's best.toml; options overrule it.",
    type=click.Path(path_type=Path),
)
@click.option(
    "--recipe", metavar="|".join(RECIPES), help="Settings that belong together; options overrule it."
)
@click.option(
    "--resume", metavar="RUN", type=click.Path(path_type=Path), help="Continue this interrupted run."
)
@options.output
def command(
    *,
    output: options.Output,
    resume: Path | None,
    config: Path | None,
    recipe: str | None,
    assignments: tuple[str, ...],
    **values: Any,
) -> None:
    """Train a model to checkpoints, with the optimizers of fisherlab and of PyTorch.

    Writes log.jsonl, checkpoints/ and curves into the run's directory, which is called OUT.part until the
    run has ended; --resume OUT continues an interrupted run.
    """
    given = gathered(values, assignments)
    if len(given.get("damping", ())) == 1:
        given["damping"] = given["damping"][0]
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


def gathered(values: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """The values that are given, as `TrainConfig` has them, but for `damping`, which is a tuple.

    Raises:
        InputError: where a list or an assignment cannot be read.
    """
    given = {name: value for name, value in values.items() if value is not None}
    for name, convert in (("augment", str), ("checkpoint_steps", int), ("damping", float)):
        if name in given:
            given[name] = listed(name, given[name], convert)
    if assignments:
        given["options"] = dict(map(_assigned, assignments))
    return given


def listed(name: str, text: str, convert: Callable[[str], Any]) -> tuple[Any, ...]:
    """The values of a text with commas.

    Raises:
        InputError: where one of them is no number.
    """
    try:
        return tuple(convert(part.strip()) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise InputError(f"{name} takes numbers separated by commas, not {text!r}") from error


def _assigned(text: str) -> tuple[str, Any]:
    """The name and the value of KEY=VALUE; the value as TOML has it, else a text."""
    import tomllib

    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise InputError(f"--set takes KEY=VALUE, not {text!r}")
    try:
        found = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        found = value
    return name.strip().replace("-", "_"), tuple(found) if isinstance(found, list) else found
