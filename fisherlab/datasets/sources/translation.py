"""Translation: files of sentences, line i of one language beside line i of the other."""

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fisherlab.arguments import Count, Seed, checked
from fisherlab.datasets.dataset import Dataset
from fisherlab.datasets.download import PublishedPairs, find_or_download
from fisherlab.datasets.places import cache_dir, read, read_checked, sha256
from fisherlab.datasets.source import DataFile, Request, Source, joined_sum
from fisherlab.datasets.sources.idx import GZIP
from fisherlab.datasets.sources.synthetic import synthetic_pairs
from fisherlab.datasets.spelling import BOS, PAD, unended
from fisherlab.datasets.store import cached_array
from fisherlab.datasets.tokens import encoded, token_texts, trained_tokenizer
from fisherlab.errors import InputError

SPLITS = {
    "train": ("train",),
    "val": ("val", "valid", "dev"),
    "test": ("test", "test_2016_flickr"),
}
LANGUAGES = ("en", "de")

_VOCABULARY = 4000  # a choice for 29,000 pairs: most tokens are seen often
_VERSION = "1"  # of what the cache holds; another one makes it anew


class Text(NamedTuple):
    """A file of sentences and its bytes."""

    path: Path
    payload: bytes

    def lines(self) -> list[str]:
        """The sentences.

        Raises:
            InputError: if the file is not UTF-8, perhaps compressed with gzip, or is empty.
        """
        try:
            raw = zlib.decompress(self.payload, GZIP) if self.path.suffix == ".gz" else self.payload
            text = raw.decode("utf-8")
        except (zlib.error, UnicodeDecodeError) as error:
            raise InputError(f"the file {str(self.path)!r} is no text that can be read: {error}.") from error
        if not text:
            raise InputError(f"the file {str(self.path)!r} is empty; put one sentence a line.")
        return text.replace("\r\n", "\n").removesuffix("\n").split("\n")


Pair = tuple[Text, Text]


@checked
def load_translation(
    directory: str | os.PathLike[str],
    split: str = "train",
    *,
    languages: tuple[str, str] = LANGUAGES,
    vocabulary: Count = _VOCABULARY,
    longest: Count = 64,
    samples: Count | None = None,
    seed: Seed = 0,
    name: str = "translation",
) -> Dataset:
    """Sentence pairs from a directory that holds ``train.en``, ``train.de`` and so on, plain or ``.gz``.

    Both languages share one byte-pair encoding, trained on the train split and kept in the cache by the
    content of the files, like the encoded sentences.

    Args:
        directory: of the files; those of the split "val" may be called val, valid or dev.
        split: "train", "val" or "test".
        languages: the endings of the source's and of the target's files.
        vocabulary: the most tokens that there may be.
        longest: the most tokens of a sentence; longer ones are cut.
        samples: how many pairs to take, as `Dataset.subset` does; all if None.
        seed: of that choice.
        name: of the data set.

    Returns:
        Inputs (source [n, S], target_in [n, T]) and targets target_out [n, T], int64, padded with 0 to
        the longest sentence of the split. A source and a target end in <eos>; target_in starts with <bos>.
        Splits other than "train" have the target sentences as written, too, as `references`.

    Raises:
        InputError: if a file is not there or no text, the two languages have not the same number of
            lines, or the package tokenizers is missing.
    """
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}; known: {', '.join(SPLITS)}.")
    train, chosen = (_pair(Path(directory), stem, languages) for stem in ("train", split))
    request = Request(split, [], samples=samples, seed=seed)
    return _dataset(name, train, chosen, request, vocabulary, longest)


@dataclass(frozen=True, kw_only=True)
class TranslationSource(Source):
    """Sentence pairs, English to German; synthetic pairs may stand in for them.

    Attributes:
        longest: the most tokens of a sentence.
        vocabulary: the most tokens that there may be.
    """

    longest: int
    vocabulary: int = _VOCABULARY

    @property
    def split_names(self) -> tuple[str, ...]:
        """The splits that `load` knows."""
        return tuple(SPLITS)

    def load(self, request: Request) -> Dataset | None:
        """The split from the first folder that holds training sentences, see `load_translation`."""
        folders = [place / layout for place in request.places for layout in self.layouts]
        if request.data_dir is not None:
            folders.insert(0, request.data_dir)
        folder = next((folder for folder in folders if _file(folder, ("train",), LANGUAGES[0])), None)
        if folder is None:
            return None
        train, chosen = (_pair(folder, split, LANGUAGES) for split in ("train", request.split))
        return _dataset(self.name, train, chosen, request, self.vocabulary, self.longest)

    def substitute(self, request: Request) -> Dataset:
        """Synthetic sentence pairs."""
        return synthetic_pairs(self.name, request)


