"""The page ``report.html``: tables, pictures, definitions and provenance, readable offline."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import pandas as pd

from fisherlab.errors import InputError
from fisherlab.report.blocks import blocks
from fisherlab.report.definitions import METRICS, SCALE_NOTE, STAND_IN, THEOREMS


@dataclass(frozen=True)
class Picture:
    """A picture of the page.

    Attributes:
        path: The image file; a relative path starts at the page's folder. Where a ``.pdf`` of
            the same name lies beside it, the page links to it.
        caption: The sentence under it.
        heading: The words above it.
    """

    path: str | Path
    caption: str
    heading: str


@dataclass(frozen=True)
class _Figure:
    source: str
    pdf: str | None
    caption: str
    heading: str


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

    The page needs no network and no script: its style is inline, and its pictures are files that
    it names relative to its own folder. All text is escaped. Data that stand in for others are
    announced in a banner.

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
    tables = [] if records is None else list(blocks(records))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fisherlab.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    text = environment.get_template("page.html").render(
        title=title,
        stand_ins=_stand_ins(records, provenance),
        summary=_sections(summary),
        blocks=tables,
        own_scale=any(row.own_scale for block in tables for row in block.rows),
        figures=[_figure(picture, page.parent) for picture in figures],
        metrics=METRICS,
        theorems=THEOREMS,
        scale_note=SCALE_NOTE,
        provenance=_flat(provenance),
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text, encoding="utf-8")
    return page


def _stand_ins(records: pd.DataFrame | None, provenance: Mapping[str, Any]) -> list[str]:
    """Names of the data sets that stand in for others."""
    found: list[str] = []
    if records is not None and "dataset" in records:
        found = [str(name) for name in records["dataset"].unique() if STAND_IN in str(name)]
    if found or not provenance.get("stand_in"):
        return found
    return [f"{STAND_IN}: {provenance.get('dataset', 'unknown')}"]


def _figure(picture: Picture, folder: Path) -> _Figure:
    file = folder / picture.path
    if not file.is_file():
        raise InputError(f"there is no picture {file}; save it before the page is written.")
    pdf = file.with_suffix(".pdf")
    return _Figure(
        source=_relative(file, folder),
        pdf=_relative(pdf, folder) if pdf.is_file() else None,
        caption=picture.caption,
        heading=picture.heading,
    )


def _relative(file: Path, folder: Path) -> str:
    return quote(Path(os.path.relpath(file, folder)).as_posix())


def _sections(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Mappings of mappings as tables, all else as one list of names and values."""
    plain = {key: value for key, value in summary.items() if not _is_table(value)}
    sections: list[dict[str, Any]] = [{"name": None, "pairs": _flat(plain)}] if plain else []
    for key, value in summary.items():
        if _is_table(value):
            heads = list(dict.fromkeys(head for row in value.values() for head in row))
            rows = [[name, *(_show(row.get(head)) for head in heads)] for name, row in value.items()]
            sections.append({"name": _words(key), "heads": list(map(_words, heads)), "rows": rows})
    return sections


def _is_table(value: object) -> bool:
    return (
        isinstance(value, Mapping) and bool(value) and all(isinstance(row, Mapping) for row in value.values())
    )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """(name, value) of every leaf; names of nested mappings are joined by a dot."""
    pairs: list[tuple[str, str]] = []
    for key, value in tree.items():
        name = f"{prefix}{_words(key)}"
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{name} · ")
        else:
            pairs.append((name, _show(value)))
    return pairs


def _show(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{_words(key)} {_show(one)}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_show, value)) or "–"
    return str(value)


def _words(key: object) -> str:
    return str(key).replace("_", " ")
