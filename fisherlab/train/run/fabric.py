"""Steps on Lightning Fabric, which brings precisions, devices and several processes."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from fisherlab.base import distributed
from fisherlab.loop.norms import norms_to_share, shared
from fisherlab.loop.progress import Progress
from fisherlab.loop.steps import Steps
from fisherlab.train.config import TrainConfig

_PRECISIONS = {"32": "32-true", "64": "64-true", "bf16-mixed": "bf16-mixed"}


def launched_fabric(config: TrainConfig) -> Any:
    """Lightning Fabric for the processes that there are: one, or those of torchrun."""
    from lightning_fabric import Fabric

    device = torch.device(config.device)
    size = distributed.size()
    fabric = Fabric(
        accelerator=device.type,
        devices=size if size > 1 else ([device.index] if device.type == "cuda" else 1),  # type: ignore[list-item]
        strategy="ddp" if size > 1 else "auto",
        precision=_PRECISIONS[config.precision],  # type: ignore[arg-type]
    )
    fabric.launch()
    return fabric


class FabricSteps(Steps):
    """Steps of which each process has its share.

    Args:
        fabric: launched.
        config: `clip` and `local_batch_norm` of it.
        parts: what `Steps` takes.

    Attributes:
        norms: the batch norms that all processes share.

    Raises:
        NotSupportedError: where they cannot share one.
    """

    def __init__(self, fabric: Any, config: TrainConfig, *parts: Any) -> None:
        super().__init__(*parts)
        self._fabric, self._clip = fabric, config.clip
        alone = fabric.world_size == 1 or config.local_batch_norm
        self.norms = [] if alone else norms_to_share(self.model)
        self.rank, self.processes = fabric.global_rank, fabric.world_size
        self.forward = fabric.setup_module(self.model, move_to_device=False)
        self._stepper = fabric.setup_optimizers(self.optimizer)

    def take(self, progress: Progress) -> None:
        """Takes the next step, with the batch norms of the whole batch."""
        with shared(self.norms):
            super().take(progress)

    def apart(self, *, last: bool) -> AbstractContextManager[Any]:
        """Without an exchange of gradients before the last micro-batch."""
        context: AbstractContextManager[Any] = self._fabric.no_backward_sync(self.forward, enabled=not last)
        return context

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of a micro-batch, in Fabric's precision."""
        self._fabric.backward(loss)

    def mean(self, total: Tensor) -> Tensor:
        """The mean over the processes."""
        found: Tensor = self._fabric.all_reduce(total, reduce_op="mean")
        return found

    def move(self) -> None:
        """Clips the gradient and takes the step."""
        if self._clip is not None:
            self._fabric.clip_gradients(
                self.forward, self._stepper, max_norm=self._clip, error_if_nonfinite=False
            )
        self._stepper.step()
        self._stepper.zero_grad()
