"""The trained default network of a model, cached by the hash of its configuration."""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fisherlab.base.writing import write
from fisherlab.datasets import Dataset, cache_dir
from fisherlab.errors import InputError
from fisherlab.models.checkpoints import check_weights, read_weights
from fisherlab.models.registry import ModelSpec, Recipe
from fisherlab.models.seeding import seeded
from fisherlab.optim import LNGD

log = logging.getLogger("fisherlab")

Progress = Callable[[int, int], None]


class TrainedWeights(NamedTuple):
    """Trained weights and where they come from.

    Attributes:
        state: the state dict, float32 on the CPU.
        description: for example "trained: lngd, 5 epochs, 1,175 steps".
        steps: the number of steps.
        sha256: of the weights as a safetensors file.
        from_cache: whether they were read instead of trained.
    """

    state: dict[str, Tensor]
    description: str
    steps: int
    sha256: str
    from_cache: bool


def trained_weights(
    spec: ModelSpec, dataset: Dataset, seed: int, progress: Progress | None = None
) -> TrainedWeights:
    """Train the default network of `spec` on all of `dataset`, or read it from the cache.

    The cache file is ``trained/<model>-<hash>.safetensors`` in the cache directory; a damaged
    one is trained again and replaced. The global random state is not touched.

    Args:
        spec: a registered model with a recipe.
        dataset: the training data.
        seed: of the initial weights and the order of the samples.
        progress: called with (step, steps) after each step.

    Raises:
        InputError: if the model has no recipe.
    """
    if spec.recipe is None:
        raise InputError(f"{spec.name} has no recipe for training; give a checkpoint.")
    model = seeded(spec.build, seed)
    epochs = spec.recipe.epochs_for(len(dataset))
    steps = epochs * spec.recipe.steps_per_epoch(len(dataset))
    description = f"trained: lngd, {epochs} epochs, {steps:,} steps"
    path = cache_dir() / "trained" / f"{spec.name}-{_configuration_hash(spec, dataset, seed)}"
    path = path.with_suffix(".safetensors")
    if path.exists():
        try:
            weights = read_weights(path)
            check_weights(model, weights.tensors, path)
            return TrainedWeights(weights.tensors, description, steps, weights.sha256, True)
        except InputError as error:
            log.warning("%s The network is trained again.", error)
    log.info("training %s on %s: %d epochs, %d steps", spec.name, dataset.label, epochs, steps)
    inputs = spec.preprocess(dataset)
    assert isinstance(inputs, Tensor)
    _train(model, inputs, spec.targets(dataset), spec.recipe, seed, progress)
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return TrainedWeights(state, description, steps, _store(path, state, steps), False)


def _train(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    recipe: Recipe,
    seed: int,
    progress: Progress | None,
) -> None:
    """Train in place: LNGD on the mean cross-entropy, samples shuffled anew each epoch."""
    optimizer = LNGD(model, recipe.learning_rate, damping=recipe.damping)
    warm_up = partial(_warm_up, recipe.warm_up)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_up)
    generator = torch.Generator().manual_seed(seed)
    epochs = recipe.epochs_for(len(inputs))
    steps = epochs * recipe.steps_per_epoch(len(inputs))
    step = 0
    model.train()
    with torch.enable_grad():
        for _ in range(epochs):
            order = torch.randperm(len(inputs), generator=generator, device="cpu")
            batches = zip(inputs[order].split(recipe.batch), targets[order].split(recipe.batch), strict=True)
            for batch_inputs, batch_targets in batches:
                optimizer.zero_grad()
                cross_entropy(model(batch_inputs), batch_targets).backward()
                optimizer.step()
                schedule.step()
                step += 1
                if progress is not None:
                    progress(step, steps)
    model.eval()


def _warm_up(steps: int, step: int) -> float:
    """The factor of the learning rate in a step, counted from 0."""
    return min(1.0, (step + 1) / steps)


def _configuration_hash(spec: ModelSpec, dataset: Dataset, seed: int) -> str:
    """Twelve hexadecimal digits that stand for everything the weights depend on."""
    assert spec.recipe is not None
    configuration = {
        "model": spec.name,
        "dataset": dataset.checksum,
        "samples": len(dataset),
        "optimizer": "lngd",
        "recipe": asdict(spec.recipe),
        "seed": seed,
        "torch": torch.__version__.split(".")[:2],
    }
    text = json.dumps(configuration, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _store(path: Path, state: dict[str, Tensor], steps: int) -> str:
    """Write the weights to `path`; returns their sha256.

    A cache that cannot be written costs only the training next time, so it is a warning.
    """
    from safetensors.torch import save

    payload = save(state, metadata={"step": str(steps)})
    try:
        write(path, payload)
    except OSError as error:
        log.warning("the trained network could not be cached in %s: %s", path.parent, error)
    return hashlib.sha256(payload).hexdigest()
