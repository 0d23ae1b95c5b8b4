"""Files that are written beside their place and renamed, so that one that exists is complete."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fisherlab.errors import InputTypeError


def as_path(what: str, path: object) -> Path:
    """The path of something, given as a text or a path.

    Raises:
        InputTypeError: for anything else.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InputTypeError(f"{what} is given by a path, not as {type(path).__name__}")
    return Path(path)


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Yields an empty file in the folder of `path` to write into, and renames it to `path` at the end.

    Where the work fails or is interrupted it is removed, and a file that was there stays as it was.

    Raises:
        OSError: where the folder is not there, or cannot be written to.
    """
    handle, part = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    try:
        yield Path(part)
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
