"""Data sets found on disk, downloaded, or replaced by a stand-in that says so."""

import logging
import os
from pathlib import Path
from typing import NamedTuple

from fisherlab.arguments import Count, Seed, checked
from fisherlab.datasets.dataset import Dataset
from fisherlab.datasets.places import search_places, sha256
from fisherlab.datasets.registry import names, spec
from fisherlab.datasets.source import DataFile, Request, Source, listed
from fisherlab.errors import InputError

log = logging.getLogger("fisherlab")

_STAND_INS = {"digits": "scikit-learn's digits stand", "synthetic": "synthetic data stand"}


class FileStatus(NamedTuple):
    """The state of one data file: `status` is "ok", "damaged" or "missing".

    `place` is the file's directory and `sha256` the measured sum; both are empty if missing.
    """

    dataset: str
    file: str
    place: str
    status: str
    sha256: str


@checked
def load(
    name: str,
    split: str = "train",
    *,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = True,
    samples: Count | None = None,
    seed: Seed = 0,
) -> Dataset:
    """Load one split of a data set.

    The files are searched in `data_dir`, ``$FISHERLAB_DATA`` and the cache
    (``$XDG_CACHE_HOME/fisherlab``), then downloaded into the cache if a mirror answers within a
    few seconds. Where none of these serves, scikit-learn's digits stand in for MNIST and synthetic data
    for CIFAR-10, ImageNet and the sentence pairs, and the `Dataset` says so.

    Args:
        name: one of `names()`.
        split: "train" or "test"; ``spec(name).split_names`` lists all.
        data_dir: a directory that holds the data set's folder, for example ``mnist/``.
        download: whether to try a download; ``FISHERLAB_OFFLINE=1`` forbids it too.
        samples: how many samples to take: the same as ``load(…).subset(samples, seed)``, but others
            need not be decoded. All if None.
        seed: of that choice.

    Returns:
        Images float32 [n, channels, height, width] in [0, 1] and classes int64 [n]; for text see
        `load_translation` and `fisherlab.datasets.sources.characters`.

    Raises:
        InputError: if the name or the split is unknown, `data_dir` does not exist, a file is
            there but damaged, there are fewer samples, or the data cannot be had and have no stand-in.
    """
    source = spec(name)
    source.check_split(split)
    places = search_places(data_dir)
    request = Request(split, places, Path(data_dir) if data_dir else None, download, samples, seed)
    dataset = source.load(request)
    if dataset is not None:
        return dataset
    if not source.stand_in:
        raise InputError(source.missing(places))
    log.warning(
        "%s was not found in %s; %s in for it (stand-in: %s).",
        name,
        listed(places),
        _STAND_INS[source.stand_in],
        source.stand_in,
    )
    return source.substitute(request)


@checked
def get(name: str) -> list[Path]:
    """Download all files of a data set into the cache; damaged ones there are replaced.

    Returns:
        The paths of the files.

    Raises:
        InputError: if the name is unknown, or the data set has no download.
        FisherlabError: if no mirror gives a file with its checksum.
    """
    return spec(name).get()


@checked
def verify(data_dir: str | os.PathLike[str] | None = None) -> list[FileStatus]:
    """Check every file of every known data set where `load` would find it first.

    Data sets without published sums (your own files) have no rows.

    Raises:
        InputError: if `data_dir` does not exist.
    """
    places = search_places(data_dir)
    return [
        _status(source, file, path) for source in map(spec, names()) for file, path in source.located(places)
    ]


def _status(source: Source, file: DataFile, path: Path | None) -> FileStatus:
    """The row of `verify` for one file."""
    if path is None:
        return FileStatus(source.name, file.name, "", "missing", "")
    try:
        payload = path.read_bytes()
    except OSError:
        return FileStatus(source.name, file.name, str(path.parent), "damaged", "")
    status = "ok" if file.measured_hash(payload) == file.known_hash else "damaged"
    return FileStatus(source.name, file.name, str(path.parent), status, sha256(payload))
