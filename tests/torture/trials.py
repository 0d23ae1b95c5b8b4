"""What every trial is made of: a child process that may be killed or starved, and a count of failures."""

import fcntl
import os
import random
import resource
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import util
from pathlib import Path

PATIENCE = 300.0  # seconds after which a child counts as hanging
_MOST_OUTPUT = 2**20  # bytes, of which a pipe may have that many without being root


@dataclass
class Tally:
    """Tries of one kind.

    Attributes:
        what: was tried.
        tries: how often.
        failures: what went wrong, a line each.
    """

    what: str
    tries: int = 0
    failures: list[str] = field(default_factory=list)

    def count(self, failure: str = "", tries: int = 1) -> None:
        """Adds tries, and the failure where there is one."""
        self.tries += tries
        if failure:
            self.failures.append(failure)
            print(f"FAILED {self.what}: {failure}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        code: its exit code; negative: the signal.
        out: its stdout.
        err: its stderr.
        seconds: it ran.
    """

    code: int
    out: str
    err: str
    seconds: float

    @property
    def refused(self) -> bool:
        """Whether it ended as bad input or a failed run has to: one line, and nothing on stdout."""
        lines = self.err.splitlines()
        return self.code in (1, 2) and len(lines) == 1 and lines[0].startswith("fisherlab: error: ")

    def __str__(self) -> str:
        return f"rc {self.code}: {self.err.strip()[-300:] or self.out.strip()[-100:]}"


class Child:
    """A function that runs in a forked process, in a folder, with its output in pipes.

    Forking spares every trial the seconds of importing torch; this process has one thread.

    Args:
        work: what it does; its value is the exit code.
        folder: its working directory.
        largest: bytes that a file may have there, as on a disk that is full; None: any number.
    """

    def __init__(self, work: Callable[[], int | None], folder: Path, largest: int | None = None) -> None:
        pipes = [os.pipe() for _ in ("stdout", "stderr")]
        self._begun = time.perf_counter()
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            self._live(work, folder, largest, [end for _, end in pipes])
        self._handle = os.pidfd_open(self.pid)
        self._outputs = [start for start, _ in pipes]
        for start, end in pipes:
            os.close(end)
            fcntl.fcntl(start, fcntl.F_SETPIPE_SZ, _MOST_OUTPUT)
            os.set_blocking(start, False)  # a child's child may hold the other end

    def _live(
        self, work: Callable[[], int | None], folder: Path, largest: int | None, ends: list[int]
    ) -> None:
        code = 70
        try:
            os.setsid()  # its own children can be killed with it
            os.chdir(folder)
            for number, end in enumerate(ends, 1):
                os.dup2(end, number)
            sys.stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
            sys.stderr = os.fdopen(os.dup(2), "w", encoding="utf-8")
            if largest is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
            random.seed(0)
            code = work() or 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                try:
                    stream.flush()
                except OSError:
                    code = code or 1
            util._exit_function()  # as at the end of any process: else loky's semaphores stay
            os._exit(code)

    def wait(self, seconds: float = PATIENCE) -> bool:
        """Whether it has ended within so many seconds."""
        return bool(select.select([self._handle], [], [], seconds)[0])

    def kill(self, *, with_children: bool = False) -> Ended:
        """Ends it where it is, as `kill -9` does."""
        if with_children:
            os.killpg(self.pid, signal.SIGKILL)
        else:
            os.kill(self.pid, signal.SIGKILL)
        return self.ended()

    def ended(self) -> Ended:
        """How it ended; a child that hangs is killed."""
        if not self.wait():
            os.killpg(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        os.close(self._handle)
        texts = [_read(output) for output in self._outputs]
        code = os.waitstatus_to_exitcode(status)
        return Ended(code, *texts, time.perf_counter() - self._begun)


def _read(output: int) -> str:
    try:
        return os.read(output, _MOST_OUTPUT).decode("utf-8", "replace")
    except BlockingIOError:
        return ""
    finally:
        os.close(output)


def fisherlab(*arguments: str) -> Callable[[], int | None]:
    """The command line, as a function for a child."""

    def run() -> int | None:
        from fisherlab.cli import main

        sys.path.insert(0, str(Path.cwd()))
        main(list(arguments))
        return 0

    return run


def run(folder: Path, *arguments: str) -> Ended:
    """Runs the command line in a child to its end."""
    return Child(fisherlab(*arguments), folder).ended()


@contextmanager
def fresh(place: Path, name: str) -> Iterator[Path]:
    """An empty folder, which is gone afterwards."""
    folder = place / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def listing(folder: Path) -> set[str]:
    """Every file and folder below a folder, hidden ones too, without compiled modules."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts}
