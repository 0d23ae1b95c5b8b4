"""Trials of a sweep: each trains in a process of its own, and can be cut off at any moment."""

import json
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from fisherlab.base.writing import beside
from fisherlab.errors import FisherlabError
from fisherlab.loop.steps import DivergedError
from fisherlab.runs.directory import CONFIG, part_of, write_json
from fisherlab.train.config import TrainConfig
from fisherlab.train.run.checkpoints import WEIGHTS
from fisherlab.train.run.training import SUMMARY, resume, train

_PRELOADED = ("fisherlab.train.sweep.trials", "lightning_fabric")


@dataclass(frozen=True)
class Trial:
    """A trial to be trained, with one seed after the other until one diverges.

    Attributes:
        number: of the trial.
        params: `lr` and, where it is swept, `damping`.
        configs: one a seed.
        folders: where each of them is trained.
    """

    number: int
    params: Mapping[str, float]
    configs: tuple[TrainConfig, ...]
    folders: tuple[Path, ...]

    def summaries(self) -> list[dict[str, Any]]:
        """What `summary.json` holds of the runs that have ended."""
        found = (folder / SUMMARY for folder in self.folders)
        return [json.loads(path.read_text(encoding="utf-8")) for path in found if path.is_file()]

    def drop_weights(self, out: Path) -> None:
        """Removes the checkpoints of ended runs; `out` is the directory that they will be in."""
        for folder, summary in zip(self.folders, self.summaries(), strict=False):
            place = str(out / folder.parent.name / folder.name)
            with beside(folder / SUMMARY) as part:
                write_json(part, {**summary, "directory": place, "checkpoints": []})
            shutil.rmtree(folder / WEIGHTS, ignore_errors=True)


def train_trials(trials: Iterator[Trial], at_once: int, done: Callable[[Trial], None]) -> None:
    """Runs trials in processes, each taken from the iterator when there is room for it.

    The threads of this process are shared out among those at work. Where one fails, the others are ended;
    what they have trained can be continued.

    Args:
        trials: what to do.
        at_once: the most processes.
        done: is called in this process after each trial.

    Raises:
        FisherlabError: of the first trial that fails, or whose process ends.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    threads = max(1, torch.get_num_threads() // at_once)
    running: dict[Connection, tuple[Any, Trial]] = {}
    try:
        while True:
            while len(running) < at_once and (trial := next(trials, None)) is not None:
                here, there = context.Pipe(duplex=False)
                process = context.Process(
                    target=_train, args=(trial, threads, dict(os.environ), there), daemon=True
                )
                process.start()
                there.close()
                running[here] = process, trial
            if not running:
                return
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                process, trial = running.pop(ready)
                _raise_failure(process, ready, trial)
                done(trial)
    finally:
        for process, _ in running.values():
            process.kill()
            process.join()


def _raise_failure(process: Any, connection: Connection, trial: Trial) -> None:
    """Waits for a process, and raises what its trial raised."""
    try:
        error = connection.recv()
    except EOFError:
        process.join()
        error = FisherlabError(
            f"the process of trial {trial.number} has ended (exit code {process.exitcode}), perhaps for want "
            "of memory; continue with --resume, and fewer --jobs"
        )
    process.join()
    if error is not None:
        raise error


def _train(trial: Trial, threads: int, environment: dict[str, str], connection: Connection) -> None:
    """Trains a trial in its process, and sends the error, or None."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the sweep ends its processes itself
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update(environment)
    torch.set_num_threads(threads)
    logging.getLogger("fisherlab").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    error: FisherlabError | None = None
    try:
        with redirect_stdout(sys.stderr):  # a model of the user's own may print
            for config, folder in zip(trial.configs, trial.folders, strict=True):
                if not _trained(config, folder):
                    break
    except FisherlabError as caught:  # of its own kind, which says whether the input is bad
        error = type(caught)(f"trial {trial.number} has failed: {caught}")
    except Exception as caught:
        error = FisherlabError(f"trial {trial.number} has failed: {type(caught).__name__}: {caught}")
    connection.send(error)


def _trained(config: TrainConfig, folder: Path) -> bool:
    """Trains to the end, from where it was cut off if it was; returns whether it has not diverged."""
    try:
        if not (folder / SUMMARY).is_file():
            if (part_of(folder) / CONFIG).is_file():
                resume(folder, pictures=False)
            else:
                train(config, folder, force=True, pictures=False)
    except DivergedError:
        return False
    return bool(json.loads((folder / SUMMARY).read_text(encoding="utf-8"))["outcome"] == "finished")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
