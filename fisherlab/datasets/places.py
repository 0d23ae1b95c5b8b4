"""Where data files are looked for, and whether the one found is the published one."""

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from fisherlab.base.writing import as_path
from fisherlab.datasets.source import DataFile, Source
from fisherlab.errors import InputError

log = logging.getLogger("fisherlab")


def cache_dir() -> Path:
    """The cache: ``$XDG_CACHE_HOME/fisherlab``, or ``~/.cache/fisherlab``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fisherlab"


def search_places(data_dir: str | os.PathLike[str] | None) -> list[Path]:
    """The places to look in, in order: `data_dir`, ``$FISHERLAB_DATA``, the cache.

    Raises:
        InputError: if `data_dir` is not a directory.
        InputTypeError: if it is no path.
    """
    places = []
    if data_dir is not None:
        folder = as_path("the data directory", data_dir)
        if not folder.is_dir():
            raise InputError(f"the data directory {str(data_dir)!r} does not exist; create it.")
        places.append(folder)
    if variable := os.environ.get("FISHERLAB_DATA"):
        if not Path(variable).is_dir():
            log.warning("FISHERLAB_DATA names %r, which is not a directory.", variable)
        places.append(Path(variable))
    places.append(cache_dir())
    return places


def find(source: Source, file: DataFile, places: Sequence[Path]) -> Path | None:
    """The first file of that name in the places, whatever its state, or None."""
    candidates = (place / layout / file.name for place in places for layout in source.layouts)
    return next((path for path in candidates if path.is_file()), None)


def sha256(payload: bytes) -> str:
    """The sha256 of some bytes, in hexadecimal."""
    return hashlib.sha256(payload).hexdigest()


def damaged(path: Path, source: Source, reason: str) -> InputError:
    """The error for a file that is there but cannot be used."""
    return InputError(
        f"the file {str(path)!r} is damaged: {reason}; delete it, "
        f"then `fisherlab data get {source.name}` downloads it again."
    )


def read(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        InputError: if it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"the file {str(path)!r} cannot be read: {error.strerror}.") from error


def read_checked(path: Path, source: Source, file: DataFile) -> bytes:
    """The bytes of a file that has the published checksum.

    Raises:
        InputError: if it cannot be read or its sum is another.
    """
    payload = read(path)
    found = file.measured_hash(payload)
    if found != file.known_hash:
        algorithm, _, digits = found.partition(":")
        expected = file.known_hash.partition(":")[2]
        reason = f"its {algorithm} is {digits[:12]}… ({len(payload)} bytes), not {expected[:12]}…"
        raise damaged(path, source, reason)
    return payload
