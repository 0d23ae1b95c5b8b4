"""The directory of a run while it is written: `OUT.part` until it ends, one process at a time."""

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from fisherlab.base import distributed
from fisherlab.base.writing import write
from fisherlab.errors import FisherlabError, InputError
from fisherlab.runs.config import Config, command_of
from fisherlab.runs.directory import CONFIG, PART, TakenError, check_free, part_of
from fisherlab.runs.lock import SUFFIX, BusyError, DirectoryLock, lock_of, signed_here

Names = Path | Iterable[Path]
"""A directory, or names of which the first that is free is taken."""

_AT_ONCE = ("compare", "represent", "trace", "report")  # commands whose runs cannot be continued


class RunPart:
    """A run's directory, claimed for this process before its work: nobody else writes it meanwhile.

    Nothing is changed by the claim itself: `begin` makes `OUT.part` empty, `finish` gives it its final name.
    As a context it lets go of the directory at the end of the block.

    Attributes:
        path: `OUT.part`.
        out: `OUT`, its name at the end.
        begun: whether `OUT.part` holds a run that can be continued.
        mine: whether this process writes it; of several processes only the first one does.
    """

    def __init__(self, out: Path, lock: DirectoryLock | None, *, force: bool = False) -> None:
        self.out, self.path, self.mine = out, part_of(out), lock is not None
        self.begun = _can_be_continued(self.path)
        self._lock, self._force, self._ours = lock, force, False

    @classmethod
    def claim(cls, out: Names, *, force: bool = False, go_on: bool = False) -> Self:
        """The directory of a new run.

        Where names to choose from are given, what dead processes left beside them is removed too.

        Args:
            out: see `Names`.
            force: whether what is there may be replaced: a finished run, or one that could be continued.
            go_on: whether a run that could be continued is welcome.

        Raises:
            InputError: where `OUT` is taken, or `OUT.part` holds a run that could be continued, or that
                another process is writing.
        """
        if isinstance(out, Path):
            return cls._claimed(out, force=force, go_on=go_on)
        for place, name in enumerate(out):
            if place == 0:
                _sweep_dead(name.parent)
            try:
                return cls._claimed(name, force=False, go_on=False, wait=False)
            except (BusyError, TakenError):
                continue
        raise InputError("no name for the run's directory is free; choose one with --out")

    @classmethod
    def _claimed(cls, out: Path, *, force: bool, go_on: bool, wait: bool = True) -> Self:
        check_free(out, force=force)  # before anything is written there
        part = cls._locked(out, force=force, wait=wait)
        try:
            check_free(out, force=force)
            if part.begun and not force and not go_on:
                raise TakenError(
                    f"{str(part.path)!r} holds a run that has not ended; continue it with --resume {out}, or "
                    "start anew with --force"
                )
            part._sweep(ended=False)
        except BaseException:
            part.release()
            raise
        return part

    @classmethod
    def reopen(cls, run: Path) -> Self:
        """The directory of an interrupted run, by either of its names.

        Raises:
            InputError: where there is none, it has ended, or another process is writing it.
        """
        out = run.with_name(run.name.removesuffix(PART))
        _check_interrupted(out)  # before anything is written there
        part = cls._locked(out, force=True)
        try:
            _check_interrupted(out)
            part._sweep(ended=False)
        except BaseException:
            part.release()
            raise
        return part

    @classmethod
    def _locked(cls, out: Path, *, force: bool, wait: bool = True) -> Self:
        try:
            part = cls(out, DirectoryLock.of(out, wait=wait), force=force)
            part._put_back()
        except OSError as error:
            raise InputError(
                f"cannot make the directory {str(out)!r} ({error.strerror or error}); check its place, or "
                "choose another"
            ) from error
        return part

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def begin(self, config: Config | None = None) -> Path:
        """Makes `OUT.part` an empty directory, whatever was there, and returns it.

        Args:
            config: goes into its `config.toml`; with that, the run can be continued from now on.

        Raises:
            InputError: where this cannot be done.
        """
        try:
            if self.path.exists():
                shutil.rmtree(self.path)
            self._ours = True
            self.path.mkdir()
            if config is not None:
                write(self.path / CONFIG, config.to_toml().encode())
        except BaseException as error:
            self.discard()
            if not isinstance(error, OSError):
                raise
            raise InputError(
                f"cannot write {str(self.path)!r} ({error.strerror or error}); choose another directory"
            ) from error
        self.begun = config is not None
        return self.path

    @contextmanager
    def written(self) -> Iterator[Path]:
        """An empty `OUT.part` to write into in one go; it is finished at the end of the block.

        Where the block fails or is interrupted, it is removed, and an `OUT` that was there stays as it was.

        Raises:
            FisherlabError: where files cannot be written.
        """
        try:
            yield self.begin()
            self.finish()
        except OSError as error:
            raise FisherlabError(f"cannot write {str(self.out)!r}: {error.strerror or error}") from error
        finally:
            self.discard()

    def finish(self) -> None:
        """Gives the directory its final name, without what interruptions left in it.

        Raises:
            InputError: where something else has got that name meanwhile.
            FisherlabError: where this cannot be done.
        """
        check_free(self.out, force=self._force)
        replaced = self._replaced()
        try:
            self._sweep(ended=True)
            if self.out.exists():
                self.out.rename(replaced)
            self.path.rename(self.out)
        except OSError as error:
            with suppress(OSError):
                self._put_back()
            raise FisherlabError(f"cannot write {str(self.out)!r}: {error.strerror or error}") from error
        shutil.rmtree(replaced, ignore_errors=True)
        self._ours = False
        self._let_go(keep_folders=True)

    def discard(self) -> None:
        """Removes the directory, if this run has begun it, and lets go of it."""
        if self._ours:
            shutil.rmtree(self.path, ignore_errors=True)
            self._ours = False
        self.release()

    def release(self) -> None:
        """Lets other processes have the directory; what was begun stays."""
        self._let_go(keep_folders=False)

    def _let_go(self, *, keep_folders: bool) -> None:
        lock, self._lock = self._lock, None
        if lock:
            lock.release(keep_folders=keep_folders)

    def _replaced(self) -> Path:
        """Where the run that is replaced waits for its end."""
        return self.out.with_name(f".{self.out.name}{PART}.replaced")

    def _put_back(self) -> None:
        """Gives a run its name back that was to be replaced when the process was killed."""
        replaced = self._replaced()
        if replaced.exists() and not self.out.exists():
            replaced.rename(self.out)
        shutil.rmtree(replaced, ignore_errors=True)

    def _sweep(self, *, ended: bool) -> None:
        """Removes what killed processes left within: hidden files, and once it has ended unfinished runs too.

        Files are written under hidden names until they are whole. Lock files of runs within, which may be
        held, stay as long as these may be written.
        """
        for path in [*self.path.rglob(".*"), *(self.path.rglob(f"*{PART}") if ended else ())]:
            if ended or not path.name.endswith(SUFFIX):
                _remove(path)


