"""The samples of a training as the model takes them."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fisherlab.collect.batches import each
from fisherlab.datasets.dataset import Dataset, Inputs


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples as the model takes them, on its device.

    Attributes:
        inputs: a tensor [n, …], or a tuple of them.
        targets: [n, …].
        dataset: where they come from.
    """

    inputs: Inputs
    targets: Tensor
    dataset: Dataset

    def take(self, chosen: Any) -> tuple[Any, Tensor]:
        """The inputs and targets at some indices, or in a slice."""
        if isinstance(chosen, Tensor):
            chosen = chosen.to(self.targets.device)
        return each(self.inputs, lambda part: part[chosen]), self.targets[chosen]
