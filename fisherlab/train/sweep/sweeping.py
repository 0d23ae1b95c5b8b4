"""A sweep over learning rates and dampings: short trainings at the points of a sampler, and the best one."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fisherlab.base import distributed
from fisherlab.base.devices import resolve_device
from fisherlab.errors import FisherlabError, InputError
from fisherlab.runs.config import read_config
from fisherlab.runs.directory import CONFIG
from fisherlab.runs.part import Names, RunPart
from fisherlab.train.foreign import ForeignOptimizer
from fisherlab.train.optimizers import named_optimizer
from fisherlab.train.run.training import PROVENANCE, SUMMARY, check_same, rehearse, shown
from fisherlab.train.sweep.config import SweepConfig
from fisherlab.train.sweep.results import SweepPlan, SweepResults
from fisherlab.train.sweep.study import PARAMS, Study, TrialPoint
from fisherlab.train.sweep.trials import Trial, train_trials

log = logging.getLogger("fisherlab")

JOURNAL, TRIALS = "study.journal", "trials"
_FREE = ("jobs", "train")  # another number of jobs changes no result; the training is compared by itself


def _silent() -> None:
    """Is told nothing."""


def run(
    config: SweepConfig, out: Names, *, force: bool = False, accepted: Callable[[], None] = _silent
) -> dict[str, Any]:
    """Trains at every point of a sweep, and writes its directory.

    A trial is one training a seed, from initial weights; its value is the mean of theirs. One that diverges
    has no value, and the sampler counts it as pruned. Trials are processes of their own: a script that calls
    this does so under `if __name__ == "__main__":`.

    Args:
        config: what to do.
        out: the directory, or names for it (`Names`); it is `OUT.part` until the sweep has ended.
        force: whether a finished run there may be replaced.
        accepted: is called once the configuration has proved right.

    Returns:
        What `summary.json` holds.

    Raises:
        InputError: for a configuration that cannot be run; nothing has been written then.
        FisherlabError: where files cannot be written, a trial fails, or all have diverged.
    """
    with RunPart.claim(out, force=force) as part:
        plan = _planned(config)
        with _held(part):
            part.begin(plan.config)
            return _perform(plan, part, accepted)


def resume(
    folder: Path, given: Mapping[str, Any] | None = None, *, accepted: Callable[[], None] = _silent
) -> dict[str, Any]:
    """Continues a sweep that was interrupted; its trainings go on from their last checkpoints.

    Args:
        folder: its directory, `OUT` or `OUT.part`.
        given: values of the configuration, which must be those of the sweep, but for `jobs`; those of the
            training are in `train`.
        accepted: is called once the sweep has been read.

    Returns:
        What `summary.json` holds.

    Raises:
        InputError: where there is no such sweep, another process is writing it, or its configuration is
            another one, or its data have changed.
        FisherlabError: as for `run`.
    """
    with RunPart.reopen(folder) as part, _held(part):
        config = read_config(part.path / CONFIG, SweepConfig)
        _check_given(config, given or {})
        if (part.path / PROVENANCE).is_file():
            return _end(part, json.loads((part.path / SUMMARY).read_text(encoding="utf-8")))
        plan = _planned(replace(config, jobs=(given or {}).get("jobs", config.jobs)))
        _check_data(plan, part)
        return _perform(plan, part, accepted)


def _planned(config: SweepConfig) -> SweepPlan:
    """Checks a sweep by building its training once, on the CPU."""
    if distributed.size() > 1:
        raise InputError("a sweep shares its trials out itself; start it without torchrun, with --jobs")
    base = config.base()
    device = resolve_device(base.device)
    chosen = named_optimizer(base.optimizer)
    if isinstance(chosen, ForeignOptimizer) and "lr" in chosen.missing({}):
        base = replace(base, lr=config.lr[0])
    ready, task, objective = rehearse(replace(base, device="cpu"))
    test = f"{task.test.dataset.label}, {task.test.dataset.split}" if task.test else None
    if config.by == "test_loss" and test is None:
        raise InputError("nothing is tested, so there is no test_loss to compare; give --by train_loss")
    by = "train_loss" if config.by == "metric" and test is None else config.by
    return SweepPlan(
        config=config.planned(replace(ready, device=device)),
        dataset=task.train.dataset,
        samples=len(task.train.targets),
        test=test,
        key="value" if by == "metric" else by,
        name=objective.metric if by == "metric" else by,
        higher=by == "metric" and objective.higher_is_better,
    )


def _check_given(config: SweepConfig, given: Mapping[str, Any]) -> None:
    check_same(config.base(), given.get("train", {}))
    for name, value in given.items():
        own = getattr(config, name)
        wanted = tuple(sorted(value)) if isinstance(value, tuple) else value
        if name not in _FREE and wanted != (tuple(sorted(own)) if isinstance(own, tuple) else own):
            raise InputError(
                f"the sweep to resume has another configuration: {name} is {shown(own)} there, not "
                f"{shown(value)}; leave this option out, or start a sweep of its own"
            )


def _check_data(plan: SweepPlan, part: RunPart) -> None:
    """Raises `InputError` where a training that has ended was on other data."""
    for path in part.path.glob(f"{TRIALS}/*/*/{PROVENANCE}"):
        if json.loads(path.read_text(encoding="utf-8"))["checksum"] != plan.dataset.checksum:
            raise InputError("the training data have changed since the sweep began; start it anew")


@contextmanager
def _held(part: RunPart) -> Iterator[None]:
    """The directory for the time of the block; it stays for `resume` where a training is in it."""
    try:
        yield
    except KeyboardInterrupt:
        if _has_trainings(part):
            log.warning("the sweep can be continued: fisherlab sweep --resume %s", part.out)
        raise
    except OSError as error:
        raise FisherlabError(
            f"cannot write {str(part.path)!r}: {error.strerror or error}; mend this and continue with "
            "--resume"
        ) from error
    finally:
        if not _has_trainings(part):
            part.discard()


def _has_trainings(part: RunPart) -> bool:
    return any(part.path.glob(f"{TRIALS}/*/*/{CONFIG}"))


def _perform(plan: SweepPlan, part: RunPart, accepted: Callable[[], None]) -> dict[str, Any]:
    """Trains what has not been trained yet, and ends the sweep."""
    started = time.perf_counter()
    config, results = plan.config, SweepResults(plan)
    study = Study(part.path / JOURNAL, config, higher=plan.higher)
    for point in study.done():
        results.add(_trial(config, point, part.path))
    accepted()
    log.info("%s", _announcement(config, len(results.rows)))
    clock = _Clock(config, len(results.rows))

    def finish(trial: Trial) -> None:
        trial.drop_weights(part.out / TRIALS)
        row = results.add(trial)
        study.tell(trial.number, row["value"])
        log.info("%s: %s", _named(row, plan.name), clock.left(len(results.rows)))

    trials = (_trial(config, point, part.path) for point in study.points())
    train_trials(trials, config.jobs, finish)
    summary = results.summary(part.out)
    results.write(part.path, summary, time.perf_counter() - started)
    return _end(part, summary)


def _end(part: RunPart, summary: dict[str, Any]) -> dict[str, Any]:
    """Gives the directory its final name."""
    part.finish()
    if summary["best"] is None:
        raise FisherlabError(
            f"every trial has diverged: lower the learning rates, or warm up for longer; the sweep is in "
            f"{str(part.out)!r}"
        )
    return summary


def _trial(config: SweepConfig, point: TrialPoint, folder: Path) -> Trial:
    own = folder / TRIALS / f"{point.number:04d}"
    return Trial(
        point.number,
        point.params,
        tuple(
            replace(config.point(point.params, seed), keep_last=1, keep_best=False) for seed in config.seeds
        ),
        tuple(own / f"seed-{seed}" for seed in config.seeds),
    )


def _announcement(config: SweepConfig, done: int) -> str:
    """What will be done, in a line."""
    base = config.base()
    words = [f"{name} {_span(getattr(config, name))}" for name in PARAMS if getattr(config, name)]
    if not config.damping and base.damping is not None:
        words.append(f"damping {base.damping}")
    if base.warm_up:
        words.append(f"warm-up {base.warm_up} steps")
    begun = f" ({done} done before)" if done else ""
    seeds = f", each with {len(config.seeds)} seeds" if len(config.seeds) > 1 else ""
    return f"{config.trials} trials{begun}{seeds}: {base.optimizer} on {base.model}, {', '.join(words)}"


def _span(values: tuple[float, ...]) -> str:
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"


def _named(row: Mapping[str, Any], metric: str) -> str:
    """A trial that has ended, in words."""
    point = ", ".join(f"{name} {row[name]:.3g}" for name in PARAMS if row[name] is not None)
    spread = f" ± {row['sd']:.2g}" if row["sd"] is not None else ""
    value = "diverged" if row["value"] is None else f"{metric.replace('_', ' ')} {row['value']:.4g}{spread}"
    return f"trial {row['trial']}, {point}, {value}"


class _Clock:
    """How far a sweep is, and about how long it will take."""

    def __init__(self, config: SweepConfig, before: int) -> None:
        self._started, self._before, self._trials = time.perf_counter(), before, config.trials or 0

    def left(self, done: int) -> str:
        """With so many trials done in all."""
        rest = self._trials - done
        seconds = (time.perf_counter() - self._started) / (done - self._before) * rest
        words = f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
        return f"{done} of {self._trials} done" + (f", about {words} left" if rest else "")
