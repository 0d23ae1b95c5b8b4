"""Files that are written beside their place and renamed, so that one that exists is complete."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fisherlab.arguments import AnyPath, check
from fisherlab.errors import FisherlabError, InputError

_SPECIAL = "a device or a pipe"


def as_path(what: str, path: object) -> Path:
    """The path of something, given as a text or a path.

    Raises:
        InputError: for a text that is no path.
        InputTypeError: for anything else.
    """
    check(what, path, AnyPath)
    return Path(path)  # type: ignore[arg-type]


def place_for(what: str, path: object) -> Path:
    """The path of a file that is to be written after long work, whose folder is there to write into.

    Raises:
        InputError: where it is not there, or cannot be written into, or the path is a folder.
        InputTypeError: as `as_path`.
    """
    file = as_path(what, path)
    if file.is_dir():
        raise InputError(f"{what} {str(path)!r} is a folder; give the path of a file")
    if _is_special(file):
        raise InputError(f"{what} {str(path)!r} is {_SPECIAL}; give the path of a file")
    if not file.parent.is_dir():
        raise InputError(f"there is no folder {str(file.parent)!r} for {what}; make it, or give another path")
    if not os.access(file.parent, os.W_OK):
        raise InputError(f"{what} cannot be written into {str(file.parent)!r}; give another path")
    return file


def _is_special(path: Path) -> bool:
    return path.exists() and not (path.is_file() or path.is_dir())


@contextmanager
def reported(what: str, path: Path, way_out: str = "mend this, or give another path") -> Iterator[None]:
    """Makes one sentence of an error of the system while something is written (`FisherlabError`)."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise FisherlabError(f"{what} {str(path)!r} cannot be written ({reason}); {way_out}") from error


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Yields an empty file in the folder of `path` to write into, and renames it to `path` at the end.

    It is on the disk before it has its name. Where the work fails or is interrupted it is removed, and a file
    that was there stays as it was.

    Raises:
        OSError: where the folder is not there, or cannot be written to, or `path` is a device or a pipe.
    """
    if _is_special(path):  # the superuser could rename a file over it
        raise FileExistsError(errno.EEXIST, _SPECIAL, str(path))
    handle, part = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    try:
        yield Path(part)
        with open(part, "rb") as stream:  # noqa: PTH123
            os.fsync(stream.fileno())
        Path(part).replace(path)
    finally:
        Path(part).unlink(missing_ok=True)


def write(path: Path, payload: bytes) -> None:
    """Writes a file with `beside`, and its folder where there is none yet.

    Raises:
        OSError: where this cannot be done.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with beside(path) as part:
        part.write_bytes(payload)
