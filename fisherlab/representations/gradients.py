"""Gradients at the activated outputs, and how isotropic they are: the test of layer-wise sampling."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fisherlab.base.progress import Progress, bar
from fisherlab.collect.batches import each
from fisherlab.collect.collector import Collector
from fisherlab.collect.hooks import backward, unchanged
from fisherlab.representations.isotropy import Isotropy
from fisherlab.representations.vectors import BatchReading, most_samples, places_between, read

MOST_COLUMNS = 32
"""Columns of a sample's output Hessian above which labels are drawn: a choice, as `_DRAWN_COLUMNS`."""

DRAWS = 128
"""Labels a sample, where they are drawn: a choice, four for each of the columns."""

_DRAWN_COLUMNS = 32  # each a sum over several labels: nearly normal, so that few pairs of them tell much
_OPERATIONS = 3e11  # multiplications of the pass: a choice, about ten seconds on a core
_LEAST_SAMPLES = 32  # a choice: fewer tell little of a mean
_MOST_OUTPUTS = 4096  # m of a layer whose M is made: a choice, 128 MiB in float64
_CHUNK = 4096  # samples that are read at a time: a choice


class OutputGradients:
    """The isotropy of every layer's M = Σ_t Σ_c q qᵀ, q the gradient at the activated output.

    As many samples as about 3·10¹¹ multiplications allow, and at least 32, are sent back. Above
    `MOST_COLUMNS` columns 32 take their place, each a sum over 4 drawn labels.

    Args:
        collector: reads the model and the data; made with `DRAWS` draws.
        order: a permutation of the samples; the first ones are taken.
        mine: the samples of this process.
        progress: see `fisherlab.base.progress`.

    Attributes:
        isotropies: by layer; that of a layer without a gradient has seen no samples.
        columns: how many q a sample and position has.
        labels: whose expectation M is: `expected`, or how many were drawn.

    Raises:
        NumericalError: where the model's output is not finite.
    """

    def __init__(self, collector: Collector, order: Tensor, mine: range, progress: Progress) -> None:
        self._collector = collector
        rank = collector.sizes.columns["predictive"]
        drawn = rank > MOST_COLUMNS
        self._kind = "monte-carlo" if drawn else "predictive"
        self.labels = f"{DRAWS} drawn" if drawn else "expected"
        self.columns = _DRAWN_COLUMNS if drawn else rank
        self.isotropies = {
            name: Isotropy(view.outputs, rank, collector.sizes.positions[name], drawn)
            for name, view in collector.layers.items()
        }
        self._names = [n for n, view in collector.layers.items() if view.outputs <= _MOST_OUTPUTS]
        self._add_all(order, mine, progress)
        for isotropy in self.isotropies.values():
            isotropy.gather(collector.device)

    def why_none(self, name: str) -> str:
        """Why a layer has no isotropy, or an empty text."""
        if self.isotropies[name].samples:
            return ""
        if name not in self._names:
            return f"above {_MOST_OUTPUTS:,} outputs no isotropy is measured"
        return "the activation that was named is not in the graph: there is no gradient at its output"

    def _add_all(self, order: Tensor, mine: range, progress: Progress) -> None:
        collector = self._collector
        chosen = order[: max(_LEAST_SAMPLES, int(_OPERATIONS / self._operations()))].sort().values
        own = places_between(chosen, mine.start, mine.stop)
        taken = chosen[own]
        most = most_samples(collector, collector.sizes.columns[self._kind], 8 * self._held())
        generators, done = collector.generators(own.start), 0
        with unchanged(collector.model), bar(progress, "gradients", len(taken)) as report:
            for inputs, targets in self._selected(taken, mine, most):
                reading = read(collector, inputs)
                columns = collector.columns(self._kind, reading.outputs.detach(), targets, generators, inputs)
                self._add(reading, columns.unflatten(0, (self.columns, -1)).sum(1))
                done += reading.samples
                report(done)

    def _add(self, reading: BatchReading, label_columns: Tensor) -> None:
        edges = {name: own for name in self._names if (own := reading.edges(name)) is not None}
        numbers = self._collector.numbers(reading.inputs)
        every = [edge for own in edges.values() for edge in own]
        if not every:
            return
        for columns, found in backward(reading.outputs, every, label_columns, False, numbers):
            gradients = iter(found)
            for name in edges:
                q = reading.gradients(name, [next(gradients) for _ in edges[name]], columns)
                self.isotropies[name].add(q)
        for name in edges:
            self.isotropies[name].end_batch()

    def _selected(self, wanted: Tensor, mine: range, most: int) -> Iterator[tuple[Any, Tensor | None]]:
        """The wanted samples of this process, in batches."""
        start, collector = mine.start, self._collector
        for inputs, targets in collector.read(_CHUNK, mine.start, mine.stop):
            count = collector.batches.size(inputs)
            own = places_between(wanted, start, start + count)
            for places in (wanted[own] - start).to(collector.device).split(most):
                if len(places):
                    select = partial(torch.index_select, dim=collector.batch_dim, index=places)
                    yield each(inputs, select), None if targets is None else targets[places]
            start += count

    def _operations(self) -> int:
        """Multiplications that one sample takes: back through the layers, and for M."""
        sizes = self._collector.sizes
        products = sum(sizes.positions[n] * self._collector.layers[n].outputs ** 2 for n in self._names)
        return self.columns * (2 * sizes.multiplications + products)

    def _held(self) -> int:
        """Numbers of one sample's q, or M where those are fewer, and of their products."""
        sizes, held = self._collector.sizes, 0
        for name in self._names:
            outputs = self._collector.layers[name].outputs
            held += 2 * outputs * min(outputs, self.columns * sizes.positions[name])
        return held
