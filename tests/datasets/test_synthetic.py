import pytest
import torch

from fisherlab import datasets
from fisherlab.datasets.source import Request
from fisherlab.datasets.sources.synthetic import synthetic_images, synthetic_pairs

NAMES = tuple("0123456789")


def images(split: str = "train", **options) -> datasets.Dataset:
    return synthetic_images("cifar10", Request(split, [], **options), NAMES, 32)


def test_images_are_in_the_range_and_every_class_is_equally_frequent() -> None:
    data = images()
    assert (data.inputs.shape, data.inputs.dtype) == ((5000, 3, 32, 32), torch.float32)
    assert data.inputs.min() >= 0
    assert data.inputs.max() <= 1
    assert data.targets.bincount().tolist() == [500] * 10


def test_what_is_learned_on_one_split_holds_on_another() -> None:
    train, test = images(samples=500), images("test", samples=300)
    means = torch.stack([train.inputs[train.targets == c].mean(0) for c in range(10)]).flatten(1)
    guesses = torch.cdist(test.inputs.flatten(1), means).argmin(1)
    assert (guesses == test.targets).float().mean() > 0.95


def test_splits_share_no_noise() -> None:
    train, test = images(samples=1).inputs, images("test", samples=1000).inputs
    assert (train - test).abs().amax((1, 2, 3)).min() > 0.1
    assert images().checksum != images("test").checksum


def test_the_global_random_state_is_neither_used_nor_changed() -> None:
    first = images(samples=4), synthetic_pairs("wmt", Request("train", [], samples=4))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    again = images(samples=4), synthetic_pairs("wmt", Request("train", [], samples=4))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first[0].inputs, again[0].inputs)
    assert torch.equal(first[1].targets, again[1].targets)


@pytest.mark.parametrize("name", ["cifar10", "multi30k", "wmt"])
def test_samples_are_those_of_the_subset(name) -> None:
    part, whole = datasets.load(name, samples=6, seed=1), datasets.load(name).subset(6, 1)
    tensors = [data.inputs if isinstance(data.inputs, tuple) else (data.inputs,) for data in (part, whole)]
    for first, second in zip(*tensors, strict=True):
        assert torch.equal(first, second)
    assert torch.equal(part.targets, whole.targets)
    assert part.label == f"{name} (stand-in: synthetic)"


def test_large_images_are_small_ones_enlarged() -> None:
    large = synthetic_images("imagenet", Request("val", [], samples=3), NAMES, 96).inputs
    small = images("val", samples=3).inputs
    assert large.shape == (3, 3, 96, 96)
    torch.testing.assert_close(large[:, :, 1::3, 1::3], small)  # the middles of the enlarged pixels


def test_targets_are_sources_backwards_in_other_words() -> None:
    words: dict[int, int] = {}
    for split in ("train", "val", "test"):
        data = synthetic_pairs("wmt", Request(split, []))
        source, target_in = data.inputs
        assert torch.equal(target_in != 0, data.targets != 0)
        assert torch.equal(target_in != 0, source != 0)
        assert (target_in[:, 0] == 1).all()
        for row, target in zip(source[:300].tolist(), data.targets[:300].tolist(), strict=True):
            length = row.index(2)
            assert target.index(2) == length
            assert not any(row[length + 1 :] + target[length + 1 :])
            for word, other in zip(row[:length], reversed(target[:length]), strict=True):
                assert words.setdefault(word, other) == other
    assert len(words) == len(set(words.values())) == 196
    assert len(data.vocabulary) == 200
    assert min(words) == min(words.values()) == 4


def test_the_inputs_of_a_decoder_are_its_targets_moved_by_one() -> None:
    data = synthetic_pairs("wmt", Request("train", []))
    target_in = data.inputs[1][:, 1:]
    assert torch.equal(target_in[target_in != 0], data.targets[:, :-1][target_in != 0])
    assert not (target_in == 2).any()
