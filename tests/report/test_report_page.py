import re
from collections import Counter
from html.parser import HTMLParser

import pandas as pd
import pytest

from fisherlab.errors import InputError
from fisherlab.report import METRICS, THEOREMS, Picture, write_page

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Reader(HTMLParser):
    """Checks that tags are balanced; keeps the links and the text of table cells."""

    def __init__(self):
        super().__init__()
        self.open, self.links, self.cells, self.text = [], [], [], []
        self.counts, self.names, self.lazy = Counter(), [], []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        given = dict(attributes)
        self.counts[tag] += 1
        self.names += [given["id"]] if "id" in given else []
        self.lazy += [given.get("loading") == "lazy"] if tag == "img" else []
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


def test_page_of_many_layers_is_offline_and_works_without_its_script(write, many, tmp_path):
    reader = write(records=many)
    text = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|<script [^>]*src|@import|url\(|<details[^>]* hidden", text)
    assert reader.counts["script"] == 1


def test_many_layers_have_an_overview_and_sections_to_unfold(write, many):
    reader = write(records=many)
    assert reader.counts["details"] == 31  # thirty layers, and all norms together
    sections = [link for link in reader.links if link.startswith("#layer-")]
    assert len(sections) == 30
    assert {link[1:] for link in sections} <= set(reader.names)
    assert ("number best", "0.207") in reader.cells
    assert ("number", "0.307") in reader.cells
    text = " ".join(reader.text)
    assert text.count("encoder.layers.7.self_attention.out_proj") == 2
    assert text.count("norms.7") == 1
    assert "30 layers, KFAC" not in text
    assert any(kind == "" and cell == "×4" for kind, cell in reader.cells)


def test_few_layers_have_no_overview_but_norms_share_a_table(write, records, many):
    reader = write(records=pd.concat([records, many[many["module"] == "norm"]]))
    assert reader.counts["script"] == 0
    assert reader.counts["details"] == 1
    assert reader.counts["table"] == 3


def test_pictures_of_a_layer_stand_in_its_section(write, many, picture, tmp_path):
    layer = many["layer"].iloc[0]
    own = [
        Picture(picture.path, "its own", "Layer", layer),
        Picture(picture.path, "a norm", "Norm", "norms.3"),
    ]
    write(records=many, figures=[Picture(picture.path, "whole", "Errors"), *own])
    text = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert text.index(": whole") < text.index('<details id="layer-1-1"') < text.index(": its own")
    assert text.index(": its own") < text.index('<details id="layer-1-2"') < text.index(": a norm")


def test_every_picture_is_loaded_when_it_is_looked_at(write, many, records, picture):
    pictures = [picture, Picture(picture.path, "", "", many["layer"].iloc[0])]
    assert write(records=many, figures=pictures).lazy == [True, True]
    assert write(records=records, figures=pictures).lazy == [True, True]


def test_the_page_of_three_hundred_blocks_stays_small(write, many, tmp_path):
    wide = [many.assign(layer=[f"{part}.{name}" for name in many["layer"]]) for part in range(6)]
    reader = write(records=pd.concat(wide))
    assert reader.counts["details"] == 181
    assert (tmp_path / "run" / "report.html").stat().st_size < 2**20


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


def test_the_options_of_a_run_are_folded_below_the_facts(write):
    summary = {"model": "mnist-mlp", "inputs": {"samples": 300, "layers": "*"}}
    page = write(summary=summary, records=None)
    text = [part.strip() for part in page.text if part.strip()]
    assert page.counts["details"] == 1
    assert text.index("mnist-mlp") < text.index("Inputs") < text.index("samples") < text.index("300")
