"""The built-in models: what each is made of, and which data and likelihood belong to it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from fisherlab.arguments import checked
from fisherlab.datasets.dataset import Dataset, Inputs
from fisherlab.errors import InputError, unknown
from fisherlab.layers import Mask


@dataclass(frozen=True)
class Recipe:
    """How a default network is trained: LNGD on the mean cross-entropy, at a constant rate after a warm-up.

    Attributes:
        learning_rate: LNGD's step size.
        warm_up: steps over which the rate grows linearly to it.
        damping: the bounds (ν₁, ν₂) of both factors.
        batch: samples a step; the last batch of an epoch may be smaller.
        epochs: passes over the data, on data large enough for `least_steps`.
        least_steps: on smaller data, epochs are added until there are as many steps.
    """

    learning_rate: float
    warm_up: int
    damping: tuple[float, float]
    batch: int
    epochs: int
    least_steps: int

    def steps_per_epoch(self, samples: int) -> int:
        """Steps in one pass over `samples` samples."""
        return -(-samples // self.batch)

    def epochs_for(self, samples: int) -> int:
        """Passes over `samples` samples: `epochs`, or what `least_steps` needs."""
        return max(self.epochs, -(-self.least_steps // self.steps_per_epoch(samples)))

    def steps_for(self, samples: int) -> int:
        """Steps over `samples` samples in all."""
        return self.epochs_for(samples) * self.steps_per_epoch(samples)


@dataclass(frozen=True)
class ModelSpec:
    """A registered model.

    Attributes:
        name: the registered name.
        build: makes the model in float32 on the CPU, from the global random state, at its default size.
        dataset: the name of its data set.
        likelihood: the name of its likelihood.
        preprocess: from a data set to what the model is called with: a tensor [n, ...] for ``model(x)``,
            or a tuple of tensors for ``model(*x)``.
        targets: from a data set to the targets [n, ...].
        default_samples: how many samples an analysis takes, all if None.
        description: one line for listings.
        source: the paper it comes from.
        recipe: how the default network is trained; without one it is used as initialised.
        build_for: makes the model for a data set, where its size depends on the data.
        masks: for layer names or globs which positions of a padded input are valid; where several
            globs match a layer, the last one holds.
    """

    name: str
    build: Callable[[], nn.Module]
    dataset: str
    likelihood: str
    preprocess: Callable[[Dataset], Inputs]
    targets: Callable[[Dataset], Tensor]
    default_samples: int | None
    description: str
    source: str
    recipe: Recipe | None = None
    build_for: Callable[[Dataset], nn.Module] | None = None
    masks: Mapping[str, Mask] = field(default_factory=dict)


_SPECS: dict[str, ModelSpec] = {}


@checked
def register(model: ModelSpec) -> None:
    """Make a model known under its name.

    Raises:
        InputError: if the name is taken, or holds a colon (the mark of ``package.module:factory``).
    """
    if model.name in _SPECS:
        raise InputError(f"the model name {model.name!r} is taken; choose another name.")
    if ":" in model.name:
        raise InputError(f"the model name {model.name!r} holds a colon; choose another name.")
    _SPECS[model.name] = model


def names() -> tuple[str, ...]:
    """The names of the registered models, sorted."""
    return tuple(sorted(_SPECS))


@checked
def spec(name: str) -> ModelSpec:
    """The registered model of that name.

    Raises:
        InputError: if there is none.
    """
    if name not in _SPECS:
        raise unknown("model", name, _SPECS)
    return _SPECS[name]
