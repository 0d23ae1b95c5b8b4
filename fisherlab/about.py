"""What records, captions and `provenance.json` call the things that numbers were computed from."""

import time
from dataclasses import dataclass
from typing import Any, Self

from torch import nn

from fisherlab.datasets import Dataset
from fisherlab.models.loading import NamedPair
from fisherlab.provenance import provenance


@dataclass(frozen=True)
class About:
    """What the records call the things they were computed from.

    Attributes:
        model: its name.
        dataset: its label; a stand-in says so in it.
        checkpoint: `init`, a path, or how the weights were trained.
        step: the training step of the weights; None: unknown.
        seed: of initial weights, choice of samples and drawn labels; None: not known.
        checksum: of the data set's source.
        stand_in: whether the data stand in for others.
        checkpoint_hash: SHA-256 of the weights' file.
    """

    model: str
    dataset: str = "tensors"
    checkpoint: str = "as given"
    step: int | None = None
    seed: int | None = None
    checksum: str | None = None
    stand_in: bool = False
    checkpoint_hash: str | None = None

    @classmethod
    def of(cls, model: str, dataset: Dataset, **more: Any) -> Self:
        """Names of a model and a data set, whose stand-in must not go unsaid; `more` are other attributes."""
        stand_in = bool(dataset.stand_in)
        return cls(model, dataset.label, checksum=dataset.checksum, stand_in=stand_in, **more)

    @classmethod
    def given(cls, model: nn.Module, data: Any) -> Self:
        """What is known of a model and data as a function was given them."""
        name = type(model).__name__
        return cls.of(name, data.dataset) if isinstance(data, NamedPair) else cls(name)

    def caption(self, device: str) -> str:
        """One line for a figure."""
        parts = [
            f"data: {self.dataset}",
            f"model: {self.model}",
            f"checkpoint: {self.checkpoint}",
            f"seed: {'unknown' if self.seed is None else self.seed}",
            f"device: {device}",
        ]
        return "; ".join(parts)

    def provenance(self, device: str, started: float | None) -> dict[str, Any]:
        """What `provenance.json` holds.

        Args:
            device: where the numbers were computed.
            started: `time.perf_counter()` at the start of the run; None: its wall time is not known.
        """
        return provenance(
            device=device,
            seed=self.seed,
            dataset=self.dataset,
            stand_in=self.stand_in,
            checksum=self.checksum,
            checkpoint={"name": self.checkpoint, "sha256": self.checkpoint_hash, "step": self.step},
            seconds=None if started is None else round(time.perf_counter() - started, 2),
        )
