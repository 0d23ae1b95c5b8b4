"""What a sweep has found: a row a trial, the best of them, and the files of both."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fisherlab.base.writing import beside
from fisherlab.datasets.dataset import Dataset
from fisherlab.runs.directory import write_json
from fisherlab.runs.origin import provenance
from fisherlab.train.run.log import finite
from fisherlab.train.run.training import PROVENANCE, SUMMARY
from fisherlab.train.sweep.config import SweepConfig
from fisherlab.train.sweep.study import PARAMS
from fisherlab.train.sweep.trials import Trial

BEST = "best.toml"
_VALUES = ("train_loss", "test_loss", "value", "best")
_OF_TRAINING = ("outcome", "step", "train_loss", "test_loss", "metric", "value", "best", "seconds", "reason")


@dataclass(frozen=True)
class SweepPlan:
    """A sweep with everything that it names.

    Attributes:
        config: planned.
        dataset: of the training.
        samples: of it, how many.
        test: the evaluated split in words; None where nothing is tested.
        key: of a training's summary, whose value is compared.
        name: what that is.
        higher: whether more of it is better.
    """

    config: SweepConfig
    dataset: Dataset
    samples: int
    test: str | None
    key: str
    name: str
    higher: bool


class SweepResults:
    """The trials done so far.

    Args:
        plan: of the sweep.

    Attributes:
        rows: a row a trial, in their order.
    """

    def __init__(self, plan: SweepPlan) -> None:
        self._plan, self._config = plan, plan.config
        self._found: dict[int, tuple[dict[str, Any], list[dict[str, Any]]]] = {}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The trials in their order."""
        return [row for _, (row, _) in sorted(self._found.items())]

    def add(self, trial: Trial) -> dict[str, Any]:
        """The row of a trial whose trainings have ended: the mean of their values, and its spread."""
        found, point = trial.summaries(), {name: trial.params.get(name) for name in PARAMS}
        values = [one[self._plan.key] for one in found if one["outcome"] == "finished"]
        whole = len(values) == len(trial.configs) and None not in values
        row = {
            "trial": trial.number,
            **point,
            "outcome": "finished" if whole else "diverged",
            "value": statistics.fmean(values) if whole else None,
            "sd": statistics.stdev(values) if whole and len(values) > 1 else None,
            "seeds": len(found),
            "seconds": sum(one["seconds"] for one in found),
            "note": next((one["reason"] for one in found if one["reason"]), None),
        }
        trainings = [
            {"trial": trial.number, **point, "seed": config.seed, **_ended(one)}
            for config, one in zip(trial.configs, found, strict=False)
        ]
        self._found[trial.number] = row, trainings
        return row

    def best(self) -> dict[str, Any] | None:
        """The trial with the best value, the first one of equals; None where all have diverged."""
        rows = [row for row in self.rows if row["value"] is not None]
        if not rows:
            return None
        choose: Callable[..., dict[str, Any]] = max if self._plan.higher else min
        row = choose(rows, key=lambda one: one["value"])
        grids = {name: getattr(self._config, name) for name in PARAMS}
        ends = [name for name, one in grids.items() if len(one) > 1 and row[name] in (one[0], one[-1])]
        return {name: row[name] for name in ("trial", *PARAMS, "value", "sd")} | {"at_an_end": ends}

    def summary(self, out: Path) -> dict[str, Any]:
        """What `summary.json` holds."""
        plan, rows = self._plan, self.rows
        summary = {
            "command": self._config.command,
            "inputs": self._config.to_dict(),
            "directory": str(out),
            "dataset": plan.dataset.label,
            "samples": plan.samples,
            "test": plan.test,
            "metric": plan.name,
            "higher_is_better": plan.higher,
            "trials": len(rows),
            "diverged": sum(row["value"] is None for row in rows),
            "seconds": sum(row["seconds"] for row in rows),
            "best": self.best(),
        }
        return dict(finite(summary))

    def write(self, folder: Path, summary: Mapping[str, Any], seconds: float) -> None:
        """Writes tables, picture, the best trial's configuration, `summary.json` and `provenance.json`."""
        import pandas

        from fisherlab.plots import label, save
        from fisherlab.plots.sweep import sweep

        plan, best = self._plan, summary["best"]
        base = self._config.base()
        labels = {"model": base.model, "dataset": plan.dataset.label, "optimizer": base.optimizer}
        rows = pandas.DataFrame([{**row, "metric": plan.name, **labels} for row in self.rows])
        rows.to_csv(folder / "trials.csv", index=False)
        trainings = [one | labels for _, found in sorted(self._found.values(), key=_number) for one in found]
        pandas.DataFrame(trainings).to_csv(folder / "trainings.csv", index=False)
        name = f"{base.model}, {label(base.optimizer)}: {plan.name.replace('_', ' ')}"
        figure = sweep(
            rows,
            metric=plan.name,
            higher=plan.higher,
            grid=self._config.sampler == "grid",
            second="ν₂ of the damping" if isinstance(base.damping, tuple) else "damping",
            title=f"{name} of {len(rows)} trials",
            caption=self._caption(),
        )
        save(figure, folder / "sweep")
        if best:
            params = {name: best[name] for name in PARAMS if best[name] is not None}
            text = self._config.point(params, base.seed).to_toml()
            (folder / BEST).write_text(text, encoding="utf-8")
        write_json(folder / SUMMARY, summary)
        with beside(folder / PROVENANCE) as part:
            write_json(part, self._provenance(seconds))

    def _caption(self) -> str:
        plan, base, seeds = self._plan, self._config.base(), self._config.seeds
        seen = f"mean over seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"seed {seeds[0]}"
        length = f"{base.epochs} epochs" if base.epochs is not None else f"{base.steps} steps"
        tested = f"tested on {plan.test}" if plan.test else "nothing tested"
        return (
            f"{base.optimizer} on {base.model}, data {plan.dataset.label} ({base.split}, {plan.samples:,} "
            f"samples; {tested}), {length} from initial weights, value at the last evaluation, {seen}; "
            f"device {base.device}, precision {base.precision}; sampler {self._config.sampler}, its seed "
            f"{self._config.seed}"
        )

    def _provenance(self, seconds: float) -> dict[str, Any]:
        dataset = self._plan.dataset
        return provenance(
            device=self._config.base().device,
            seed=self._config.seed,
            dataset=dataset.label,
            stand_in=bool(dataset.stand_in),
            checksum=dataset.checksum,
            checkpoint={"name": "initial weights", "sha256": None, "step": 0},
            seconds=seconds,
        )


def _ended(summary: Mapping[str, Any]) -> dict[str, Any]:
    """How a training has ended; one that diverged has no values, its last evaluation is of before."""
    found = {name: summary[name] for name in _OF_TRAINING}
    return found if found["outcome"] == "finished" else found | dict.fromkeys(_VALUES)


def _number(found: tuple[Mapping[str, Any], Any]) -> int:
    return int(found[0]["trial"])