def together(claim: Callable[[], RunPart]) -> RunPart:
    """What the first of torchrun's processes claims, in all of them; the others follow and write nothing.

    Raises:
        FisherlabError: that of the first process, in all.
    """
    if distributed.size() == 1:
        return claim()
    held: list[RunPart] = []

    def claimed() -> Path:
        held.append(claim())
        return held[0].out

    out = distributed.from_first(claimed)
    return held[0] if held else RunPart(out, None)


def _check_interrupted(out: Path) -> None:
    """Raises `InputError` where there is no run to go on with in `OUT.part`."""
    path = part_of(out)
    if not path.is_dir():
        if (out / CONFIG).is_file():
            raise InputError(f"the run {str(out)!r} has ended; there is nothing to resume")
        raise InputError(f"there is no interrupted run {str(path)!r}; check the path given to --resume")
    if not _can_be_continued(path):
        raise InputError(
            f"{str(path)!r} holds nothing to continue: the run had not begun, or its command has no "
            "--resume; start it again"
        )


def _can_be_continued(path: Path) -> bool:
    """Whether there is an interrupted run in `OUT.part` that a command can go on with."""
    return (path / CONFIG).is_file() and command_of(path / CONFIG) not in _AT_ONCE


def _sweep_dead(folder: Path) -> None:
    """Removes what processes left that died on this machine, but for what can be continued."""
    for lock in folder.glob(f".*{SUFFIX}"):
        out = lock.with_name(lock.name.removesuffix(SUFFIX)[1:])
        if not signed_here(lock_of(out)):
            continue
        with suppress(OSError, BusyError), RunPart(out, DirectoryLock.of(out, wait=False)) as part:
            part._put_back()
            if not part.begun:
                _remove(part.path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
