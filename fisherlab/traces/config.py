"""The configuration of `fisherlab trace`, as flags give it and as `config.toml` keeps it."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import ClassVar

from fisherlab.arguments import FilePath, Seed
from fisherlab.comparison.config import CompareConfig, FisherConfig
from fisherlab.errors import InputError
from fisherlab.runs.config import Config, absolute, read_config

DEFAULT_SAMPLES = 1000  # a choice: traces to a few per cent, at each of many checkpoints


@dataclass(frozen=True, kw_only=True)
class _Traced(Config):
    """What is traced: one of the two, see `TraceConfig`."""

    run: FilePath | None = None
    model: str | None = None


@dataclass(frozen=True, kw_only=True)
class TraceConfig(FisherConfig, _Traced):
    """What `fisherlab trace` computes. Nothing heavy is imported before `resolved`.

    Attributes:
        run: the directory of a finished `fisherlab train`; its checkpoints are measured. Data, where to look
            for them and dtype are those of the run where they are None; samples: at most `DEFAULT_SAMPLES`.
        model: in place of a run: a built-in model, or `package.module:factory`.
        seed: of samples, drawn labels and a model's initial weights; None: that of the run, or 0.
        spectra: whether to compute the eigenvalues of the exact blocks.
    """

    command: ClassVar[str] = "trace"

    seed: Seed | None = None
    spectra: bool = True

    def __post_init__(self) -> None:
        """Refuses values that no model, run or data could make right.

        Raises:
            InputError: for a number out of its range, a name that is not known, or both a run and a model.
            InputTypeError: for a value of another type.
        """
        self.check()
        if (self.run is None) == (self.model is None):
            raise InputError("give --run RUN, a finished run of `fisherlab train`, or --model M, not both")
        if self.run is not None and self.checkpoint is not None:
            raise InputError("a run has checkpoints of its own; give --checkpoint with --model only")
        self.comparison()

    def comparison(self) -> CompareConfig:
        """The comparison that is made at a checkpoint."""
        shared = {name: getattr(self, name) for name in _SHARED}
        return CompareConfig(model=self.model or "", seed=self.seed or 0, **shared)

    def resolved(self) -> "TraceConfig":
        """The same work with every name checked, the device chosen and paths made absolute.

        Raises:
            InputError: as for `CompareConfig.resolved`.
        """
        checked = self._comparison_of_run().resolved()
        return replace(self, run=absolute(self.run), **{name: getattr(checked, name) for name in _SHARED})

    def _comparison_of_run(self) -> CompareConfig:
        """`comparison` with the model and the seed of the run; `source_of` refuses a run without them."""
        from fisherlab.train.config import TrainConfig

        own = self.comparison()
        if self.run is None:
            return own
        try:
            trained = read_config(Path(self.run) / "config.toml", TrainConfig)
        except InputError:
            return own
        return replace(own, model=trained.model, seed=trained.seed if self.seed is None else self.seed)


_SHARED = tuple(
    {field.name for field in fields(TraceConfig)}
    & {field.name for field in fields(CompareConfig)} - {"model", "seed"}
)
