"""A model with its data and likelihood, ready for analysis."""

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fisherlab import datasets
from fisherlab.arguments import Count, Seed, checked
from fisherlab.collect.batches import Batches, NamedPair, called, converted, each, hash_of
from fisherlab.collect.forms import ModelInputs, tensors_of
from fisherlab.collect.outputs import Outputs
from fisherlab.collect.own_labels import own_labels
from fisherlab.datasets.dataset import Dataset, Inputs
from fisherlab.errors import FisherlabError, InputError, InputTypeError
from fisherlab.layers import Mask, find_layers
from fisherlab.likelihoods import as_likelihood
from fisherlab.models import registry
from fisherlab.models.checkpoints import put_weights, read_weights
from fisherlab.models.imported import Imported, import_model, is_import
from fisherlab.models.preprocess import classes, colour_images
from fisherlab.models.registry import ModelSpec
from fisherlab.models.seeding import seeded
from fisherlab.models.trained import OnSteps, trained_weights


class Loaded(NamedTuple):
    """A model, its data (inputs, targets) and its likelihood, by name or as the factory gave it."""

    model: nn.Module
    data: NamedPair
    likelihood: Any


@dataclass(frozen=True, eq=False)
class Prepared:
    """A model ready for analysis, with where everything comes from.

    Attributes:
        name: as asked for.
        model: in evaluation mode.
        inputs: a tensor [n, ...], or a tuple of them or a dictionary for a model with several arguments.
        targets: [n, ...].
        likelihood: the name of the likelihood, or an instance from the user's factory.
        dataset: the samples used, before the model's preprocessing.
        checkpoint: "init", the path of the checkpoint, or a description of the training.
        checkpoint_hash: sha256 of the weights' file; empty for "init".
        step: the training step of the weights, if known.
        seed: of initial weights, training and the choice of samples.
        masks: the valid positions of padded inputs, by layer: `ModelSpec.masks`.
    """

    name: str
    model: nn.Module
    inputs: Inputs
    targets: Tensor
    likelihood: Any
    dataset: Dataset
    checkpoint: str
    checkpoint_hash: str
    step: int | None
    seed: int
    masks: Mapping[str, Mask]

    @property
    def data(self) -> NamedPair:
        """The pair (inputs, targets)."""
        return NamedPair(self.inputs, self.targets, self.dataset, self.masks)


@checked
def load(
    name: str,
    *,
    seed: Seed = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    data: str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    samples: Count | None = None,
    dtype: torch.dtype | None = None,
) -> Loaded:
    """Load a model with its data and likelihood; without a checkpoint it is as initialised.

    Example:
        ``model, data, likelihood = load("mnist-mlp", seed=0)``

    Args:
        name: one of `names()`, ``package.module:factory``, ``torchvision:NAME``, ``timm:NAME`` or
            ``transformers:CONFIG_OR_PATH``.
        seed: of the initial weights and the choice of samples; the global random state is not
            touched.
        checkpoint: a file of weights, see `checkpoints.load_weights`.
        data: the name of a data set to use in place of the model's own.
        data_dir: where to look for data first.
        samples: how many training samples to take; the model's default if None.
        dtype: of the weights and of inputs and targets with real values; float32 if None.

    Returns:
        The model in evaluation mode, the pair (inputs [n, ...], targets [n, ...]), and the
        likelihood. Where a model has several arguments, inputs are a tuple, ``model(*inputs)``, or a
        dictionary, ``model(**inputs)``.

    Raises:
        InputError: if the name is unknown, or the factory, the checkpoint or the data cannot be
            used; the message says which.
        InputTypeError: for an argument of another type.
    """
    prepared = prepare(
        name,
        seed=seed,
        checkpoint=checkpoint,
        data=data,
        data_dir=data_dir,
        samples=samples,
        dtype=dtype,
        trained=False,
    )
    return Loaded(prepared.model, prepared.data, prepared.likelihood)


