"""Downloads into the cache: several mirrors, a published sum, written beside and renamed."""

import logging
import os
import tarfile
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fisherlab.base.writing import write
from fisherlab.datasets.places import cache_dir, find
from fisherlab.datasets.source import DataFile, Request, Source
from fisherlab.errors import FisherlabError

log = logging.getLogger("fisherlab")

_PROBE_SECONDS = 3.0  # a choice: without a network one does not wait longer for the stand-in
_READ_SECONDS = 20.0  # a choice: of silence, after which a mirror is given up


def offline() -> bool:
    """Whether ``$FISHERLAB_OFFLINE`` forbids downloads (any value but "" and "0")."""
    return os.environ.get("FISHERLAB_OFFLINE", "0") not in ("", "0")


def find_or_download(
    source: Source, files: Sequence[DataFile], request: Request
) -> list[tuple[DataFile, Path]] | None:
    """Each file with its path, downloaded where it is missing and may be, or None if one is not to be had."""
    found = [(file, find(source, file, request.places)) for file in files]
    missing = [file for file, path in found if path is None]
    if missing and request.may_download and not offline():
        found = _download_missing(source, found, missing[0])
    paths = [(file, path) for file, path in found if path is not None]
    return paths if len(paths) == len(found) else None


def _download_missing(
    source: Source, found: list[tuple[DataFile, Path | None]], first_missing: DataFile
) -> list[tuple[DataFile, Path | None]]:
    """Fill in the missing paths from the mirrors that answer quickly, if any do."""
    mirrors = reachable(source, first_missing)
    if not mirrors:
        log.info("no mirror of %s answers", source.name)
        return found
    try:
        return [(file, path or download(source, file, mirrors)) for file, path in found]
    except FisherlabError as error:
        log.warning("%s", error)
        return found


def download(
    source: Source, file: DataFile, mirrors: Sequence[str] | None = None, folder: Path | None = None
) -> Path:
    """Download a file into the cache, or leave it where the right one is there already.

    Args:
        source: the data set.
        file: one of its files.
        mirrors: the addresses to try, in order; all of the source's by default.
        folder: where to put it; by default the source's first folder in the cache.

    Returns:
        The path of the file.

    Raises:
        FisherlabError: if no mirror gives the file with its checksum.
    """
    import pooch

    pooch.get_logger().setLevel("WARNING")
    folder = cache_dir() / source.layouts[0] if folder is None else folder
    failures = []
    for mirror in source.mirrors if mirrors is None else mirrors:
        log.info("downloading %s from %s", file.name, mirror)
        try:
            return Path(
                pooch.retrieve(
                    url=mirror + file.name,
                    known_hash=file.known_hash,
                    fname=file.name,
                    path=folder,
                    downloader=pooch.HTTPDownloader(timeout=_READ_SECONDS),
                )
            )
        except (OSError, ValueError) as error:
            log.info("%s failed: %s", mirror, error)
            failures.append(f"{mirror} ({type(error).__name__})")
    raise FisherlabError(
        f"{file.name} of {source.name} could not be downloaded from {', '.join(failures)}; "
        f"check the network, or put the files into {str(cache_dir() / source.layouts[0])!r}."
    )


def download_members(
    source: Source, archive: DataFile, members: Sequence[DataFile], mirrors: Sequence[str] | None = None
) -> list[Path]:
    """Download a tar archive and keep only the members asked for, each with its published sum.

    The members lie in the source's first folder, in the archive as in the cache; nothing else of the
    archive is written.

    Args:
        source: the data set.
        archive: the archive.
        members: the files to keep.
        mirrors: as for `download`.

    Returns:
        The paths of the members.

    Raises:
        FisherlabError: if no mirror gives the archive, or a member is not the published one.
    """
    folder = cache_dir() / source.layouts[0]
    cache_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix="download-") as place:
        path = download(source, archive, mirrors, Path(place))
        with tarfile.open(path) as opened:
            for member in members:
                write(folder / member.name, _member(opened, f"{source.layouts[0]}/{member.name}", member))
    return [folder / member.name for member in members]


def _member(archive: tarfile.TarFile, name: str, file: DataFile) -> bytes:
    """The bytes of a member of an archive, if it is a file with the published sum."""
    try:
        stream = archive.extractfile(name)
    except KeyError:
        stream = None
    payload = stream.read() if stream else b""
    if file.measured_hash(payload) != file.known_hash:
        raise FisherlabError(f"{name} in the downloaded archive is not the published file; try again later.")
    return payload


def reachable(source: Source, file: DataFile) -> list[str]:
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


@dataclass(frozen=True, kw_only=True)
class PublishedPairs(Source):
    """A data set in pairs of files with published sums.

    Attributes:
        splits: for each split its two files.
    """

    splits: dict[str, tuple[DataFile, DataFile]]

    @property
    def files(self) -> tuple[DataFile, ...]:
        """All files, of all splits."""
        return tuple(file for pair in self.splits.values() for file in pair)

    def get(self) -> list[Path]:
        """Download all files into the cache; damaged ones there are replaced."""
        return [download(self, file) for file in self.files]

    def located(self, places: Sequence[Path]) -> list[tuple[DataFile, Path | None]]:
        """Every file, and where `load` would find it."""
        return [(file, find(self, file, places)) for file in self.files]
