"""The table of representation vectors on the console: a row a layer."""

from collections.abc import Iterator

import pandas as pd
from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from fisherlab.records.definitions import STAND_IN
from fisherlab.records.labels import number, short
from fisherlab.representations.vectors import ACTIVATED, OUTPUT

_HEADS = (
    "φ",
    "skew\n│med│",
    "kurt\nmed",
    "kurt\nworst",
    "re-\njected",
    "norm KS\nnormal",
    "norm KS\nchi",
    "zeros\nφ(s)",
    "isotropy\nmean",
    "isotropy\nsamples",
    "at\nmost",
)
_ISOTROPIES = 8  # where their columns begin
_LEAST_NAME = 14  # characters that a terminal leaves of a layer's name


def console_table(layers: pd.DataFrame, assumption: pd.DataFrame, *, caption: str) -> RenderableType:
    """A row a layer: its outputs s over the data, and the isotropies that test the assumption.

    Args:
        layers: rows of `Representations.layers`.
        assumption: rows of `Representations.assumption`.
        caption: what was measured.
    """
    tested = int(layers["tested"].max())
    labels, gradients = assumption["labels"].iloc[0], int(assumption["samples"].max())
    feet = [
        f"outputs s, marginals over the data (no test of the assumption); rejected: share of coordinates, "
        f"Lilliefors' test of {tested} values from different samples, Holm's adjustment for the layer's "
        "coordinates, 5 %",
        "isotropy (tr M)²/(m‖M‖²) of M = Σ_c q qᵀ, which layer-wise sampling takes for I (1 = consistent): "
        "of E[M], the mean over samples, and the most that a sample's rank allows; "
        f"{gradients} samples, labels: {labels}",
    ]
    notes = [f"{row['layer']}: {row['note']}" for _, row in assumption.iterrows() if row["note"]]
    style = "yellow" if STAND_IN in caption else "dim"
    return Group(
        _Rows(list(_rows(layers, assumption))),
        *(Text(line, style="dim") for line in [*feet, *notes]),
        Text(caption, style=style),
    )


def _rows(layers: pd.DataFrame, assumption: pd.DataFrame) -> Iterator[list[str]]:
    activated = layers[layers["vector"] == ACTIVATED].set_index("layer")["zeros"]
    outputs = layers[layers["vector"] == OUTPUT].set_index("layer")
    for isotropy in assumption.to_dict("records"):
        name = isotropy["layer"]
        row = outputs.loc[name]
        zeros = activated.get(name, row["zeros"])
        yield [
            str(name),
            "–" if row["activation"] == "identity" else str(row["activation"]),
            *(number(row[column], digits=2) for column in ("skewness_median", "kurtosis_median")),
            number(row["kurtosis_worst"], digits=2),
            _percent(row["rejected"]),
            *(number(row[column], digits=2) for column in ("norm_ks_normal", "norm_ks_chi")),
            _percent(zeros),
            *(number(isotropy[f"isotropy_{name}"], digits=2) for name in ("population", "samples", "limit")),
        ]


def _percent(share: float) -> str:
    return "n/a" if pd.isna(share) else f"{100 * share:.0f} %"


class _Rows:
    """The rows; in two tables, the second for the isotropies, where one has no room."""

    def __init__(self, rows: list[list[str]]) -> None:
        self._rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns = list(zip(*self._rows, strict=True))
        numbers = [
            max(map(cell_len, [*head.split("\n"), *cells])) + 1
            for head, cells in zip(_HEADS, columns[1:], strict=True)
        ]
        longest = max(map(cell_len, columns[0]))
        together = options.max_width - sum(numbers) >= min(longest, _LEAST_NAME)
        parts = [slice(None)] if together else [slice(_ISOTROPIES), slice(_ISOTROPIES, None)]
        for place, part in enumerate(parts):
            if place:
                yield Text()
            yield self._table(part, max(_LEAST_NAME, options.max_width - sum(numbers[part])))

    def _table(self, part: slice, room: int) -> Table:
        table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
        table.add_column("layer", no_wrap=True, vertical="bottom")
        for head in _HEADS[part]:
            table.add_column(
                head, no_wrap=True, vertical="bottom", justify="left" if head == "φ" else "right"
            )
        for name, *cells in self._rows:
            table.add_row(Text(short(name, room)), *map(Text, cells[part]))
        return table
