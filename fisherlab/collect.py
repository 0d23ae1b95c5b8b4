"""One pass over data: for every layer its inputs a and output gradients g, without side effects.

Hooks keep each layer's input and the autograd edge of its output; all columns of the output Hessian's root
go backwards in one batched call, with respect to those edges, so no parameter gradient is ever
formed. Whole samples are cut so that a batch stays under the memory limit.
"""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from fisherlab.capture import Seen, backward, capture, unchanged
from fisherlab.data import Batches, is_finite
from fisherlab.draws import normal
from fisherlab.errors import InputError, InputTypeError, NumericalError
from fisherlab.layers import NETWORK_OUTPUT, Activation, Layers, find_activations
from fisherlab.likelihoods import Likelihood, label_columns
from fisherlab.progress import Progress, bar

LABEL_KINDS = ("predictive", "monte-carlo", "drawn", "empirical")
"""Where g comes from; `drawn` is `monte-carlo` with one label a sample."""

LAYERWISE_COLUMNS = "layerwise-columns"

_COINS = 4096
_BATCH_BYTES = 32 * 2**20
_MOST_SAMPLES = 8192


@dataclass
class LayerBatch:
    """What one batch gave one layer.

    Attributes:
        start: the index of the first sample in the data.
        a: inputs [n, t, d].
        g: for each kind of label the output gradients [c, n, t, m].
    """

    start: int
    a: Tensor
    g: dict[str, Tensor] = field(default_factory=dict)

    def half(self, half: int) -> "LayerBatch":
        """The samples in one half (0 or 1) of the data, see `half_of`."""
        chosen = (half_of(self.start, len(self.a)) == half).nonzero().squeeze(1)
        return self._select(chosen.to(self.a.device))

    def head(self, samples: int) -> "LayerBatch":
        """The samples with an index in the data below `samples`."""
        return self._select(slice(0, max(0, samples - self.start)))

    def _select(self, part: slice | Tensor) -> "LayerBatch":
        return LayerBatch(
            start=self.start,
            a=self.a[part],
            g={kind: g[:, part] for kind, g in self.g.items()},
        )


