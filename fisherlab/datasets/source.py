"""What is known of a data set before it is loaded: its files, their checksums, what stands in for it."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fisherlab.datasets.dataset import Dataset, random_indices
from fisherlab.errors import InputError, unknown


@dataclass(frozen=True)
class DataFile:
    """A published file and its published sum: a sha256, or an md5 where no sha256 was published."""

    name: str
    sha256: str = ""
    md5: str = ""

    @property
    def known_hash(self) -> str:
        """The algorithm and the sum, such as "md5:5dd7e06a…"."""
        return f"sha256:{self.sha256}" if self.sha256 else f"md5:{self.md5}"

    def measured_hash(self, payload: bytes) -> str:
        """The sum of some bytes, in the form of `known_hash`."""
        algorithm = self.known_hash.partition(":")[0]
        return f"{algorithm}:{hashlib.new(algorithm, payload, usedforsecurity=False).hexdigest()}"


@dataclass(frozen=True)
class Request:
    """What `load` was asked for.

    Attributes:
        split: the name of the split.
        places: the directories to search, in order.
        data_dir: the first of them, where the caller gave one.
        may_download: whether missing files may be downloaded into the cache.
        samples: how many samples to take at random, all if None.
        seed: of the choice of samples.
    """

    split: str
    places: list[Path]
    data_dir: Path | None = None
    may_download: bool = False
    samples: int | None = None
    seed: int = 0

    def indices(self, total: int) -> Tensor:
        """The ascending indices of the samples asked for among `total`: those that `subset` takes.

        Raises:
            InputError: if there are not so many samples.
        """
        if self.samples is None:
            return torch.arange(total, device="cpu")
        return random_indices(total, self.samples, self.seed)


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """A known data set.

    Attributes:
        name: the registered name.
        description: one line for listings.
        origin: authors, paper, licence.
        layouts: folders, relative to a search place, that may hold the files.
        mirrors: addresses of folders that serve the files, each ending in a slash.
        stand_in: what may stand in for it, "digits" or "synthetic"; "" for nothing.
    """

    name: str
    description: str
    origin: str
    layouts: tuple[str, ...] = ()
    mirrors: tuple[str, ...] = ()
    stand_in: str = ""

    @property
    @abstractmethod
    def split_names(self) -> tuple[str, ...]:
        """The splits that `load` knows."""

    @abstractmethod
    def load(self, request: Request) -> Dataset | None:
        """The split asked for, or None where its files cannot be had.

        Raises:
            InputError: if a file is there but damaged.
        """

    def substitute(self, request: Request) -> Dataset:
        """The data that stand in for the split asked for."""
        raise NotImplementedError

    def get(self) -> list[Path]:
        """Download all files into the cache, and return their paths.

        Raises:
            FisherlabError: if this cannot be done.
        """
        raise InputError(self.missing(()))

    def located(self, places: Sequence[Path]) -> list[tuple[DataFile, Path | None]]:
        """Every file with a published sum, and where `load` would find it."""
        return []

    def missing(self, places: Sequence[Path]) -> str:
        """The sentence that says that the data are not there, and how to get them."""
        fact = f"was not found in {listed(places)}" if places else "has no download"
        way = (
            f"`fisherlab data get {self.name}` downloads it"
            if self.mirrors
            else "give its directory (data_dir)"
        )
        return (
            f"{self.name} {fact}; {way}, or set FISHERLAB_DATA to a directory that holds {self.layouts[0]}/."
        )

    def check_split(self, split: str) -> None:
        """Refuse a split that does not exist.

        Raises:
            InputError: if there is no such split.
        """
        if split not in self.split_names:
            raise unknown("split", split, self.split_names)


def listed(places: Sequence[Path]) -> str:
    """The places as a text."""
    return ", ".join(repr(str(place)) for place in places)


def joined_sum(*parts: str) -> str:
    """The sha256 of some texts, joined."""
    return hashlib.sha256("".join(parts).encode()).hexdigest()