@dataclass(frozen=True, kw_only=True)
class PublishedTranslation(PublishedPairs, TranslationSource):
    """Sentence pairs in files with published sums; `splits` are the source's and the target's."""

    def load(self, request: Request) -> Dataset | None:
        """The split asked for, see `load_translation`; None where its files cannot be had.

        Raises:
            InputError: if a file is there but damaged.
        """
        found = find_or_download(self, self.splits["train"] + self.splits[request.split], request)
        if found is None:
            return None
        texts = [Text(path, read_checked(path, self, file)) for file, path in found]
        train, chosen = (texts[0], texts[1]), (texts[2], texts[3])
        return _dataset(self.name, train, chosen, request, self.vocabulary, self.longest)


def _file(folder: Path, stems: Sequence[str], language: str) -> Path | None:
    """The first file of that language with one of the names."""
    names = (f"{stem}.{language}{ending}" for stem in stems for ending in ("", ".gz"))
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _pair(folder: Path, split: str, languages: tuple[str, str]) -> Pair:
    """The two files of a split."""
    texts = []
    for language in languages:
        path = _file(folder, SPLITS[split], language)
        if path is None:
            names = " or ".join(f"{stem}.{language}[.gz]" for stem in SPLITS[split])
            raise InputError(f"{str(folder)!r} holds no {names}; put one sentence a line into it.")
        texts.append(Text(path, read(path)))
    return texts[0], texts[1]


def _dataset(
    name: str, train: Pair, chosen: Pair, request: Request, vocabulary: int, longest: int
) -> Dataset:
    """The pairs asked for, encoded."""
    if longest < 2:
        raise InputError(f"the longest sentence cannot have {longest} tokens; give 2 or more.")
    cache = cache_dir() / "text"
    trained_on = joined_sum(_VERSION, *(sha256(text.payload) for text in train), str(vocabulary))
    tokenizer = trained_tokenizer(
        cache / f"{trained_on[:16]}.json",
        lambda: [line for text in train for line in text.lines()],
        vocabulary,
    )
    identity = joined_sum(trained_on, tokenizer.to_str(), str(longest), *(sha256(t.payload) for t in chosen))
    cached = [cache / f"{name}-{request.split}-{identity[:16]}-{side}.npy" for side in ("source", "target")]
    source = cached_array(
        cached[0], lambda: encoded(tokenizer, _matching_lines(chosen)[0], "source", longest)
    )
    target = cached_array(
        cached[1], lambda: encoded(tokenizer, _matching_lines(chosen)[1], "target", longest + 1)
    )
    kept = request.indices(len(source)).numpy()
    rows = _tensor(target[kept])
    target_in = torch.cat([torch.full((len(rows), 1), BOS, device="cpu"), unended(rows[:, 1:-1])], dim=1)
    return Dataset(
        name=name,
        inputs=(_tensor(source[kept]), target_in),
        targets=rows[:, 1:].contiguous(),
        split=request.split,
        checksum=identity,
        stand_in="",
        source=", ".join(dict.fromkeys(str(text.path.parent) for text in chosen)),
        classes=(),
        vocabulary=token_texts(tokenizer),
        padding=PAD,
        references=() if request.split == "train" else _chosen(chosen[1].lines(), kept.tolist()),
    )


def _chosen(lines: Sequence[str], places: Sequence[int]) -> tuple[str, ...]:
    return tuple(lines[place] for place in places)


def _matching_lines(pair: Pair) -> tuple[list[str], list[str]]:
    """The sentences of both files, equally many."""
    source, target = (text.lines() for text in pair)
    if len(source) != len(target):
        raise InputError(
            f"{pair[0].path.name} has {len(source)} lines and {pair[1].path.name} has {len(target)}; "
            "line i of one must be the translation of line i of the other."
        )
    return source, target


def _tensor(tokens: NDArray[np.uint16]) -> Tensor:
    """Tokens as int64."""
    return torch.from_numpy(tokens.astype(np.int64))


def _gzipped(stem: str, source: str, target: str) -> tuple[DataFile, DataFile]:
    """A split's two compressed files, from their sha256 sums."""
    return DataFile(f"{stem}.en.gz", source), DataFile(f"{stem}.de.gz", target)


MULTI30K = PublishedTranslation(
    name="multi30k",
    description="captions of photographs: 29,000 + 1,014 + 1,000 sentence pairs, English to German",
    origin="Elliott, Frank, Sima'an, Specia (2016), arXiv:1605.00459; non-commercial research",
    layouts=("multi30k",),
    mirrors=("https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw/",),
    stand_in="synthetic",
    longest=32,
    splits={
        "train": _gzipped(
            "train",
            "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f",
            "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6",
        ),
        "val": _gzipped(
            "val",
            "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28",
            "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a",
        ),
        "test": _gzipped(
            "test_2016_flickr",
            "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9",
            "9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8",
        ),
    },
)

WMT = TranslationSource(
    name="wmt",
    description="sentence pairs, English to German, in your own files: train.en, train.de, valid.en, …",
    origin="such as the WMT news translation tasks, https://www.statmt.org/wmt14/; no download",
    layouts=("wmt", "wmt14", "wmt16", "wmt17"),
    stand_in="synthetic",
    longest=64,
)
