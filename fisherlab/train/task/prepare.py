"""A model with the samples it learns from, and those it is tested on."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from fisherlab import datasets, models
from fisherlab.collect.batches import converted, each
from fisherlab.datasets.dataset import Dataset
from fisherlab.errors import InputError
from fisherlab.loop.samples import Samples
from fisherlab.models.seeding import seeded
from fisherlab.train.config import NO_SPLIT, TrainConfig

log = logging.getLogger("fisherlab")

_TEST_SPLITS = ("test", "val", "test-1000")  # the first that the data set has is evaluated
_LIBRARIES = ("torchvision", "timm")
DTYPES = {"32": torch.float32, "64": torch.float64, "bf16-mixed": torch.float32}


@dataclass(frozen=True, eq=False)
class Task:
    """What is trained, on what.

    Attributes:
        model: on the device, as initialised.
        likelihood: its name, or an instance.
        train: the training samples.
        test: those of the evaluation, if any.
        recipe: settings of the model's own recipe.
    """

    model: nn.Module
    likelihood: Any
    train: Samples
    test: Samples | None
    recipe: dict[str, Any]


def prepare(config: TrainConfig, device: torch.device) -> Task:
    """The task of a configuration.

    Raises:
        InputError: where the model or the data cannot be had, or do not belong together.
    """
    if ":" in config.model:
        return _imported(config, device)
    spec = models.spec(config.model)
    load = partial(datasets.load, config.data or spec.dataset, data_dir=config.data_dir, seed=config.seed)
    dataset = load(config.split, samples=config.samples)
    test = _test_set(config, load)

    def samples(data: Dataset) -> Samples:
        convert = partial(converted, dtype=DTYPES[config.precision], device=device)
        return Samples(each(spec.preprocess(data), convert), convert(spec.targets(data)), data)

    build = spec.build if spec.build_for is None else partial(spec.build_for, dataset)
    model = seeded(build, config.seed).to(device=device, dtype=DTYPES[config.precision])
    own, recipe = {}, spec.recipe
    if recipe is not None:
        own = {"lr": recipe.learning_rate, "damping": recipe.damping, "warm_up": recipe.warm_up}
    held = None if test is None else samples(test)
    return Task(model, spec.likelihood, samples(dataset), held, own)


def _imported(config: TrainConfig, device: torch.device) -> Task:
    """A model of the user's own, on the data of its factory or on a named data set."""
    if config.test_split not in (None, NO_SPLIT):
        raise InputError("a model given as package.module:factory has no test split; leave --test-split out")
    if config.split != TrainConfig.split:
        raise InputError("a model given as package.module:factory has one split; leave --split out")
    if config.model.partition(":")[0] in _LIBRARIES and config.samples is None:
        raise InputError(f"say how many images {config.model!r} learns from: give --samples")
    prepared = models.prepare(
        config.model,
        seed=config.seed,
        data=config.data,
        data_dir=config.data_dir,
        samples=config.samples,
        dtype=DTYPES[config.precision],
        device=device,
        trained=False,
        output=config.model_output,
    )
    train = Samples(prepared.inputs, prepared.targets, prepared.dataset)
    return Task(prepared.model, prepared.likelihood, train, None, {})


def _test_set(config: TrainConfig, load: Callable[..., Dataset]) -> Dataset | None:
    """The split asked for; else the first one there of those that a data set may have."""
    if config.test_split == NO_SPLIT:
        return None
    if config.test_split is not None:
        return load(config.test_split)
    known = datasets.spec(config.data or models.spec(config.model).dataset).split_names
    candidates = [split for split in _TEST_SPLITS if split in known and split != config.split]
    errors: list[InputError] = []
    for split in candidates:
        try:
            found = load(split, download=not errors)
        except InputError as error:
            errors.append(error)
            continue
        if errors:
            log.warning("%s The split %r is evaluated in its place.", errors[0], split)
        return found
    if errors:
        raise errors[0]
    return None
