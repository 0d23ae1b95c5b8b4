"""The directory of a run that may be interrupted: `OUT.part` until it ends, one process at a time."""

import fcntl
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from fisherlab.errors import FisherlabError, InputError
from fisherlab.runs.directory import check_free

LOCK = "lock"
CONFIG = "config.toml"


class RunPart:
    """A run's unfinished directory, held by this process.

    Attributes:
        path: `OUT.part`.
        out: `OUT`, its name at the end.
        begun: whether it held a run already.
    """

    def __init__(self, out: Path, lock: IO[str]) -> None:
        self.out, self.path, self._lock = out, part_of(out), lock
        self.begun = (self.path / CONFIG).is_file()

    @classmethod
    def start(cls, out: Path, *, force: bool = False) -> "RunPart":
        """An empty `OUT.part` for a new run.

        Raises:
            InputError: where `OUT` is taken, or `OUT.part` holds a run that could be continued (unless
                `force`) or that another process is writing.
        """
        check_startable(out, force=force)
        part = part_of(out)
        try:
            part.mkdir(parents=True, exist_ok=True)
            made = cls(out, _locked(part))
        except OSError as error:
            raise InputError(
                f"cannot write {str(part)!r} ({error.strerror or error}); choose another directory"
            ) from error
        if made.begun and not force:
            made.release()
            raise _unfinished(out)
        made._empty()
        return made

    @classmethod
    def reopen(cls, run: Path) -> "RunPart":
        """The directory of an interrupted run, by either of its names.

        Raises:
            InputError: where there is none, it has ended, or another process is writing it.
        """
        out = run.with_name(run.name.removesuffix(".part")) if run.name.endswith(".part") else run
        part = part_of(out)
        if not part.is_dir():
            if (out / CONFIG).is_file():
                raise InputError(f"the run {str(out)!r} has ended; there is nothing to resume")
            raise InputError(f"there is no interrupted run {str(part)!r}; check the path given to --resume")
        try:
            made = cls(out, _locked(part))
        except OSError as error:
            raise InputError(
                f"cannot write {str(part)!r} ({error.strerror or error}); check its permissions"
            ) from error
        if not made.begun:
            made.release()
            raise InputError(f"{str(part)!r} holds no {CONFIG}: the run had not begun; start it again")
        return made

    def finish(self) -> None:
        """Gives the directory its final name.

        Raises:
            FisherlabError: where this cannot be done.
        """
        try:
            (self.path / LOCK).unlink(missing_ok=True)
            if self.out.exists():
                shutil.rmtree(self.out)
            self.path.rename(self.out)
        except OSError as error:
            raise FisherlabError(f"cannot write {str(self.out)!r}: {error}") from error
        self.release()

    def discard(self) -> None:
        """Removes the directory."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.release()

    def release(self) -> None:
        """Lets other processes have the directory."""
        self._lock.close()

    def _empty(self) -> None:
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()
        self.begun = False


def part_of(out: Path) -> Path:
    """`OUT.part`."""
    return out.with_name(out.name + ".part")


def numbered(out: Path) -> Iterator[Path]:
    """The path, then the same with -2, -3 and so on."""
    return itertools.chain([out], (out.with_name(f"{out.name}-{count}") for count in itertools.count(2)))


def check_startable(out: Path, *, force: bool = False) -> None:
    """Raises `InputError` where `OUT` is taken, or `OUT.part` holds a run that could be continued."""
    check_free(out, force=force)
    if (part_of(out) / CONFIG).is_file() and not force:
        raise _unfinished(out)


def _unfinished(out: Path) -> InputError:
    return InputError(
        f"{str(part_of(out))!r} holds a run that has not ended; continue it with --resume {out}, or start "
        "anew with --force"
    )


def _locked(part: Path) -> IO[str]:
    """The lock file of a directory, locked until it is closed or the process ends, with its number in it.

    Raises:
        InputError: where another process has it.
    """
    lock = (part / LOCK).open("a+", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        same = os.fstat(lock.fileno()).st_ino == (part / LOCK).stat().st_ino
    except OSError as error:
        lock.seek(0)
        owner = lock.read().strip()
        lock.close()
        raise InputError(
            f"{str(part)!r} is being written by another process ({owner or 'just started'}); wait for it, "
            "or choose another directory"
        ) from error
    if not same:
        lock.close()
        raise InputError(f"{str(part)!r} has just been finished by another process")
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock
