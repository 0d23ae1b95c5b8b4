import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fisherlab import datasets
from fisherlab.datasets.sources.characters import REPLACEMENT, frequent_characters, numbered, topics
from fisherlab.errors import InputError


@pytest.mark.parametrize("split", ["train", "test"])
def test_targets_are_the_next_characters(split) -> None:
    data = datasets.load("characters", split)
    assert data.inputs.shape == data.targets.shape == (len(data), 64)
    assert {data.inputs.dtype, data.targets.dtype} == {torch.int64}
    assert torch.equal(data.inputs[:, 1:], data.targets[:, :-1])
    assert torch.equal(data.inputs[1:, 0], data.targets[:-1, -1])
    assert data.inputs.max() < len(data.vocabulary)
    assert (data.stand_in, data.padding) == ("", None)


def test_the_splits_are_the_beginning_and_the_end_of_the_text() -> None:
    text = topics()
    train, test = datasets.load("characters"), datasets.load("characters", "test")
    beginning = "".join(train.vocabulary[token] for token in train.inputs[:20].flatten())
    assert beginning.replace(REPLACEMENT, "") == "".join(c for c in text[:1280] if c in train.vocabulary)
    assert len(train) / (len(train) + len(test)) == pytest.approx(0.9, abs=0.001)
    assert (len(train) + len(test)) * 64 == pytest.approx(len(text), abs=130)
    assert train.checksum != test.checksum


def test_the_vocabulary_is_small_and_covers_the_text() -> None:
    data = datasets.load("characters")
    assert data.vocabulary[0] == REPLACEMENT
    assert list(data.vocabulary[1:]) == sorted(set(data.vocabulary[1:]))
    assert 60 <= len(data.vocabulary) <= 100
    assert (data.targets == 0).float().mean() < 1e-3


@given(st.text(alphabet="abcdefgh\n é😀", max_size=60))
def test_numbers_are_places_in_the_vocabulary(text: str) -> None:
    vocabulary = (REPLACEMENT, *sorted("ab d\n😀"))
    places = numbered(text, vocabulary)
    assert [vocabulary[place] for place in places] == [c if c in vocabulary else REPLACEMENT for c in text]


def test_only_frequent_characters_count() -> None:
    many = "".join(chr(1000 + i) * (10 + i) for i in range(150))
    vocabulary = frequent_characters("a" * 10 + "b" * 9 + many)
    assert len(vocabulary) == 100
    assert vocabulary[1] == chr(1000 + 51)
    assert frequent_characters("a" * 10 + "b" * 9) == (REPLACEMENT, "a")


def test_samples_are_those_of_the_subset() -> None:
    part, whole = datasets.load("characters", samples=5, seed=2), datasets.load("characters")
    assert torch.equal(part.inputs, whole.subset(5, 2).inputs)
    assert torch.equal(part.targets, whole.subset(5, 2).targets)


def test_the_listing_says_which_python() -> None:
    version = ".".join(map(str, sys.version_info[:3]))
    assert f"Python {version}" in datasets.spec("characters").description
    assert [path.name for path in datasets.get("characters")] == ["topics.py"]


def test_without_the_text_the_way_out_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data", None)
    with pytest.raises(InputError, match="complete installation"):
        datasets.load("characters")
