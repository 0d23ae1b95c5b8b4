from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fisherlab.datasets import Dataset, random_indices
from fisherlab.errors import InputError


def dataset(n: int = 10, stand_in: str = "", note: str = "") -> Dataset:
    return Dataset(
        name="mnist",
        inputs=torch.arange(n, dtype=torch.float32).reshape(n, 1, 1, 1),
        targets=torch.arange(n),
        split="train",
        checksum="0",
        stand_in=stand_in,
        source="somewhere",
        classes=(),
        note=note,
    )


@given(st.integers(1, 40), st.integers(0, 5), st.data())
def test_random_indices_ascend_without_repetition(total: int, seed: int, data: st.DataObject):
    samples = data.draw(st.integers(1, total))
    indices = random_indices(total, samples, seed)
    assert len(indices) == samples
    assert (indices.diff() > 0).all()
    assert indices[0] >= 0
    assert indices[-1] < total
    assert torch.equal(indices, random_indices(total, samples, seed))


def test_a_subset_keeps_inputs_with_their_targets_and_the_provenance() -> None:
    whole = dataset()
    part = whole.subset(4, seed=3)
    assert len(part) == 4
    assert torch.equal(part.inputs.flatten().long(), part.targets)
    assert (part.checksum, part.label, part.split) == (whole.checksum, whole.label, whole.split)
    assert len(whole) == 10


def test_subsets_depend_on_the_seed_and_not_on_the_global_state() -> None:
    state = torch.get_rng_state()
    first = dataset(1000).subset(20, seed=0).targets
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(3)
    assert torch.equal(first, dataset(1000).subset(20, seed=0).targets)
    assert not torch.equal(first, dataset(1000).subset(20, seed=1).targets)


def test_a_subset_reaches_the_whole_range() -> None:
    counts = torch.zeros(10)
    for seed in range(200):
        counts[dataset().subset(5, seed).targets] += 1
    assert (counts > 60).all()
    assert (counts < 140).all()


@pytest.mark.parametrize("samples", [0, -1, 11])
def test_a_subset_of_impossible_size_is_refused(samples: int) -> None:
    with pytest.raises(InputError, match="1 to 10"):
        dataset().subset(samples)


def test_a_subset_of_several_inputs_keeps_them_together() -> None:
    whole = dataset()
    pair = replace(whole, inputs=(whole.inputs, 10 - whole.inputs), vocabulary=("a",), padding=0)
    part = pair.subset(4, seed=3)
    first, second = part.inputs
    assert torch.equal(first, whole.subset(4, seed=3).inputs)
    assert torch.equal(first.flatten().long(), part.targets)
    assert torch.equal(first + second, torch.full_like(first, 10))
    assert (part.vocabulary, part.padding) == (("a",), 0)


def test_the_label_says_what_stands_in_or_must_be_known() -> None:
    assert dataset().label == "mnist"
    assert dataset(stand_in="digits").label == "mnist (stand-in: digits)"
    assert dataset(note="recompressed").label == "mnist (recompressed)"
    assert dataset(stand_in="synthetic", note="recompressed").label == "mnist (stand-in: synthetic)"
