"""A statistic is a named sum over samples; a layer's sums are what one or more passes made of them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fisherlab.collect.layer_batch import LayerBatch
from fisherlab.errors import InputError
from fisherlab.gradients.inputs import Inputs, OneHot
from fisherlab.layers import BlockShape
from fisherlab.likelihoods.labels import LabelKind
from fisherlab.statistics.moments import rotated_square

Compute = Callable[[Any, Any], Tensor]

Basis = tuple[Tensor | None, Tensor | None]

ROTATED = "rotated/"
_SMALL = 2**21  # numbers in a sum that is remembered: 16 MiB, a choice, for every layer remembers several


@dataclass(frozen=True)
class Statistic:
    """A sum over samples of a function of one layer's (a, g).

    Attributes:
        name: statistics with one name and kind are one: they are computed once.
        compute: takes a [n, t, d] and g [c, n, t, m] and gives the sum over the n samples; a sequence: one
            for each group.
        kind: whose labels g is from (see `fisherlab.collect`); None where only a is used, which may then be
            `Patches`; compute then takes the mask of the positions that count (bool [n, t], or None: all) in
            the place of g.
        inputs: whether a is used; where it is not, compute is given None for it.
        patches: whether compute takes `Patches` for a too.
    """

    name: str
    compute: Compute | Sequence[Compute] = field(compare=False, repr=False)
    kind: str | None = None
    inputs: bool = True
    patches: bool = False

    def __post_init__(self) -> None:
        """A kind of labels may be given as its text."""
        object.__setattr__(self, "kind", None if self.kind is None else LabelKind(self.kind))

    @property
    def key(self) -> str:
        """The name under which the sum is kept."""
        return self.name if self.kind is None else f"{self.name}/{self.kind}"

    def __call__(self, batch: LayerBatch) -> Tensor:
        """The sum over one batch, in the model's dtype; [G, …] for G > 1 groups."""
        computes = self._computes(batch.groups)
        found = [self._of(part, compute) for compute, part in zip(computes, batch.parts, strict=True)]
        return found[0] if batch.groups == 1 else torch.stack(found)

    @property
    def one_sided(self) -> bool:
        """Whether it uses a alone or g alone, so that the label columns may come in parts."""
        return self.kind is None or not self.inputs

    def _of(self, batch: LayerBatch, compute: Compute) -> Tensor:
        if self.kind is None:
            return compute(batch.inputs, batch.valid)
        if not self.inputs:
            return compute(None, batch.g[self.kind])
        return compute(batch.inputs if self.patches else batch.a, batch.g[self.kind])

    def numbers(self, layer: BlockShape) -> int:
        """How many numbers the sum has, by computing that of one sample of zeros without storage."""
        shape = layer.group
        g = None if self.kind is None else torch.zeros(1, 1, 1, shape.outputs, device="meta")
        a: Inputs = torch.zeros(1, 1, shape.inputs, device="meta")
        if layer.one_hot:
            a = OneHot(torch.zeros(1, 1, dtype=torch.int64, device="meta"), shape.inputs, a.dtype)
        try:
            found = self._computes(layer.groups)[0](a, g)
        except (RuntimeError, NotImplementedError):  # a statistic that reads values
            return layer.groups * (shape.size + shape.inputs**2 + shape.outputs**2)
        return layer.groups * found.numel()

    def _computes(self, groups: int) -> Sequence[Compute]:
        return [self.compute] * groups if callable(self.compute) else self.compute


def of_group(bases: Basis, group: int) -> Basis:
    """The bases of one group; None, the identity, is that of every group."""
    U_A, U_B = (None if U is None else U[group] for U in bases)
    return U_A, U_B


