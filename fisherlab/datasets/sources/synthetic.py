"""Synthetic stand-ins: seeded images and sentence pairs that a network can learn."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from fisherlab.datasets.dataset import Dataset
from fisherlab.datasets.source import Request, joined_sum
from fisherlab.datasets.spelling import BOS, EOS, PAD, SPECIAL_TOKENS, WORD_MARK, spelled, unended

# Sizes are choices: made in a second, and enough that a network learns what there is to learn.
_PAIRS = 5000
_OTHER = 1000
_PATTERN_SEED = 0  # patterns and words are part of the data: no seed of a run changes them
_COARSE, _FINE = 4, 32  # sides of a pattern before and after it is made smooth
_CONTRAST, _NOISE = 0.25, 0.1  # around mid-grey, so that few values leave [0, 1]
_WORDS = 196  # with the special tokens a vocabulary of 200
_SHORTEST, _LONGEST = 4, 12  # about as captions of photographs have


def synthetic_images(
    name: str, request: Request, classes: tuple[str, ...], size: int, train: int = 5000
) -> Dataset:
    """Images of smooth patterns, one for each class, with noise: ``clamp(1/2 + c P[y] + s e, 0, 1)``.

    P is random on a grid of 4x4 and made smooth by bicubic interpolation to 32x32, where independent
    normal noise e is added; c = 1/4, s = 1/10. The image is then scaled bilinearly to its size. All splits
    share the patterns. Splits for training have `train` images, the others 1,000, classes in equal numbers.

    Args:
        name: of the data set that they stand in for.
        request: the split and the samples; other images than these are not scaled.
        classes: the names of the classes.
        size: the side of an image.
        train: how many images a split for training has.

    Returns:
        Images float32 [n, 3, size, size] in [0, 1], with ``stand_in="synthetic"``.
    """
    generator = torch.Generator().manual_seed(_PATTERN_SEED)
    coarse = torch.randn(len(classes), 3, _COARSE, _COARSE, generator=generator, device="cpu")
    patterns = interpolate(coarse, size=(_FINE, _FINE), mode="bicubic", align_corners=False)
    generator.manual_seed(_seed(request.split))
    total = _total(request.split, train)
    targets = torch.randperm(total, generator=generator, device="cpu") % len(classes)
    noise = torch.randn(total, 3, _FINE, _FINE, generator=generator, device="cpu")
    kept = request.indices(total)
    targets = targets[kept]
    images = (0.5 + _CONTRAST * patterns[targets] + _NOISE * noise[kept]).clamp_(0, 1)
    if size != _FINE:
        images = interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    return Dataset(
        name=name,
        inputs=images,
        targets=targets,
        split=request.split,
        checksum=joined_sum("synthetic images 1", name, request.split, str(size)),
        stand_in="synthetic",
        source="fisherlab",
        classes=classes,
    )


def synthetic_pairs(name: str, request: Request) -> Dataset:
    """Pairs of sentences: the target is the source backwards, each word replaced by its own other word.

    The words are 196 numbers after the four special tokens, replaced by a fixed permutation; a sentence
    has 4 to 12 of them, drawn uniformly. "train" has 5,000 pairs, the others 1,000 each.

    Args:
        name: of the data set that they stand in for.
        request: the split and the samples.

    Returns:
        Inputs (source, target_in) and targets target_out, int64 [n, 13], padded with 0; with
        ``stand_in="synthetic"``. A source ends in <eos>, as do the targets; target_in starts with <bos>.
    """
    generator = torch.Generator().manual_seed(_PATTERN_SEED)
    translation = torch.randperm(_WORDS, generator=generator, device="cpu")
    generator.manual_seed(_seed(request.split))
    total = _total(request.split, _PAIRS)
    lengths = torch.randint(_SHORTEST, _LONGEST + 1, (total, 1), generator=generator, device="cpu")
    words = torch.randint(0, _WORDS, (total, _LONGEST), generator=generator, device="cpu")
    kept = request.indices(total)
    lengths, words = lengths[kept], words[kept]
    place = torch.arange(_LONGEST, device="cpu").expand_as(words)
    backwards = words.gather(1, (lengths - 1 - place).clamp(min=0))
    source, target = (_ended(ids, lengths) for ids in (words, translation[backwards]))
    vocabulary = SPECIAL_TOKENS + tuple(f"{WORD_MARK}word-{number}" for number in range(_WORDS))
    starts = torch.full_like(lengths, BOS)
    target_in = torch.cat([starts, unended(target[:, :-1])], dim=1)
    return Dataset(
        name=name,
        inputs=(source, target_in),
        targets=target,
        split=request.split,
        checksum=joined_sum("synthetic pairs 1", name, request.split),
        stand_in="synthetic",
        source="fisherlab",
        classes=(),
        vocabulary=vocabulary,
        padding=PAD,
        references=() if request.split == "train" else spelled(vocabulary, target),
    )


def _ended(words: Tensor, lengths: Tensor) -> Tensor:
    """Words [n, T] as tokens [n, T + 1]: <eos> at each length [n, 1], and padding behind it."""
    tokens = torch.cat([words + len(SPECIAL_TOKENS), torch.zeros_like(lengths)], dim=1)
    place = torch.arange(tokens.shape[1], device="cpu")
    return tokens.masked_fill(place == lengths, EOS).masked_fill(place > lengths, PAD)


def _total(split: str, train: int) -> int:
    """The number of samples in a split."""
    return train if split.startswith("train") else _OTHER


def _seed(split: str) -> int:
    """The seed of a split's samples; each split has its own."""
    return int(joined_sum(split)[:12], 16)
