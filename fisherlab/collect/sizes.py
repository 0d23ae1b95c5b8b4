"""How large all is that a pass over data makes: positions, label columns, numbers and bytes a sample."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fisherlab.base.memory import at_most, limit
from fisherlab.errors import InputError, MemoryLimitError, bytes_text
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
_COLUMN_BYTES, _COLUMN_PART = 256 * 2**20, 16  # of label columns at the network's output: a choice
# Of one layer's a or g. Below 32 MiB, the most that glibc's threshold for mmap grows to, malloc gives memory
# again without asking the system for fresh pages; half of it, for some batches have copies.
_TENSOR_BYTES = 16 * 2**20
_MOST_OPERATIONS = 1e16  # for drawn labels: derived, a day at 10¹¹ operations a second
_WAYS_OUT = "leave the layer out, or give a larger limit", "use kind='monte-carlo', which draws labels"
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
        return self.positions_of(layer, columns) * (view.input_numbers + columns * view.outputs)

    def positions_of(self, layer: str, columns: int) -> int:
        """T; of a sum of uses every column has positions of its own."""
        return self.positions[layer] * (max(1, columns) if self.layers[layer].of_uses else 1)

    def label_columns_of(self, kind: str, layer: str) -> int:
        """How many label columns a kind has for one sample."""
        kind = LabelKind(kind)
        if kind == LAYERWISE_COLUMNS:
            return self.positions[layer] * self.layers[layer].outputs
        if kind.layerwise:
            return kind.draws or 1
        return self.columns[kind]

    def _label_columns(self, kinds: Iterable[LabelKind]) -> int:
        """The most columns of those kinds that are sent back from the network's output."""
        return max((self.columns[kind] for kind in kinds if kind in LABEL_KINDS), default=0)

    def pass_bytes(self, columns: int) -> int:
        """About what one sample's passes take with so many label columns sent back at once."""
        return self.bytes * (self.activations * (_LIVE + columns) + 2 * self.outputs * columns)

    def require_room(self, needs: Needs, samples: int | None) -> None:
        """Checks that the label columns of a sample fit the limit, and that drawn ones come to an end.

        Raises:
            MemoryLimitError: they do not fit.
            InputError: labels drawn for so many samples would take more than a day.
        """
        for name, kinds in needs.items():
            for kind in map(LabelKind, kinds):
                columns = self.label_columns_of(kind, name)
                drawn = kind == MONTE_CARLO or kind.draws
                way_out = "draw fewer labels" if drawn else _WAYS_OUT[kind == PREDICTIVE]
                own = 0 if kind in LABEL_KINDS else self.bytes * self.numbers(name, columns)
                needed = own or self.pass_bytes(columns)
                if needed > limit():
                    raise MemoryLimitError(
                        f"{columns:,} label columns a sample would need {bytes_text(needed)}, more than the "
                        f"memory limit of {bytes_text(limit())}; {way_out}"
                    )
                operations = 4.0 * (samples or 1) * columns * self.multiplications
                if drawn and operations > _MOST_OPERATIONS:
                    raise InputError(
                        f"{columns:,} labels drawn for each of {samples or 1:,} samples would take "
                        f"{operations:.1g} operations, more than a day; {way_out}"
                    )

    def samples(self, needs: Needs, scratch: int = 0, in_parts: bool = False) -> int:
        """How many samples a batch may have for its a and g, and the passes themselves, to stay in bounds."""
        inputs, largest, held = 0, 0, scratch
        for name, kinds in needs.items():
            inputs = max(inputs, self.numbers(name, 0))
            labels = [self.label_columns_of(kind, name) for kind in kinds]
            columns = [min(count, 1) for count in labels] if in_parts else labels
            outputs = self.positions_of(name, sum(labels)) * self.layers[name].outputs
            largest = max(largest, outputs * max(columns, default=0))
            held += outputs * sum(columns)
        needed = self.bytes * (2 * inputs + held) + self.pass_bytes(1)
        most = _TENSOR_BYTES // (self.bytes * max(inputs, largest))
        most = min(most, at_most(_BATCH_BYTES, _BATCH_PART) // needed)
        sent = self.outputs * max((self._label_columns(kinds) for kinds in needs.values()), default=0)
        most = min(most, at_most(_COLUMN_BYTES, _COLUMN_PART) // max(1, self.bytes * sent))
        return max(1, min(most, _MOST_SAMPLES))
