"""Tables that a figure is drawn from: their checks, and their layers, series and numbers."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fisherlab.errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]


class Series(NamedTuple):
    """One approximation; its target is empty where it is the main one of the layer."""

    approximation: str
    target: str = ""


def require(frame: pd.DataFrame, columns: tuple[str, ...]) -> None:
    """Raise an ``InputError`` unless the frame has rows and these columns."""
    missing = [column for column in columns if column not in frame]
    if missing:
        raise InputError(f"the frame has no column {', '.join(missing)}; it needs all of {columns}.")
    if frame.empty:
        raise InputError("the frame has no rows, so there is nothing to draw.")


def numbers(values: pd.Series) -> pd.Series:
    """The values as float64; what is no number is NaN."""
    return pd.to_numeric(values, errors="coerce").astype("float64")


def compared_layers(records: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Layers with something to compare, and those whose only approximation is `diagonal` (norms).

    Where no layer has more than the diagonal, all of them are in the first list.
    """
    plain = (records["approximation"] == "diagonal").groupby(records["layer"], sort=False).all()
    names, diagonal = plain.index, plain.to_numpy(bool)
    if diagonal.all():
        return list(names), []
    return list(names[~diagonal]), list(names[diagonal])


def drawn_labels(records: pd.DataFrame) -> list[str]:
    """Layers whose exact block has drawn labels in place of the expectation, by the column ``kind``."""
    if "kind" not in records:
        return []
    return list(dict.fromkeys(records["layer"][records["kind"] == "monte-carlo"]))


def with_series(records: pd.DataFrame) -> pd.DataFrame:
    """The records with a column ``series``; the main target of a layer is that of its first row."""
    if "target" not in records:
        return records.assign(series=_objects([Series(name) for name in records["approximation"]], records))
    main = records.groupby("layer", sort=False)["target"].transform("first")
    other = records["target"].where(records["target"].notna() & (records["target"] != main), "")
    pairs = zip(records["approximation"], other, strict=True)
    return records.assign(series=_objects([Series(name, str(target)) for name, target in pairs], records))


def pivot(rows: pd.DataFrame, column: str, layers: list[str], series: list[Series]) -> Array:
    """[layer, series] of one column of ``with_series``; NaN where there is no number, or no row."""
    table = np.full((len(layers), len(series)), np.nan)
    if column in rows:
        kept = rows[rows["layer"].isin(layers)].drop_duplicates(["layer", "series"])
        down = pd.Index(layers).get_indexer(pd.Index(kept["layer"]))
        places = {one: place for place, one in enumerate(series)}
        table[down, [places[one] for one in kept["series"]]] = numbers(kept[column])
    return table


def table(
    frame: pd.DataFrame,
    column: str,
    rows: Sequence[Any],
    names: Sequence[Any],
    row: str,
    across: str = "checkpoint",
) -> Array:
    """[rows, names] of a column, by the values of two others; NaN where there is no number, or no row."""
    kept = frame.drop_duplicates([row, across])
    values = kept.assign(value=numbers(kept[column])).pivot(index=row, columns=across, values="value")
    return values.reindex(index=list(rows), columns=list(names)).to_numpy(float)


def _objects(values: list[Series], like: pd.DataFrame) -> pd.Series:
    return pd.Series(values, index=like.index, dtype=object)
