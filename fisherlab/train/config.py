"""The configuration of `fisherlab train`, as flags give it and as `config.toml` keeps it."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from fisherlab.base.devices import resolve_device
from fisherlab.errors import InputError, unknown
from fisherlab.loop.schedules import SCHEDULES
from fisherlab.runs.config import Config, absolute

PRECISIONS = ("32", "64", "bf16-mixed")
NO_SPLIT = "none"
DEFAULT_EPOCHS = 10

SETTINGS = ("lr", "momentum", "weight_decay", "damping", "statistics_every", "inverse_every")
_LEAST: dict[str, int] = {
    **dict.fromkeys(("samples", "epochs", "steps", "batch", "accumulation", "log_every", "beam"), 1),
    **dict.fromkeys(("diagnostics_every", "checkpoint_every", "keep_last"), 1),
    **dict.fromkeys(("statistics_every", "inverse_every"), 1),
    **dict.fromkeys(("seed", "warm_up", "eval_samples"), 0),
}
_ABOVE_ZERO = ("clip", "step_every", "power", "warm_up_epochs", "evaluate_every")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """What `fisherlab train` does. Nothing heavy is imported before `resolved`.

    Attributes:
        model: a built-in model, or `package.module:factory`.
        data: a data set in place of the model's own.
        data_dir: where to look for data first.
        samples: how many training samples; None: all.
        split: the training split.
        test_split: the split that is evaluated; None: test, or what the data set has in its place; `none`.
        optimizer: see `fisherlab list optimizers`.
        lr: the first learning rate; None (here and below): the optimizer's own default.
        momentum: of the optimizer.
        weight_decay: of the optimizer.
        damping: a number, or for LNGD (ν₁, ν₂).
        statistics_every: steps between refreshes of the statistics.
        inverse_every: steps between inverses.
        options: any other options of the optimizer.
        epochs: passes over the data; None: `DEFAULT_EPOCHS`, or what `steps` gives.
        steps: in place of epochs.
        batch: samples a step, over all processes and micro-batches.
        accumulation: micro-batches a step.
        clip: the largest norm of the gradient; None: no clipping.
        label_smoothing: the share of the label that is spread over all classes.
        schedule: see `fisherlab.loop.schedules`.
        step_every: epochs between drops of the schedule `step`.
        power: E of the schedule `polynomial`.
        warm_up: steps of linear warm-up; None: none, or what LNGD needs on a network without norms.
        warm_up_epochs: in place of `warm_up`.
        augment: `crop`, `flip`.
        precision: one of `PRECISIONS`.
        device: `auto`, `cpu`, `cuda` or `cuda:<index>`.
        seed: of initial weights, order, augmentation and drawn labels.
        evaluate_every: epochs between evaluations, a share of one too; the last step is always evaluated.
        eval_samples: test sentences that a model for translation translates at each evaluation, for BLEU; all
            of them at the end. 0: none, not at the end either.
        beam: of the translations at the end; 1: greedy decoding, as at the evaluations.
        log_every: steps between lines of the log.
        diagnostics_every: steps between lines with the optimizer's whole diagnostics; None: every 100 and at
            evaluations, without condition numbers where a matrix has more than 1,024 rows or columns.
        checkpoint_every: steps between checkpoints; None: one an epoch.
        checkpoint_steps: steps whose checkpoints stay.
        keep_last: how many of the last checkpoints stay.
        keep_best: whether the one with the best metric stays.
        tensorboard: whether the log is written for TensorBoard too.
    """

    command: ClassVar[str] = "train"

    model: str
    data: str | None = None
    data_dir: str | None = None
    samples: int | None = None
    split: str = "train"
    test_split: str | None = None
    optimizer: str = "lngd"
    lr: float | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    damping: float | tuple[float, ...] | None = None
    statistics_every: int | None = None
    inverse_every: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    epochs: int | None = None
    steps: int | None = None
    batch: int = 256
    accumulation: int = 1
    clip: float | None = None
    label_smoothing: float = 0.0
    schedule: str = "constant"
    step_every: float = 40.0
    power: float = 2.0
    warm_up: int | None = None
    warm_up_epochs: float | None = None
    augment: tuple[str, ...] = ()
    precision: str = "32"
    device: str = "auto"
    seed: int = 0
    evaluate_every: float = 1
    eval_samples: int = 256
    beam: int = 1
    log_every: int = 1
    diagnostics_every: int | None = None
    checkpoint_every: int | None = None
    checkpoint_steps: tuple[int, ...] = ()
    keep_last: int = 2
    keep_best: bool = True
    tensorboard: bool = False

    def __post_init__(self) -> None:
        """Refuses values that no model or data could make right.

        Raises:
            InputError: for a number out of its range, or a name that is not known.
            InputTypeError: for a value of another type.
        """
        self.check(_LEAST)
        for name in _ABOVE_ZERO:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} must be a finite number above 0, not {value}")
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"label_smoothing must be from 0 to below 1, not {self.label_smoothing}")
        if self.schedule not in SCHEDULES:
            raise unknown("schedule", self.schedule, SCHEDULES)
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        for one, other in (("epochs", "steps"), ("warm_up", "warm_up_epochs")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise InputError(f"give {one} or {other}, not both")
        for name in self.options:
            if name in SETTINGS:
                raise InputError(f"give {name} by its own option, not among the others")

    def settings(self) -> dict[str, Any]:
        """The options of the optimizer that are set."""
        named = {name: getattr(self, name) for name in SETTINGS}
        return {name: value for name, value in named.items() if value is not None} | self.options

    def resolved(self) -> "TrainConfig":
        """The same work with every name checked, the device chosen, and the optimizer's defaults written out.

        Raises:
            InputError: for an unknown optimizer, an option that it does not have, an unknown augmentation, or
                a device that this machine does not have.
        """
        from fisherlab.loop.augment import AUGMENTATIONS
        from fisherlab.train.optimizers import all_options

        for name in self.augment:
            if name not in AUGMENTATIONS:
                raise unknown("augmentation", name, AUGMENTATIONS)
        options = all_options(self.optimizer, self.settings())
        return replace(
            self,
            **{
                name: options[name] for name in SETTINGS if isinstance(options.get(name), int | float | tuple)
            },
            data_dir=absolute(self.data_dir),
            epochs=DEFAULT_EPOCHS if self.epochs is None and self.steps is None else self.epochs,
            device=resolve_device(self.device),
        )
