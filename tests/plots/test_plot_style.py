import io
import re
import subprocess
import sys
import warnings
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from fisherlab import plots
from fisherlab.approximations import registered
from fisherlab.plots import style
from fisherlab.records import labels
from fisherlab.records.labels import plain


@pytest.fixture
def figures(fisher, make_records, caption):
    """One figure of each kind."""
    exact, kfac = fisher
    shape = {"layer": "4", "outputs": 6, "inputs": 10, "caption": caption}
    values = np.linalg.eigvalsh(exact)
    sweep = make_records(["0"]).assign(damping=0.1, direction_cosine=0.9, decrease_share=0.8)
    steps = pd.DataFrame({"layer": "4", "step": ["kfac", "lngd"], "scaled_error": [0.3, 0.6]})
    spectra = {"layer": "4", "damping": 0.1, "caption": caption}
    return {
        "heatmap": plots.heatmap(exact, {"kfac": kfac}, cutout=20, **shape),
        "spectrum": plots.spectrum(values, {"kfac": values}, {"kfac": values}, **spectra),
        "errors": plots.errors(make_records(["0"]), caption=caption),
        "waterfall": plots.waterfall(steps, caption=caption),
        "coupling": plots.coupling(np.eye(3), ["0", "2", "4"], caption=caption),
        "directions": plots.directions(sweep, caption=caption),
    }


def test_every_figure_shows_its_caption(figures, caption):
    for figure in figures.values():
        assert any(caption in " ".join(text.get_text().split("\n")) for text in figure.texts)


def test_no_text_leaves_the_figure(figures):
    for name, figure in figures.items():
        figure.draw_without_rendering()
        frame = figure.bbox
        for text in [*figure.texts, *(axes.title for axes in figure.axes)]:
            box = text.get_window_extent()
            assert box.x0 >= -1, name
            assert box.x1 <= frame.x1 + 1, name
            assert box.y0 >= -1, name
            assert box.y1 <= frame.y1 + 1, name


def test_title_legend_panels_and_caption_do_not_overlap(figures):
    for name, figure in figures.items():
        figure.draw_without_rendering()
        strips = [text.get_window_extent() for text in figure.texts]
        strips += [legend.get_window_extent() for legend in figure.legends]
        panels = [axes.get_tightbbox() for axes in figure.axes if axes.get_visible()]
        for index, strip in enumerate(strips):
            others = [*strips[index + 1 :], *panels]
            assert not any(strip.overlaps(other) for other in others), name


@pytest.mark.parametrize("count", [2, 4, 5, 12])
def test_long_layer_names_stay_over_their_panels(caption, count):
    names = [f"encoder.layers.{index}.self_attention.WWW_projection" for index in range(count)]
    steps = pd.DataFrame({"layer": names, "step": "kfac", "scaled_error": 0.3})
    figure = plots.waterfall(steps, caption=caption)
    figure.draw_without_rendering()
    titles = [axes.title.get_window_extent() for axes in figure.axes if axes.get_visible()]
    for index, title in enumerate(titles):
        assert title.x0 >= 0
        assert title.x1 <= figure.bbox.x1
        assert not any(title.overlaps(other) for other in titles[index + 1 :])


def test_drawing_changes_no_setting_and_no_pyplot_state(tmp_path):
    script = """
import sys, matplotlib, numpy, seaborn
matplotlib.rcParams["font.size"] = 13
before = dict(matplotlib.rcParams)
from fisherlab import plots
figure = plots.coupling(numpy.eye(2), ["0", "2"], caption="here")
plots.save(figure, sys.argv[1])
assert dict(matplotlib.rcParams) == before
assert matplotlib.pyplot.get_fignums() == []
"""
    command = [sys.executable, "-c", script, str(tmp_path / "figure")]
    assert subprocess.run(command, check=False).returncode == 0


def test_equal_figures_are_saved_as_equal_bytes_without_dates(fisher, caption, tmp_path):
    exact, kfac = fisher
    shape = {"layer": "4", "outputs": 6, "inputs": 10, "caption": caption}
    saved = []
    for folder in ("a", "b"):
        figure = plots.heatmap(exact, {"kfac": kfac}, cutout=20, **shape)
        saved += [plots.save(figure, tmp_path / folder / f"heatmap-{run}.0") for run in (1, 2)]
    assert [path.name for path in saved[0]] == ["heatmap-1.0.png", "heatmap-1.0.pdf"]
    contents = [[path.read_bytes() for path in paths] for paths in saved]
    assert all(content == contents[0] for content in contents)
    assert not re.search(rb"CreationDate|\(D:20", contents[0][1])


def test_png_has_the_resolution_asked_for(figures, tmp_path):
    from matplotlib.image import imread

    figure = figures["errors"]
    png, _ = plots.save(figure, tmp_path / "a", png_dpi=50)
    height, width = imread(png).shape[:2]
    assert (width, height) == pytest.approx(tuple(figure.get_size_inches() * 50), abs=1)


def test_saving_leaves_canvas_and_resolution(figures, tmp_path):
    figure = figures["coupling"]
    canvas, dpi = figure.canvas, figure.dpi
    plots.save(figure, tmp_path / "a", png_dpi=50)
    assert figure.canvas is canvas
    assert figure.dpi == dpi


def test_matrices_are_images_in_the_pdf_and_text_stays_text(figures, tmp_path):
    _, pdf = plots.save(figures["heatmap"], tmp_path / "a")
    content = pdf.read_bytes()
    assert content.count(b"/Subtype /Image") >= 6
    assert b"/CIDFontType2" in content
    assert b"/Type3" not in content


