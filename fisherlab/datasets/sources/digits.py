"""The stand-in for MNIST: the 8x8 digits that scikit-learn bundles, resampled to 28x28."""

import hashlib

import numpy as np
import torch

from fisherlab.datasets.dataset import Dataset

_LARGEST = 16  # the digits' grey values are 0..16
_TRAIN_SHARE = 0.8  # a choice: 360 images to test
_SPLIT_SEED = 0  # the split is part of the data: no seed of a run changes it


def load_digits(name: str, split: str, shape: tuple[int, int]) -> Dataset:
    """The stand-in for one split of a set of digits.

    The 1,797 images are scaled to [0, 1] and resampled bilinearly; the first 80 % of a seeded
    permutation are "train", the rest "test". The checksum is the sha256 of the split's 8x8
    images and labels as bytes.

    Args:
        name: of the data set that the digits stand in for.
        split: "train" or "test".
        shape: of its images.

    Returns:
        A `Dataset` of that name, images [n, 1, *shape], with ``stand_in="digits"``.
    """
    from sklearn.datasets import load_digits as sklearn_digits

    bundled = sklearn_digits()
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(bundled.target))
    train = int(_TRAIN_SHARE * len(order))
    kept = order[:train] if split == "train" else order[train:]
    images = bundled.images[kept].astype(np.uint8)
    labels = bundled.target[kept].astype(np.int64)
    return Dataset(
        name=name,
        inputs=_resample(torch.from_numpy(images), shape),
        targets=torch.from_numpy(labels),
        split=split,
        checksum=hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes()).hexdigest(),
        stand_in="digits",
        source="scikit-learn",
        classes=tuple("0123456789"),
    )


def _resample(images: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """uint8 [n, 8, 8] with values 0..16 to float32 [n, 1, *shape] with values in [0, 1]."""
    scaled = images.unsqueeze(1).float() / _LARGEST
    return torch.nn.functional.interpolate(scaled, size=shape, mode="bilinear", align_corners=False)
