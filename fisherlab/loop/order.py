"""The order of the samples: shuffled anew each epoch, and the same after an interruption."""

import torch
from torch import Tensor

from fisherlab.errors import InputError


def steps_per_epoch(samples: int, batch: int, parts: int) -> int:
    """How many batches an epoch has, see `Order`."""
    batch = min(batch, samples)
    return samples // batch + (samples % batch >= parts)


class Order:
    """Indices of the samples of each step, without replacement in an epoch.

    The last batch of an epoch may be smaller; it is left out where it has less than a sample for each part.

    Args:
        samples: how many there are.
        batch: samples a step, over all processes and micro-batches.
        parts: processes × micro-batches.
        seed: of the order.

    Raises:
        InputError: where a part of a batch would be empty.
    """

    def __init__(self, samples: int, batch: int, parts: int, seed: int) -> None:
        batch = min(batch, samples)
        if batch < parts:
            raise InputError(
                f"a batch of {batch} samples cannot be shared out among {parts} parts (accumulation × "
                f"processes); give at least {parts}"
            )
        self.samples, self.batch = samples, batch
        self.per_epoch = steps_per_epoch(samples, batch, parts)
        self._generator = torch.Generator().manual_seed(seed)
        self._began = self._generator.get_state()
        self._order = torch.empty(0, dtype=torch.int64, device="cpu")

    def take(self, step: int) -> Tensor:
        """The indices of a step, counted from 0; steps are taken one after another."""
        place = step % self.per_epoch
        if place == 0:
            self._shuffle()
        return self._order[place * self.batch :][: self.batch]

    def state(self, step: int) -> Tensor:
        """What the order of the steps from `step` on is made of."""
        return self._generator.get_state() if step % self.per_epoch == 0 else self._began

    def load(self, state: Tensor, step: int) -> None:
        """Takes over what `state` gave for this step."""
        self._generator.set_state(state)
        if step % self.per_epoch:
            self._shuffle()

    def _shuffle(self) -> None:
        self._began = self._generator.get_state()
        self._order = torch.randperm(self.samples, generator=self._generator, device="cpu")