@checked
def prepare(
    name: str,
    *,
    seed: Seed = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    data: str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    samples: Count | None = None,
    dtype: torch.dtype | None = None,
    at_most: Count | None = None,
    device: str | torch.device = "cpu",
    trained: bool = True,
    output: str | None = None,
    progress: OnSteps | None = None,
) -> Prepared:
    """As `load`, with provenance, on a device, and with the trained default network.

    Args:
        name: as for `load`, like the arguments up to `dtype`.
        seed: see `load`.
        checkpoint: see `load`.
        data: see `load`.
        data_dir: see `load`.
        samples: see `load`.
        dtype: see `load`.
        at_most: the most samples that are taken where `samples` is None.
        device: where model, inputs and targets are put.
        trained: whether a model with a recipe is trained when no checkpoint is given.
        output: the name of the outputs among what a factory's model returns, see `Outputs`.
        progress: called with (step, steps) while the network is trained.

    Raises:
        InputError: as for `load`.
        InputTypeError: as for `load`.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise InputTypeError(f"dtype is one of real numbers, such as torch.float64, not {dtype!r}")
    imported = import_model(name, seed) if is_import(name) else None
    spec = _imported_spec(name, imported) if imported else registry.spec(name)
    # Before the data: a file that cannot be read is then refused at once.
    loaded = None if checkpoint is None else read_weights(checkpoint)

    wanted = spec.default_samples if samples is None else samples
    on_the_spot = checkpoint is None and trained and spec.recipe is not None
    if imported and not imported.from_package and data is None:
        dataset = _imported_dataset(name, imported, output)
    else:
        few = None if on_the_spot else wanted  # training takes them all
        dataset = datasets.load(data or spec.dataset, data_dir=data_dir, samples=few, seed=seed)
    if samples is None and at_most is not None:
        wanted = min(at_most, len(dataset) if wanted is None else wanted)
    used = dataset if wanted in (None, len(dataset)) else dataset.subset(wanted, seed)

    build = spec.build if spec.build_for is None else partial(spec.build_for, dataset)
    model = seeded(build, seed).to(device=device, dtype=dtype).eval()
    weights = WeightsOrigin("init", "", 0)
    if checkpoint is not None and loaded is not None:
        put_weights(model, loaded, checkpoint)
        weights = WeightsOrigin(str(checkpoint), loaded.sha256, loaded.step)
    elif on_the_spot:
        result = trained_weights(spec, dataset, seed, progress)
        model.load_state_dict(result.state)
        weights = WeightsOrigin(result.description, result.sha256, result.steps)
    elif imported and imported.weights:
        weights = WeightsOrigin(imported.weights, hash_of(model.state_dict()), None)
    convert = partial(converted, dtype=dtype, device=device)
    inputs = each(spec.preprocess(used), convert)
    if checkpoint is None and not on_the_spot and not imported and settle_norms(model, inputs):
        weights = WeightsOrigin("init, batch norms settled on the samples", "", 0)
    return Prepared(
        name=name,
        model=model,
        inputs=inputs,
        targets=convert(spec.targets(used)),
        likelihood=spec.likelihood,
        dataset=used,
        checkpoint=weights.description,
        checkpoint_hash=weights.sha256,
        step=weights.step,
        seed=seed,
        masks=spec.masks,
    )


@checked
def check_layers(
    name: str, layers: Iterable[str], exclude: Iterable[str] = (), *, bias: str, seed: Seed
) -> None:
    """Refuse unknown layers of a built-in model, before it is trained; of other names nothing.

    Raises:
        InputError: for a name or glob without a layer.
    """
    if not is_import(name):
        find_layers(seeded(registry.spec(name).build, seed), layers, exclude, bias=bias)


class WeightsOrigin(NamedTuple):
    """Where weights come from."""

    description: str
    sha256: str
    step: int | None


def batch_norms(model: nn.Module) -> list[nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d]:
    """The batch norms in a model."""
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return [module for module in model.modules() if isinstance(module, kinds)]


def settle_norms(model: nn.Module, inputs: ModelInputs) -> bool:
    """Gives the batch norms of an untrained network the moments of these inputs.

    With the moments 0 and 1 that they start with, evaluation mode is another network than the one that
    training starts from, and a deep one's outputs are huge.

    Returns:
        Whether the model has batch norms.
    """
    norms = batch_norms(model)
    momenta = [norm.momentum for norm in norms]
    if not norms:
        return False
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    with torch.no_grad():
        called(model, inputs)
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return True


def _inputs(data: Dataset) -> Inputs:
    """The inputs of a data set as they are."""
    return data.inputs


def _imported_spec(name: str, imported: Imported) -> ModelSpec:
    """The model of a factory or a library, in the form of a registered one."""
    return ModelSpec(
        name=name,
        build=lambda: imported.model,
        dataset="imagenet" if imported.from_package else name,
        likelihood=imported.likelihood,
        preprocess=colour_images if imported.from_package else _inputs,
        targets=classes,
        default_samples=4 if imported.from_package or imported.stand_in else None,
        description="imported",
        source=name,
    )


def _imported_dataset(name: str, imported: Imported, output: str | None) -> Dataset:
    """The data that a factory gave with its model."""
    if imported.data is None:
        raise InputError(
            f"{name!r} returned a model without data; name a data set "
            f"({', '.join(datasets.names())}), or return (model, data, likelihood)."
        )
    try:
        inputs, targets = _in_one(imported, output)
    except FisherlabError as error:
        raise InputError(f"the data of {name!r} cannot be used: {error}") from error
    tensors = enumerate((*tensors_of(inputs), targets))
    return Dataset(
        name=name,
        inputs=inputs,
        targets=targets,
        split="train",
        checksum=hash_of({str(place): tensor for place, tensor in tensors}),
        stand_in=imported.stand_in,
        source=name,
        classes=(),
    )


def _in_one(imported: Imported, output: str | None) -> tuple[Inputs, Tensor]:
    """All batches of a factory's data in one."""
    model, batches = imported.model, Batches(imported.data)
    likelihood = as_likelihood(imported.likelihood)
    batches.labels = own_labels(batches, model, Outputs(model, output), likelihood)
    found = list(batches.batches(sys.maxsize))
    inputs, targets = [one for one, _ in found], [own for _, own in found if own is not None]
    if len(targets) < len(found):
        raise InputError("there are no targets; give (inputs, targets), or labels within the inputs")
    if any(batches.form(one) != batches.form(inputs[0]) for one in inputs):
        raise InputError("samples of its batches have different shapes; pad all of them to the longest")
    rest = [iter(tensors_of(one)) for one in inputs]
    joined = each(inputs[0], lambda _: torch.cat([next(own) for own in rest]))
    return joined, torch.cat(targets)
