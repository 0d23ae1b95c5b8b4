"""A page of tables: how values are written, and that nothing unsafe or absent gets in."""

import numpy as np
import pandas as pd
import pytest

from fisherlab.errors import InputError
from fisherlab.report import METRICS, Column, Contents, Definition, Picture, Tabular, defined, write_tables


@pytest.fixture
def frame():
    return pd.DataFrame(
        {
            "layer": ["0", "<b>"],
            "weights": pd.array([3920, None], dtype="Int64"),
            "zeros": [0.123456, 0.0],
            "error": [np.nan, 0.31],
            "unknown": [np.nan, None],
            "note": ["", ""],
        }
    )


COLUMNS = (
    Column("layer", "layer", "text"),
    Column("weights", "weights", "count"),
    Column("zeros", "zeros", "share"),
    Column("error", "error"),
    Column("unknown", "unknown"),
    Column("note", "note", "text"),
)


def test_values_are_written_by_kind_and_empty_columns_left_out(frame):
    table = Tabular.of(frame, COLUMNS, "Layers", "A row a layer.", ())
    assert [column.head for column in table.columns] == ["layer", "weights", "zeros", "error"]
    assert table.rows == (("0", "3,920", "12.3 %", "–"), ("<b>", "–", "0.0 %", "0.310"))


@pytest.fixture
def write(frame, tmp_path):
    def make(figures=()):
        contents = Contents(
            title="A & B",
            facts={"model": "mnist-mlp", "step": None},
            tables=[Tabular.of(frame, COLUMNS, "Layers", "1 < 2", ["a note"])],
            definitions=[Definition("tr F", "Σ λ", "The sum of <eigenvalues>.")],
        )
        provenance = {"dataset": "mnist (stand-in: digits)", "stand_in": True}
        path = write_tables(tmp_path / "report.html", contents, figures, provenance)
        return path.read_text(encoding="utf-8")

    return make


def test_texts_are_escaped_and_numbers_stand_at_the_right(write):
    page = write()
    for text in (
        "<h1>A &amp; B</h1>",
        "<p>1 &lt; 2</p>",
        '<th scope="row">&lt;b&gt;</th>',
        "&lt;eigenvalues",
    ):
        assert text in page
    assert '<td class="number">0.310</td>' in page
    assert "<strong>mnist (stand-in: digits)</strong>" in page
    assert "http" not in page


def test_a_picture_that_is_absent_is_named(write, tmp_path):
    picture = Picture("a.png", "caption", "heading")
    with pytest.raises(InputError, match=r"no picture .*a\.png"):
        write(figures=[picture])
    (tmp_path / "a.png").touch()
    assert 'src="a.png"' in write(figures=[picture])


def test_definitions_of_a_comparison_are_those_of_its_page():
    (found,) = defined("trace_ratio")
    (metric,) = (metric for metric in METRICS if metric.column == "trace_ratio")
    assert (found.name, found.formula, found.meaning) == (metric.name, metric.formula, metric.meaning)
