"""The training runs behind figures and tables: made once, found again, shared."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from fisherlab import datasets, models
from fisherlab.errors import FisherlabError, InputError
from fisherlab.loop.progress import Progress
from fisherlab.runs.directory import CONFIG, numbered, part_of
from fisherlab.runs.finished import FinishedRun, read_run
from fisherlab.train import DivergedError, TrainConfig, resume, train
from fisherlab.train.run import log as training_log

from .scales import TrainingTask

log = logging.getLogger("fisherlab")

OnTrainingStep = Callable[[str, int, int], None]
"""Is told what is trained, the steps done and the steps in all."""

_FREE = (
    *("device", "data_dir", "log_every", "diagnostics_every"),
    *("checkpoint_every", "checkpoint_steps", "keep_last", "keep_best"),
)  # values of a configuration that do not change what is trained


@dataclass(frozen=True)
class MethodRun:
    """A finished run of one method with one seed.

    Attributes:
        method: the optimizer.
        finished: its directory, read.
    """

    method: str
    finished: FinishedRun

    @property
    def seed(self) -> int:
        """Of the run."""
        return int(self.finished.config["seed"])

    @property
    def diverged(self) -> bool:
        """Whether the training diverged."""
        return bool(self.finished.summary["outcome"] == "diverged")

    @property
    def metric(self) -> str:
        """What was measured on the test set: such as accuracy or perplexity."""
        return str(self.finished.summary["metric"])

    @property
    def device(self) -> str:
        """Where it was trained."""
        return str(self.finished.provenance["device"])

    @property
    def data(self) -> str:
        """The data and the split that was tested, as they must be named."""
        summary = self.finished.summary
        return (
            f"{summary['dataset']}, {summary['samples']:,} samples; tested on {summary['test'] or 'nothing'}"
        )

    @property
    def checkpoint(self) -> Path:
        """The weights at the end.

        Raises:
            FisherlabError: where the training diverged.
        """
        if self.diverged:
            raise FisherlabError(f"the network has no weights to look at: {self.finished.summary['reason']}")
        return self.finished.folder / str(self.finished.provenance["checkpoint"]["name"])

    @cached_property
    def evaluations(self) -> list[dict[str, Any]]:
        """The lines of the log with the losses and the metric, in the order of the steps."""
        return [line for line in training_log.read(self.finished.folder) if line.get("kind") == "evaluation"]


class MethodRuns:
    """The runs of methods in a directory, made where they are missing.

    Args:
        folder: where new ones are written.
        others: directories with runs that may be used.
        seed: the first one.
        device: where to train.
        data_dir: where to look for data first.
        report: see `OnTrainingStep`.
    """

    def __init__(
        self,
        folder: Path,
        others: Iterable[Path],
        *,
        seed: int,
        device: str,
        data_dir: str | None,
        report: OnTrainingStep,
    ) -> None:
        self._folder, self._seed, self._device, self._data_dir = folder, seed, device, data_dir
        self._report = report
        self._sizes: dict[tuple[str, str], int] = {}
        self._known = [run for place in (folder, *others) for run in _finished(place)]

    def of(self, task: TrainingTask, method: str) -> list[MethodRun]:
        """The runs of a method, one a seed.

        Raises:
            InputError: where the data cannot be had.
            FisherlabError: where files cannot be written.
        """
        return [self._one(task, method, self._seed + place) for place in range(task.seeds)]

    def _one(self, task: TrainingTask, method: str, seed: int) -> MethodRun:
        values = self._fitting(task.values(method))
        config = TrainConfig(**values, seed=seed, device=self._device, data_dir=self._data_dir, keep_last=1)
        for known in self._known:
            if _same(config, known.config):
                return MethodRun(method, known)
        made = read_run(self._made(config, f"{task.name}-{config.model}-{method}-seed{seed}"))
        self._known.append(made)
        return MethodRun(method, made)

    def _fitting(self, values: dict[str, Any]) -> dict[str, Any]:
        """The values with no more samples than there are (a stand-in has few), in about as many steps."""
        wanted, model, split = values.get("samples"), values["model"], values.get("split", "train")
        if wanted is None:
            return values
        if (model, split) not in self._sizes:
            data = datasets.load(models.spec(model).dataset, split, data_dir=self._data_dir)
            self._sizes[model, split] = len(data)
        size = min(wanted, self._sizes[model, split])
        return {**values, "samples": size, "epochs": math.ceil(values["epochs"] * wanted / size)}

    def _made(self, config: TrainConfig, name: str) -> Path:
        """The directory of the run, trained now or to its end; a run that diverged is a result too."""
        out = next(place for place in numbered(self._folder / name) if not place.exists())
        log.info("training %s: %s, lr %g", name, config.model, config.lr)

        def report(progress: Progress, steps: int) -> None:
            self._report(name, progress.step, steps)

        try:
            if (part_of(out) / CONFIG).is_file():
                resume(out, report=report)
            else:
                train(config, out, report=report)
        except DivergedError as error:
            log.warning("%s", error)
        return out


def _finished(place: Path) -> Iterator[FinishedRun]:
    """The finished training runs in a directory; what is none is passed over."""
    if not place.is_dir():
        return
    for folder in sorted(place.iterdir()):
        if not (folder / "provenance.json").is_file() or folder.name.endswith(".part"):
            continue
        try:
            found = read_run(folder)
        except InputError as error:
            log.warning("%s", error)
            continue
        if found.command == TrainConfig.command:
            yield found


def _same(config: TrainConfig, known: Mapping[str, Any]) -> bool:
    """Whether a run trained what a configuration says, wherever and however it was logged."""
    wanted = config.resolved().to_dict()
    names = {field.name for field in fields(TrainConfig)} - set(_FREE)
    return all(known.get(name) == wanted.get(name) for name in names)
