"""What a data set is, and the image sets that fisherlab knows with their published checksums."""

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fisherlab.errors import InputError, unknown


def random_indices(total: int, samples: int, seed: int) -> Tensor:
    """Ascending indices [samples] of a random subset of ``range(total)``, without replacement.

    Raises:
        InputError: if `samples` is below 1 or above `total`.
    """
    if not 1 <= samples <= total:
        raise InputError(
            f"samples={samples} does not fit: the data hold {total} samples, "
            f"so give a number from 1 to {total}."
        )
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(total, generator=generator)[:samples].sort().values


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split of a data set, in memory.

    Attributes:
        name: the registered name, for example "mnist".
        inputs: float32 [n, ...]; images are [n, 1, 28, 28] with values in [0, 1].
        targets: int64 [n], the classes.
        split: "train" or "test".
        checksum: sha256 that identifies the source of this split.
        stand_in: whether other data stand in for the ones asked for.
        source: the directories of the files, or the package that bundles the data.
        classes: the names of the classes, in the order of their numbers.
    """

    name: str
    inputs: Tensor
    targets: Tensor
    split: str
    checksum: str
    stand_in: bool
    source: str
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def label(self) -> str:
        """The text that tables and figures show: the name, and whether it is a stand-in."""
        return f"{self.name} (stand-in: digits)" if self.stand_in else self.name

    def subset(self, samples: int, seed: int = 0) -> "Dataset":
        """A random subset without replacement, in the original order.

        Args:
            samples: how many samples to keep.
            seed: of the subset's own generator; the global random state is not touched.

        Raises:
            InputError: if `samples` is below 1 or above the number of samples.
        """
        kept = random_indices(len(self), samples, seed)
        return replace(self, inputs=self.inputs[kept], targets=self.targets[kept])


@dataclass(frozen=True)
class DataFile:
    """A published file and its sha256."""

    name: str
    sha256: str


@dataclass(frozen=True)
class ImageSource:
    """A set of grey images in gzip-compressed idx files.

    Attributes:
        name: the registered name.
        description: one line for listings.
        origin: authors, paper, licence.
        layouts: folders, relative to a search place, that may hold the files.
        mirrors: addresses of folders that serve the files, each ending in a slash.
        splits: for each split its images and its labels file.
        shape: of one image, (height, width).
        classes: the names of the classes.
        stand_in: whether scikit-learn's digits may stand in for it.
    """

    name: str
    description: str
    origin: str
    layouts: tuple[str, ...]
    mirrors: tuple[str, ...]
    splits: dict[str, tuple[DataFile, DataFile]]
    shape: tuple[int, int]
    classes: tuple[str, ...]
    stand_in: bool

    @property
    def files(self) -> tuple[DataFile, ...]:
        """All files, of all splits."""
        return tuple(file for pair in self.splits.values() for file in pair)

    def pair(self, split: str) -> tuple[DataFile, DataFile]:
        """The images and the labels file of a split.

        Raises:
            InputError: if there is no such split.
        """
        if split not in self.splits:
            raise unknown("split", split, self.splits)
        return self.splits[split]

    def checksum(self, split: str) -> str:
        """The sha256 of the published sums of the split's files, joined."""
        joined = "".join(file.sha256 for file in self.pair(split))
        return hashlib.sha256(joined.encode()).hexdigest()


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
    stand_in=True,
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
    stand_in=False,
)

SOURCES: dict[str, ImageSource] = {source.name: source for source in (MNIST, FASHION_MNIST)}


def names() -> tuple[str, ...]:
    """The names of the known data sets, sorted."""
    return tuple(sorted(SOURCES))


def spec(name: str) -> ImageSource:
    """What is known of the data set `name`: its files, checksums, mirrors and origin.

    Raises:
        InputError: if no data set has that name.
    """
    if name not in SOURCES:
        raise unknown("data set", name, SOURCES)
    return SOURCES[name]