@dataclass
class LayerSums:
    """Sums over samples in float64, with their counts.

    Attributes:
        samples: N.
        positions: N·T, the positions that count.
        values: for each statistic's key its sum; [G, …] for G > 1 groups.
        bases: for each two-pass method the eigenvectors (U_A, U_B) that its second pass rotates by; None
            where that is the identity.
        means: of those whose sum was taken, see `taken_mean`.
    """

    samples: int = 0
    positions: int = 0
    values: dict[str, Tensor] = field(default_factory=dict)
    bases: dict[str, Basis] = field(default_factory=dict)
    means: dict[str, Tensor] = field(default_factory=dict)

    def count(self, batch: LayerBatch) -> None:
        """Counts a batch, in its first part; in the first pass over the data only."""
        if batch.fresh:
            self.samples += batch.samples
            self.positions += batch.positions

    def add(self, statistics: Iterable[Statistic], batch: LayerBatch) -> None:
        """Adds a batch to these statistics; a part of one to those that it brings something new for."""
        for statistic in statistics:
            if not (batch.fresh if statistic.kind is None else statistic.kind in batch.g):
                continue
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
        if statistic.key in self.means:
            return self.means[statistic.key] * self.samples
        if statistic.key not in self.values:
            raise InputError(
                f"the statistic {statistic.key!r} was not collected; collect with the "
                "approximation that needs it"
            )
        return self.values[statistic.key]

    def has(self, statistic: Statistic) -> bool:
        """Whether `sum` can give it."""
        return statistic.key in self.values or statistic.key in self.means

    def mean(self, statistic: Statistic) -> Tensor:
        """The sum over samples by N."""
        return self.sum(statistic) / self.samples

    def taken_mean(self, statistic: Statistic) -> Tensor:
        """`mean` in the place of a large sum, which `sum` makes anew from it."""
        if statistic.key not in self.means:
            total = self.sum(statistic)
            del self.values[statistic.key]
            self.means[statistic.key] = total.div_(self.samples)
        return self.means[statistic.key]

    def group(self, place: int) -> "LayerSums":
        """The sums of one of the groups."""
        values = {key: value[place] for key, value in self.values.items()}
        bases = {name: of_group(basis, place) for name, basis in self.bases.items()}
        means = {key: value[place] for key, value in self.means.items()}
        return LayerSums(self.samples, self.positions, values, bases, means)

    def __add__(self, other: "LayerSums") -> "LayerSums":
        """The sums over both sets of samples.

        Sums that only one side has, and second moments in a basis that the sides do not share, are left
        out.
        """
        bases = {
            name: basis
            for name, basis in self.bases.items()
            if name in other.bases and all(map(_same, basis, other.bases[name]))
        }
        values = {
            key: value + other.values[key]
            for key, value in self.values.items()
            if key in other.values and (not key.startswith(ROTATED) or _owner(key) in bases)
        }
        return LayerSums(self.samples + other.samples, self.positions + other.positions, values, bases)

    def rotated(self, name: str, kind: str) -> Statistic:
        """The second pass of a two-pass method: Σ (U_Bᵀ V U_A)∘² in its basis, of every group in its own."""
        bases = self.bases[name]
        groups = [len(U) for U in bases if U is not None and U.dim() == 3]
        own = [of_group(bases, group) for group in range(groups[0])] if groups else [bases]
        computes = [partial(rotated_square, U_A=U_A, U_B=U_B) for U_A, U_B in own]
        return Statistic(ROTATED + name, computes, kind)


class KeptSums(LayerSums):
    """The sums of samples that are all kept, each made when it is asked for, in float64."""

    def __init__(self, batch: LayerBatch) -> None:
        super().__init__()
        self.batch = batch
        self.count(batch)
        self._cached: dict[str, Tensor] = {}
        self._groups: dict[int, KeptSums] = {}  # each with the bases that are made for it

    def sum(self, statistic: Statistic) -> Tensor:
        """The sum over samples; small ones are remembered."""
        if statistic.key in self._cached:
            return self._cached[statistic.key]
        found = statistic(self.batch)
        if found.numel() <= _SMALL:
            self._cached[statistic.key] = found
        return found

    def taken_mean(self, statistic: Statistic) -> Tensor:
        """`mean`; a sum that is remembered stays."""
        return self.mean(statistic)

    def has(self, statistic: Statistic) -> bool:
        """Whether the labels that it needs were kept."""
        return statistic.kind is None or statistic.kind in self.batch.g

    def group(self, place: int) -> "KeptSums":
        """The sums of one of the groups."""
        if place not in self._groups:
            sums = self._groups[place] = KeptSums(self.batch.group(place))
            sums.bases = {name: of_group(basis, place) for name, basis in self.bases.items()}
        return self._groups[place]


class SumsWithout(LayerSums):
    """Sums over samples without a few of them, which are kept: each a difference of two.

    Second moments are in the basis of all the samples; those in that of the rest would need another pass.
    """

    def __init__(self, sums: LayerSums, left: LayerSums) -> None:
        super().__init__(sums.samples - left.samples, sums.positions - left.positions, bases=sums.bases)
        self._sums, self._left = sums, left

    def sum(self, statistic: Statistic) -> Tensor:
        """The sum over the samples that stay; one that is known is not made."""
        if statistic.key in self.values:
            return self.values[statistic.key]
        return self._sums.sum(statistic) - self._left.sum(statistic)

    def taken_mean(self, statistic: Statistic) -> Tensor:
        """`mean`: there is no sum that could be let go."""
        return self.mean(statistic)

    def has(self, statistic: Statistic) -> bool:
        """Whether both are known."""
        return self._sums.has(statistic) and self._left.has(statistic)

    def group(self, place: int) -> "SumsWithout":
        """The sums of one of the groups."""
        return SumsWithout(self._sums.group(place), self._left.group(place))


def _same(U: Tensor | None, V: Tensor | None) -> bool:
    return U is V if U is None or V is None else torch.equal(U, V)


def _owner(key: str) -> str:
    """The method whose second pass made this sum."""
    return key.removeprefix(ROTATED).rpartition("/")[0]
