"""CIFAR-10 from the official binary or pickled files, or from lossless mosaics of its images."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fisherlab.datasets.dataset import Dataset
from fisherlab.datasets.download import download_members, offline, reachable
from fisherlab.datasets.places import cache_dir, damaged, read_checked
from fisherlab.datasets.source import DataFile, Request, Source, joined_sum
from fisherlab.datasets.sources.cifar_files import (
    SIDE,
    FormatError,
    Records,
    binary_records,
    jpeg_records,
    labels_array,
    mosaic_records,
    pickled_records,
)
from fisherlab.datasets.sources.synthetic import synthetic_images
from fisherlab.datasets.store import cached_array
from fisherlab.errors import FisherlabError, InputError

log = logging.getLogger("fisherlab")

BATCHES = ("1", "2", "3", "4", "5")
SPLITS: dict[str, tuple[str, ...]] = {
    "train": BATCHES,
    "test": ("test",),
    "train-1-4": BATCHES[:4],
    "held-out": BATCHES[4:],
    "test-1000": ("test-1000",),
    "test-jpeg": ("test-jpeg",),
}
NOTES = {"test-jpeg": "test set, JPEG-recompressed"}

_THOUSAND = 1000


@dataclass(frozen=True)
class Form:
    """One way in which the set is stored.

    Attributes:
        layouts: folders, relative to a search place, that may hold the files.
        files: for each part (a batch, or a part of the test set) the files that it takes.
        decode: from a part's name and the bytes of its files to its records [n, 3073].
        slow: whether decoding takes so long that its result is kept in the cache.
    """

    layouts: tuple[str, ...]
    files: dict[str, tuple[DataFile, ...]]
    decode: Callable[[str, list[bytes]], Records]
    slow: bool = False

    @property
    def all_files(self) -> tuple[DataFile, ...]:
        """Every file once."""
        return tuple(dict.fromkeys(file for files in self.files.values() for file in files))

    def serves(self, folder: Path, parts: Sequence[str]) -> bool:
        """Whether the files of all these parts are in a folder, whatever their state."""
        return all(
            part in self.files and all((folder / file.name).is_file() for file in self.files[part])
            for part in parts
        )


@dataclass(frozen=True, kw_only=True)
class CifarSource(Source):
    """CIFAR-10 in several forms.

    Attributes:
        forms: the forms, best first; the first is the one that the archive holds.
        archive: the official archive of binary files.
        sums: for each part a text that identifies its images, whatever the form.
        classes: the names of the classes.
    """

    forms: tuple[Form, ...]
    archive: DataFile
    sums: dict[str, str]
    classes: tuple[str, ...]

    @property
    def split_names(self) -> tuple[str, ...]:
        """The splits that `load` knows."""
        return tuple(SPLITS)

    def load(self, request: Request) -> Dataset | None:
        """Images float32 [n, 3, 32, 32] in [0, 1] and classes int64 [n]; None where nothing is there.

        Raises:
            InputError: if a file is there but damaged, or other splits are there but not this one.
        """
        parts = SPLITS[request.split]
        found = self._find(parts, request.places) or self._download(parts, request)
        if found is None:
            self._refuse_part_of_the_set(request)
            return None
        form, folder = found
        images, classes = _gather([self._records(form, folder, part) for part in parts], request)
        return Dataset(
            name=self.name,
            inputs=images,
            targets=classes,
            split=request.split,
            checksum=joined_sum(*(self.sums[part] for part in parts)),
            stand_in="",
            source=str(folder),
            classes=self.classes,
            note=NOTES.get(request.split, ""),
        )

    def substitute(self, request: Request) -> Dataset:
        """Synthetic images of ten classes."""
        return synthetic_images(self.name, request, self.classes, SIDE)

    def get(self) -> list[Path]:
        """Download the official binary files into the cache, where they are not there already."""
        return self._fetch(self.mirrors)

    def located(self, places: Sequence[Path]) -> list[tuple[DataFile, Path | None]]:
        """The files of the first form of which a place holds any, or those of the official archive."""
        form, folder = self._first(places) or (self.forms[0], Path())
        return [
            (file, folder / file.name if (folder / file.name).is_file() else None) for file in form.all_files
        ]

    def _find(self, parts: Sequence[str], places: Sequence[Path]) -> tuple[Form, Path] | None:
        """The first form and folder that hold these parts."""
        return next((found for found in self._folders(places) if found[0].serves(found[1], parts)), None)

    def _first(self, places: Sequence[Path]) -> tuple[Form, Path] | None:
        """The first form and folder that hold any file of the set."""
        return next(
            (
                (form, folder)
                for form, folder in self._folders(places)
                if any((folder / file.name).is_file() for file in form.all_files)
            ),
            None,
        )

    def _folders(self, places: Sequence[Path]) -> list[tuple[Form, Path]]:
        """Where each form may lie, in the order of the search."""
        return [(form, place / layout) for place in places for form in self.forms for layout in form.layouts]

    def _download(self, parts: Sequence[str], request: Request) -> tuple[Form, Path] | None:
        """The official binary files, downloaded if they hold these parts and a mirror answers."""
        wanted = request.may_download and not offline() and set(parts) <= set(self.forms[0].files)
        mirrors = reachable(self, self.archive) if wanted else []
        if not mirrors:
            return None
        try:
            self._fetch(mirrors)
        except FisherlabError as error:
            log.warning("%s", error)
            return None
        return self._find(parts, [cache_dir()])

    def _fetch(self, mirrors: Sequence[str]) -> list[Path]:
        """The official binary files in the cache."""
        files = self.forms[0].all_files
        paths = [cache_dir() / self.layouts[0] / file.name for file in files]
        if all(
            path.is_file() and file.measured_hash(path.read_bytes()) == file.known_hash
            for path, file in zip(paths, files, strict=True)
        ):
            return paths
        return download_members(self, self.archive, files, mirrors)

    def _refuse_part_of_the_set(self, request: Request) -> None:
        """Say so where other splits are there: a stand-in beside real data would mislead."""
        if self._first(request.places) is None:
            return
        there = [split for split, parts in SPLITS.items() if self._find(parts, request.places)]
        raise InputError(
            f"the split {request.split!r} of {self.name} was not found, only "
            f"{', '.join(there) or 'some of its files'}; choose another split, or "
            f"`fisherlab data get {self.name}` downloads the whole set."
        )

    def _records(self, form: Form, folder: Path, part: str) -> Records:
        """The records of a part from files that have their published sums."""
        files = form.files[part]
        payloads = [read_checked(folder / file.name, self, file) for file in files]

        def decode() -> Records:
            try:
                return form.decode(part, payloads)
            except FormatError as error:
                raise damaged(folder / files[0].name, self, str(error)) from error

        if not form.slow:
            return decode()
        key = joined_sum(*(file.known_hash for file in files))[:12]
        return cached_array(cache_dir() / "decoded" / f"{self.name}-{part}-{key}.npy", decode)


def _gather(parts: Sequence[Records], request: Request) -> tuple[Tensor, Tensor]:
    """The images and classes asked for, out of parts that lie one after another."""
    kept = request.indices(sum(map(len, parts))).numpy()
    images = np.empty((len(kept), 3, SIDE, SIDE), np.float32)
    classes = np.empty(len(kept), np.int64)
    start = 0
    for records in parts:
        first, last = np.searchsorted(kept, (start, start + len(records)))
        rows = records[kept[first:last] - start]
        images[first:last] = rows[:, 1:].reshape(-1, 3, SIDE, SIDE)
        classes[first:last] = rows[:, 0]
        start += len(records)
    return torch.from_numpy(images).div_(255), torch.from_numpy(classes)


def decode_binary(part: str, payloads: list[bytes]) -> Records:
    """A part of the binary version."""
    return _cut(part, binary_records(payloads[0]))


def decode_pickled(part: str, payloads: list[bytes]) -> Records:
    """A part of the python version."""
    return _cut(part, pickled_records(payloads[0]))


def decode_mosaics(part: str, payloads: list[bytes]) -> Records:
    """A part of the mosaics; the labels of the five batches lie in one file."""
    if part == "test-jpeg":
        return jpeg_records(payloads[0])
    labels = labels_array(payloads[1])
    if part in BATCHES:
        labels = np.array_split(labels, len(BATCHES))[BATCHES.index(part)]
    return mosaic_records(payloads[0], labels)


def _cut(part: str, records: Records) -> Records:
    """The records of a part that a whole file holds."""
    return records[:_THOUSAND] if part == "test-1000" else records


_BINARY_MD5 = {
    "1": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "2": "5ea93a67294ea407fff1d09f752e9692",
    "3": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "4": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "5": "53f37980c15c3d472c316c40844f3f0d",
    "test": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
_PICKLED_MD5 = {
    "1": "c99cafc152244af753f735de768cd75f",
    "2": "d4bba439e000b95fd0a9bffe97cbabec",
    "3": "54ebc095f3ab1f0389bbae665268c751",
    "4": "634d18415352ddfa80567beed471001a",
    "5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test": "40351d587109b95175f43aff81a1287e",
}
_MOSAIC_SHA256 = {
    "1": "0c540445580e2b4751a4fb5e79175f3eced765d47d186c46cf6aaa7a076c47d9",
    "2": "ecd97fbddf53a95c7a487a46490001fbae20af0d14e0978cf2a8c74001ef5eb5",
    "3": "577efcbfc9a4ea051e4f915841300a1c1943948d918318615797528bd1931ae3",
    "4": "a362cd3478100abaef253b26a1c6c0979ac43379b30b03c5c774900ed8f3025c",
    "5": "dca43ff04bd60b6081d36b131a960c0ab9d7a4c2f6be4dc305f4248586327eb4",
}
_TRAIN_LABELS = DataFile(
    "train_labels.npy", "fad921ba16b0efeebb54393d1351545d1fe1a357f6f81324c821e3e11b956c70"
)
_JPEG = DataFile("test_jpeg.npz", "820582e3ae7440a10082c549ebecde8b3c4cf4bd6e75ffd7179dfba3e57d24ed")


def _one_file_a_batch(sums: dict[str, str], ending: str) -> dict[str, tuple[DataFile, ...]]:
    """The files of the official versions; the first thousand test images lie in the test batch."""
    stems = {part: f"data_batch_{part}" for part in BATCHES} | {
        "test": "test_batch",
        "test-1000": "test_batch",
    }
    sums = sums | {"test-1000": sums["test"]}
    return {part: (DataFile(f"{stem}{ending}", md5=sums[part]),) for part, stem in stems.items()}


BINARY = Form(
    layouts=("cifar-10-batches-bin", "cifar10/cifar-10-batches-bin"),
    files=_one_file_a_batch(_BINARY_MD5, ".bin"),
    decode=decode_binary,
)
PICKLED = Form(
    layouts=("cifar-10-batches-py", "cifar10/cifar-10-batches-py"),
    files=_one_file_a_batch(_PICKLED_MD5, ""),
    decode=decode_pickled,
)
MOSAICS = Form(
    layouts=("cifar10",),
    files={
        **{part: (DataFile(f"train_{part}.webp", _MOSAIC_SHA256[part]), _TRAIN_LABELS) for part in BATCHES},
        "test-1000": (
            DataFile("test_0_999.webp", "cb828dc0e9362b4226d735175a2f991ca927366a08942e433c12d13c7e23ff10"),
            DataFile(
                "test_0_999_labels.npy", "6988dd2f6284b6f7aedd9bd0d908439f0a7edff3776195add3af3aa053ea8ed3"
            ),
        ),
        "test-jpeg": (_JPEG,),
    },
    decode=decode_mosaics,
    slow=True,
)

CIFAR10 = CifarSource(
    name="cifar10",
    description="small photographs: 50,000 + 10,000 colour 32x32 images, 10 classes",
    origin="Krizhevsky (2009), Learning Multiple Layers of Features from Tiny Images; no licence stated",
    layouts=BINARY.layouts,
    mirrors=("https://www.cs.toronto.edu/~kriz/",),
    stand_in="synthetic",
    forms=(BINARY, PICKLED, MOSAICS),
    archive=DataFile("cifar-10-binary.tar.gz", md5="c32a1d4ab5d03f1284b67883e8d87530"),
    sums=_BINARY_MD5 | {"test-1000": f"{_BINARY_MD5['test']}[:1000]", "test-jpeg": _JPEG.sha256},
    classes=(
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ),
)
