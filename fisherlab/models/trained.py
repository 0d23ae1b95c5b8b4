"""The trained default network of a model, cached by the hash of its configuration."""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fisherlab.arguments import Seed, checked
from fisherlab.base.tensorfiles import tensors_as_bytes
from fisherlab.base.writing import write
from fisherlab.datasets.dataset import Dataset
from fisherlab.datasets.places import cache_dir
from fisherlab.errors import InputError
from fisherlab.loop.objectives import objective
from fisherlab.loop.order import Order
from fisherlab.loop.progress import Progress
from fisherlab.loop.samples import Samples
from fisherlab.loop.schedules import Schedule
from fisherlab.loop.steps import Steps
from fisherlab.models.checkpoints import check_weights, read_weights
from fisherlab.models.registry import ModelSpec
from fisherlab.models.seeding import seeded
from fisherlab.optim import LNGD

log = logging.getLogger("fisherlab")

OnSteps = Callable[[int, int], None]
"""Is told after each step how many are done, and how many there are in all."""


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


@checked
def trained_weights(
    spec: ModelSpec, dataset: Dataset, seed: Seed, progress: OnSteps | None = None
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
        DivergedError: if the loss is not finite or far above the first one.
    """
    if spec.recipe is None:
        raise InputError(f"{spec.name} has no recipe for training; give a checkpoint.")
    model = seeded(spec.build, seed)
    epochs, steps = spec.recipe.epochs_for(len(dataset)), spec.recipe.steps_for(len(dataset))
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
    _train(model, Samples(spec.preprocess(dataset), spec.targets(dataset), dataset), spec, seed, progress)
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return TrainedWeights(state, description, steps, _store(path, state, steps), False)


def _train(model: nn.Module, samples: Samples, spec: ModelSpec, seed: int, told: OnSteps | None) -> None:
    """Train in place: LNGD on the mean loss, at a constant rate after the warm-up."""
    assert spec.recipe is not None
    recipe, total = spec.recipe, len(samples.targets)
    optimizer = LNGD(
        model, recipe.learning_rate, damping=recipe.damping, likelihood=spec.likelihood, kl_clip=None
    )
    order = Order(total, recipe.batch, 1, seed)
    count = recipe.steps_for(total)
    # a training shorter than its warm-up ends on the way up
    schedule = Schedule("constant", max(count, recipe.warm_up), order.per_epoch, recipe.warm_up)
    steps = Steps(model, optimizer, objective(spec.likelihood), samples, order, schedule)
    progress = Progress()
    with torch.enable_grad():
        while progress.step < count:
            steps.take(progress)
            if told is not None:
                told(progress.step, count)
    model.eval()


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
    return hashlib.sha256(text.encode()).hexdigest()[:12]  # 48 bits: no two of a user's networks meet


def _store(path: Path, state: dict[str, Tensor], steps: int) -> str:
    """Write the weights to `path`; returns their sha256.

    A cache that cannot be written costs only the training next time, so it is a warning.
    """
    payload = tensors_as_bytes(state, {"step": str(steps)})
    try:
        write(path, payload)
    except OSError as error:
        log.warning("the trained network could not be cached in %s: %s", path.parent, error)
    return hashlib.sha256(payload).hexdigest()
