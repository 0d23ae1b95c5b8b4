"""Writing many figures on several cores: helpers that draw what they are sent, in processes of their own.

A helper is `python -m fisherlab.plots.workers`: it takes pickled figures from its parent over a pipe,
so it works from scripts, notebooks and tests alike. A figure whose helper fails is written by the parent.
"""

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

from matplotlib.figure import Figure

from fisherlab.plots.style import save

MANY = 6
"""Figures from which on a helper pays for its start."""

_MOST_HELPERS = 3

Save = Callable[[Figure, Path], None]


@contextmanager
def saver(figures: int) -> Iterator[Save]:
    """A function that writes a figure to a path without suffix, now or until the block ends.

    Args:
        figures: how many are to come; below `MANY`, or on one core, all are written at once.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(_MOST_HELPERS, cores - 1) if figures >= MANY else 0
    helpers = [_Helper() for _ in range(count)]

    def write(figure: Figure, path: Path) -> None:
        free = next((helper for helper in helpers if helper.free), None)
        if free is None:
            save(figure, path)
        else:
            free.send(figure, path)

    try:
        yield write
        for helper in helpers:
            helper.finish()
    finally:
        for helper in helpers:
            helper.stop()


class _Helper:
    """One process and the figure that it draws."""

    def __init__(self) -> None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        self._current: tuple[Figure, Path] | None = None
        self._answers: SimpleQueue[bool] = SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def free(self) -> bool:
        """Whether it can be sent a figure; takes the answer to the last one."""
        if self._current is not None and not self._answers.empty():
            self._settle()
        return self._current is None and self._process.poll() is None

    def send(self, figure: Figure, path: Path) -> None:
        """Gives it a figure."""
        self._current = figure, path
        assert self._process.stdin is not None
        try:
            pickle.dump((figure, path), self._process.stdin, pickle.HIGHEST_PROTOCOL)
            self._process.stdin.flush()
        except OSError:
            self._answers.put(False)

    def finish(self) -> None:
        """Waits for the last figure."""
        if self._current is not None:
            self._settle()

    def stop(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()

    def _settle(self) -> None:
        assert self._current is not None
        figure, path = self._current
        self._current = None
        if not self._answers.get():
            save(figure, path)

    def _listen(self) -> None:
        """Passes on a byte an answer; the end of the pipe is a failure of whatever it still had."""
        assert self._process.stdout is not None
        while self._process.stdout.read(1):
            self._answers.put(True)
        self._answers.put(False)


def main() -> None:
    """The helper's side: draws figures from stdin, and answers each with one byte."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            figure, path = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        save(figure, path)
        os.write(1, b".")


if __name__ == "__main__":
    main()
