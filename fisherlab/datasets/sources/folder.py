"""Images in one folder a class, decoded only where they are asked for."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fisherlab.arguments import Count, Seed, checked
from fisherlab.datasets.dataset import Dataset
from fisherlab.datasets.source import Request, Source, joined_sum
from fisherlab.datasets.sources.synthetic import synthetic_images
from fisherlab.errors import InputError

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
SPLITS = ("train", "val", "test")

_SIZE = 224  # what networks for ImageNet take
_STAND_IN_TRAIN = 2000  # images: 1.2 GB at this size
_RESIZED = 256  # the short side from which a square of 224 is cut


@checked
def load_folder(
    path: str | os.PathLike[str],
    split: str = "",
    size: Count = _SIZE,
    samples: Count | None = None,
    seed: Seed = 0,
    name: str = "imagefolder",
) -> Dataset:
    """Images in the layout of torchvision's `ImageFolder`: ``path/split/class/….jpg``, png or webp.

    The short side is scaled to 256/224 of `size` (bilinearly, with antialiasing) and the centre is cut
    out. Only the images asked for are decoded. Classes are the sorted names of the folders that hold
    images; images are sorted by class, then by path. The checksum is that of the names and sizes of the
    split's files, not of their content.

    Args:
        path: the folder of the splits, or of the classes where `split` is "".
        split: the name of the split's folder.
        size: the side of an image in pixels.
        samples: how many images to take, as `Dataset.subset` does; all if None.
        seed: of that choice.
        name: of the data set.

    Returns:
        Images float32 [n, 3, size, size] in [0, 1] and classes int64 [n].

    Raises:
        InputError: if the folder is missing or holds no folder of images, or an image is damaged.
    """
    folder = Path(path) / split
    return _dataset(folder, Request(split, [], samples=samples, seed=seed), size, name)


@dataclass(frozen=True, kw_only=True)
class FolderSource(Source):
    """Images in one folder a class, under ``train``, ``val`` and ``test``.

    Attributes:
        classes: how many classes its stand-in has.
        size: the side of an image in pixels.
    """

    classes: int = 0
    size: int = _SIZE

    @property
    def split_names(self) -> tuple[str, ...]:
        """The splits that `load` knows."""
        return SPLITS

    def load(self, request: Request) -> Dataset | None:
        """The split from the first place that holds it, see `load_folder`; None where none does.

        A data directory that holds the class folders themselves is the split "train".

        Raises:
            InputError: if an image is damaged, or other splits are there but not this one.
        """
        roots = [place / layout for place in request.places for layout in self.layouts]
        if request.data_dir is not None:
            roots.append(request.data_dir)
        there = [root for root in roots if any((root / split).is_dir() for split in SPLITS)]
        if there:
            return _dataset(there[0] / request.split, request, self.size, self.name)
        if request.data_dir is None or not _listing(request.data_dir):
            return None
        if request.split != "train":
            raise InputError(
                f"{str(request.data_dir)!r} holds folders of classes, which are the split 'train'; put "
                f"those of {request.split!r} into {str(request.data_dir / request.split)!r}."
            )
        return _dataset(request.data_dir, request, self.size, self.name)

    def substitute(self, request: Request) -> Dataset:
        """Synthetic images."""
        names = tuple(f"class-{number}" for number in range(self.classes))
        return synthetic_images(self.name, request, names, self.size, _STAND_IN_TRAIN)


@dataclass(frozen=True)
class _Image:
    """An image file: the path relative to the root, the class's name, the size in bytes."""

    path: str
    label: str
    size: int


def _listing(root: Path) -> list[_Image]:
    """The image files of all class folders, sorted by class, then by folder and name.

    Raises:
        InputError: if a folder cannot be read.
    """
    try:
        return [
            _Image(os.path.relpath(path, root), label, path.stat().st_size)
            for label in sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
            for folder, _, files in sorted(os.walk(root / label, followlinks=True))
            for path in (Path(folder, name) for name in sorted(files))
            if path.suffix.lower() in ENDINGS
        ]
    except OSError as error:
        raise InputError(f"the folder {str(root)!r} cannot be listed: {error}.") from error


def _dataset(root: Path, request: Request, size: int, name: str) -> Dataset:
    """The images asked for under a folder of class folders."""
    images = _listing(root) if root.is_dir() else []
    if not images:
        raise InputError(
            f"{str(root)!r} holds no folders of images; put them into {str(root / 'CLASS' / 'NAME.jpg')!r}."
        )
    if size < 1:
        raise InputError(f"size={size} does not fit; give a side of 1 pixel or more.")
    classes = tuple(dict.fromkeys(image.label for image in images))
    number = {label: index for index, label in enumerate(classes)}
    kept = [images[index] for index in request.indices(len(images)).tolist()]
    return Dataset(
        name=name,
        inputs=_decoded([root / image.path for image in kept], size),
        targets=torch.tensor([number[image.label] for image in kept], device="cpu"),
        split=request.split,
        checksum=joined_sum(f"{size}\n", *(f"{image.path}\t{image.size}\n" for image in images)),
        stand_in="",
        source=str(root),
        classes=classes,
    )


def _decoded(paths: Sequence[Path], size: int) -> Tensor:
    """The centres of some images, float32 [n, 3, size, size] in [0, 1]."""
    pixels = np.empty((len(paths), size, size, 3), np.uint8)
    for row, path in zip(pixels, paths, strict=True):
        row[:] = _centre(path, size)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255)


def _centre(path: Path, size: int) -> np.ndarray:
    """The centre uint8 [size, size, 3] of an image whose short side is scaled to 256/224 of `size`."""
    from PIL import Image

    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(
            f"the image {str(path)!r} cannot be read ({error}); replace or remove it."
        ) from error
    short = round(size * _RESIZED / _SIZE)
    width, height = (side * short // min(image.size) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


IMAGENET = FolderSource(
    name="imagenet",
    description="photographs in folders train/CLASS and val/CLASS (ImageNet: 1,000 classes), cut to 224x224",
    origin="Russakovsky and others (2015), arXiv:1409.0575; research use, no download",
    layouts=("imagenet",),
    stand_in="synthetic",
    classes=1000,
)

IMAGE_FOLDER = FolderSource(
    name="imagefolder",
    description="your own images in folders CLASS, train/CLASS or val/CLASS, cut to 224x224",
    origin="the layout of torchvision's ImageFolder; no download",
    layouts=("imagefolder",),
)
