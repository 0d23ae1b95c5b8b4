"""Downloads into the cache: several mirrors, a published sha256, written beside and renamed."""

import logging
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from fisherlab.datasets.places import cache_dir
from fisherlab.datasets.registry import DataFile, ImageSource
from fisherlab.errors import FisherlabError

log = logging.getLogger("fisherlab")

_PROBE_SECONDS = 3.0
_READ_SECONDS = 20.0


def offline() -> bool:
    """Whether ``$FISHERLAB_OFFLINE`` forbids downloads (any value but "" and "0")."""
    return os.environ.get("FISHERLAB_OFFLINE", "0") not in ("", "0")


def download(source: ImageSource, file: DataFile, mirrors: Sequence[str] | None = None) -> Path:
    """Download a file into the cache, or leave it where the right one is there already.

    Args:
        source: the data set.
        file: one of its files.
        mirrors: the addresses to try, in order; all of the source's by default.

    Returns:
        The path of the file.

    Raises:
        FisherlabError: if no mirror gives the file with its checksum.
    """
    import pooch

    pooch.get_logger().setLevel("WARNING")
    tried = source.mirrors if mirrors is None else mirrors
    failures = []
    for mirror in tried:
        log.info("downloading %s from %s", file.name, mirror)
        try:
            return Path(
                pooch.retrieve(
                    url=mirror + file.name,
                    known_hash=f"sha256:{file.sha256}",
                    fname=file.name,
                    path=cache_dir() / source.layouts[0],
                    downloader=pooch.HTTPDownloader(timeout=_READ_SECONDS),
                )
            )
        except (OSError, ValueError) as error:
            log.info("%s failed: %s", mirror, error)
            failures.append(f"{mirror} ({type(error).__name__})")
    raise FisherlabError(
        f"{file.name} of {source.name} could not be downloaded from {', '.join(failures)}; "
        f"check the network, or put the file into {str(cache_dir() / source.layouts[0])!r}."
    )


def reachable(source: ImageSource, file: DataFile) -> list[str]:
    """The mirrors that answer for a file within a few seconds, asked all at once.

    Name resolution has no timeout of its own, so the questions run in daemon threads that
    are left behind when the time is over.
    """
    answered: list[str] = []
    threads = [
        threading.Thread(target=_ask, args=(mirror, file.name, answered), daemon=True)
        for mirror in source.mirrors
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + _PROBE_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [mirror for mirror in source.mirrors if mirror in answered]


def _ask(mirror: str, name: str, answered: list[str]) -> None:
    """Add the mirror to `answered` if it serves the file."""
    import requests

    try:
        response = requests.head(mirror + name, timeout=_PROBE_SECONDS, allow_redirects=True)
    except OSError as error:
        log.debug("%s does not answer: %s", mirror, error)
        return
    if response.ok:
        answered.append(mirror)
