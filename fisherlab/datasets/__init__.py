"""Data sets with checksums: found on disk, downloaded, or replaced by a stand-in that says so."""

from typing import TYPE_CHECKING

from fisherlab.base.lazy import lazy

if TYPE_CHECKING:
    from fisherlab.datasets.dataset import Dataset as Dataset
    from fisherlab.datasets.dataset import random_indices as random_indices
    from fisherlab.datasets.finding import FileStatus as FileStatus
    from fisherlab.datasets.finding import get as get
    from fisherlab.datasets.finding import load as load
    from fisherlab.datasets.finding import verify as verify
    from fisherlab.datasets.places import cache_dir as cache_dir
    from fisherlab.datasets.registry import names as names
    from fisherlab.datasets.registry import spec as spec
    from fisherlab.datasets.source import DataFile as DataFile
    from fisherlab.datasets.source import Source as Source
    from fisherlab.datasets.sources.folder import load_folder as load_folder
    from fisherlab.datasets.sources.images import ImageSource as ImageSource
    from fisherlab.datasets.sources.translation import load_translation as load_translation

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "DataFile": "fisherlab.datasets.source",
        "Dataset": "fisherlab.datasets.dataset",
        "FileStatus": "fisherlab.datasets.finding",
        "ImageSource": "fisherlab.datasets.sources.images",
        "Source": "fisherlab.datasets.source",
        "cache_dir": "fisherlab.datasets.places",
        "get": "fisherlab.datasets.finding",
        "load": "fisherlab.datasets.finding",
        "load_folder": "fisherlab.datasets.sources.folder",
        "load_translation": "fisherlab.datasets.sources.translation",
        "names": "fisherlab.datasets.registry",
        "random_indices": "fisherlab.datasets.dataset",
        "spec": "fisherlab.datasets.registry",
        "verify": "fisherlab.datasets.finding",
    },
)
