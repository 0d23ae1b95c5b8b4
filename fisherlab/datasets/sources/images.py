"""Sets of grey images from their published idx files: MNIST and Fashion-MNIST."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fisherlab.datasets.dataset import Dataset
from fisherlab.datasets.download import PublishedPairs, find_or_download
from fisherlab.datasets.places import damaged, read_checked
from fisherlab.datasets.source import DataFile, Request, joined_sum
from fisherlab.datasets.sources.digits import load_digits
from fisherlab.datasets.sources.idx import IdxError, decode_idx


@dataclass(frozen=True, kw_only=True)
class ImageSource(PublishedPairs):
    """A set of grey images in gzip-compressed idx files; scikit-learn's digits may stand in for it.

    Attributes:
        splits: for each split its images and its labels file.
        shape: of one image, (height, width).
        classes: the names of the classes.
    """

    shape: tuple[int, int]
    classes: tuple[str, ...]

    @property
    def split_names(self) -> tuple[str, ...]:
        """The splits that `load` knows."""
        return tuple(self.splits)

    def load(self, request: Request) -> Dataset | None:
        """Images float32 [n, 1, height, width] in [0, 1] and classes int64 [n]; None where not to be had.

        Raises:
            InputError: if a file is there but damaged.
        """
        pair = self.splits[request.split]
        paths = find_or_download(self, pair, request)
        if paths is None:
            return None
        images, labels = (self._decode(file, path) for file, path in paths)
        self._check_sizes(images, labels, [path for _, path in paths])
        kept = request.indices(len(labels)).numpy()
        return Dataset(
            name=self.name,
            inputs=torch.from_numpy(images[kept].astype(np.float32)).div_(255).unsqueeze(1),
            targets=torch.from_numpy(labels[kept].astype(np.int64)),
            split=request.split,
            checksum=joined_sum(*(file.sha256 for file in pair)),
            stand_in="",
            source=", ".join(dict.fromkeys(str(path.parent) for _, path in paths)),
            classes=self.classes,
        )

    def substitute(self, request: Request) -> Dataset:
        """The digits that stand in for the split asked for."""
        digits = load_digits(self.name, request.split, self.shape)
        return digits if request.samples is None else digits.subset(request.samples, request.seed)

    def _decode(self, file: DataFile, path: Path) -> NDArray[np.uint8]:
        """The array in a file that has the published checksum."""
        try:
            return decode_idx(read_checked(path, self, file))
        except IdxError as error:
            raise damaged(path, self, str(error)) from error

    def _check_sizes(self, images: NDArray[np.uint8], labels: NDArray[np.uint8], paths: list[Path]) -> None:
        """Refuse images or labels whose sizes are not the published ones."""
        if images.shape[1:] != self.shape:
            raise damaged(paths[0], self, f"its images have shape {images.shape[1:]}")
        if labels.shape != images.shape[:1]:
            reason = f"its labels have shape {labels.shape} for {len(images)} images"
            raise damaged(paths[1], self, reason)


def _idx_splits(
    train_images: str, train_labels: str, test_images: str, test_labels: str
) -> dict[str, tuple[DataFile, DataFile]]:
    """The four files under the names that MNIST gave them, from their sha256 sums."""
    return {
        "train": (
            DataFile("train-images-idx3-ubyte.gz", train_images),
            DataFile("train-labels-idx1-ubyte.gz", train_labels),
        ),
        "test": (
            DataFile("t10k-images-idx3-ubyte.gz", test_images),
            DataFile("t10k-labels-idx1-ubyte.gz", test_labels),
        ),
    }


MNIST = ImageSource(
    name="mnist",
    description="handwritten digits: 60,000 + 10,000 grey 28x28 images, 10 classes",
    origin="LeCun, Cortes, Burges; usually stated as CC BY-SA 3.0",
    layouts=("mnist", "MNIST/raw"),
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    splits=_idx_splits(
        train_images="440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        train_labels="3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        test_images="8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        test_labels="f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
    shape=(28, 28),
    classes=tuple("0123456789"),
    stand_in="digits",
)

FASHION_MNIST = ImageSource(
    name="fashion-mnist",
    description="articles of clothing: 60,000 + 10,000 grey 28x28 images, 10 classes",
    origin="Xiao, Rasul, Vollgraf (2017), arXiv:1708.07747; Zalando SE, MIT licence",
    layouts=("fashion-mnist", "FashionMNIST/raw"),
    mirrors=(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ),
    splits=_idx_splits(
        train_images="3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        train_labels="a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        test_images="346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        test_labels="67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    ),
    shape=(28, 28),
    classes=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
)
