"""The study behind a sweep: Optuna chooses the points and keeps them in a file, one process writes it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fisherlab.train.sweep.config import SweepConfig

if TYPE_CHECKING:
    import optuna

PARAMS = ("lr", "damping")


@dataclass(frozen=True)
class TrialPoint:
    """A trial's number, and its lr and, where it is swept, its damping."""

    number: int
    params: Mapping[str, float]


class Study:
    """The trials of a sweep, in a journal file that is new or goes on.

    Args:
        path: of the journal.
        config: planned.
        higher: whether more is better.
    """

    def __init__(self, path: Path, config: SweepConfig, *, higher: bool) -> None:
        import optuna
        from optuna.storages import journal

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        _drop_cut_line(path)
        for left in path.parent.glob(
            f"{path.name}.lock*"
        ):  # of a killed process: the directory is ours alone
            left.unlink()
        backend = journal.JournalFileBackend(str(path))
        self._config = config
        self._ranges = {name: getattr(config, name) for name in PARAMS if getattr(config, name)}
        self._study = optuna.create_study(
            study_name="sweep",
            storage=optuna.storages.JournalStorage(backend),
            direction="maximize" if higher else "minimize",
            load_if_exists=True,
        )

    def done(self) -> list[TrialPoint]:
        """The trials that have been told."""
        return [
            TrialPoint(trial.number, trial.params) for trial in self._trials() if trial.state.is_finished()
        ]

    def points(self) -> Iterator[TrialPoint]:
        """The trials that were cut off, then new ones, chosen when they are asked for."""
        import optuna

        for frozen in [trial for trial in self._trials() if not trial.state.is_finished()]:
            self._study.sampler = self._sampler(frozen.number)
            yield self._point(optuna.trial.Trial(self._study, frozen._trial_id))
        assert self._config.trials is not None
        while (count := len(self._trials())) < self._config.trials:
            self._study.sampler = self._sampler(count)
            yield self._point(self._study.ask())

    def tell(self, number: int, value: float | None) -> None:
        """What became of a trial; None: it has diverged, and counts as pruned."""
        import optuna

        # the grid's own sampler would stop an `optimize` here, which there is none of
        self._study.sampler = optuna.samplers.RandomSampler()
        if value is None:
            self._study.tell(number, state=optuna.trial.TrialState.PRUNED)
        else:
            self._study.tell(number, value)

    def _trials(self) -> "list[optuna.trial.FrozenTrial]":
        return self._study.get_trials(deepcopy=False)

    def _point(self, trial: "optuna.trial.Trial") -> TrialPoint:
        params = {
            name: trial.suggest_float(name, one[0], one[-1], log=True) for name, one in self._ranges.items()
        }
        return TrialPoint(trial.number, params)

    def _sampler(self, number: int) -> Any:
        """The sampler of one trial: its random numbers go by the trial's, so that resuming changes none."""
        from optuna import samplers

        config = self._config
        if config.sampler == "grid":
            return samplers.GridSampler({name: list(one) for name, one in self._ranges.items()}, config.seed)
        seed = (config.seed + number) % 2**32  # NumPy takes no larger one
        if config.sampler == "random":
            return samplers.RandomSampler(seed)
        return samplers.TPESampler(seed=seed, constant_liar=config.jobs > 1)


def _drop_cut_line(path: Path) -> None:
    """Cuts off what stands behind the last whole line of a journal: a write that did not end."""
    if path.exists():
        with path.open("rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
