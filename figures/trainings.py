"""Figures and tables of training: the same runs as curves, and as epochs and time to a target."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import pandas as pd

from fisherlab.plots import label
from fisherlab.plots.methods import method_curves, printed_number, printed_values

from . import printed
from .method_runs import MethodRun
from .printed import TABLES, PrintedTable
from .quantities import best_value, common_target, quantity, value_of
from .scales import TrainingTask
from .workshop import Caption, Workshop, described

REFERENCE = "sgd"
_PRINTED_TARGETS = {1: 91.0, 2: 75.9, 5: 75.9, 6: 91.0}
_SAVED = "time that LNGD saves, 1 − t_LNGD/t"


@dataclass(frozen=True)
class Trained:
    """The runs behind a figure or table.

    Attributes:
        task: what was trained.
        runs: by method, one a seed.
        target: value of the metric that the runs are to reach; None where the reference has no such value.
    """

    task: TrainingTask
    runs: Mapping[str, list[MethodRun]]
    target: float | None

    @property
    def metric(self) -> str:
        """Its name in the log."""
        return self._all[0].metric

    @property
    def words(self) -> str:
        """The metric and its unit."""
        return "test accuracy, %" if self.metric == "accuracy" else f"test {self.metric.replace('_', ' ')}"

    @property
    def target_words(self) -> str:
        """The target and how it was chosen."""
        if self.target is None:
            return "no target: the reference, SGD, has no value"
        value = f"{self.target:g} %" if self.metric == "accuracy" else f"{self.metric} {self.target:g}"
        limit = "" if self.task.stands_for else ", at most the paper's"
        return f"target {value}: what SGD reaches here with every seed, to whole numbers{limit}"

    @property
    def diverged(self) -> list[str]:
        """A sentence a run that diverged."""
        return [
            f"{label(run.method)}, seed {run.seed}: {run.finished.summary['reason']}"
            for run in self._all
            if run.diverged
        ]

    def described(self) -> str:
        """Network, data, seeds and device, with what it stands for and where the rates are from."""
        text = described(self._all, self.task.words)
        if self.task.stands_for:
            text = f"a stand-in for {self.task.stands_for}: {text}"
        rates = ", ".join(f"{label(name)} {self.task.rates[name]:g}" for name in self.runs)
        text = f"{text}; seconds are of training alone, whatever else the machine did"
        text = f"{text}; {self._protocol()}; learning rates {rates} ({self.task.rates_from})"
        dampings = [f"{label(name)} {_damping(runs[0].finished.config)}" for name, runs in self.runs.items()]
        return f"{text}; damping {', '.join(dampings)}"

    def _protocol(self) -> str:
        """Batch, epochs, schedule and warm-up of each method, methods with the same ones together."""
        by_protocol: dict[str, list[str]] = {}
        for runs in self.runs.values():
            config = runs[0].finished.config
            words = (
                f"batch {config['batch']}, {config['epochs']} epochs, schedule {_schedule(config)}, warm-up "
                f"{_warm_up(config)}, weight decay {config['weight_decay']:g}"
            )
            by_protocol.setdefault(words, []).append(label(runs[0].method))
        return "; ".join(f"{', '.join(names)}: {words}" for words, names in by_protocol.items())

    @property
    def data(self) -> list[str]:
        """The labels of the data."""
        return sorted({str(run.finished.summary["dataset"]) for run in self._all})

    @property
    def _all(self) -> list[MethodRun]:
        return [run for runs in self.runs.values() for run in runs]


def trained(workshop: Workshop, task: TrainingTask, table: PrintedTable) -> Trained:
    """The runs of a table's methods, and the target that follows from the reference's runs."""
    reference = workshop.runs.of(task, REFERENCE)
    runs = {method: workshop.runs.of(task, method) for method in table.methods}
    printed_target = None if task.stands_for else _PRINTED_TARGETS.get(table.number)
    return Trained(task, runs, common_target(reference, printed_target))


def write_curves(workshop: Workshop, *, name: str, task: str, number: int, title: str) -> dict[str, Any]:
    """Writes a figure of training curves, or of the printed values alone where nothing is trained.

    Args:
        workshop: the means.
        name: of the files.
        task: the attribute of the scale that is trained.
        number: of the table with the printed values.
        title: of the caption.

    Returns:
        The numbers for `summary.json`.
    """
    table, wanted = TABLES[number], getattr(workshop.scale, task)
    if wanted is None:
        return _printed_alone(workshop, name, table, title)
    found = trained(workshop, wanted, table)
    frame = evaluations(found)
    caption = Caption(
        f"{title}; {_title(found.task)}",
        found.described(),
        _printed_sentence(table),
        table.errata,
        [_measured_sentence(found, table), *found.diverged],
    )

    def draw(heading: str, text: str) -> Any:
        return method_curves(
            frame,
            loss="training loss",
            metric=found.words,
            title=heading,
            caption=text,
            printed={_panel(words, table): values for words, values in table.columns.items()},
            logarithmic=found.metric == "perplexity",
        )

    workshop.figure(name, draw, caption, frame)
    return {"data": found.data, "target": found.target}


def write_table(workshop: Workshop, *, name: str, task: str, number: int, title: str) -> dict[str, Any]:
    """Writes a table: a row a method and column, measured beside printed; arguments as of `write_curves`.

    Returns:
        The numbers for `summary.json`.
    """
    table, wanted = TABLES[number], getattr(workshop.scale, task)
    found = None if wanted is None else trained(workshop, wanted, table)
    caption = Caption(
        title if found is None else f"{title}; {_title(found.task)}",
        _not_measured(workshop, table) if found is None else f"{found.described()}; {found.target_words}",
        f"{table.task}, target {_target(table)}, mean of 5 runs, TensorFlow, one A100",
        table.errata,
        [] if found is None else found.diverged,
    )
    workshop.table(name, list(_rows(found, table)), caption)
    return {} if found is None else {"data": found.data, "target": found.target}


def evaluations(found: Trained) -> pd.DataFrame:
    """A row an evaluation: `method, seed, step, epoch, seconds, loss, metric`; accuracy in percent."""
    rows = [
        {
            "method": method,
            "seed": run.seed,
            **{key: line[key] for key in ("step", "epoch", "seconds")},
            "loss": line["train_loss"],
            "metric": value_of(run, line),
        }
        for method, runs in found.runs.items()
        for run in runs
        for line in run.evaluations
    ]
    return pd.DataFrame(rows)


# --- rows -----------------------------------------------------------------------------------------

_Row = tuple[str, float | None, float | None, str]


def _rows(found: Trained | None, table: PrintedTable) -> Iterator[_Row]:
    means: dict[tuple[str, str], float | None] = {}
    for column, values in table.columns.items():
        for method in table.methods:
            measured, note = (None, "not measured") if found is None else _mean(found, method, column)
            means[column, method] = measured
            flag = printed.FLAGGED.get((column, method))
            flagged = f"; reading {flag} on the printed value" if flag in table.errata else ""
            yield f"{label(method)}: {column}", measured, values[method], note + flagged
    time = next(column for column in table.columns if column in (printed.SECONDS, printed.HOURS))
    for method in table.methods:
        if method != "lngd":
            measured = _saved(means[time, "lngd"], means[time, method])
            shown = _saved(table.columns[time]["lngd"], table.columns[time][method])
            yield (
                f"{label(method)}: {_SAVED}",
                measured,
                shown,
                "computed from the times to the target, on both sides; reading 21",
            )
    if found is not None and found.metric != "accuracy":
        for method in table.methods:
            best = [None if run.diverged else best_value(run) for run in found.runs[method]]
            measured, note = _mean_of(best)
            yield f"{label(method)}: best {found.words}", measured, None, note


def _mean(found: Trained, method: str, column: str) -> tuple[float | None, str]:
    runs = found.runs[method]
    measured, note = _mean_of([quantity(run, column, found.target) for run in runs])
    if measured is not None:
        return measured, f"{note}, stand-in task" if found.task.stands_for else note
    if all(run.diverged for run in runs):
        return None, "diverged"
    return None, "target not reached" if "target" in column else "not measured"


def _mean_of(values: Sequence[float | None]) -> tuple[float | None, str]:
    """The mean over the seeds that have a value, and what must be known of it."""
    known = [value for value in values if value is not None]
    if not known:
        return None, "not measured"
    seeds = f"{len(known)} of {len(values)} seeds" if len(known) < len(values) else f"{len(values)} seeds"
    spread = f", sd {stdev(known):.3g}" if len(known) > 1 else ""
    return mean(known), f"mean of {seeds}{spread}" if len(values) > 1 else "1 seed"


def _saved(lngd: float | None, other: float | None) -> float | None:
    return None if lngd is None or not other else 1 - lngd / other


# --- words ----------------------------------------------------------------------------------------


def _title(task: TrainingTask) -> str:
    """What was trained, and what it stands for."""
    own = task.words.split(" (")[0].split(",")[0]
    return f"{own}, a stand-in for {task.stands_for}" if task.stands_for else own


def _schedule(config: Mapping[str, Any]) -> str:
    """Of the learning rate, with what belongs to it."""
    more = {"polynomial": f" of power {config['power']:g}", "step": f" every {config['step_every']:g} epochs"}
    return str(config["schedule"]) + more.get(config["schedule"], "")


def _damping(config: Mapping[str, Any]) -> str:
    value = config.get("damping", "none")
    return " to ".join(f"{one:g}" for one in value) if isinstance(value, list) else str(value)


def _warm_up(config: Mapping[str, Any]) -> str:
    if "warm_up_epochs" in config:
        return f"{config['warm_up_epochs']:g} epochs"
    return f"{config.get('warm_up', 0)} steps"


def _printed_alone(workshop: Workshop, name: str, table: PrintedTable, title: str) -> dict[str, Any]:
    panels = {_panel(words, table): values for words, values in table.columns.items()}
    caption = Caption(
        f"{title}: printed values, nothing measured",
        _not_measured(workshop, table),
        _printed_sentence(table),
        table.errata,
    )
    rows = [
        {"method": method, "quantity": words, "printed": value}
        for words, values in table.columns.items()
        for method, value in values.items()
    ]
    workshop.figure(
        name,
        lambda heading, text: printed_values(panels, title=heading, caption=text),
        caption,
        pd.DataFrame(rows),
    )
    return {}


def _not_measured(workshop: Workshop, table: PrintedTable) -> str:
    return f"nothing: the scale {workshop.scale.name} trains no {table.task}"


def _panel(words: str, table: PrintedTable) -> str:
    return words.replace("target", table.target)


def _target(table: PrintedTable) -> str:
    """The printed target with its metric."""
    return table.target if table.metric in table.target else f"{table.target} {table.metric}"


def _printed_sentence(table: PrintedTable) -> str:
    parts = []
    for words, values in table.columns.items():
        listed = ", ".join(f"{label(m)} {'–' if v is None else printed_number(v)}" for m, v in values.items())
        parts.append(f"{_panel(words, table)}: {listed}")
    dash = "; –: the paper has a dash" if any(None in own.values() for own in table.columns.values()) else ""
    return f"{table.task} ({table.metric}), TensorFlow, one A100; {'; '.join(parts)}{dash}"


def _measured_sentence(found: Trained, table: PrintedTable) -> str:
    """The same quantities as measured: the first two columns of the table."""
    parts = []
    for column in list(table.columns)[:2]:
        values = {method: _mean(found, method, column)[0] for method in found.runs}
        listed = ", ".join(f"{label(m)} {'–' if v is None else f'{v:.3g}'}" for m, v in values.items())
        parts.append(f"{column}: {listed}")
    return f"Measured, {found.target_words}; {'; '.join(parts)} (–: not reached)"
