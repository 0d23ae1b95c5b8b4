"""A page of tables, pictures and definitions, for results that are not a comparison."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from fisherlab.records.definitions import METRICS
from fisherlab.records.labels import number
from fisherlab.report.blocks import MISSING
from fisherlab.report.page import Picture, image, stand_ins, template
from fisherlab.report.values import flat

Kind = Literal["text", "count", "number", "share"]


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        key: Its name in the frame.
        head: Its heading.
        kind: How its values are written: as they are, whole, to three digits, or in percent.
    """

    key: str
    head: str
    kind: Kind = "number"

    @property
    def right(self) -> bool:
        """Whether its values stand at the right."""
        return self.kind != "text"

    def cell(self, value: Any) -> str:
        """The text of a value; a text stays as it is."""
        if isinstance(value, str):
            return value or MISSING
        if pd.isna(value):
            return MISSING
        if self.kind == "number":
            return number(value)
        return f"{100 * value:.1f} %" if self.kind == "share" else f"{value:,}"


@dataclass(frozen=True)
class Tabular:
    """A table of a page.

    Attributes:
        heading: The words above it.
        lead: A few sentences before it.
        columns: Its columns.
        rows: Texts.
        notes: Remarks below it.
    """

    heading: str
    lead: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]

    @classmethod
    def of(
        cls,
        frame: pd.DataFrame,
        columns: Sequence[Column],
        heading: str,
        lead: str,
        notes: Sequence[str] = (),
    ) -> "Tabular":
        """The rows of a frame; columns without any value are left out."""
        shown = tuple(column for column in columns if frame[column.key].replace("", None).notna().any())
        cells = [map(column.cell, frame[column.key]) for column in shown]
        return cls(heading, lead, shown, tuple(zip(*cells, strict=True)), tuple(notes))


@dataclass(frozen=True)
class Definition:
    """What a number means.

    Attributes:
        name: Its name in words.
        formula: In Unicode.
        meaning: One or two sentences.
    """

    name: str
    formula: str
    meaning: str


def defined(*columns: str) -> list[Definition]:
    """The definitions of these metrics of a comparison."""
    known = {metric.column: metric for metric in METRICS}
    return [Definition(known[c].name, known[c].formula, known[c].meaning) for c in columns]


@dataclass(frozen=True)
class Contents:
    """What a page of tables says beside its pictures.

    Attributes:
        title: Title of the page.
        facts: What was run, in words.
        tables: In the order of the page.
        definitions: Of every number in the tables.
    """

    title: str
    facts: Mapping[str, Any]
    tables: Sequence[Tabular]
    definitions: Sequence[Definition]


def write_tables(
    path: Path, contents: Contents, figures: Sequence[Picture], provenance: Mapping[str, Any]
) -> Path:
    """Write the page of one run; it looks, and is offline, like that of a comparison (`write_page`).

    Args:
        path: The ``.html`` file to write.
        contents: What it says.
        figures: In the order of the page.
        provenance: What ``provenance.json`` holds.

    Returns:
        The path written.

    Raises:
        InputError: A picture does not exist.
    """
    text = template("tabular.html").render(
        title=contents.title,
        stand_ins=stand_ins(None, provenance),
        facts=flat(contents.facts),
        tables=contents.tables,
        figures=[image(picture, path.parent) for picture in figures],
        metrics=contents.definitions,
        provenance=flat(provenance),
    )
    path.write_text(text, encoding="utf-8")
    return path
