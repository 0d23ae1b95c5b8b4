"""Learning rates as functions of the step: nothing to save, nothing to restore."""

import math
from dataclasses import dataclass

from fisherlab.errors import InputError, unknown

SCHEDULES = ("constant", "step", "cosine", "polynomial")
COSINE_FLOOR = 0.001  # of Liu et al. 2024, like the 0.47 and the tenfold drops below


@dataclass(frozen=True)
class Schedule:
    """The learning rate of every step, from the first one lr_0.

    With t = step / steps_per_epoch in epochs, counted from 0, and T = steps / steps_per_epoch:

    - `constant`: lr_0;
    - `step`: lr_0 · 0.1^⌊t / k⌋;
    - `cosine`: f + ½ (lr_0 − f)(1 + cos(2 · 0.47 · π · t / T)), f = min(0.001, lr_0);
    - `polynomial`: lr_0 (1 − t / T)^E.

    In the first `warm_up` steps w the rate is lr_0 (step + 1) / w in place of these; their clock runs
    meanwhile. Source: Liu et al. 2024 (NeurIPS), section 4; with lr_0 above 0.001 its cosine is this one.

    Attributes:
        name: one of `SCHEDULES`.
        steps: of the whole training.
        steps_per_epoch: of one pass over the data.
        warm_up: steps w.
        step_every: k, in epochs.
        power: E.
    """

    name: str
    steps: int
    steps_per_epoch: int
    warm_up: int = 0
    step_every: float = 40.0
    power: float = 2.0

    def __post_init__(self) -> None:
        """Raises `InputError` for an unknown name, or a warm-up that is longer than the training."""
        if self.name not in SCHEDULES:
            raise unknown("schedule", self.name, SCHEDULES)
        if self.warm_up > self.steps:
            raise InputError(
                f"the warm-up takes {self.warm_up} steps, the whole training {self.steps}; shorten the "
                "warm-up or train longer"
            )

    def rate(self, step: int, first: float) -> float:
        """The learning rate of a step, counted from 0, where lr_0 is `first`."""
        if step < self.warm_up:
            return first * (step + 1) / self.warm_up
        if self.name == "step":
            return first * 0.1 ** math.floor(step / self.steps_per_epoch / self.step_every)
        if self.name == "cosine":
            floor = min(COSINE_FLOOR, first)
            return floor + 0.5 * (first - floor) * (1 + math.cos(2 * 0.47 * math.pi * step / self.steps))
        if self.name == "polynomial":
            return first * (1 - step / self.steps) ** self.power
        return first
