import html
import io
import re

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from rich.text import Text

from fisherlab.errors import InputError
from fisherlab.report import METRICS, console_table, html_table
from fisherlab.report.console import SplitTable, TextColumn
from fisherlab.report.overview import counted_notes


def printed(renderable, width=100):
    stream = io.StringIO()
    Console(file=stream, width=width, force_terminal=False).print(renderable)
    return stream.getvalue()


def rows(text, name):
    return [line for line in text.splitlines() if line.startswith(name)]


def test_the_chosen_columns_fit_a_hundred_characters_in_one_table(records):
    late = {metric.column: 0.123 for metric in METRICS if metric.late}
    text = printed(console_table(records.assign(**late)))
    assert max(map(len, text.splitlines())) <= 100
    assert len(rows(text, "KFAC")) == 2


def test_all_columns_are_there_where_they_are_asked_for(records):
    numbers = {metric.column: 0.5 + place / 1000 for place, metric in enumerate(METRICS)}
    chosen, every = (
        printed(console_table(records.assign(**numbers), columns=c), 300) for c in ("chosen", "all")
    )
    shown = {metric.column: metric.shown for metric in METRICS}
    for column, value in numbers.items():
        assert f"{value:.3f}" in every
        assert (f"{value:.3f}" in chosen) == shown[column], column


@pytest.mark.parametrize("width", [40, 60, 80])
def test_narrow_terminals_get_every_number_whole(records, width):
    text = printed(console_table(records, columns="all"), width)
    assert max(map(len, text.splitlines())) <= width
    line = " ".join(rows(text, "EKFAC"))
    for number in ("0.352", "1.02", "0.390±0.021", "0.330", "1.00", "0.0900", "4.32e3"):
        assert line.split().count(number) + line.split().count(number + "*") >= 2


def test_a_notebook_gets_the_text_of_the_console_escaped(records):
    records = records.assign(dataset="a <b>bold</b> name & more")
    text = html_table(records, device="cpu")
    assert "<b>" not in text
    assert html.unescape(re.sub("<[^>]*>", "", text)) == printed(console_table(records, device="cpu"), 110)
    best = re.findall(r"<span style=\"[^\"]*font-weight: bold[^\"]*\">([^<]*)\*</span>", text)
    assert {"0.352", "0.900", "1.00"} <= set(map(str.strip, best))


def test_best_of_each_column_and_target_is_marked(records):
    text = printed(console_table(records[records["layer"] == "0"], columns="all"), 110)
    assert "0.352*" in rows(text, "EKFAC")[0]
    assert "0.300*" in rows(text, "nearest")[0]
    assert "0.900*" in rows(text, "KFAC")[0]
    assert "1.00*" in rows(text, "EKFAC")[0]
    assert "1.00*" in rows(text, "TKFAC")[0]
    assert "1.23e3*" in rows(text, "TKFAC")[0]
    assert "0.0500*" not in text  # the only row of its target has no rival


def test_rows_name_their_target_only_where_there_are_two(records):
    both = printed(console_table(records))
    assert "layer." in rows(both, "LNGD ")[0]
    assert "target predictive and layerwise" in both
    one = printed(console_table(records[records["target"] == "predictive"]))
    assert "pred." not in one
    assert "target predictive" in one


def test_heading_and_foot_say_what_was_measured(records):
    text = printed(console_table(records.assign(dataset="stand-in: digits"), device="cpu"))
    for part in ("Layer 0", "m×d = 20×21", "kronecker", "1,000 samples", "9,000 columns"):
        assert part in text
    for part in ("stand-in: digits", "mnist-mlp", "trained", "seed 0", "device cpu"):
        assert part in text


def test_missing_numbers_are_dashes_and_empty_columns_are_left_out(records):
    records.loc[1, "relative_error"] = None
    records["decrease_share"] = None
    text = printed(console_table(records[records["layer"] == "0"]))
    assert "–" in rows(text, "KFAC")[0]
    assert "decr." not in text
    assert "nan" not in text.lower()


def test_notes_are_footnotes_shared_by_equal_rows(records):
    records["note"] = records["approximation"].map({"kfac": "few samples", "ekfac": "few samples"})
    text = printed(console_table(records[records["layer"] == "0"]))
    assert rows(text, "KFAC [1]")
    assert rows(text, "EKFAC [1]")
    assert text.count("few samples") == 1


def test_methods_of_another_scale_carry_a_warning(records):
    text = printed(console_table(records))
    assert rows(text, "LNGD†")
    assert "compare scaled errors" in " ".join(text.split())
    without = records[records["approximation"] != "lngd"]
    assert "†" not in printed(console_table(without))


def test_names_of_third_parties_are_printed_as_they_are(records):
    odd = "my[bold]-method"
    records["approximation"] = records["approximation"].replace("kfac", odd)
    assert odd in printed(console_table(records), 120)


def test_each_run_has_blocks_of_its_own(records):
    text = printed(console_table(records.assign(seed=[0] * 6 + [1] * 6, layer="0")))
    assert text.count("Layer 0") == 2


def test_only_names_are_needed(records):
    text = printed(console_table(records[["layer", "approximation", "scaled_error"]]))
    assert "0.300*" in text
    with pytest.raises(InputError, match="approximation"):
        console_table(records[["layer"]])
    with pytest.raises(InputError, match="no rows"):
        console_table(records.iloc[:0])


def layer_rows(text):
    return [line for line in text.splitlines() if "out_proj" in line]


