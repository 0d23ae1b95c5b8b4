"""Checks of the tables that a figure is drawn from."""

import pandas as pd

from fisherlab.errors import InputError


def require(frame: pd.DataFrame, columns: tuple[str, ...]) -> None:
    """Raise an ``InputError`` unless the frame has rows and these columns."""
    missing = [column for column in columns if column not in frame]
    if missing:
        raise InputError(f"the frame has no column {', '.join(missing)}; it needs all of {columns}.")
    if frame.empty:
        raise InputError("the frame has no rows, so there is nothing to draw.")
