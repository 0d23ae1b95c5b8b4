"""The page ``report.html`` of a comparison, or of tables; readable offline."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import pandas as pd

from fisherlab.errors import InputError
from fisherlab.plots.profiles import MANY
from fisherlab.records.definitions import METRICS, SCALE_NOTE, STAND_IN, THEOREMS, Column, Definition
from fisherlab.records.frames import compared_layers
from fisherlab.report.blocks import LayerTable, blocks, diagonal_block, runs
from fisherlab.report.overview import Overview, diagonal_line, overview
from fisherlab.runs.save import Picture


@dataclass(frozen=True)
class Image:
    """A picture as the page names it."""

    heading: str
    source: str
    caption: str = ""
    pdf: str | None = None


@dataclass(frozen=True)
class Section:
    """A block, or the layers with the diagonal only, with its pictures."""

    block: LayerTable
    figures: list[Image]


@dataclass(frozen=True)
class RunTables:
    """What the page shows of one run; the overview is there from 13 layers on."""

    overview: Overview | None
    sections: list[Section]
    diagonal: Section | None
    diagonal_line: str


def write_page(
    path: str | Path,
    *,
    title: str,
    summary: Mapping[str, Any],
    records: pd.DataFrame | None,
    figures: Sequence[Picture],
    provenance: Mapping[str, Any],
) -> Path:
    """Write the page of one or more runs.

    The page needs no network: its style is inline, and its pictures are files that it names
    relative to its own folder, loaded when they are looked at. All text is escaped. Data that
    stand in for others are announced in a banner.

    Up to 12 layers have their tables one below the other. More have one table with a row a layer
    (a short script of the page sorts it by a click on a heading), and their own tables and
    pictures in sections to unfold. Layers that have only the approximation `diagonal` (norms)
    share one table.

    Args:
        path: The ``.html`` file to write.
        title: Title of the page.
        summary: What ``summary.json`` holds; nested mappings become tables.
        records: Rows of ``records.csv``; None for runs that have none (no tables then).
        figures: Pictures in the order of the page.
        provenance: What ``provenance.json`` holds.

    Returns:
        The path written.

    Raises:
        InputError: A picture does not exist, or the records cannot be read.
    """
    page = Path(path)
    pictures: dict[str | None, list[Image]] = {
        layer: [] for layer in dict.fromkeys(picture.layer for picture in figures)
    }
    for picture in figures:
        pictures[picture.layer].append(image(picture, page.parent))
    shown = [] if records is None else [run_tables(run, pictures) for run in runs(records)]
    text = template("page.html").render(
        title=title,
        stand_ins=stand_ins(records, provenance),
        summary=_sections(summary),
        runs=shown,
        many=any(run.overview for run in shown),
        own_scale=any(row.own_scale for run in shown for part in run.sections for row in part.block.rows),
        figures=[one for part in pictures.values() for one in part],
        metrics=METRICS,
        theorems=THEOREMS,
        scale_note=SCALE_NOTE,
        provenance=flat(provenance),
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text, encoding="utf-8")
    return page


def template(name: str) -> jinja2.Template:
    """A template of this package; all text that it is given is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fisherlab.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(name)


def run_tables(records: pd.DataFrame, pictures: dict[str | None, list[Image]]) -> RunTables:
    """The tables of a run; where there are many layers, their pictures move from the list to them."""
    layers, diagonal = compared_layers(records)
    many = len(layers) > MANY

    def taken(names: Iterable[str]) -> list[Image]:
        return [one for name in names for one in pictures.pop(str(name), [])] if many else []

    return RunTables(
        overview=overview(records) if many else None,
        sections=[Section(block, taken([block.layer])) for block in blocks(records, layers)],
        diagonal=Section(diagonal_block(records, diagonal), taken(diagonal)) if diagonal else None,
        diagonal_line=diagonal_line(records),
    )


def stand_ins(records: pd.DataFrame | None, provenance: Mapping[str, Any]) -> list[str]:
    """Names of the data sets that stand in for others."""
    found: list[str] = []
    if records is not None and "dataset" in records:
        found = [str(name) for name in records["dataset"].unique() if STAND_IN in str(name)]
    if found or not provenance.get("stand_in"):
        return found
    name = str(provenance.get("dataset", "unknown"))
    return [name if STAND_IN in name else f"{STAND_IN}: {name}"]


def image(picture: Picture, folder: Path) -> Image:
    """A picture as the page in this folder names it.

    Raises:
        InputError: The picture does not exist.
    """
    file = folder / picture.path
    if not file.is_file():
        raise InputError(f"there is no picture {file}; save it before the page is written.")
    pdf = file.with_suffix(".pdf")
    return Image(
        picture.heading,
        _relative(file, folder),
        picture.caption,
        _relative(pdf, folder) if pdf.is_file() else None,
    )


def _relative(file: Path, folder: Path) -> str:
    return quote(Path(os.path.relpath(file, folder)).as_posix())


def _sections(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Values as a list, mappings as lists that are folded, mappings of mappings as tables."""
    plain = {key: value for key, value in summary.items() if not isinstance(value, Mapping)}
    sections: list[dict[str, Any]] = [{"name": None, "pairs": flat(plain)}] if plain else []
    for key, value in summary.items():
        if isinstance(value, Mapping) and not _is_table(value):
            sections.append({"name": words(key).capitalize(), "folded": flat(value)})
    for key, value in summary.items():
        if _is_table(value):
            heads = list(dict.fromkeys(head for row in value.values() for head in row))
            rows = [[name, *(show(row.get(head)) for head in heads)] for name, row in value.items()]
            sections.append({"name": words(key), "heads": list(map(words, heads)), "rows": rows})
    return sections


def _is_table(value: object) -> bool:
    return (
        isinstance(value, Mapping) and bool(value) and all(isinstance(row, Mapping) for row in value.values())
    )


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


def flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """(name, value) of every leaf; names of nested mappings are joined by a dot."""
    pairs: list[tuple[str, str]] = []
    for key, value in tree.items():
        name = f"{prefix}{words(key)}"
        if isinstance(value, Mapping):
            pairs += flat(value, f"{name} · ")
        else:
            pairs.append((name, show(value)))
    return pairs


def show(value: object) -> str:
    """The text of a value."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{words(key)} {show(one)}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(show, value)) or "–"
    return str(value)


def words(key: object) -> str:
    """A key with spaces in the place of underscores."""
    return str(key).replace("_", " ")
