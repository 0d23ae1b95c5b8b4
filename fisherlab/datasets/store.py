"""What took time to make is kept in the cache."""

import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fisherlab.base.writing import write

log = logging.getLogger("fisherlab")


def keep(path: Path, payload: bytes) -> None:
    """Write a file of the cache; one that cannot be written costs only time, so it is a warning."""
    try:
        write(path, payload)
    except OSError as error:
        log.warning("%s could not be kept in the cache: %s", path.name, error)


def cached_array(path: Path, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
    """The array in `path`, mapped and not read, or the one that `make` gives, which is then kept there."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, EOFError) as error:
        log.warning("%s in the cache is damaged (%s) and is made again", path.name, error)
    array = make()
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    keep(path, buffer.getvalue())
    return array
