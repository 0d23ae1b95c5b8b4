"""Data sets with checksums: found on disk, downloaded, or replaced by a stand-in that says so."""

import logging
import os
from pathlib import Path
from typing import NamedTuple

from fisherlab.datasets.digits import load_digits
from fisherlab.datasets.download import download as _download
from fisherlab.datasets.images import load_images
from fisherlab.datasets.places import cache_dir, find, search_places, sha256
from fisherlab.datasets.registry import (
    DataFile,
    Dataset,
    ImageSource,
    names,
    random_indices,
    spec,
)
from fisherlab.errors import InputError

__all__ = [
    "Dataset",
    "FileStatus",
    "ImageSource",
    "cache_dir",
    "get",
    "load",
    "names",
    "random_indices",
    "spec",
    "verify",
]

log = logging.getLogger("fisherlab")


class FileStatus(NamedTuple):
    """The state of one data file: `status` is "ok", "damaged" or "missing".

    `place` is the file's directory and `sha256` the measured sum; both are empty if missing.
    """

    dataset: str
    file: str
    place: str
    status: str
    sha256: str


def load(
    name: str,
    split: str = "train",
    *,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = True,
) -> Dataset:
    """Load one split of a data set.

    The files are searched in `data_dir`, ``$FISHERLAB_DATA`` and the cache
    (``$XDG_CACHE_HOME/fisherlab``), then downloaded into the cache if a mirror answers within a
    few seconds. Where none of these serves, scikit-learn's digits stand in for MNIST, and the
    `Dataset` says so.

    Args:
        name: one of `names()`.
        split: "train" or "test".
        data_dir: a directory that holds ``mnist/`` or torchvision's ``MNIST/raw/``.
        download: whether to try a download; ``FISHERLAB_OFFLINE=1`` forbids it too.

    Returns:
        Images float32 [n, 1, 28, 28] in [0, 1] and classes int64 [n].

    Raises:
        InputError: if the name or the split is unknown, `data_dir` does not exist, a file is
            there but damaged, or the data cannot be had and have no stand-in.
    """
    source = spec(name)
    places = search_places(data_dir)
    dataset = load_images(source, split, places, may_download=download)
    if dataset is not None:
        return dataset
    if not source.stand_in:
        raise InputError(
            f"{name} was not found in {_listed(places)}; `fisherlab data get {name}` downloads "
            f"it, or set FISHERLAB_DATA to a directory that holds {source.layouts[0]}/."
        )
    log.warning(
        "%s was not found in %s; scikit-learn's digits stand in for it (stand-in: digits).",
        name,
        _listed(places),
    )
    return load_digits(source, split)


def get(name: str) -> list[Path]:
    """Download all files of a data set into the cache; damaged ones there are replaced.

    Returns:
        The paths of the files.

    Raises:
        InputError: if the name is unknown.
        FisherlabError: if no mirror gives a file with its checksum.
    """
    source = spec(name)
    return [_download(source, file) for file in source.files]


def verify(data_dir: str | os.PathLike[str] | None = None) -> list[FileStatus]:
    """Check every file of every known data set where `load` would find it first.

    Raises:
        InputError: if `data_dir` does not exist.
    """
    places = search_places(data_dir)
    return [
        _status(source, file, find(source, file, places))
        for source in map(spec, names())
        for file in source.files
    ]


def _status(source: ImageSource, file: DataFile, path: Path | None) -> FileStatus:
    """The row of `verify` for one file."""
    if path is None:
        return FileStatus(source.name, file.name, "", "missing", "")
    try:
        found = sha256(path.read_bytes())
    except OSError:
        return FileStatus(source.name, file.name, str(path.parent), "damaged", "")
    status = "ok" if found == file.sha256 else "damaged"
    return FileStatus(source.name, file.name, str(path.parent), status, found)


def _listed(places: list[Path]) -> str:
    """The places as a text."""
    return ", ".join(repr(str(place)) for place in places)
