"""The data sets that fisherlab knows."""

from fisherlab.arguments import checked
from fisherlab.datasets.source import DataFile, Source
from fisherlab.datasets.sources.characters import CHARACTERS
from fisherlab.datasets.sources.cifar import CIFAR10
from fisherlab.datasets.sources.folder import IMAGE_FOLDER, IMAGENET
from fisherlab.datasets.sources.images import FASHION_MNIST, MNIST, ImageSource
from fisherlab.datasets.sources.translation import MULTI30K, WMT
from fisherlab.errors import unknown

__all__ = ["SOURCES", "DataFile", "ImageSource", "Source", "names", "spec"]

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (MNIST, FASHION_MNIST, CIFAR10, IMAGENET, IMAGE_FOLDER, MULTI30K, WMT, CHARACTERS)
}


def names() -> tuple[str, ...]:
    """The names of the known data sets, sorted."""
    return tuple(sorted(SOURCES))


@checked
def spec(name: str) -> Source:
    """What is known of the data set `name`: its files, checksums, mirrors and origin.

    Raises:
        InputError: if no data set has that name.
    """
    if name not in SOURCES:
        raise unknown("data set", name, SOURCES)
    return SOURCES[name]
