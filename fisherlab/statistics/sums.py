"""A statistic is a named sum over samples; a layer's sums are what one or more passes made of them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fisherlab.collect import LayerBatch
from fisherlab.errors import InputError
from fisherlab.statistics.moments import rotated_square

Compute = Callable[[Tensor, Any], Tensor]

ROTATED = "rotated/"


@dataclass(frozen=True)
class Statistic:
    """A sum over samples of a function of one layer's (a, g).

    Attributes:
        name: statistics with one name and kind are one: they are computed once.
        compute: takes a [n, t, d] and g [c, n, t, m] and gives the sum over the n samples.
        kind: whose labels g is from (see `fisherlab.collect`); None where only a is used.
    """

    name: str
    compute: Compute = field(compare=False, repr=False)
    kind: str | None = None

    @property
    def key(self) -> str:
        """The name under which the sum is kept."""
        return self.name if self.kind is None else f"{self.name}/{self.kind}"

    def __call__(self, batch: LayerBatch) -> Tensor:
        """The sum over one batch, in the model's dtype."""
        if self.kind is None:
            return self.compute(batch.a, None)
        return self.compute(batch.a, batch.g[self.kind])


@dataclass
class LayerSums:
    """Sums over samples in float64, with their counts.

    Attributes:
        samples: N.
        positions: N·T.
        values: for each statistic's key its sum.
        bases: for each two-pass method the eigenvectors (U_A, U_B) that its second pass rotates by.
    """

    samples: int = 0
    positions: int = 0
    values: dict[str, Tensor] = field(default_factory=dict)
    bases: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def count(self, batch: LayerBatch) -> None:
        """Counts a batch; once a pass over the data, in the first pass only."""
        self.samples += batch.a.shape[0]
        self.positions += batch.a.shape[0] * batch.a.shape[1]

    def add(self, statistics: Iterable[Statistic], batch: LayerBatch) -> None:
        """Adds a batch to these statistics."""
        for statistic in statistics:
            term = statistic(batch)
            known = self.values.get(statistic.key)
            if known is None:
                self.values[statistic.key] = term.double()
            else:
                known += term

    def sum(self, statistic: Statistic) -> Tensor:
        """The sum over samples.

        Raises:
            InputError: where it was never collected.
        """
        if statistic.key not in self.values:
            raise InputError(
                f"the statistic {statistic.key!r} was not collected; collect with the "
                "approximation that needs it"
            )
        return self.values[statistic.key]

    def mean(self, statistic: Statistic) -> Tensor:
        """The sum over samples by N."""
        return self.sum(statistic) / self.samples

    def __add__(self, other: "LayerSums") -> "LayerSums":
        """The sums over both sets of samples.

        Sums that only one side has, and second moments in a basis that the sides do not share, are left
        out.
        """
        bases = {
            name: basis
            for name, basis in self.bases.items()
            if name in other.bases
            and all(torch.equal(u, v) for u, v in zip(basis, other.bases[name], strict=True))
        }
        values = {
            key: value + other.values[key]
            for key, value in self.values.items()
            if key in other.values and (not key.startswith(ROTATED) or _owner(key) in bases)
        }
        return LayerSums(self.samples + other.samples, self.positions + other.positions, values, bases)

    def rotated(self, name: str, kind: str) -> Statistic:
        """The second pass of a two-pass method: Σ (U_Bᵀ V U_A)∘² in its basis."""
        U_A, U_B = self.bases[name]
        return Statistic(ROTATED + name, partial(rotated_square, U_A=U_A, U_B=U_B), kind)


def _owner(key: str) -> str:
    """The method whose second pass made this sum."""
    return key.removeprefix(ROTATED).rpartition("/")[0]
