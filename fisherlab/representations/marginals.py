"""Representation vectors over the data: a pass for moments, and one for histograms and the values tested."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fisherlab.base import distributed
from fisherlab.base.progress import Progress, bar
from fisherlab.collect.collector import Collector
from fisherlab.collect.hooks import unchanged
from fisherlab.errors import InputError
from fisherlab.representations.moments import Histograms, Moments
from fisherlab.representations.tables import VectorFacts
from fisherlab.representations.vectors import BatchReading, Vectors, most_samples, places_between, read

TESTED = 1000
"""The most values of a coordinate that are tested for normality, each from another sample: a choice."""

CHOSEN = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Coordinates with a histogram are those at these quantiles of the excess kurtosis."""

_LIVE = 6  # float64 tensors of one kind of vector at once


class Marginals:
    """How every layer's vectors are distributed over samples and positions.

    Of up to `TESTED` samples one position each, drawn once, is kept for tests: values at positions of one
    sample are not independent, and the millions of values of a convolution would reject any distribution.

    Args:
        collector: reads the model and the data.
        order: a permutation of the samples; the first ones are tested.
        mine: the samples of this process.
        draws: source of the positions.
        progress: see `fisherlab.base.progress`.

    Raises:
        InputError: where masks leave no position of a layer.
        NumericalError: where the model's output is not finite.
    """

    def __init__(
        self,
        collector: Collector,
        order: Tensor,
        mine: range,
        draws: torch.Generator,
        progress: Progress,
    ) -> None:
        self._collector, self._progress, self._mine = collector, progress, mine
        self._tested = order[:TESTED].sort().values
        self._shares = torch.rand(len(self._tested), generator=draws, dtype=torch.float64, device="cpu")
        self._largest = self._most_numbers()
        sums = self._add_moments()
        self._counts = {
            name: {kind: _Counts(*one) for kind, one in by_kind.items()} for name, by_kind in sums.items()
        }
        self._count()

    def of(self, name: str) -> dict[str, VectorFacts]:
        """What was measured of a layer's vectors, by kind."""
        return {kind: counts.facts() for kind, counts in self._counts[name].items()}

    def _add_moments(self) -> dict[str, dict[str, tuple[Moments, Moments]]]:
        """By layer and kind of vector the moments of coordinates, and those of norms and squared norms."""
        sums: dict[str, dict[str, tuple[Moments, Moments]]] = {name: {} for name in self._collector.layers}
        for reading, _ in self._readings("moments"):
            for name, by_kind in sums.items():
                for kind, vectors in reading.vectors(name).items():
                    coordinates, norms = by_kind.setdefault(kind, (Moments(), Moments()))
                    rows = vectors.rows
                    squares = rows.square().sum(1, keepdim=True)
                    coordinates.add(rows)
                    norms.add(torch.cat([squares.sqrt(), squares], 1))
        for name, by_kind in sums.items():
            for moments in (one for pair in by_kind.values() for one in pair):
                moments.gather(self._collector.device)
            if not all(coordinates.count for coordinates, _ in by_kind.values()):
                raise InputError(f"the mask of layer {name!r} leaves no position in all the data; correct it")
        return sums

    def _count(self) -> None:
        device = self._collector.device
        for reading, start in self._readings("histograms"):
            own = places_between(self._tested, start, start + reading.samples)
            samples, shares = (self._tested[own] - start).to(device), self._shares[own].to(device)
            for name, by_kind in self._counts.items():
                for kind, vectors in reading.vectors(name).items():
                    by_kind[kind].add(vectors, samples, shares)
        for counts in (one for by_kind in self._counts.values() for one in by_kind.values()):
            counts.gather()

    def _readings(self, what: str) -> Iterator[tuple[BatchReading, int]]:
        """A pass over this process's samples: every batch's reading, and the index of its first sample."""
        start, most = self._mine.start, most_samples(self._collector, 1, _LIVE * 8 * self._largest)
        with (
            unchanged(self._collector.model),
            bar(self._progress, what, len(self._mine)) as report,
        ):
            for inputs, _ in self._collector.read(most, self._mine.start, self._mine.stop):
                reading = read(self._collector, inputs)
                yield reading, start
                start += reading.samples
                report(start - self._mine.start)

    def _most_numbers(self) -> int:
        """Numbers of one sample's vectors of a kind, in the layer with the most."""
        inputs, _ = next(self._collector.read(1))
        with unchanged(self._collector.model):
            reading = read(self._collector, inputs)
            return max(
                vectors.values.numel()
                for name in self._collector.layers
                for vectors in reading.vectors(name).values()
            )


@dataclass
class _Counts:
    """Histograms of one kind of vector of a layer, and the vectors that are tested."""

    coordinates: Moments
    norms: Moments  # of ‖x‖ and ‖x‖²
    tested: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chosen = _chosen(self.coordinates.excess_kurtosis)
        self.histograms = Histograms(self.coordinates, self.chosen)
        self.norm_histogram = Histograms(self.norms, self.chosen.new_zeros(1))

    def add(self, vectors: Vectors, samples: Tensor, shares: Tensor) -> None:
        """Counts a batch, and keeps one vector of each of these samples."""
        rows = vectors.rows
        self.histograms.add(rows[:, self.chosen])
        self.norm_histogram.add(rows.square().sum(1, keepdim=True).sqrt())
        self.tested.append(vectors.pick(samples, shares).cpu())

    def gather(self) -> None:
        """Has what all processes counted and kept from now on."""
        self.histograms.gather()
        self.norm_histogram.gather()
        self.tested = distributed.gather_all(torch.cat(self.tested))

    def facts(self) -> VectorFacts:
        """The sums, and the vectors tested of samples with a position that counts."""
        tested = torch.cat(self.tested)
        return VectorFacts(
            coordinates=self.coordinates,
            norms=self.norms,
            chosen=self.chosen.tolist(),
            histograms=self.histograms,
            norm_histogram=self.norm_histogram,
            tested=tested[~tested.isnan().any(1)].numpy(),
        )


def _chosen(kurtosis: Tensor) -> Tensor:
    """The coordinates at the quantiles `CHOSEN` of the excess kurtosis, constant ones (NaN) left out."""
    order = kurtosis.argsort(stable=True)  # NaN stands last
    known = int((~kurtosis.isnan()).sum())
    places = [round(share * (known - 1)) for share in CHOSEN] if known else []
    return order[list(dict.fromkeys(places))]