@pytest.mark.parametrize("width", [style.COLUMN_WIDTH, style.PAGE_WIDTH])
@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_legend_uses_as_many_columns_as_fit(count, width):
    entries = [Patch(label=f"approximation {'of a layer' if i == 3 else ''} {i}") for i in range(count)]
    figure = style.styled(style.new_figure)(width, 1.0, caption="here", legend=entries)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    extent = legend.get_window_extent()
    assert extent.x1 <= figure.bbox.x1
    widest = max(text.get_window_extent().width for text in legend.get_texts())
    columns = len({round(text.get_window_extent().x0) for text in legend.get_texts()})
    if columns < count:
        assert extent.x1 + widest + 0.6 * figure.dpi > figure.bbox.x1


@given(st.text("abcXYZ 019−λ‖", min_size=1, max_size=30), st.floats(5, 12))
def test_text_is_as_wide_as_it_is_drawn(text, size):
    figure = Figure(dpi=720)
    drawn = figure.text(0, 0, text, fontsize=size, family="DejaVu Sans", parse_math=False)
    width = drawn.get_window_extent(FigureCanvasAgg(figure).get_renderer()).width / 720
    assert style.text_width(text, size) == pytest.approx(width, rel=0.05, abs=0.02)


def test_importing_plots_brings_no_seaborn():
    script = "import sys, fisherlab.plots; sys.exit('seaborn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_colors_differ_and_are_fixed():
    names = [name for name in (*registered(), *labels.VARIANTS) if labels.named(name).colour]
    assert {"kfac", "lngd-sample", "sgd"} < set(names)
    assert len({style.color(name) for name in names}) == len(names)
    assert style.color("kfac", ["mine", "kfac"]) == style.color("kfac")


def test_third_parties_get_colors_by_their_place():
    names = ["mine", "kfac", "yours"]
    assert style.color("mine", names) != style.color("yours", names)


@given(st.floats(1e-300, 1e300))
def test_number_keeps_three_digits(value):
    assert float(labels.number(value).replace("−", "-")) == pytest.approx(value, rel=5.01e-3)
    assert labels.number(-value) == "−" + labels.number(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.31, "0.310"),
        (12.345, "12.3"),
        (123.4, "123"),
        (1234, "1.23e3"),
        (0.0, "0"),
        (1e-5, "1.00e−5"),
        (float("inf"), "∞"),
        (float("nan"), "n/a"),
        (None, "n/a"),
        (pd.NA, "n/a"),
        (np.float32(0.5), "0.500"),
        (7, "7.00"),
        ("text", "n/a"),
    ],
)
def test_number_is_written_shortly(value, text):
    assert labels.number(value) == text


@given(st.lists(st.text("abz_019", min_size=1, max_size=12), min_size=1, max_size=8), st.integers(2, 60))
def test_short_names_fit_and_keep_their_end(words, most):
    name = ".".join(words)
    text = labels.short(name, most)
    assert len(text) <= most
    assert text.endswith(words[-1][max(0, len(words[-1]) - most + 1) :])
    if len(name) <= most:
        assert text == name


def test_short_names_keep_numbers_and_the_first_letters_of_words():
    name = "decoder.layers.11.cross_attention.out_proj"
    assert labels.short(name, 40) == "dec.layers.11.cross_attention.out_proj"
    assert labels.short(name, 24) == "dec.lay.11.cro.out_proj"
    assert labels.short("layer4.0.downsample.1.bias", 25) == "lay4.0.downsample.1.bias"
    assert labels.short(name, 10) == "….out_proj"


@pytest.mark.parametrize(("number", "text"), [(2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"), (22, "22nd")])
def test_ordinals(number, text):
    assert labels.ordinal(number) == text


@pytest.mark.parametrize(
    ("low", "high", "least"), [(0.05, 0.1, 2), (0.04, 1.3, 3), (0.2, 3, 3), (1e-6, 1e-5, 3), (1e-9, 1e2, 3)]
)
def test_a_logarithmic_axis_names_enough_ticks_and_names_them_apart(low, high, least):
    figure = style.new_figure(3, 2, caption="here")
    axes = figure.add_subplot()
    axes.plot([0, 1], [low, high])
    axes.set_yscale("log")
    style.name_logarithms(axes.yaxis)
    figure.draw_without_rendering()
    ticks = [*axes.yaxis.get_major_ticks(), *axes.yaxis.get_minor_ticks()]
    bottom, top = axes.get_ylim()
    named = [tick.label1 for tick in ticks if tick.label1.get_text() and bottom <= tick.get_loc() <= top]
    assert len(named) >= least
    boxes = sorted((label.get_window_extent() for label in named), key=lambda box: box.y0)
    assert not any(one.overlaps(other) for one, other in pairwise(boxes))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.05, "0.05"), (2000, "2000"), (5e-5, "5e−5"), (2e6, "2e6"), (-0.5, "−0.5"), (0, "0")],
)
def test_round_numbers_are_written_plainly(value, text):
    assert plain(value) == text


def test_a_tight_box_keeps_the_caption():
    """Notebooks save with a tight box, which must not cut off what the layout does not know."""
    figure = style.new_figure(3.0, 1.0, caption="stand-in: digits", title="A title")
    figure.add_subplot()
    whole, tight = io.BytesIO(), io.BytesIO()
    figure.savefig(whole, dpi=50)
    figure.savefig(tight, dpi=50, bbox_inches="tight", pad_inches=0)
    assert Image.open(tight).size == Image.open(whole).size


def test_letters_without_a_glyph_are_no_warning(tmp_path):
    figure = Figure()
    figure.text(0.5, 0.5, "layer 日本語\t")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.save(figure, tmp_path / "figure")
