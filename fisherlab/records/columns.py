"""The columns of a comparison's tables: their order is that of the files, and of the contract."""

from fisherlab.records.definitions import DIRECTIONS, METRICS, ROOT_DIRECTIONS

_COUNTS = ("outputs", "inputs", "positions", "groups", "samples", "columns", "bytes")
_NUMBERS = tuple(column for metric in METRICS if not metric.plain for column in metric.columns)

PLAIN = tuple(metric.column for metric in METRICS if metric.plain)
"""Of the metrics that are functions of F and F̂ alone, by these names, in `fisherlab.metrics`."""

ORIGIN = ("model", "dataset", "checkpoint", "step", "seed")
"""What numbers were computed from: attributes of `Origin`."""

RECORD_COLUMNS = (
    *ORIGIN,
    *("dtype", "layer", "module", "outputs", "inputs", "positions", "groups"),
    *("approximation", "kind", "target", "samples", "columns", "method"),
    *_NUMBERS,
    *("seconds", "bytes", *PLAIN, "note"),
)
"""Of `records.csv`, a row a (layer, approximation, target)."""

RECORD_TYPES = dict.fromkeys(_COUNTS, "Int64") | dict.fromkeys((*_NUMBERS, *PLAIN, "seconds"), "float64")
"""Types of the columns that are numbers; absent ones are empty, never zero."""

DIRECTION_COLUMNS = ("layer", "approximation", "damping", *DIRECTIONS, *ROOT_DIRECTIONS)
"""Of `directions.csv`, a row a (layer, approximation, damping)."""
