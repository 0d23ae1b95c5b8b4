"""A text that comes with Python, character by character, for a small language model."""

import hashlib
import platform
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fisherlab.datasets.dataset import Dataset
from fisherlab.datasets.source import Request, Source
from fisherlab.errors import InputError

REPLACEMENT = "\ufffd"  # the token of rare characters

_WINDOW = 64  # the context of the model charlm
_TRAIN_SHARE = 0.9
_LEAST, _MOST = 10, 99  # how often a character occurs, and how many there are: with token 0 a hundred


@dataclass(frozen=True, kw_only=True)
class CharactersSource(Source):
    """The help topics of the running Python (`pydoc_data.topics`), in sorted order."""

    @property
    def split_names(self) -> tuple[str, ...]:
        """The splits that `load` knows."""
        return ("train", "test")

    def load(self, request: Request) -> Dataset:
        """Windows of 64 characters and for each the next one, int64 [n, 64].

        The first 90 % of the text are "train", the rest "test". Windows follow one another without a gap.
        The vocabulary is the replacement character (token 0) and, sorted, the characters that occur at
        least ten times, at most 99. The checksum is the sha256 of the split's text.

        Raises:
            InputError: if this Python has no help topics.
        """
        text = topics()
        vocabulary = frequent_characters(text)
        cut = int(_TRAIN_SHARE * len(text))
        part = text[:cut] if request.split == "train" else text[cut:]
        tokens = torch.from_numpy(numbered(part, vocabulary))
        kept = request.indices((len(tokens) - 1) // _WINDOW)
        windows = tokens.unfold(0, _WINDOW + 1, _WINDOW)[kept]
        return Dataset(
            name=self.name,
            inputs=windows[:, :-1].contiguous(),
            targets=windows[:, 1:].contiguous(),
            split=request.split,
            checksum=hashlib.sha256(part.encode()).hexdigest(),
            stand_in="",
            source=f"pydoc_data.topics of Python {platform.python_version()}",
            classes=(),
            vocabulary=vocabulary,
        )

    def get(self) -> list[Path]:
        """The file of the help topics, which needs no download."""
        from pydoc_data import topics

        return [Path(topics.__file__)]


def topics() -> str:
    """The help topics of the running Python, in sorted order, one after another.

    Raises:
        InputError: if they are missing.
    """
    try:
        from pydoc_data import topics
    except ImportError as error:
        raise InputError(
            "this Python comes without its help topics (pydoc_data.topics), which are the text of "
            "the data set 'characters'; use a complete installation of Python."
        ) from error
    return "\n".join(text for _, text in sorted(topics.topics.items()))


def frequent_characters(text: str) -> tuple[str, ...]:
    """The replacement character, and the characters that occur at least ten times, at most 99, sorted."""
    by_frequency = sorted(Counter(text).items(), key=lambda item: (-item[1], item[0]))
    frequent = [character for character, count in by_frequency[:_MOST] if count >= _LEAST]
    return (REPLACEMENT, *sorted(frequent))


def numbered(text: str, vocabulary: tuple[str, ...]) -> np.ndarray:
    """The places int64 [len(text)] of a text's characters in a vocabulary; 0 for those not in it.

    The vocabulary must be sorted from its second entry on.
    """
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    known = np.array([ord(character) for character in vocabulary[1:]], np.uint32)
    place = np.searchsorted(known, points).clip(max=len(known) - 1)
    return np.where(known[place] == points, place + 1, 0)


CHARACTERS = CharactersSource(
    name="characters",
    description=(
        f"the help topics of Python {platform.python_version()}, in windows of {_WINDOW} characters"
    ),
    origin="pydoc_data.topics, part of Python; PSF licence",
)
