"""Random crops and flips of image batches, on tensors, from a generator of their own."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from fisherlab.errors import InputError

AUGMENTATIONS = ("crop", "flip")
PADDING = 4  # pixels, of He et al. (2016), section 4.2, for 32x32 images


class Augment:
    """Crops of images padded by 4 zeros on each side, and flips left to right with probability ½.

    Numbers are drawn on the CPU for a whole batch of all processes, so that they do not depend on the
    device, the number of processes or the accumulation. Zeros of normalised images are the mean colour.

    Args:
        names: any of `AUGMENTATIONS`.
        seed: of the generator.
    """

    def __init__(self, names: Sequence[str], seed: int) -> None:
        self._names = tuple(names)
        self._generator = torch.Generator().manual_seed(seed)

    def check(self, inputs: Any) -> None:
        """Raises `InputError` where the inputs are no images [n, c, h, w]."""
        images = isinstance(inputs, Tensor) and inputs.dim() == 4 and inputs.is_floating_point()
        if self._names and not images:
            raise InputError("the model's inputs are no images [n, c, h, w]; train it without --augment")

    def draw(self, samples: int) -> dict[str, Tensor]:
        """The numbers for a batch: `crop` int64 [samples, 2] (down, right), `flip` bool [samples]."""
        drawn = {}
        here: dict[str, Any] = {"generator": self._generator, "device": "cpu"}
        if "crop" in self._names:
            drawn["crop"] = torch.randint(0, 2 * PADDING + 1, (samples, 2), **here)
        if "flip" in self._names:
            drawn["flip"] = torch.rand(samples, **here) < 0.5
        return drawn

    def state(self) -> Tensor:
        """The generator's state."""
        return self._generator.get_state()

    def load(self, state: Tensor) -> None:
        """Takes over a state that `state` gave."""
        self._generator.set_state(state)


def augmented(images: Tensor, drawn: dict[str, Tensor]) -> Tensor:
    """Images [n, c, h, w] cropped and flipped as drawn for them; the size stays."""
    if "crop" in drawn:
        images = cropped(images, drawn["crop"].to(images.device))
    if "flip" in drawn:
        images = torch.where(drawn["flip"].to(images.device)[:, None, None, None], images.flip(3), images)
    return images


def cropped(images: Tensor, corners: Tensor) -> Tensor:
    """Windows [n, c, h, w] of the images padded by `PADDING`, with upper left corners [n, 2] in them."""
    n, _, height, width = images.shape
    padded = pad(images, (PADDING,) * 4)
    sample = torch.arange(n, device=images.device)[:, None, None]
    rows = (corners[:, :1] + torch.arange(height, device=images.device))[:, :, None]  # [n, h, 1]
    columns = (corners[:, 1:] + torch.arange(width, device=images.device))[:, None, :]  # [n, 1, w]
    return padded.permute(0, 2, 3, 1)[sample, rows, columns].permute(0, 3, 1, 2).contiguous()
