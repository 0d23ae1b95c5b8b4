"""The configuration of `fisherlab train`, as flags give it and as `config.toml` keeps it."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

from fisherlab.arguments import Count, FilePath, Finite, OneOf, Positive, Seed, Share, Whole
from fisherlab.base.devices import resolve_device
from fisherlab.errors import InputError, unknown
from fisherlab.loop.schedules import SCHEDULES
from fisherlab.runs.config import Config, absolute
from fisherlab.runs.flags import Flag

PRECISIONS = ("32", "64", "bf16-mixed")
NO_SPLIT = "none"
DEFAULT_EPOCHS = 10  # a choice: minutes for the small models

SETTINGS = ("lr", "momentum", "weight_decay", "damping", "statistics_every", "inverse_every")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """What `fisherlab train` does; an option says what each value is. Nothing heavy comes before `resolved`.

    Attributes:
        test_split: None: test, or what the data set has in its place; `none`: nothing is tested.
        lr: None (here and below): the optimizer's own default.
        damping: a number, or for LNGD (ν₁, ν₂).
        options: of the optimizer, by name.
        epochs: None: `DEFAULT_EPOCHS`, or what `steps` gives.
        batch: over all processes and micro-batches.
        schedule: see `fisherlab.loop.schedules`.
        warm_up: None: none, or what LNGD needs on a network without norms.
        evaluate_every: a share of an epoch too; the last step is always evaluated.
        eval_samples: all of them at the end. 0: none, not at the end either.
        beam: 1: greedy decoding, as at the evaluations.
        diagnostics_every: None: every 100 and at evaluations, without condition numbers where a matrix has
            more than 1,024 rows or columns.
    """

    command: ClassVar[str] = "train"

    model: Annotated[str, Flag("A built-in model (see `list models`), or package.module:factory.")]
    data: Annotated[
        str | None,
        Flag("A data set (see `list data`) in place of the model's own.", "NAME"),
    ] = None
    data_dir: Annotated[FilePath | None, Flag("Where to look for data first.", "DIR")] = None
    model_output: Annotated[
        str | None,
        Flag("Of a model that returns several things.", "NAME", "logits, or the only tensor", name="output"),
    ] = None
    samples: Annotated[Count | None, Flag("How many training samples.", shown="all")] = None
    split: Annotated[str, Flag("The training split.", "NAME")] = "train"
    test_split: Annotated[
        str | None, Flag(f"The split that is evaluated, or {NO_SPLIT}.", "NAME", shown="test")
    ] = None
    optimizer: Annotated[str, Flag("See `list optimizers`, or package.module:Class.", "NAME")] = "lngd"
    lr: Annotated[Finite | None, Flag("The first learning rate.", shown="the optimizer's")] = None
    momentum: Annotated[Finite | None, Flag("Of the optimizer.")] = None
    weight_decay: Annotated[Finite | None, Flag("Of the optimizer.")] = None
    damping: Annotated[
        Finite | tuple[Finite, ...] | None,
        Flag("A number, or LOW,HIGH for LNGD.", "X[,Y]"),
    ] = None
    statistics_every: Annotated[Count | None, Flag("Steps between refreshes of the statistics.")] = None
    inverse_every: Annotated[Count | None, Flag("Steps between inverses.")] = None
    options: Annotated[
        dict[str, Any], Flag("Any other option of the optimizer.", "KEY=VALUE", name="set")
    ] = field(default_factory=dict)
    epochs: Annotated[Count | None, Flag("Passes over the data.", shown=str(DEFAULT_EPOCHS))] = None
    steps: Annotated[Count | None, Flag("In place of --epochs.")] = None
    batch: Annotated[Count, Flag("Samples a step.")] = 256
    accumulation: Annotated[Count, Flag("Micro-batches a step.")] = 1
    clip: Annotated[Positive | None, Flag("The largest norm of the gradient.")] = None
    label_smoothing: Annotated[Share, Flag("The share of a label that is spread over all classes.")] = 0.0
    schedule: Annotated[str, OneOf(tuple(SCHEDULES)), Flag("Of the learning rate.", "|".join(SCHEDULES))] = (
        "constant"
    )
    step_every: Annotated[Positive, Flag("Epochs between drops (x 0.1) of the schedule `step`.")] = 40.0
    power: Annotated[Positive, Flag("E of the schedule `polynomial`, (1 - t/T)^E.")] = 2.0
    warm_up: Annotated[Whole | None, Flag("Steps of linear warm-up.")] = None
    warm_up_epochs: Annotated[Positive | None, Flag("In place of --warm-up.")] = None
    local_batch_norm: Annotated[
        bool, Flag("Under torchrun: batch norms take the moments of a process's own samples.")
    ] = False
    augment: Annotated[tuple[str, ...], Flag("Any of crop,flip, for images.", "A,B")] = ()
    precision: Annotated[str, OneOf(PRECISIONS), Flag("Of weights and sums.", "|".join(PRECISIONS))] = "32"
    device: Annotated[str, Flag("Where to train.", "auto|cpu|cuda[:i]")] = "auto"
    seed: Annotated[Seed, Flag("Of weights, order, augmentation and drawn labels.")] = 0
    evaluate_every: Annotated[Positive, Flag("Epochs between evaluations, such as 0.5.")] = 1
    eval_samples: Annotated[
        Whole, Flag("Test sentences translated at each evaluation, for BLEU; 0: none.")
    ] = 256
    beam: Annotated[Count, Flag("Of the translations of all test sentences at the end.")] = 1
    log_every: Annotated[Count, Flag("Steps between lines of log.jsonl.")] = 1
    diagnostics_every: Annotated[
        Count | None, Flag("Steps between lines with every layer's rate and damping.")
    ] = None
    checkpoint_every: Annotated[Count | None, Flag("Steps between checkpoints.", shown="one an epoch")] = None
    checkpoint_steps: Annotated[tuple[Whole, ...], Flag("Steps whose checkpoints stay.", "N,N,...")] = ()
    keep_last: Annotated[Count, Flag("How many of the last checkpoints stay.")] = 2
    keep_best: Annotated[bool, Flag("Whether the best one stays.", shown="yes")] = True
    tensorboard: Annotated[bool, Flag("Write the log for TensorBoard too, where installed.")] = False

    def __post_init__(self) -> None:
        """Refuses values that no model or data could make right.

        Raises:
            InputError: for a number out of its range, or a name that is not known.
            InputTypeError: for a value of another type.
        """
        self.check()
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