def test_many_layers_are_one_table_with_a_row_a_layer(many):
    text = printed(console_table(many, device="cpu"), 120)
    lines = layer_rows(text)
    assert len(lines) == 30
    assert max(map(len, text.splitlines())) <= 120
    assert "encoder.layers.7.self_attention.out_proj" in lines[7]
    for part in ("Linear", "20×21", "64", "kronecker", "0.307", "0.207*", "0.600"):
        assert part in lines[7].split()
    assert "0.0500" not in text
    assert len(text.splitlines()) < 50
    for part in ("target drawn", "mnist-mlp", "device cpu", "records.csv", "LNGD†", "best of its row"):
        assert part in text
    assert "damping" not in text


def test_groups_are_a_column_where_there_are_any(many):
    lines = layer_rows(printed(console_table(many), 120))
    assert ["×4" in line for line in lines] == [True] * 6 + [False] * 24
    text = printed(console_table(many.assign(groups=1)), 120)
    assert "groups" not in text
    few = many[many["layer"].isin(many["layer"].unique()[:2])]
    assert printed(console_table(few), 120).count("×4 groups") == 2


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_many_layers_on_a_narrow_terminal_keep_every_number_whole(many, width):
    text = printed(console_table(many), width)
    assert max(map(len, text.splitlines())) <= width
    numbers = " ".join(layer_rows(text)).split()
    assert numbers.count("0.207*") == numbers.count("0.307") == 1
    assert numbers.count("0.600") == 30
    assert numbers.count("20×21") == numbers.count("kronecker") == 30


def test_layers_with_the_diagonal_only_are_one_line(many, records):
    text = " ".join(printed(console_table(many), 120).split())
    assert "20 layers with the approximation diagonal only (norm): scaled error 0.100 to 0.290" in text
    assert "norms." not in text
    norms = many[many["module"] == "norm"]
    few = printed(console_table(pd.concat([records, norms])), 120)
    assert "norms." not in few
    assert few.count("20 layers with the approximation diagonal only") == 1
    assert len(rows(printed(console_table(norms), 120), "norms.")) == 20


def test_notes_of_many_layers_are_counted(many):
    many.loc[many["approximation"] == "ekfac", "note"] += "; layer 'x' has no basis"
    lines = printed(console_table(many), 120).splitlines()
    assert "30 layers: the block would need …; one label a sample is drawn" in lines
    assert "30 layers, EKFAC: layer 'x' has no basis" in lines


def test_notes_that_differ_in_numbers_or_the_layers_name_are_one():
    frame = pd.DataFrame(
        {
            "layer": ["a", "b", "c"],
            "approximation": "kfac",
            "note": ["layer 'a' needs 3 GiB of 4 GiB", "layer 'b' needs 12 MiB of 4 GiB", pd.NA],
        }
    )
    assert list(counted_notes(frame)) == ["2 layers: layer … needs … of 4 GiB"]


def test_missing_numbers_of_many_layers_are_dashes(many):
    many["scaled_error"] = many["scaled_error"].astype(object)
    many.loc[many["approximation"] == "ekfac", "scaled_error"] = pd.NA
    lines = layer_rows(printed(console_table(many), 120))
    assert all("–" in line.split() for line in lines)
    assert "0.300*" in lines[0]
    bare = many[["layer", "approximation"]].assign(relative_error=np.nan)
    assert len(layer_rows(printed(console_table(bare), 120))) == 30


def test_headings_are_no_wider_than_their_numbers():
    assert max(len(line) for metric in METRICS for line in metric.heading) <= 7


def test_what_the_notes_of_all_rows_share_is_said_once(records):
    records["note"] = records["approximation"].map(lambda name: f"{name} is left out; drawn labels")
    text = " ".join(printed(console_table(records[records["layer"] == "0"])).split())
    assert text.count("drawn labels") == 1
    assert "all rows: drawn labels" in text
    assert "kfac is left out; drawn" not in text


def split(width, least=None):
    names = TextColumn(Text("layer"), [Text("encoder.layers.11.fc"), Text("head")], right=False)
    parts = [[TextColumn(Text(head), [Text("1.23e4"), Text("0.1")]) for head in part] for part in ("ab", "c")]
    return [line.rstrip() for line in printed(SplitTable([names], parts, least=least), width).splitlines()]


def test_a_table_is_whole_where_it_fits_and_cut_between_its_parts_where_not():
    wide, narrow = split(80), split(36)
    assert wide[0].split() == ["layer", "a", "b", "c"]
    assert [line.split() for line in narrow if "1.23e4" in line] == [
        ["encoder.layers.11.fc", "1.23e4", "1.23e4"],
        ["encoder.layers.11.fc", "1.23e4"],
    ]
    assert narrow.count("") == 1


def test_names_of_rows_are_cut_before_a_table_is():
    assert len([line for line in split(36, least=10) if "1.23e4" in line]) == 1
    assert any(line.startswith("enc.lay.11.fc ") for line in split(36, least=10))
    assert any(line.startswith("encoder.layers.11.fc ") for line in split(80, least=10))


@pytest.mark.parametrize(("target", "said"), [("predictive", False), ("monte-carlo", True)])
def test_a_heading_says_whether_the_exact_block_has_drawn_labels(records, target, said):
    text = printed(console_table(records.assign(target=target)))
    assert "exact by kronecker" in text
    assert ("exact by kronecker of drawn labels" in text) == said
