import re
from html.parser import HTMLParser

import pytest

from fisherlab.errors import InputError
from fisherlab.report import METRICS, THEOREMS, Picture, write_page

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Reader(HTMLParser):
    """Checks that tags are balanced; keeps the links and the text of table cells."""

    def __init__(self):
        super().__init__()
        self.open, self.links, self.cells, self.text = [], [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        given = dict(attributes)
        self.links += [given[key] for key in ("src", "href") if key in given]
        if tag == "td":
            self.cells.append((given.get("class", ""), ""))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if "td" in self.open:
            kind, text = self.cells[-1]
            self.cells[-1] = (kind, text + data)


@pytest.fixture
def write(tmp_path, records):
    def make(**changes):
        arguments = {
            "title": "compare mnist-mlp",
            "summary": {"command": "compare"},
            "records": records,
            "figures": [],
            "provenance": {"seed": 0, "stand_in": False},
            **changes,
        }
        path = write_page(tmp_path / "run" / "report.html", **arguments)
        reader = Reader()
        reader.feed(path.read_text(encoding="utf-8"))
        assert reader.open == []
        return reader

    return make


@pytest.fixture
def picture(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for suffix in (".png", ".pdf"):
        (folder / f"heat map#4{suffix}").touch()
    return Picture("heat map#4.png", "400×400", "Layer 4")


def test_page_is_offline(write, picture, tmp_path):
    write(figures=[picture])
    text = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|<script|@import|url\(", text)


def test_numbers_are_in_cells_and_the_best_is_marked(write):
    reader = write()
    assert ("number best", "0.352") in reader.cells
    assert ("number", "97.5") in reader.cells
    assert ("number", "–") in reader.cells


def test_all_definitions_and_theorems_are_on_the_page(write):
    text = " ".join(write().text)
    for metric in METRICS:
        assert metric.formula in text
        assert metric.meaning in text
    for theorem in THEOREMS:
        assert theorem in text


def test_pictures_are_named_relative_to_the_page(write, picture, tmp_path):
    links = write(figures=[picture]).links
    assert "heat%20map%234.png" in links
    assert links.count("heat%20map%234.pdf") == 2
    absolute = Picture(tmp_path / "run" / picture.path, "", "")
    assert "heat%20map%234.png" in write(figures=[absolute]).links


def test_a_picture_of_another_run_is_reached_upwards(write, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.png").touch()
    assert "../other/a.png" in write(figures=[Picture(tmp_path / "other" / "a.png", "", "")]).links


def test_a_picture_that_does_not_exist_is_refused(write):
    with pytest.raises(InputError, match=r"missing\.png"):
        write(figures=[Picture("missing.png", "", "")])


def test_text_is_escaped(write, records):
    odd = "<script>alert(1)</script>"
    reader = write(title=odd, records=records.assign(layer=odd), provenance={"a": odd})
    assert "".join(reader.text).count(odd) >= 4


@pytest.mark.parametrize("place", ["records", "provenance"])
def test_stand_in_data_are_announced(write, records, place):
    plain = "stands in for the one asked for"
    assert plain not in " ".join(write().text)
    if place == "records":
        reader = write(records=records.assign(dataset="stand-in: digits"))
    else:
        reader = write(provenance={"stand_in": True, "dataset": "digits"})
    text = " ".join(reader.text)
    assert plain in text
    assert "stand-in: digits" in text


def test_summary_and_provenance_keep_every_leaf(write):
    reader = write(
        summary={"command": "compare", "best": {"0": {"scaled_error": "ekfac"}, "2": {}}},
        provenance={"versions": {"torch": "2.6"}, "checkpoint": None, "layers": ["a", "b"]},
    )
    text = [part.strip() for part in reader.text]
    for part in ("compare", "scaled error", "ekfac", "versions · torch", "2.6", "a, b"):
        assert part in text


def test_a_run_without_records_has_no_tables(write):
    text = " ".join(write(records=None).text)
    assert "beside its approximations" not in text
    assert "What the numbers mean" in text
