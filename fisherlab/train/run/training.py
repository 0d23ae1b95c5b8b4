"""A whole training run: from its configuration to its directory, anew or where it was interrupted."""

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch

from fisherlab.arguments import IsPath, checked
from fisherlab.base import distributed
from fisherlab.base.writing import beside, reported
from fisherlab.errors import InputError
from fisherlab.loop.objectives import Objective, objective
from fisherlab.loop.progress import OnStep
from fisherlab.loop.steps import DivergedError
from fisherlab.runs.config import read_config
from fisherlab.runs.directory import CONFIG, part_of, write_json
from fisherlab.runs.origin import provenance
from fisherlab.runs.part import RunPart, together
from fisherlab.train.config import TrainConfig
from fisherlab.train.optimizers import create, groups, origin
from fisherlab.train.recipes import explain, fitted
from fisherlab.train.run.board import check_installed
from fisherlab.train.run.checkpoints import Checkpoints
from fisherlab.train.run.curves import write_curves
from fisherlab.train.run.fabric import launched_fabric
from fisherlab.train.run.log import Log, finite
from fisherlab.train.run.randomness import random_state, seed_all, set_random_state
from fisherlab.train.run.trainer import Trainer
from fisherlab.train.task.prepare import Task, prepare

log = logging.getLogger("fisherlab")

SUMMARY, PROVENANCE = "summary.json", "provenance.json"


def _silent(*arguments: Any) -> None:
    """A report to nobody."""


@checked
def train(
    config: TrainConfig,
    out: Annotated[Path, IsPath()] | Iterable[Path],
    *,
    force: bool = False,
    report: OnStep = _silent,
    accepted: Callable[[], None] = _silent,
    pictures: bool = True,
) -> dict[str, Any]:
    """Trains a model, and writes the run's directory.

    Args:
        config: what to do.
        out: the directory, or names for it (`Names`); it is `OUT.part` until the run has ended.
        force: whether a run there may be replaced.
        report: is told after each step.
        accepted: is called once the configuration has proved right.
        pictures: whether the curves are drawn.

    Returns:
        What `summary.json` holds.

    Raises:
        InputError: for a configuration that cannot be run; nothing has been written then.
        DivergedError: where the training diverged; the run has been written.
        FisherlabError: where files cannot be written; the run can be continued with `resume`.
    """
    with together(lambda: RunPart.claim(out, force=force)) as part, _own_randomness():
        run = TrainingRun(config, pictures=pictures)
        if run.fitted:
            explain(run.config)
        if part.mine:
            part.begin(run.config)
        return run.perform(part, report, accepted)


@checked
def resume(
    run: Annotated[Path, IsPath()],
    given: Mapping[str, Any] | None = None,
    *,
    report: OnStep = _silent,
    accepted: Callable[[], None] = _silent,
    pictures: bool = True,
) -> dict[str, Any]:
    """Continues a run that was interrupted; on the CPU to the bits of one that was not.

    Args:
        run: its directory, `OUT` or `OUT.part`.
        given: values of the configuration that must be those of the run.
        report: is told after each step.
        accepted: is called once the run has been read.
        pictures: whether the curves are drawn.

    Returns:
        What `summary.json` holds.

    Raises:
        InputError: where there is no such run, another process is writing it, its configuration is another
            one, its data have changed, or all its checkpoints are damaged.
        DivergedError: as for `train`.
        FisherlabError: as for `train`.
    """
    with together(lambda: RunPart.reopen(run)) as part:
        config = read_config(part.path / CONFIG, TrainConfig)
        check_same(config, given or {})
        if any(distributed.gather_all(part.mine and (part.path / PROVENANCE).is_file())):
            return _ended(part)
        with _own_randomness():
            return TrainingRun(config, begun=True, pictures=pictures).perform(part, report, accepted)


def rehearse(config: TrainConfig) -> tuple[TrainConfig, Task, Objective]:
    """The configuration as a run would have it, its task and its objective; nothing is trained.

    Raises:
        InputError: for a configuration that cannot be run.
    """
    with _own_randomness():
        run = TrainingRun(config)
        return run.config, run.task, run.objective


