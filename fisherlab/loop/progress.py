"""Where a run stands."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Progress:
    """Where a run stands; all of it is in the checkpoints.

    Attributes:
        step: steps done.
        seconds: of training, without evaluations and checkpoints.
        start: the loss of the first step.
        loss: of the last step.
        loss_sum: over the steps since the last evaluation.
        loss_steps: how many these are.
        train_loss: their mean at the last evaluation.
        test_loss: of the last evaluation.
        value: the metric of the last evaluation.
        best: the best value of the metric (of the training loss where nothing is tested).
        best_step: where it was reached.
        bleu: of some test sentences at the last evaluation, where the model translates.
        best_bleu: the best value of it.
        best_bleu_step: where that was reached.
    """

    step: int = 0
    seconds: float = 0.0
    start: float | None = None
    loss: float | None = None
    loss_sum: float = 0.0
    loss_steps: int = 0
    train_loss: float | None = None
    test_loss: float | None = None
    value: float | None = None
    best: float | None = None
    best_step: int | None = None
    bleu: float | None = None
    best_bleu: float | None = None
    best_bleu_step: int | None = None


OnStep = Callable[[Progress, int], None]
"""Is told after each step where the run stands, and how many steps there are in all."""
