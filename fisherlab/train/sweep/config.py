"""The configuration of `fisherlab sweep`: a training, and the values that its trials take."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

from annotated_types import MinLen

from fisherlab.arguments import Count, OneOf, Positive, Seed
from fisherlab.errors import InputError
from fisherlab.runs.config import Config
from fisherlab.runs.flags import Flag
from fisherlab.train.config import TrainConfig

PAPER_LR = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)
PAPER_DAMPING = (1e-6, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3)
"""The grids of Liu et al. 2024, section 4: of all optimizers, and of KFAC."""

SAMPLERS = ("grid", "random", "tpe")
CRITERIA = ("metric", "test_loss", "train_loss")
SWEPT = ("lr", "seed")
"""What a sweep gives to its trials in the place of one value of the training."""


def _listed(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)


@dataclass(frozen=True, kw_only=True)
class SweepConfig(Config):
    """What `fisherlab sweep` does, each value as its option says. Nothing heavy is imported before `base`.

    Attributes:
        train: values of a `TrainConfig`, without lr and seed.
        damping: empty: the optimizer's own, of the other methods of fisherlab the paper's grid.
        sampler: `random` and `tpe` (tree-structured Parzen estimator) draw from the logarithmic range.
        trials: None: the whole grid.
        by: one of `CRITERIA`.
        jobs: in processes of their own.
    """

    command: ClassVar[str] = "sweep"

    train: dict[str, Any] = field(default_factory=dict)
    lr: Annotated[
        tuple[Positive, ...],
        MinLen(1),
        Flag("Learning rates.", "X,Y,…", shown=f"the paper's {_listed(PAPER_LR)}"),
    ] = PAPER_LR
    damping: Annotated[
        tuple[Positive, ...],
        Flag(
            "Dampings; for LNGD its ν₂.",
            "X,Y,…",
            shown=f"for KFAC and its kin the paper's {_listed(PAPER_DAMPING)}; else the optimizer's own",
        ),
    ] = ()
    seeds: Annotated[
        tuple[Seed, ...],
        MinLen(1),
        Flag("Of a trial's trainings; their mean counts.", "N,N,…", shown="0"),
    ] = (0,)
    sampler: Annotated[
        str,
        OneOf(SAMPLERS),
        Flag("grid: every pair; random, tpe: between the least and the largest value.", "|".join(SAMPLERS)),
    ] = "grid"
    trials: Annotated[Count | None, Flag("How many.", "N", shown="the whole grid")] = None
    by: Annotated[
        str,
        OneOf(CRITERIA),
        Flag(
            "What is compared, at the last evaluation.",
            "|".join(CRITERIA),
            shown="metric, such as accuracy on the test split",
        ),
    ] = "metric"
    seed: Annotated[Seed, Flag("Of the sampler.", shown="0")] = 0
    jobs: Annotated[Count, Flag("Trials at a time.", "N")] = 1

    def __post_init__(self) -> None:
        """Refuses values that no model or data could make right.

        Raises:
            InputError: for a number out of its range, or a name that is not known.
            InputTypeError: for a value of another type.
        """
        self.check()
        for name in ("lr", "damping", "seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise InputError(f"{name} names a value twice: {', '.join(f'{one:g}' for one in values)}")
        if self.sampler != "grid" and self.trials is None:
            raise InputError(f"say how many points the sampler {self.sampler!r} is to draw: give --trials")
        for name in SWEPT:
            if name in self.train:
                raise InputError(f"{name} is the sweep's own; give it outside of [train]")

    def base(self) -> TrainConfig:
        """The training without lr and damping of a trial, and with the first seed.

        Raises:
            InputError: as for `TrainConfig`.
            InputTypeError: as for `TrainConfig`.
        """
        return TrainConfig.from_dict({**self.train, "seed": self.seeds[0]})

    def on(self, device: str) -> "SweepConfig":
        """The same sweep on another device."""
        return replace(self, train={**self.train, "device": device})

    def planned(self, base: TrainConfig) -> "SweepConfig":
        """The same sweep with everything written out.

        Args:
            base: the training as a run would have it, resolved.

        Raises:
            InputError: for dampings of an optimizer that has none.
        """
        damping = self.damping
        if base.damping is None and damping:
            raise InputError(f"{base.optimizer} has no damping; leave --damping out")
        if not damping and isinstance(base.damping, int | float) and "damping" not in self.train:
            damping = PAPER_DAMPING
        drop = {*SWEPT, "damping"} if damping and not isinstance(base.damping, tuple) else SWEPT
        train = {name: value for name, value in base.to_dict().items() if name not in drop}
        lr, damping = tuple(sorted(map(float, self.lr))), tuple(sorted(map(float, damping)))
        size = len(lr) * max(1, len(damping))
        trials = size if self.trials is None else self.trials
        if self.sampler == "grid":
            trials = min(trials, size)
        return replace(self, train=train, lr=lr, damping=damping, trials=trials)

    def point(self, params: Mapping[str, float], seed: int) -> TrainConfig:
        """The training of a trial: with its lr, its damping (ν₂ where there are two) and a seed."""
        base = self.base()
        damping: Any = params.get("damping", base.damping)
        if "damping" in params and isinstance(base.damping, tuple):
            damping = (base.damping[0], damping)
        return replace(base, lr=params["lr"], damping=damping, seed=seed)
