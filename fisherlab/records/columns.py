"""The columns of a comparison's tables: their order is that of the files, and of the contract."""

from fisherlab.records.definitions import DIRECTIONS, METRICS, ROOT_DIRECTIONS

_FIRST, _LATE = (
    tuple(
        column
        for metric in METRICS
        if metric.late == late and not metric.plain
        for column in metric.columns
        if column not in ROOT_DIRECTIONS
    )
    for late in (False, True)
)

BANDS = ("directions_top", "directions_middle", "directions_tail")
"""How many directions the bands of a layer's spectrum have."""

_COUNTS = ("outputs", "inputs", "positions", "groups", "samples", "columns", "bytes", *BANDS)

PLAIN = tuple(metric.column for metric in METRICS if metric.plain)
"""Of the metrics that are functions of F and F̂ alone, by these names, in `fisherlab.metrics`."""

ORIGIN = ("model", "dataset", "checkpoint", "step", "seed")
"""What numbers were computed from: attributes of `Origin`."""

RECORD_COLUMNS = (
    *ORIGIN,
    *("dtype", "layer", "module", "outputs", "inputs", "positions", "groups"),
    *("approximation", "kind", "target", "samples", "columns", "method"),
    *_FIRST,
    *("seconds", "bytes", *_LATE, *BANDS, *ROOT_DIRECTIONS, *PLAIN, "note"),
)
"""Of `records.csv`, a row a (layer, approximation, target)."""

RECORD_TYPES = dict.fromkeys(_COUNTS, "Int64") | dict.fromkeys(
    (*_FIRST, *_LATE, *ROOT_DIRECTIONS, *PLAIN, "seconds"), "float64"
)
"""Types of the columns that are numbers; absent ones are empty, never zero."""

DIRECTION_COLUMNS = ("layer", "approximation", "damping", *DIRECTIONS, *ROOT_DIRECTIONS)
"""Of `directions.csv`, a row a (layer, approximation, damping)."""
