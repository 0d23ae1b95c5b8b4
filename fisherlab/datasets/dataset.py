"""One split of a data set in memory, and random subsets of it."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fisherlab.arguments import Seed, Whole, checked
from fisherlab.errors import InputError

Inputs = Tensor | tuple[Tensor, ...] | dict[str, Any]


@checked
def random_indices(total: Whole, samples: int, seed: Seed) -> Tensor:
    """Ascending indices [samples] of a random subset of ``range(total)``, without replacement.

    Raises:
        InputError: if `samples` is below 1 or above `total`.
        InputTypeError: if `samples` or `seed` is no whole number.
    """
    if not 1 <= samples <= total:
        raise InputError(
            f"samples={samples} does not fit: the data hold {total} samples, "
            f"so give a number from 1 to {total}."
        )
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(total, generator=generator, device="cpu")[:samples].sort().values


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split of a data set, in memory.

    Attributes:
        name: the registered name, for example "mnist".
        inputs: a tensor, or a tuple of tensors or a dictionary where a model takes several; the first
            dimension counts samples. Images are float32 [n, channels, height, width] in [0, 1], tokens int64
            [n, T].
        targets: int64, the classes [n] or the tokens [n, T].
        split: its name, for example "train".
        checksum: sha256 that identifies the source of this split.
        stand_in: what stands in for the data asked for, "digits" or "synthetic"; "" for real data.
        source: the directories of the files, or the package that bundles the data.
        classes: the names of the classes, in the order of their numbers; empty for text.
        vocabulary: the texts of the tokens, in the order of their numbers; empty for images.
        padding: the token that fills the ends of short sentences, None where nothing is filled.
        references: the target sentences as written, of a split that translations are judged on.
        note: what a reader must know about this split, shown with the name.
    """

    name: str
    inputs: Inputs
    targets: Tensor
    split: str
    checksum: str
    stand_in: str
    source: str
    classes: tuple[str, ...]
    vocabulary: tuple[str, ...] = ()
    padding: int | None = None
    references: tuple[str, ...] = ()
    note: str = ""

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def label(self) -> str:
        """The text that tables and figures show: the name, and what stands in or must be known."""
        remark = f"stand-in: {self.stand_in}" if self.stand_in else self.note
        return f"{self.name} ({remark})" if remark else self.name

    @checked
    def subset(self, samples: int, seed: Seed = 0) -> "Dataset":
        """A random subset without replacement, in the original order.

        Args:
            samples: how many samples to keep.
            seed: of the subset's own generator; the global random state is not touched.

        Raises:
            InputError: if `samples` is below 1 or above the number of samples.
        """
        kept = random_indices(len(self), samples, seed)

        def chosen_of(part: Any) -> Any:
            return part[kept] if isinstance(part, Tensor) else part  # a flag is no sample's

        match self.inputs:
            case dict() as inputs:
                chosen: Inputs = {name: chosen_of(part) for name, part in inputs.items()}
            case tuple() as inputs:
                chosen = tuple(map(chosen_of, inputs))
            case inputs:
                chosen = chosen_of(inputs)
        references = tuple(self.references[place] for place in kept.tolist()) if self.references else ()
        return replace(self, inputs=chosen, targets=self.targets[kept], references=references)
