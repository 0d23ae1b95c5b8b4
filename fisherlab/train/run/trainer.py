"""A training in one process: its steps, and between them evaluations, log and checkpoints."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fisherlab.base import distributed
from fisherlab.collect.refusals import require_finite_weights
from fisherlab.errors import InputError
from fisherlab.loop.augment import Augment
from fisherlab.loop.objectives import Objective
from fisherlab.loop.order import Order
from fisherlab.loop.progress import OnStep, Progress
from fisherlab.loop.schedules import Schedule
from fisherlab.loop.steps import DivergedError
from fisherlab.train.config import TrainConfig
from fisherlab.train.optimizers import layer_rows, widest
from fisherlab.train.run.checkpoints import Checkpoints, LoadedCheckpoint
from fisherlab.train.run.fabric import FabricSteps
from fisherlab.train.run.log import Log
from fisherlab.train.run.randomness import random_state, set_random_state
from fisherlab.train.run.testing import tested
from fisherlab.train.task.prepare import Task
from fisherlab.train.task.translation import Interpreter, Translated

log = logging.getLogger("fisherlab")

_LAYERS_EVERY = 100  # steps; a choice, between the log's size and what it shows
_WIDEST_DIAGNOSED = 1024
"""Condition numbers of wider matrices, whose eigenvalues cost more than a step, are in the log only where
`diagnostics_every` asks for them."""


class Trainer:
    """One run in one process; with several, each has its share of every batch, and the first one writes.

    Args:
        config: resolved.
        task: the model and its samples.
        optimizer: of the model.
        objective: loss and metric.
        fabric: launched.

    Attributes:
        translated: all test sentences at the end, where the model translates.
    """

    translated: Translated | None = None

    def __init__(
        self,
        config: TrainConfig,
        task: Task,
        optimizer: torch.optim.Optimizer,
        objective: Objective,
        fabric: Any,
    ) -> None:
        self._config, self._task, self._objective, self._fabric = config, task, objective, fabric
        parts = fabric.world_size * config.accumulation
        samples = len(task.train.targets)
        if config.batch > samples and fabric.is_global_zero:
            log.info("a step takes all %d samples, fewer than its batch of %d", samples, config.batch)
        self._order = Order(samples, config.batch, parts, config.seed)
        self._augment = Augment(config.augment, config.seed + 1)
        self._augment.check(task.train.inputs)
        per_epoch = self._order.per_epoch
        self.steps = config.steps or (config.epochs or 0) * per_epoch
        warm_up = config.warm_up or math.ceil((config.warm_up_epochs or 0) * per_epoch)
        schedule = Schedule(config.schedule, self.steps, per_epoch, warm_up, config.step_every, config.power)
        data = task.train, self._order, schedule, self._augment
        self._steps = FabricSteps(
            fabric,
            config,
            task.model,
            optimizer,
            objective,
            *data,
            config.accumulation,
            config.model_output,
        )
        self._interpreter = Interpreter.of(task.model, task.test, config.eval_samples)
        asked = config.diagnostics_every is not None
        self._diagnoses = asked or widest(optimizer) <= _WIDEST_DIAGNOSED
        self.progress = Progress()

    def processes(self) -> dict[str, Any] | None:
        """Of several: how many, whether they share batch norms, and the seed of each one's dropout."""
        size, config = self._fabric.world_size, self._config
        if size == 1:
            return None
        alone = "local" if config.local_batch_norm else "none"
        return {
            "count": size,
            "batch_norms": "synchronised" if self._steps.norms else alone,
            "seeds": [config.seed + rank for rank in range(size)],
        }

    def check(self) -> None:
        """Runs two samples through the model in evaluation mode, and looks at all targets.

        Raises:
            InputError: where a weight is not finite, the model does not take the data, or outputs and
                targets do not fit the likelihood.
            InputTypeError: where the model does not return one tensor.
        """
        require_finite_weights(self._task.model)
        inputs, _ = self._task.train.take(slice(0, 2))
        self._task.model.eval()
        with torch.no_grad():
            outputs = self._steps.outputs(inputs)
        targets = self._task.train.targets
        self._objective.likelihood.check(outputs[:1].expand(len(targets), *outputs.shape[1:]), targets)

    def restore(self, found: LoadedCheckpoint) -> None:
        """Goes on from a checkpoint.

        Raises:
            InputError: where the data are others than those the run began with, or the processes more or
                fewer.
        """
        state = found.state
        if state["checksum"] != self._task.train.dataset.checksum:
            raise InputError("the training data have changed since the run began; start it anew")
        if len(state["random"]) != self._fabric.world_size:
            raise InputError(
                f"the run began with {len(state['random'])} processes, not {self._fabric.world_size}; start "
                "as many"
            )
        self._task.model.load_state_dict(found.weights)
        self._steps.optimizer.load_state_dict(state["optimizer"])
        self._order.load(state["order"], found.entry.step)
        self._augment.load(state["augment"])
        set_random_state(state["random"][self._fabric.global_rank], self._fabric.device)
        self.progress = Progress(**state["progress"])

    def run(self, checkpoints: Checkpoints | None, lines: Log | None, report: OnStep) -> None:
        """Trains to the end.

        Args:
            checkpoints: where they go; None in all processes but the first, like `lines`.
            lines: the log.
            report: see `OnStep`.

        Raises:
            DivergedError: where the loss is not finite, or far above the start; a checkpoint of the weights
                is written first, unless they are not finite either.
            FisherlabError: where files cannot be written.
        """
        try:
            with _default_dtype(self._config.precision):
                self._run(checkpoints, lines, report)
        except DivergedError:
            if all(bool(p.isfinite().all()) for p in self._task.model.parameters()):
                self._save(checkpoints, evaluated=False)
            raise

    def _run(self, checkpoints: Checkpoints | None, lines: Log | None, report: OnStep) -> None:
        progress = self.progress
        if progress.step == 0:
            self._evaluate(lines)
            self._save(checkpoints, evaluated=True)
        while progress.step < self.steps:
            self._step(lines)
            evaluated = self._due_evaluation()
            if self._due_layers():
                self._write_layers(lines)
            if evaluated:
                self._evaluate(lines)
            if evaluated or self._due_checkpoint():
                self._save(checkpoints, evaluated=evaluated)
            report(progress, self.steps)
        if self._interpreter is not None:
            self.translated = self._translated(self._interpreter.every, self._config.beam)

    def bleu(self) -> dict[str, Any] | None:
        """BLEU of all test sentences at the end, and of some at the evaluations; None of other tasks."""
        progress, at_end = self.progress, self.translated
        if self._interpreter is None:
            return None
        found: dict[str, Any] = {
            "value": at_end.bleu.value if at_end else None,
            "sentences": len(self._interpreter.every),
            "beam": self._config.beam,
            "signature": at_end.bleu.signature if at_end else None,
        }
        return found | {
            "at_evaluations": {
                "sentences": len(self._interpreter.some),
                "beam": 1,
                "last": progress.bleu,
                "best": progress.best_bleu,
                "best_step": progress.best_bleu_step,
            }
        }

    def _step(self, lines: Log | None) -> None:
        progress = self.progress
        self._steps.take(progress)
        if lines and (progress.step % self._config.log_every == 0 or progress.step == self.steps):
            rate = self._steps.optimizer.param_groups[0]["lr"]
            lines.write({"kind": "step", **self._where(), "loss": progress.loss, "lr": rate})

    def _where(self) -> dict[str, Any]:
        progress = self.progress
        epoch = progress.step / self._order.per_epoch
        return {"step": progress.step, "epoch": round(epoch, 6), "seconds": round(progress.seconds, 6)}

    # --- what happens between steps ---------------------------------------------------------------

    def _due_evaluation(self) -> bool:
        every = max(1, round(self._config.evaluate_every * self._order.per_epoch))
        return self.progress.step % every == 0 or self.progress.step == self.steps

    def _due_checkpoint(self) -> bool:
        step, every = self.progress.step, self._config.checkpoint_every or self._order.per_epoch
        return step % every == 0 or step == self.steps or step in self._config.checkpoint_steps

    def _due_layers(self) -> bool:
        step, every = self.progress.step, self._config.diagnostics_every
        if every is None:
            return step % _LAYERS_EVERY == 0 or self._due_evaluation()
        return step % every == 0

    def _write_layers(self, lines: Log | None) -> None:
        rows = layer_rows(self._steps.optimizer, whole=self._diagnoses) if lines else []
        if lines and rows:
            lines.write({"kind": "layers", **self._where(), "layers": rows})

    def _evaluate(self, lines: Log | None) -> None:
        progress, metric = self.progress, self._objective.metric
        if progress.loss_steps:
            progress.train_loss = progress.loss_sum / progress.loss_steps
            progress.loss_sum, progress.loss_steps = 0.0, 0
        if self._task.test is not None:
            self._task.model.eval()
            progress.test_loss, progress.value = tested(
                self._steps.outputs, self._task.test, self._objective, self._config.batch
            )
        translations = self._translate()
        self._compare_with_best()
        if lines and (progress.step or self._task.test is not None):
            rate = self._steps.schedule.rate(max(0, progress.step - 1), self._steps.rates[0])
            values = {"train_loss": progress.train_loss, "test_loss": progress.test_loss}
            values |= {metric: progress.value, **translations}
            lines.write({"kind": "evaluation", **self._where(), **values, "lr": rate})

    def _translate(self) -> dict[str, Any]:
        """BLEU of some test sentences, decoded greedily, as the log says it; nothing of other tasks."""
        if self._interpreter is None:
            return {}
        found, progress = self._translated(self._interpreter.some, 1).bleu, self.progress
        progress.bleu = found.value
        if progress.best_bleu is None or found.value > progress.best_bleu:
            progress.best_bleu, progress.best_bleu_step = found.value, progress.step
        return {
            "bleu": found.value,
            "bleu_sentences": len(self._interpreter.some),
            "bleu_signature": found.signature,
        }

    def _translated(self, chosen: Tensor, beam: int) -> Translated:
        assert self._interpreter is not None
        with self._fabric.autocast():
            return self._interpreter.translated(chosen, beam=beam)

    def _compare_with_best(self) -> None:
        progress = self.progress
        value = progress.train_loss if self._task.test is None else progress.value
        if value is None or not math.isfinite(value):
            return
        higher = self._task.test is not None and self._objective.higher_is_better
        if progress.best is None or (value > progress.best if higher else value < progress.best):
            progress.best, progress.best_step = value, progress.step

    def _save(self, checkpoints: Checkpoints | None, *, evaluated: bool) -> None:
        everyone = distributed.gather_all(random_state(self._fabric.device))
        if checkpoints is None:
            return
        progress = self.progress
        state = {
            "checksum": self._task.train.dataset.checksum,
            "optimizer": self._steps.optimizer.state_dict(),
            "order": self._order.state(progress.step),
            "augment": self._augment.state(),
            "random": everyone,
            "progress": vars(progress),
        }
        checkpoints.save(
            progress.step,
            progress.step / self._order.per_epoch,
            self._task.model.state_dict(),
            state,
            value=progress.value if evaluated else None,
            best=evaluated and progress.best_step == progress.step,
        )


@contextmanager
def _default_dtype(precision: str) -> Iterator[None]:
    """Float64 as torch's default for a run in it: Fabric gives outputs in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if precision == "64" else before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
