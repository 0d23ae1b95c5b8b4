"""Writing many figures on several cores: processes of joblib's loky that draw what they are sent.

They start from nothing, so that it works from scripts without a `__main__` guard, notebooks and tests alike,
and import what a figure needs, which is never torch.
"""

import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import contextmanager
from pathlib import Path

from matplotlib.figure import Figure

from fisherlab.plots.style import save

MANY = 6
"""Figures from which on a process pays for its start."""

_MOST_WORKERS = 3  # this process makes the figures, and keeps no more of them busy

Save = Callable[[Figure, Path], object]


@contextmanager
def saver(figures: int) -> Iterator[Save]:
    """A function that writes a figure to a path without suffix, now or until the block ends.

    A figure whose process fails is written by this one.

    Args:
        figures: how many are to come, at least; below `MANY`, or on one core, all are written at once.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    alone = figures < MANY or multiprocessing.current_process().daemon  # which may have no processes
    count = 0 if alone else min(_MOST_WORKERS, cores - 1)
    if not count:
        yield save
        return
    from multiprocessing import resource_tracker

    from joblib.externals.loky import ProcessPoolExecutor

    resource_tracker.ensure_running()  # to start it later would unblock the signal that `_submitted` blocks
    executor = ProcessPoolExecutor(count, env={"OMP_NUM_THREADS": "1"})
    sent: dict[Future[object], tuple[bytes, Path]] = {}

    def settle(done: Callable[[Future[object]], bool]) -> None:
        for future in filter(done, list(sent)):
            work = sent.pop(future)
            if future.exception() is not None:
                _draw(save, *work)

    def write(figure: Figure, path: Path) -> None:
        settle(Future.done)
        if len(sent) >= count:
            save(figure, path)
        else:
            work = pickle.dumps(figure, pickle.HIGHEST_PROTOCOL), path
            sent[_submitted(executor, work)] = work

    try:
        yield write
        settle(lambda future: True)
    finally:
        executor.shutdown(kill_workers=True)


def _submitted(executor: Executor, work: tuple[bytes, Path]) -> Future[object]:
    """The work, handed on; a process that it starts does not see Ctrl-C, which this one answers for it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return executor.submit(_draw, save, *work)
    except BrokenExecutor as error:
        failed: Future[object] = Future()
        failed.set_exception(error)
        return failed
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _draw(save: Save, figure: bytes, path: Path) -> None:
    save(pickle.loads(figure), path)