def half_of(start: int, count: int) -> Tensor:
    """Which half of the data (0 or 1) samples start, …, start + count − 1 are in.

    Of each pair of neighbours one goes to either half, by a fixed coin: the halves are as large as each
    other and alike, also where the order of the data has a period (MNIST's training set alternates
    between two groups of writers).
    """
    indices = torch.arange(start, start + count)
    pairs = indices // 2
    blocks = [_coins(block) for block in range(start // (2 * _COINS), (start + count) // (2 * _COINS) + 1)]
    coins = torch.cat(blocks)[pairs - start // (2 * _COINS) * _COINS]
    return (indices + coins) % 2


@lru_cache(maxsize=64)
def _coins(block: int) -> Tensor:
    return torch.randint(2, (_COINS,), generator=torch.Generator().manual_seed(block))


@dataclass(frozen=True)
class Shapes:
    """What one look at a few samples told: positions by layer, and columns by kind of label."""

    positions: Mapping[str, int]
    columns: Mapping[str, int]


class Generators(dict[str, torch.Generator]):
    """Generators by use, each made from the seed and its name when it is first asked for."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed

    def __missing__(self, use: str) -> torch.Generator:
        self[use] = torch.Generator().manual_seed(self._seed ^ zlib.crc32(use.encode()))
        return self[use]


Needs = Mapping[str, frozenset[str]]
"""For each layer the kinds of g that a pass is to give.

Kinds of layer-wise sampling: `layerwise` gives the slope φ'(s) itself, one column whose square is the
expectation of g∘g; `layerwise:k` gives k draws −φ'(s)∘ε/√k. With `layerwise+categorical` the
network's last layer has √(p(1 − p)) in the place of its slope. `layerwise-columns` gives columns
φ'(s_tj) e_tj, one for each unit and position, whose outer products sum to the expectation over ε.
"""


class Collector:
    """Reads a model, its layers and its data; every pass of fisherlab is one of its.

    Args:
        model: the network; its output is one tensor [n, K].
        layers: the layers to look at.
        data: see `Batches`.
        likelihood: what the output means.
        draws: labels a sample for the kind `monte-carlo`.
        batch_dim: the dimension that counts samples in the layers' inputs and outputs.
        generator: source of the seed for drawn labels; None: seed 0. Every pass draws the same labels.
        progress: see `fisherlab.progress`.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers,
        data: Any,
        likelihood: Likelihood,
        *,
        draws: int = 1,
        batch_dim: int = 0,
        generator: torch.Generator | None = None,
        progress: Progress = False,
    ) -> None:
        if draws < 1:
            raise InputError(f"draws must be at least 1, not {draws}")
        self.model, self.layers, self.likelihood = model, layers, likelihood
        self.batches = Batches(data, batch_dim)
        self.batch_dim = batch_dim
        self._draws, self._progress = draws, progress
        self._seed = 0
        if generator is not None:
            device = generator.device
            self._seed = int(torch.randint(2**62, (), generator=generator, device=device))
        first = next(model.parameters())
        self.device, self.dtype = first.device, first.dtype
        _check_weights(model)
        self.shapes = self._look()

    def passes(self, needs: Needs, what: str, scratch: int = 0) -> Iterator[dict[str, LayerBatch]]:
        """One pass over the data.

        Args:
            needs: what each layer is to be given.
            what: a word for the progress bar.
            scratch: further numbers a sample that the caller will make of each batch.

        Yields:
            For each layer in `needs` its `LayerBatch`.

        Raises:
            NumericalError: where the network gives values that are not finite; names the layer and
                the batch.
        """
        generators = self.generators()
        start = 0
        with (
            unchanged(self.model),
            bar(self._progress, what, self.batches.samples) as report,
        ):
            for index, (inputs, targets) in enumerate(self.read(self._samples(needs, scratch))):
                yield self._collect(inputs, targets, needs, generators, start, index)
                start += inputs.shape[self.batch_dim]
                report(start)

    def read(self, most: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The data in batches of at most `most` samples, in the model's dtype and on its device."""
        for inputs, targets in self.batches.batches(most):
            yield self._move(inputs), None if targets is None else self._move(targets)

    def columns(
        self,
        kind: str,
        outputs: Tensor,
        targets: Tensor | None,
        generators: Generators,
    ) -> Tensor:
        """The label columns [c, n, K] of one of `LABEL_KINDS`."""
        draws = 1 if kind == "drawn" else self._draws
        source = "monte-carlo" if kind == "drawn" else kind
        return label_columns(self.likelihood, source, outputs, targets, draws, generators[kind])

    def generators(self) -> "Generators":
        """Fresh generators, one a use, that give every pass the same draws."""
        return Generators(self._seed)

    def _collect(
        self,
        inputs: Tensor,
        targets: Tensor | None,
        needs: Needs,
        generators: Generators,
        start: int,
        index: int,
    ) -> dict[str, LayerBatch]:
        samples = inputs.shape[self.batch_dim]
        seen, outputs = self._forward(inputs, index)
        if targets is not None:
            self.likelihood.check(outputs, targets)
        given = {name: LayerBatch(start, self._inputs(name, seen[name], samples)) for name in needs}
        self._layerwise(given, needs, seen, outputs, generators)
        wanted = [kind for kind in LABEL_KINDS if any(kind in kinds for kinds in needs.values())]
        for kind in wanted:
            columns = self.columns(kind, outputs.detach(), targets, generators)
            names = [name for name, kinds in needs.items() if kind in kinds]
            edges = [seen[name].edge for name in names]
            keep = kind != wanted[-1]
            for name, g in zip(names, backward(outputs, edges, columns, keep), strict=True):
                given[name].g[kind] = self.layers[name].to_outputs(g, samples, self.batch_dim)
        return given

    def _layerwise(
        self,
        given: dict[str, LayerBatch],
        needs: Needs,
        seen: Mapping[str, Seen],
        outputs: Tensor,
        generators: Generators,
    ) -> None:
        wanted = {n: sorted(k for k in needs[n] if k.startswith("layerwise")) for n in needs}
        names = [name for name, kinds in wanted.items() if kinds]
        found = find_activations(outputs, {name: seen[name].edge for name in names})
        for name in names:
            batch, view = given[name], self.layers[name]
            raw = seen[name].slope
            raw = found[name].slope(seen[name].output) if raw is None else raw
            for kind in wanted[name]:
                at_output = found[name].reason == NETWORK_OUTPUT and "+categorical" in kind
                chosen = _categorical_slope(outputs) if at_output else raw
                slope = view.to_outputs(chosen.unsqueeze(0), len(batch.a), self.batch_dim)
                batch.g[kind] = self._of_slope(slope, kind, name, generators)

    def _of_slope(self, slope: Tensor, kind: str, layer: str, generators: Generators) -> Tensor:
        """The g of a kind of layer-wise sampling from the slope [1, n, t, m]."""
        draws = int(kind.partition(":")[2] or 0)
        if draws:
            return _draw_layerwise(slope, draws, generators[f"{kind} of {layer}"])
        return unit_columns(slope) if kind == LAYERWISE_COLUMNS else slope

    def _forward(self, inputs: Tensor, index: int) -> tuple[dict[str, Seen], Tensor]:
        with capture(self.layers) as seen:
            outputs = self.model(inputs)
        if not isinstance(outputs, Tensor):
            raise InputTypeError(
                f"the model returns a {type(outputs).__name__}; wrap it so that it returns one "
                "tensor of outputs"
            )
        missing = [name for name in self.layers if name not in seen]
        if missing:
            raise InputError(
                f"layer {missing[0]!r} takes no part in the forward pass; leave it out with "
                "layers= or exclude="
            )
        if not is_finite(outputs.detach()):
            raise _not_finite(seen, index)
        return seen, outputs

    def _look(self) -> Shapes:
        """Reads two samples: shapes, and whether each row of every layer belongs to one sample."""
        inputs, targets = self.batches.first(2)
        inputs, targets = self._move(inputs), None if targets is None else self._move(targets)
        samples = inputs.shape[self.batch_dim]
        with unchanged(self.model):
            seen, outputs = self._forward(inputs, 0)
            if targets is not None:
                self.likelihood.check(outputs, targets)
            predictive = self.likelihood.count(outputs)
            a = {name: self._inputs(name, seen[name], samples) for name in self.layers}
            self.activations = self._name_activations(outputs, seen)
            if samples == 2:
                repeated = inputs.narrow(self.batch_dim, 1, 1).expand_as(inputs).contiguous()
                other, repeated_outputs = self._forward(repeated, 0)
                for name in self.layers:
                    _check_rows(f"layer {name!r} sees", a[name], self._inputs(name, other[name], 2))
                _check_rows("the model gives", outputs.detach(), repeated_outputs.detach())
        columns = {"predictive": predictive, "monte-carlo": self._draws, "drawn": 1, "empirical": 1}
        return Shapes({name: a[name].shape[1] for name in a}, columns)

    def _inputs(self, name: str, seen: Seen, samples: int) -> Tensor:
        return self.layers[name].to_inputs(seen.input, samples, self.batch_dim)

    def _name_activations(self, outputs: Tensor, seen: Mapping[str, Seen]) -> dict[str, Activation]:
        found = find_activations(outputs, {name: seen[name].edge for name in self.layers})
        return {
            name: found[name] if view.activation is None else Activation(view.activation)
            for name, view in self.layers.items()
        }

    def _samples(self, needs: Needs, scratch: int) -> int:
        """How many samples a batch may have for its a and g to stay in bounds."""
        size = torch.finfo(self.dtype).bits // 8
        total = size * scratch
        for name, kinds in needs.items():
            view, t = self.layers[name], self.shapes.positions[name]
            columns = sum(self.label_columns_of(kind, name) for kind in kinds)
            total += size * t * (view.inputs + view.outputs * (1 + 2 * columns))
        return max(1, min(_MOST_SAMPLES, _BATCH_BYTES // max(1, total)))

    def label_columns_of(self, kind: str, layer: str) -> int:
        """How many label columns a kind has for one sample."""
        if kind == LAYERWISE_COLUMNS:
            view = self.layers[layer]
            return self.shapes.positions[layer] * view.outputs
        if kind.startswith("layerwise"):
            return int(kind.partition(":")[2] or 1)
        return self.shapes.columns[kind]

    def _move(self, values: Tensor) -> Tensor:
        dtype = self.dtype if values.is_floating_point() else None
        return values.to(device=self.device, dtype=dtype)


def _categorical_slope(outputs: Tensor) -> Tensor:
    log_p = torch.log_softmax(outputs.detach(), -1)
    return torch.exp(0.5 * log_p) * torch.sqrt(-torch.expm1(log_p))


def unit_columns(slope: Tensor) -> Tensor:
    """φ'(s_tj) e_tj for every unit j and position t: [t·m, n, t, m] from the slope [1, n, t, m]."""
    columns = torch.diag_embed(slope[0].flatten(1)).transpose(0, 1)
    return columns.unflatten(-1, slope.shape[2:])


def _draw_layerwise(slope: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    noise = normal(slope[0], draws, tuple(slope.shape[2:]), generator)
    return noise.mul_(slope).mul_(-(draws**-0.5))


def _check_weights(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if not is_finite(parameter.detach()):
            raise InputError(
                f"parameter {name!r} holds values that are not finite (NaN or infinite); load "
                "another checkpoint"
            )


def _check_rows(whose: str, a: Tensor, other: Tensor) -> None:
    """`other` was made from the same batch with sample 0 replaced by sample 1."""
    scale = max(float(a.abs().max()), 1e-30)
    tolerance = 1e3 * torch.finfo(a.dtype).eps * scale
    expected = a[1:].expand_as(a)
    if not torch.allclose(other, expected, rtol=0.0, atol=tolerance):
        raise InputError(
            f"the rows that {whose} do not each belong to one sample: the model mixes "
            "samples, draws random numbers, or counts samples in another dimension (batch_dim)"
        )


def _not_finite(seen: Mapping[str, Seen], index: int) -> NumericalError:
    for name, kept in seen.items():
        if not is_finite(kept.output.detach()):
            return NumericalError(
                f"layer {name!r} gives values that are not finite in batch {index}; check its "
                "weights and the scale of the data"
            )
    return NumericalError(f"the model's output is not finite in batch {index}; check the weights")
