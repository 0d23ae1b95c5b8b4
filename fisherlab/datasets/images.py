"""Image sets from their published idx files: find, check, decode."""

import logging
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fisherlab.datasets.download import download, offline, reachable
from fisherlab.datasets.idx import IdxError, decode_idx
from fisherlab.datasets.places import damaged, find, read_checked
from fisherlab.datasets.registry import DataFile, Dataset, ImageSource
from fisherlab.errors import FisherlabError

log = logging.getLogger("fisherlab")


def load_images(source: ImageSource, split: str, places: list[Path], *, may_download: bool) -> Dataset | None:
    """One split of an image set, or None where its files cannot be had.

    Args:
        source: the image set.
        split: "train" or "test".
        places: the directories to search, in order.
        may_download: whether missing files may be downloaded into the cache.

    Returns:
        Images float32 [n, 1, height, width] in [0, 1] and labels int64 [n].

    Raises:
        InputError: if there is no such split, or a file is there but damaged.
    """
    found = [(file, find(source, file, places)) for file in source.pair(split)]
    missing = [file for file, path in found if path is None]
    if missing and may_download and not offline():
        found = _download_missing(source, found)
    paths = [(file, path) for file, path in found if path is not None]
    if len(paths) < len(found):
        return None
    images, labels = (_read(source, file, path) for file, path in paths)
    _check_sizes(source, images, labels, paths)
    return Dataset(
        name=source.name,
        inputs=torch.from_numpy(images.astype(np.float32)).div_(255).unsqueeze(1),
        targets=torch.from_numpy(labels.astype(np.int64)),
        split=split,
        checksum=source.checksum(split),
        stand_in=False,
        source=", ".join(dict.fromkeys(str(path.parent) for _, path in paths)),
        classes=source.classes,
    )


def _download_missing(
    source: ImageSource, found: list[tuple[DataFile, Path | None]]
) -> list[tuple[DataFile, Path | None]]:
    """Fill in the missing paths from the mirrors that answer quickly, if any do."""
    first_missing = next(file for file, path in found if path is None)
    mirrors = reachable(source, first_missing)
    if not mirrors:
        log.info("no mirror of %s answers", source.name)
        return found
    try:
        return [(file, path or download(source, file, mirrors)) for file, path in found]
    except FisherlabError as error:
        log.warning("%s", error)
        return found


def _read(source: ImageSource, file: DataFile, path: Path) -> NDArray[np.uint8]:
    """The array in a file that has the published checksum."""
    try:
        return decode_idx(read_checked(path, source, file))
    except IdxError as error:
        raise damaged(path, source, str(error)) from error


def _check_sizes(
    source: ImageSource,
    images: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    paths: list[tuple[DataFile, Path]],
) -> None:
    """Refuse images or labels whose sizes are not the source's."""
    (_, images_path), (_, labels_path) = paths
    if images.shape[1:] != source.shape:
        raise damaged(images_path, source, f"its images have shape {images.shape[1:]}")
    if labels.shape != images.shape[:1]:
        reason = f"its labels have shape {labels.shape} for {len(images)} images"
        raise damaged(labels_path, source, reason)
