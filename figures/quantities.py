"""What is read from the log of one run: its best value, and when it reached a target."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from . import printed
from .method_runs import MethodRun

BETTER_LOW = ("perplexity", "train_loss")
"""Metrics of which less is better."""


def value_of(run: MethodRun, line: Mapping[str, Any]) -> float | None:
    """The metric of an evaluation; accuracy in percent."""
    value = line.get(run.metric)
    if value is None:
        return None
    return 100.0 * value if run.metric == "accuracy" else float(value)


def best_value(run: MethodRun) -> float | None:
    """The best value of the metric over the evaluations."""
    values = [value for line in run.evaluations if (value := value_of(run, line)) is not None]
    if not values:
        return None
    return min(values) if run.metric in BETTER_LOW else max(values)


def common_target(reference: Sequence[MethodRun], printed_target: float | None) -> float | None:
    """What every seed of the reference reaches, to whole numbers, and no more than the paper's target."""
    best = [best_value(run) for run in reference if not run.diverged]
    known = [value for value in best if value is not None]
    if len(known) < len(reference):
        return None
    if reference[0].metric in BETTER_LOW:
        return float(math.ceil(max(known)))
    reached = float(math.floor(min(known)))
    return reached if printed_target is None else min(reached, printed_target)


def reached(run: MethodRun, target: float | None) -> Mapping[str, Any] | None:
    """The first evaluation at the target or better."""
    if target is None:
        return None
    low = run.metric in BETTER_LOW
    for line in run.evaluations:
        value = value_of(run, line)
        if value is not None and (value <= target if low else value >= target):
            return line
    return None


def quantity(run: MethodRun, column: str, target: float | None) -> float | None:
    """A column's value of one run; BLEU is that of all test sentences at the end."""
    if run.diverged:
        return None
    if column == printed.BLEU:
        return (run.finished.summary.get("bleu") or {}).get("value")
    if column == printed.ACCURACY:
        return best_value(run) if run.metric == "accuracy" else None
    if column in (printed.PER_EPOCH, printed.PER_THOUSAND):
        last = run.evaluations[-1]
        per = last["epoch"] if column == printed.PER_EPOCH else last["step"] / 1000
        return float(last["seconds"] / per) if per else None
    line = reached(run, target)
    if line is None:
        return None
    return {
        printed.EPOCHS: line["epoch"],
        printed.SECONDS: line["seconds"],
        printed.HOURS: line["seconds"] / 3600,
        printed.STEPS: line["step"] / 1000,
    }[column]
