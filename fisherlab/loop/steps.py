"""The steps of a training: the gradient of the next batch, its loss checked, and what the optimizer does."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fisherlab.collect.batches import each
from fisherlab.collect.forms import ModelInputs
from fisherlab.collect.outputs import Output, Outputs
from fisherlab.errors import FisherlabError, NumericalError
from fisherlab.loop.augment import Augment, augmented
from fisherlab.loop.objectives import Objective
from fisherlab.loop.order import Order
from fisherlab.loop.progress import Progress
from fisherlab.loop.samples import Samples
from fisherlab.loop.schedules import Schedule

DIVERGED_ABOVE = 10.0
"""The run has diverged where the loss is more than this many times the first one: a choice, far above what a
warm-up or a batch of hard samples does, and reached soon by weights that run away."""
_ADVICE = "the training has diverged: lower the learning rate, warm up for longer, or raise the damping"


class DivergedError(FisherlabError):
    """The loss is not finite or far above the start; the message names the last good checkpoint."""


class Steps:
    """Steps of one process on its own, in the precision of the model; several processes derive from it.

    Args:
        model: on the device of the samples.
        optimizer: of the model; its learning rates are the first ones.
        objective: the loss.
        samples: what is learnt from.
        order: of these.
        schedule: of the learning rates.
        augment: of the inputs, if any.
        accumulation: micro-batches a step.
        output: which tensor of what the model returns is its output, see `Outputs`.

    Attributes:
        rank: of this process.
        processes: how many share a batch.
        forward: calls the model.
        rates: the first learning rate of each group.
    """

    rank, processes = 0, 1

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        objective: Objective,
        samples: Samples,
        order: Order,
        schedule: Schedule,
        augment: Augment | None = None,
        accumulation: int = 1,
        output: Output = None,
    ) -> None:
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self._objective, self._samples, self._order = objective, samples, order
        self._augment, self._accumulation = augment or Augment((), 0), accumulation
        self.forward: Callable[..., Any] = model
        self._output = output
        self.rates = [float(group["lr"]) for group in optimizer.param_groups]

    def take(self, progress: Progress) -> None:
        """Takes the next step, and writes it into `progress`.

        Raises:
            DivergedError: where the loss is not finite, or far above the first one; nothing has moved then.
        """
        started = time.perf_counter()
        for group, first in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = self.schedule.rate(progress.step, first)
        self.model.train()
        loss = self._gradient(progress.step)
        _check_loss(loss, progress)
        try:
            self.move()
        except NumericalError as error:
            raise DivergedError(f"{error}; {_ADVICE}") from error
        progress.step += 1
        progress.seconds += time.perf_counter() - started
        progress.loss = loss
        progress.loss_sum += loss
        progress.loss_steps += 1

    def _gradient(self, step: int) -> float:
        """Forward and backward of this process's share of a batch; returns the loss of the whole batch."""
        chosen = self._order.take(step)
        drawn = self._augment.draw(len(chosen))
        targets = self._samples.targets
        count = self._objective.count(targets[chosen.to(targets.device)])
        total = torch.zeros((), dtype=torch.float64, device=targets.device)
        for micro in range(self._accumulation):
            share = {name: self._own(values, micro) for name, values in drawn.items()}
            inputs, targets = self._samples.take(self._own(chosen, micro))
            inputs = each(inputs, lambda images, share=share: augmented(images, share))  # type: ignore[misc]
            with self.apart(last=micro == self._accumulation - 1):
                outputs = self.outputs(inputs)
                loss = self._objective.total(outputs, targets, self._objective.smoothing)
                loss = loss * (self.processes / max(count, 1))
                self.backward(loss)
            total += loss.detach()
        return float(self.mean(total))

    def outputs(self, inputs: ModelInputs) -> Tensor:
        """The outputs of the model for some inputs."""
        return Outputs(self.forward, self._output)(inputs)

    def _own(self, values: Tensor, micro: int) -> Tensor:
        """This process's part of a micro-batch; micro-batches are the same for any number of processes."""
        return values.tensor_split(self._accumulation)[micro].tensor_split(self.processes)[self.rank]

    def apart(self, *, last: bool) -> AbstractContextManager[Any]:
        """A micro-batch; only after the last one the processes add up their gradients."""
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of a micro-batch."""
        loss.backward()

    def mean(self, total: Tensor) -> Tensor:
        """The mean over the processes."""
        return total

    def move(self) -> None:
        """What the optimizer does with the gradient, which is gone then."""
        self.optimizer.step()
        self.optimizer.zero_grad()


def _check_loss(loss: float, progress: Progress) -> None:
    if progress.start is None:
        progress.start = loss
    if not math.isfinite(loss):
        raise DivergedError(f"the loss is {loss} at step {progress.step + 1}; {_ADVICE}")
    if loss > DIVERGED_ABOVE * abs(progress.start):
        raise DivergedError(
            f"the loss {loss:.3g} at step {progress.step + 1} is more than {DIVERGED_ABOVE:g} times the "
            f"first one, {progress.start:.3g}; {_ADVICE}"
        )