def _ended(part: RunPart) -> dict[str, Any]:
    """Gives a run its final name that was interrupted when all was written."""
    if not part.mine:
        return {}
    summary: dict[str, Any] = json.loads((part.path / SUMMARY).read_text(encoding="utf-8"))
    Checkpoints(part.path, 1, False, ()).drop_states()
    part.finish()
    if summary["reason"] is not None:
        raise DivergedError(f"{summary['reason']}; the run is in {str(part.out)!r}")
    return summary


class TrainingRun:
    """A configuration with everything that it names.

    Attributes:
        config: resolved.
        fitted: whether LNGD's settings for networks without norms were taken.
        task: the model and its samples.
        objective: loss and metric.
    """

    def __init__(self, config: TrainConfig, *, begun: bool = False, pictures: bool = True) -> None:
        self._started, self._begun, self._pictures = time.perf_counter(), begun, pictures
        if config.tensorboard:
            check_installed()
        checked = config.resolved()
        fabric = launched_fabric(checked)
        seed_all(checked.seed + fabric.global_rank, fabric.device)
        self.task: Task = prepare(checked, fabric.device)
        wanted = config if begun else fitted(config, self.task)
        self.fitted = wanted is not config
        self.config = config if begun else wanted.resolved()
        self.objective: Objective = objective(self.task.likelihood, self.config.label_smoothing)
        optimizer = create(
            self.config.optimizer,
            self.task.model,
            self.config.settings(),
            likelihood=self.objective.likelihood,
            seed=self.config.seed,
            output=self.config.model_output,
            inputs=self.task.train.take(slice(0, 2))[0],
        )
        self._groups = groups(optimizer, self.task.model)
        self._trainer = Trainer(self.config, self.task, optimizer, self.objective, fabric)
        self._trainer.check()
        self._fabric = fabric
        processes = self._trainer.processes()
        if fabric.is_global_zero and processes:
            log.info(
                "%(count)d processes, batch norms: %(batch_norms)s, seeds of dropout: %(seeds)s", processes
            )

    def perform(self, part: RunPart, report: OnStep, accepted: Callable[[], None]) -> dict[str, Any]:
        """Trains to the end; the directory stays for `resume` where a checkpoint is in it."""
        out = part.out
        checkpoints = self._checkpoints(part.path) if part.mine else None
        lines: Log | None = None
        try:
            self._restore(checkpoints, out)
            accepted()
            if part.mine:
                lines = Log(part.path, self._trainer.progress.step, tensorboard=self.config.tensorboard)
            diverged = self._train(checkpoints, lines, report)
            summary = self._summary(out, checkpoints, diverged)
            if checkpoints:
                with reported("the run", part.path, f"mend this, and continue it with --resume {out}"):
                    self._write(part.path, checkpoints, summary)
                    checkpoints.drop_states()
                part.finish()
        except KeyboardInterrupt:
            if checkpoints and checkpoints.entries:
                log.warning("the run can be continued: fisherlab train --resume %s", out)
            raise
        finally:
            if lines:
                lines.close()
            if checkpoints and not checkpoints.entries and not self._begun:
                part.discard()
        if diverged is not None:
            raise DivergedError(f"{diverged}; the run is in {str(out)!r}") from diverged
        return summary

    def _checkpoints(self, folder: Path) -> Checkpoints:
        config = self.config
        return Checkpoints(folder, config.keep_last, config.keep_best, config.checkpoint_steps)

    def _restore(self, checkpoints: Checkpoints | None, out: Path) -> None:
        if not self._begun:
            return
        found = checkpoints.newest() if checkpoints else None
        self._fabric.barrier()
        if checkpoints is None:
            found = self._checkpoints(part_of(out)).newest(drop=False)
        if found is not None:
            self._trainer.restore(found)
            log.info("the run continues at step %d of %d", found.entry.step, self._trainer.steps)

    def _train(
        self, checkpoints: Checkpoints | None, lines: Log | None, report: OnStep
    ) -> DivergedError | None:
        try:
            self._trainer.run(checkpoints, lines, report)
        except DivergedError as error:
            return error
        return None

    def _summary(
        self, out: Path, checkpoints: Checkpoints | None, diverged: DivergedError | None
    ) -> dict[str, Any]:
        progress, task = self._trainer.progress, self.task
        tested = task.test is not None
        summary = {
            "command": "train",
            "inputs": self.config.to_dict(),
            "directory": str(out),
            "outcome": "diverged" if diverged else "finished",
            "reason": str(diverged) if diverged else None,
            "dataset": task.train.dataset.label,
            "samples": len(task.train.targets),
            "test": f"{task.test.dataset.label}, {task.test.dataset.split}" if task.test else None,
            "step": progress.step,
            "steps": self._trainer.steps,
            "seconds": progress.seconds,
            "optimizer": origin(self.config.optimizer) | {"groups": self._groups},
            "train_loss": progress.train_loss,
            "test_loss": progress.test_loss,
            "metric": self.objective.metric if tested else "train_loss",
            "value": progress.value if tested else progress.train_loss,
            "best": progress.best,
            "best_step": progress.best_step,
            "bleu": self._trainer.bleu(),
            "checkpoints": [entry.weights for entry in checkpoints.entries] if checkpoints else [],
        }
        return dict(finite(summary))

    def _write(self, folder: Path, checkpoints: Checkpoints, summary: Mapping[str, Any]) -> None:
        """Everything that a run has once it has ended."""
        config, dataset = self.config, self.task.train.dataset
        caption = (
            f"{config.optimizer} on {config.model}, data {dataset.label} ({config.split}; tested on "
            f"{summary['test'] or 'nothing'}), seed {config.seed}, device {config.device}, precision "
            f"{config.precision}"
        )
        title = f"{config.model}, {config.optimizer}"
        if self._pictures:
            write_curves(folder, self.objective.metric, title=title, caption=caption)
        if self._trainer.translated is not None:
            self._trainer.translated.write(folder)
        last = checkpoints.entries[-1]
        found = provenance(
            device=config.device,
            seed=config.seed,
            dataset=dataset.label,
            stand_in=bool(dataset.stand_in),
            checksum=dataset.checksum,
            checkpoint={"name": last.weights, "sha256": last.weights_sha256, "step": last.step},
            seconds=time.perf_counter() - self._started,
        )
        together = self._trainer.processes()
        write_json(folder / SUMMARY, summary)
        with beside(folder / PROVENANCE) as part:
            write_json(part, found | ({"processes": together} if together else {}))


def check_same(config: TrainConfig, given: Mapping[str, Any]) -> None:
    """Refuses to continue a run with values that are not its own.

    Raises:
        InputError: names each value that differs.
    """
    if not given:
        return
    wanted = TrainConfig(**{"model": config.model, "optimizer": config.optimizer, **given}).resolved()
    different = []
    for name in given:
        own, other = getattr(config, name), getattr(wanted, name)
        if _plain(own) != _plain(other):
            different.append(f"{name} is {shown(own)} there, not {shown(other)}")
    if different:
        raise InputError(
            f"the run to resume has another configuration: {'; '.join(different)}; leave these options out, "
            "or start a run of its own"
        )


def _plain(value: Any) -> Any:
    """A value with its tuples as lists, as TOML gives them back."""
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def shown(value: Any) -> str:
    """A value of a configuration in words."""
    return "not set" if value is None else repr(list(value) if isinstance(value, tuple) else value)


@contextmanager
def _own_randomness() -> Iterator[None]:
    """Leaves the global random states of this process as they were; those of GPUs where they were in use."""
    cpu = torch.device("cpu")
    before = random_state(cpu)
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        set_random_state(before, cpu)
        if gpus:
            torch.cuda.set_rng_state_all(gpus)
