"""What a network of the list is, its data, and its output as a plain tensor."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module, metadata
from typing import Any

import torch
from torch import Tensor, nn

SAMPLES, LENGTH, WORDS, CLASSES = 4, 5, 11, 3
Data = tuple[Any, Tensor]


@dataclass(frozen=True)
class Network:
    """One network, with random weights of its classes' own initialisation.

    Attributes:
        name: what the table calls it.
        package: the distribution that its classes are from.
        make: builds it; imports the package.
        data: its inputs and targets.
        likelihood: of its outputs.
        output: the name of the output where it gives several.
        rates: learning rates by optimizer, where they are not those of `RATES`.
    """

    name: str
    package: str
    make: Callable[[], nn.Module]
    data: Callable[[], Data]
    likelihood: str = "token-categorical"
    output: str | None = None
    rates: Mapping[str, float] | None = None

    @property
    def options(self) -> dict[str, str]:
        """What fisherlab must be told of it."""
        return {} if self.output is None else {"output": self.output}

    def installed(self) -> str:
        """The version of the package; an empty text where it is not installed."""
        try:
            return metadata.version(self.package)
        except metadata.PackageNotFoundError:
            return ""

    def model(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """The same network every time, in evaluation mode."""
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            return (
                self.make()._apply(lambda x: _as(x, dtype)).eval()
            )  # `to` takes complex numbers for real ones

    def batch(self, dtype: torch.dtype = torch.float64) -> Data:
        """The same inputs and targets every time."""
        with torch.random.fork_rng([]):
            torch.manual_seed(1)
            inputs, targets = self.data()
        return changed(inputs, lambda x: _as(x, dtype)), _as(targets, dtype)

    def wrapped(self) -> "Network":
        """The same in a module that gives one tensor."""
        return replace(self, make=lambda: Wrapped(self.make(), self.output), output=None)

    def logits(self, model: nn.Module, inputs: Any) -> Tensor:
        """The outputs as one tensor, whatever the network gives."""
        if isinstance(inputs, Tensor):
            given = model(inputs)
        else:
            given = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
        return picked(given, self.output)


class Wrapped(nn.Module):
    """A network that gives its outputs as one tensor."""

    def __init__(self, model: nn.Module, output: str | None) -> None:
        super().__init__()
        self.model, self.output = model, output

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        return picked(self.model(*inputs, **named), self.output)


def picked(given: Any, output: str | None) -> Tensor:
    """The outputs among what a network gives."""
    if isinstance(given, Tensor):
        return given
    if isinstance(given, tuple) and output is None:
        return given[0]
    return given[output] if output else given.logits if hasattr(given, "logits") else given.sample


def changed(inputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Inputs with every tensor changed."""
    if isinstance(inputs, Tensor):
        return change(inputs)
    if isinstance(inputs, dict):
        return {name: change(x) for name, x in inputs.items()}
    return tuple(change(x) for x in inputs)


def build(package: str, name: str, *arguments: Any, **options: Any) -> Any:
    """An instance of a class of a package, which is imported when it is asked for."""
    return getattr(import_module(package), name)(*arguments, **options)


def words(length: int = LENGTH) -> Tensor:
    """Random tokens; 0 to 2 are left for padding, start and end."""
    return torch.randint(3, WORDS, (SAMPLES, length))


def next_words() -> Data:
    """A text and its next words."""
    text = words(LENGTH + 1)
    return {"input_ids": text[:, :-1]}, text[:, 1:]


def masked_words() -> Data:
    """A word for every word; the last ones of two samples are padding, which the loss does not count."""
    mask = torch.ones(SAMPLES, LENGTH, dtype=torch.int64)
    mask[1, 3:] = mask[2, 4:] = 0
    return {"input_ids": words() * mask, "attention_mask": mask}, words().masked_fill(mask == 0, -100)


def labelled_words() -> Data:
    """A class for every text."""
    return {"input_ids": words()}, labels()


def translation() -> Data:
    """Two texts, and the words that follow in the second."""
    text = words(LENGTH + 1)
    return {"input_ids": words(), "decoder_input_ids": text[:, :-1]}, text[:, 1:]


def labels() -> Tensor:
    """A class a sample."""
    return torch.randint(CLASSES, (SAMPLES,))


def images(channels: int, size: int) -> Tensor:
    """Noise [n, channels, size, size]."""
    return torch.randn(SAMPLES, channels, size, size)


def _as(x: Tensor, dtype: torch.dtype) -> Tensor:
    if x.is_complex():
        return x.to(dtype.to_complex())
    return x.to(dtype) if x.is_floating_point() else x
