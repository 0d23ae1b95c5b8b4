"""What is traced: the checkpoints of a training run with its model and samples, or one model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fisherlab import models
from fisherlab.collect.batches import NamedPair
from fisherlab.errors import InputError
from fisherlab.layers import Layers, Mask, find_layers
from fisherlab.runs.config import read_config
from fisherlab.runs.finished import FinishedRun, read_run
from fisherlab.runs.origin import Origin
from fisherlab.traces.config import DEFAULT_SAMPLES, TraceConfig
from fisherlab.traces.measure import Checkpoint, read_file, trace
from fisherlab.traces.recorder import Recorder
from fisherlab.traces.result import Traces
from fisherlab.train.config import NO_SPLIT, TrainConfig
from fisherlab.train.run import log as training_log
from fisherlab.train.run.checkpoints import Checkpoints
from fisherlab.train.task.prepare import prepare as prepare_task

_PRECISIONS = {"float32": "32", "float64": "64"}


@dataclass(frozen=True)
class Subject:
    """What is traced.

    Attributes:
        config: with what the run or the model decided.
        model: in evaluation mode, on the device.
        data: (inputs, targets).
        likelihood: its name, or an instance.
        layers: the chosen layers.
        checkpoints: in the order of the training; none: the model as it is.
        about: names of model and data.
        origin: what captions call the checkpoints together.
        log: what the optimizer recorded; None without a run.
        log_words: where that comes from.
    """

    config: TraceConfig
    model: nn.Module
    data: Any
    likelihood: Any
    layers: Layers
    checkpoints: tuple[Checkpoint, ...]
    about: Origin
    origin: str = ""
    log: Recorder | None = None
    log_words: str = ""

    def trace(self, **options: Any) -> Traces:
        """The traces at every checkpoint; options are `progress` and `on_plan` of `trace`."""
        config = self.config
        found = trace(
            self.model,
            self.data,
            self.checkpoints,
            config.approximations,
            self.likelihood,
            config.kind,
            self.layers,
            output=config.model_output,
            strict=config.strict,
            memory=config.memory,
            max_columns=config.max_columns,
            draws=config.draws,
            seed=config.seed or 0,
            spectra=config.spectra,
            about=self.about,
            **options,
        )
        return replace(found, origin=self.origin, log=self.log, log_words=self.log_words)


def source_of(config: TraceConfig, progress: Callable[[int, int], None] | None = None) -> Subject:
    """What a resolved configuration traces.

    Args:
        config: resolved.
        progress: called with (step, steps) while a built-in model is trained.

    Raises:
        InputError: where the run, its checkpoints, the model, its data or the layers cannot be had.
    """
    return _of_model(config, progress) if config.run is None else _of_run(config, Path(config.run))


def _of_run(config: TraceConfig, folder: Path) -> Subject:
    run = read_run(folder)
    if run.command != TrainConfig.command:
        raise InputError(
            f"{str(folder)!r} is a run of `fisherlab {run.command}`, which has no checkpoints; give one of "
            "`fisherlab train`"
        )
    checkpoints = _checkpoints(folder)
    trained = read_config(folder / "config.toml", TrainConfig)
    wanted = _training_of(config, trained, run)
    task = prepare_task(wanted, torch.device(config.device))
    dataset = task.train.dataset
    if config.data is None and dataset.checksum != run.provenance.get("checksum"):
        raise InputError(
            f"the data found ({dataset.label}) are not those that the run learned from "
            f"({run.summary.get('dataset')}); give --data-dir, or --data to trace on others"
        )
    masks: Mapping[str, Mask] = {} if ":" in wanted.model else models.spec(wanted.model).masks
    pair = NamedPair(task.train.inputs, task.train.targets, dataset, masks)
    used = replace(
        config,
        data_dir=wanted.data_dir,
        samples=len(dataset),
        seed=wanted.seed,
        model_output=wanted.model_output,
    )
    return Subject(
        config=used,
        model=task.model.eval(),
        data=pair,
        likelihood=config.likelihood or task.likelihood,
        layers=find_layers(task.model, config.layers, config.exclude, bias=config.bias, masks=masks),
        checkpoints=checkpoints,
        about=Origin.of(wanted.model, dataset, seed=wanted.seed),
        origin=f"run {run.name}",
        log=Recorder.from_log(_log_lines(folder)),
        log_words=f"recorded in training by {trained.optimizer}; data: {run.summary.get('dataset')}; model: "
        f"{trained.model}; run {run.name}; seed: {trained.seed}; device: {trained.device}",
    )


def _checkpoints(folder: Path) -> tuple[Checkpoint, ...]:
    """Those that the run kept, in the order of their steps, each file looked at before any work.

    Raises:
        InputError: where there are none, or a file is missing or damaged.
    """
    entries = sorted(Checkpoints(folder, 1, False, ()).entries, key=lambda entry: entry.step)
    if not entries:
        raise InputError(f"the run {str(folder)!r} has no checkpoints; train it again")
    for entry in entries:
        read_file(folder / entry.weights, entry.weights_sha256)
    return tuple(
        Checkpoint(Path(entry.weights).stem, folder / entry.weights, entry.step, entry.weights_sha256)
        for entry in entries
    )


def _training_of(config: TraceConfig, trained: TrainConfig, run: FinishedRun) -> TrainConfig:
    """The run's configuration with the samples, data and precision of the trace, and no test.

    With the run's seed the samples are among those that it learned from.

    Raises:
        InputError: where more samples are asked for than it learned from.
    """
    most = run.summary.get("samples") if config.data is None else None
    if most is not None and config.samples is not None and config.samples > most:
        raise InputError(f"the run learned from {most:,} samples; give --samples {most} or fewer")
    usual = None if ":" in trained.model else models.spec(trained.model).default_samples
    samples = config.samples or min(count for count in (DEFAULT_SAMPLES, most, usual) if count)
    return replace(
        trained,
        samples=samples,
        data=config.data or trained.data,
        data_dir=config.data_dir or trained.data_dir,
        split=trained.split if config.data is None else TrainConfig.split,
        test_split=None if ":" in trained.model else NO_SPLIT,
        seed=trained.seed if config.seed is None else config.seed,
        model_output=config.model_output or trained.model_output,
        precision=trained.precision if config.dtype is None else _PRECISIONS[config.dtype],
    )


def _log_lines(folder: Path) -> list[dict[str, Any]]:
    return list(training_log.read(folder)) if (folder / training_log.NAME).is_file() else []


def _of_model(config: TraceConfig, progress: Callable[[int, int], None] | None) -> Subject:
    assert config.model is not None
    seed = config.seed or 0
    models.check_layers(config.model, config.layers, config.exclude, bias=config.bias, seed=seed)
    found = models.prepare(
        config.model,
        seed=seed,
        checkpoint=config.checkpoint,
        data=config.data,
        data_dir=config.data_dir,
        samples=config.samples,
        at_most=DEFAULT_SAMPLES,
        dtype=None if config.dtype is None else getattr(torch, config.dtype),
        device=config.device,
        output=config.model_output,
        progress=progress,
    )
    dataset = found.dataset
    about = Origin.of(
        found.name,
        dataset,
        checkpoint=found.checkpoint,
        step=found.step,
        seed=seed,
        checkpoint_hash=found.checkpoint_hash or None,
    )
    return Subject(
        config=replace(config, samples=len(dataset), seed=seed),
        model=found.model,
        data=found.data,
        likelihood=config.likelihood or found.likelihood,
        layers=find_layers(found.model, config.layers, config.exclude, bias=config.bias, masks=found.masks),
        checkpoints=(),
        about=about,
    )
