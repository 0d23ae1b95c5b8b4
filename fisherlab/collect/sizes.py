"""How large all is that a pass over data makes: positions, label columns, numbers and bytes a sample."""

from collections.abc import Mapping
from dataclasses import dataclass

from fisherlab.base.memory import at_most
from fisherlab.layers import Layers
from fisherlab.likelihoods.labels import (
    DRAWN,
    EMPIRICAL,
    LAYERWISE_COLUMNS,
    MONTE_CARLO,
    PREDICTIVE,
    LabelKind,
)

LABEL_KINDS = (PREDICTIVE, MONTE_CARLO, DRAWN, EMPIRICAL)
"""Those that are sent back from the network's output."""

Needs = Mapping[str, frozenset[LabelKind]]
"""For each layer the kinds of g that a pass is to give."""

_MOST_SAMPLES = 8192  # in one batch: a choice, beyond which a batch of small layers is no faster a sample
# Of all layers' a and g, and the passes: a choice, six tensors of the next size, a tenth of the limit.
_BATCH_BYTES, _BATCH_PART = 96 * 2**20, 10
# Of one layer's a or g. Below 32 MiB, the most that glibc's threshold for mmap grows to, malloc gives memory
# again without asking the system for fresh pages; half of it, for some batches have copies.
_TENSOR_BYTES = 16 * 2**20
_LIVE = 4  # tensors of a layer's size that a backward pass holds at once; counted, not measured


@dataclass(frozen=True)
class PassSizes:
    """What one look at a few samples told.

    Attributes:
        layers: looked at.
        bytes: of a number in the model's dtype.
        positions: T by layer, over all calls.
        columns: label columns a sample, by kind.
        activations: numbers a sample in the outputs of all layers.
        outputs: numbers a sample in the model's output.
    """

    layers: Layers
    bytes: int
    positions: Mapping[str, int]
    columns: Mapping[str, int]
    activations: int
    outputs: int

    @property
    def multiplications(self) -> int:
        """Of one sample's forward pass through the layers."""
        return sum(
            self.positions[view.name] * (view.outputs if view.one_hot else view.size)
            for view in self.layers.values()
        )

    def numbers(self, layer: str, columns: int) -> int:
        """How many numbers a sample's a and g take in one layer, with so many label columns."""
        view = self.layers[layer]
        return self.positions[layer] * (view.input_numbers + columns * view.outputs)

    def label_columns_of(self, kind: str, layer: str) -> int:
        """How many label columns a kind has for one sample."""
        kind = LabelKind(kind)
        if kind == LAYERWISE_COLUMNS:
            return self.positions[layer] * self.layers[layer].outputs
        if kind.layerwise:
            return kind.draws or 1
        return self.columns[kind]

    def pass_bytes(self, columns: int) -> int:
        """About what one sample's passes take with so many label columns sent back at once."""
        return self.bytes * (self.activations * (_LIVE + columns) + 2 * self.outputs * columns)

    def samples(self, needs: Needs, scratch: int = 0, in_parts: bool = False) -> int:
        """How many samples a batch may have for its a and g, and the passes themselves, to stay in bounds."""
        inputs, largest, held = 0, 0, scratch
        for name, kinds in needs.items():
            inputs = max(inputs, self.numbers(name, 0))
            labels = [self.label_columns_of(kind, name) for kind in kinds]
            columns = [min(count, 1) for count in labels] if in_parts else labels
            outputs = self.positions[name] * self.layers[name].outputs
            largest = max(largest, outputs * max(columns, default=0))
            held += outputs * sum(columns)
        needed = self.bytes * (2 * inputs + held) + self.pass_bytes(1)
        most = _TENSOR_BYTES // (self.bytes * max(inputs, largest))
        most = min(most, at_most(_BATCH_BYTES, _BATCH_PART) // needed)
        return max(1, min(most, _MOST_SAMPLES))
