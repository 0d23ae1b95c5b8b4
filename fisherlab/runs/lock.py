"""The lock of a run's directory: one process at a time writes it, and a dead one holds nothing."""

import errno
import os
import platform
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from fisherlab.errors import InputError

if TYPE_CHECKING:
    from filelock import BaseFileLock

SUFFIX = ".part.lock"
_WAIT = 1.0  # seconds: a process that was just killed may not have let go yet
_NO_FLOCK = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # what file systems without it answer


class BusyError(InputError):
    """Another process writes the directory."""


class DirectoryLock:
    """The lock file `.OUT.part.lock` beside a directory `OUT`, held by this process.

    The system lets go of it when the process ends, however that happens. On a file system without such
    locks the file's existence is the lock; then that of a process that died on this machine is taken over,
    and that of one that died on another machine has to be deleted by hand.
    """

    def __init__(self, path: Path, lock: "BaseFileLock", made: list[Path]) -> None:
        self._path, self._lock, self._made = path, lock, made

    @classmethod
    def of(cls, out: Path, *, wait: bool = True) -> Self:
        """Takes the lock of a directory; the folders above it are made.

        Args:
            out: the directory.
            wait: whether to wait a moment for a process that is about to let go.

        Raises:
            BusyError: where another process has it; the message names the process.
            OSError: where the file cannot be written.
        """
        from filelock import FileLock, SoftFileLock, Timeout

        path, seconds = lock_of(out), _WAIT if wait else 0.0
        made = [folder for folder in out.absolute().parents if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            native = FileLock(path, timeout=seconds, thread_local=False, on_acquired=partial(_sign, path))
            try:
                native.acquire()
                return cls(path, native, made)
            except OSError as error:
                if isinstance(error, Timeout) or error.errno not in _NO_FLOCK:
                    raise
            soft = SoftFileLock(path, timeout=seconds, thread_local=False)  # signs it itself
            soft.acquire()
            return cls(path, soft, made)
        except Timeout as error:
            if wait and not path.exists():
                path.touch()  # where no file can be made filelock waits as for one that is let go
                return cls.of(out, wait=False)
            raise BusyError(
                f"{str(out)!r} is being written by {_named(path)}; wait for it, or choose another directory "
                "(a command takes --out)"
            ) from error

    def release(self, *, keep_folders: bool = True) -> None:
        """Lets other processes have the directory, and leaves no file behind.

        Args:
            keep_folders: whether the folders that were made for it stay, though nothing is in them.
        """
        from filelock import SoftFileLock

        if not isinstance(self._lock, SoftFileLock):  # whose file may be another's once it is released
            with suppress(OSError):  # Windows removes no open file; there the lock does, when it is released
                self._path.unlink()
        self._lock.release()
        if not keep_folders:
            with suppress(OSError):  # one that others use by now
                for folder in self._made:
                    folder.rmdir()


def lock_of(out: Path) -> Path:
    """The lock file of a directory: hidden, and with a name that nothing else has."""
    return out.with_name(f".{out.name}{SUFFIX}")


def signed_here(path: Path) -> bool:
    """Whether a lock file was last held on this machine."""
    return _signature(path)[1:2] == [platform.node()]


def _sign(path: Path, descriptor: int) -> None:
    """Writes who holds a lock into its file, as a `SoftFileLock` does; on a full disk none is left."""
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n{platform.node()}\n".encode())
    except OSError:
        path.unlink()  # it is held still
        raise


def _signature(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):  # gone by now, or locked against reading
        return []


def _named(path: Path) -> str:
    """The holder of a lock in words."""
    pid, host, *_ = [*_signature(path), "", ""]
    if not pid:
        return "another process"
    if host in ("", platform.node()):
        return f"another process ({pid})"
    return f"another process ({pid} on {host}; if that one is dead, delete {str(path)!r})"
