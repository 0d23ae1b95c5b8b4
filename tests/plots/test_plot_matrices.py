from itertools import pairwise

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import LogNorm
from matplotlib.patches import Rectangle

from fisherlab import plots
from fisherlab.errors import InputError
from fisherlab.plots import magnitudes, matrices


def images(figure):
    return [image for axes in figure.axes for image in axes.images]


def squares(figure):
    return [patch for axes in figure.axes for patch in axes.patches if type(patch) is Rectangle]


def draw(exact, approximations, outputs, **options):
    inputs = len(exact) // outputs
    shape = {"outputs": outputs, "inputs": inputs}
    return plots.heatmap(exact, approximations, layer="4", caption="here", **shape, **options)


def test_panels_show_magnitudes_of_exact_approximation_and_error(fisher):
    exact, kfac = fisher
    drawn = images(draw(exact, {"kfac": -kfac}, 6, cutout=60))
    expected = (np.abs(exact), np.abs(kfac), np.abs(exact + kfac))
    assert len(drawn) == 3
    for image, matrix in zip(drawn, expected, strict=True):
        np.testing.assert_array_equal(image.get_array(), matrix)


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_one_scale_holds_all_panels(fisher, rows):
    exact, kfac = fisher
    figure = draw(exact, {f"method {i}": kfac * 1.5**i for i in range(rows)}, 6, cutout=20)
    drawn = images(figure)
    assert len(drawn) == 6 * rows
    assert len({id(image.norm) for image in drawn}) == 1
    assert drawn[0].norm.vmax == max(np.max(image.get_array()) for image in drawn)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_far_larger_approximation_leaves_the_exact_matrix_visible(fisher, texts, rows):
    exact, kfac = fisher
    figure = draw(exact, {f"method {i}": 1e5 * kfac for i in range(rows)}, 6, cutout=60)
    norm = images(figure)[0].norm
    assert norm.vmax == pytest.approx(10 * np.abs(exact).max())
    assert norm.vmin < np.median(np.abs(exact))
    assert any("above 10 max" in text for text in texts(figure))


def test_scale_is_linear_for_even_entries_and_logarithmic_for_uneven_ones(texts):
    even = 1 + np.random.default_rng(0).random((4, 4))
    uneven = np.diag([1.0, 1e-2, 1e-3, 1e-4]) + 1e-5
    linear, logarithmic = (draw(matrix, {"kfac": matrix}, 2) for matrix in (even, uneven))
    assert not isinstance(images(linear)[0].norm, LogNorm)
    assert isinstance(images(logarithmic)[0].norm, LogNorm)
    assert any("linear" in text for text in texts(linear))
    assert any("logarithmic" in text for text in texts(logarithmic))


def test_square_lies_where_the_mass_is_and_is_marked_in_each_large_panel():
    exact = np.eye(50)
    exact[20:30, 20:30] += 5
    figure = draw(exact, {"kfac": exact * 2}, 5, cutout=10)
    assert [square.get_xy() for square in squares(figure)] == [(19.5, 19.5)] * 3
    np.testing.assert_array_equal(images(figure)[3].get_array(), exact[20:30, 20:30])


def test_square_stands_where_the_caller_says(fisher):
    exact, kfac = fisher
    figure = draw(exact, {"kfac": kfac}, 6, cutout=12, corner=7)
    np.testing.assert_array_equal(images(figure)[3].get_array(), np.abs(exact[7:19, 7:19]))
    with pytest.raises(InputError, match="between 0 and 48"):
        draw(exact, {"kfac": kfac}, 6, cutout=12, corner=49)


def test_small_matrix_has_no_square(fisher):
    exact, kfac = fisher
    assert squares(draw(exact[:36, :36], {"kfac": kfac[:36, :36]}, 6)) == []


def test_large_matrix_is_drawn_by_block_maxima_and_says_so(monkeypatch, fisher, texts):
    monkeypatch.setattr(matrices, "MAX_PIXELS", 25)
    exact, kfac = fisher
    figure = draw(exact, {"kfac": kfac}, 6, cutout=60)
    blocks = np.abs(exact).reshape(20, 3, 20, 3).max(axis=(1, 3))
    np.testing.assert_array_equal(images(figure)[0].get_array(), blocks)
    assert any("largest of 3×3" in text for text in texts(figure))


@given(side=st.integers(2, 40), step=st.integers(1, 9))
def test_block_maximum_keeps_the_largest_entry_of_every_block(side, step):
    matrix, minus = np.random.default_rng(side * step).normal(size=(2, side, side))
    for magnitude, reduced in (
        (np.abs(matrix), magnitudes.block_maximum(matrix, step)),
        (np.abs(matrix - minus), magnitudes.block_maximum(matrix, step, minus)),
    ):
        places = np.arange(side) // step
        whole = reduced[places][:, places]
        assert (whole >= magnitude).all()
        assert np.isin(reduced, magnitude).all()
        assert reduced.shape == (-(-side // step),) * 2


def test_quantiles_of_a_large_matrix_come_from_all_its_columns(monkeypatch):
    monkeypatch.setattr(magnitudes, "_SAMPLE", 500)
    matrix = np.broadcast_to(np.arange(1.0, 61.0), (60, 60)).copy()
    sample = magnitudes._sample(matrix)
    assert 300 <= len(sample) <= 500
    np.testing.assert_array_equal(np.unique(sample), np.arange(1.0, 61.0))


def test_a_small_matrix_gives_all_its_entries_but_zeros_and_unknown_ones():
    matrix = np.array([[0.0, -2.0], [np.nan, 3.0]])
    assert sorted(magnitudes._sample(matrix)) == [2.0, 3.0]


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("size", "outputs", "cutout"), [(60, 6, 20), (60, 6, 60), (119, 7, 40), (110, 11, 24), (130, 65, 40)]
)
def test_panels_are_square_and_nothing_overlaps(rows, size, outputs, cutout):
    exact = np.random.default_rng(0).normal(size=(size, size))
    figure = draw(exact, {f"method {i}": exact for i in range(rows)}, outputs, cutout=cutout)
    figure.draw_without_rendering()
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    boxes += [text.get_window_extent() for text in figure.texts]
    for index, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert not any(box.overlaps(other) for other in boxes[index + 1 :])
    for axes in figure.axes:
        if axes.images:
            assert axes.bbox.width == pytest.approx(axes.bbox.height)
            names = [tick.get_window_extent() for tick in axes.get_xticklabels()]
            assert not any(one.overlaps(other) for one, other in pairwise(names))


def test_panels_inside_the_grid_have_no_ticks(fisher):
    exact, kfac = fisher
    figure = draw(exact, {f"method {i}": kfac for i in range(4)}, 6, cutout=60)
    panels = [axes for axes in figure.axes if axes.images]
    numbered = [(len(axes.get_xticks()) > 0, len(axes.get_yticks()) > 0) for axes in panels]
    assert numbered == [(row == 3, column == 0) for row in range(4) for column in range(3)]


def test_ticks_of_many_inputs_name_their_first_units(fisher):
    exact, kfac = fisher
    axes = draw(exact, {"kfac": kfac}, 6, cutout=60).axes[0]
    assert axes.get_ylabel() == "input (6 units each)"
    assert [int(tick.get_text()) * 6 for tick in axes.get_yticklabels()] == list(axes.get_yticks())
    assert len(axes.get_yticks()) == 5


@given(
    inputs=st.integers(1, 40), outputs=st.integers(1, 70), start=st.integers(0, 200), size=st.integers(2, 40)
)
def test_ticks_of_a_square_lie_in_it_and_name_input_and_unit(inputs, outputs, start, size):
    start %= max(1, inputs * outputs - size + 1)
    ticks = matrices._ticks(magnitudes.Window(start, size), outputs, single=False)
    assert 1 <= len(ticks.places) <= 7
    for place, name in zip(ticks.places, ticks.names, strict=True):
        assert start <= place < start + size
        given, _, unit = name.partition(", ")
        assert int(given) * outputs + int(unit or 0) == place


def test_missing_approximation_leaves_an_empty_row(fisher, texts):
    exact, kfac = fisher
    figure = draw(exact, {"kfac": kfac, "lngd": None}, 6, cutout=60)
    assert len(images(figure)) == 4
    assert texts(figure).count("n/a") == 2


def test_wholly_unknown_or_zero_matrices_are_drawn(fisher):
    exact, _ = fisher
    draw(exact, {"kfac": np.full_like(exact, np.nan)}, 6, cutout=20).draw_without_rendering()
    draw(np.zeros((4, 4)), {"kfac": np.zeros((4, 4))}, 2).draw_without_rendering()


def test_wrong_shapes_are_refused(fisher):
    exact, kfac = fisher
    with pytest.raises(InputError, match="column-vec"):
        draw(exact, {"kfac": kfac[:30, :30]}, 6)
    with pytest.raises(InputError, match="at least one"):
        draw(exact, {}, 6)


def test_title_names_layer_and_scale(fisher, texts):
    exact, kfac = fisher
    found = texts(draw(exact, {"kfac": kfac}, 6, scale_note="trace-matched"))
    assert any("Layer 4" in text and "(trace-matched)" in text for text in found)
    assert any("KFAC" in text for text in found)


def test_coupling_prints_each_number_and_marks_missing_ones(caption, texts):
    matrix = np.array([[1.0, 0.123, np.nan], [0.123, 1.0, 0.456], [np.nan, 0.456, 1.0]])
    found = texts(plots.coupling(matrix, ["0", "2", "4"], caption=caption))
    assert found.count("0.123") == 2
    assert found.count("n/a") == 2
    with pytest.raises(InputError, match=r"\[L, L\]"):
        plots.coupling(matrix, ["0", "2"], caption=caption)


@pytest.mark.parametrize("count", [40, 41, 161])
def test_coupling_of_many_layers_has_names_with_room_and_says_which(caption, texts, count):
    names = [f"blocks.{index}.a_long_convolution.name" for index in range(count)]
    figure = plots.coupling(np.eye(count), names, caption=caption)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    boxes = [tick.get_window_extent() for tick in axes.get_yticklabels()]
    assert 10 <= len(boxes) <= 40
    assert not any(box.overlaps(other) for box, other in pairwise(boxes))
    assert all(box.x0 >= 0 for box in boxes)
    assert any("named" in text for text in texts(figure)) == (count > 40)


def test_coupling_of_many_layers_shows_small_values_on_a_logarithmic_scale(caption, texts):
    matrix = np.eye(20)
    matrix[0, 1] = matrix[1, 0] = 0.05
    matrix[2, 3] = np.nan
    figure = plots.coupling(matrix, [str(index) for index in range(20)], caption=caption)
    (mesh,) = figure.axes[0].collections
    assert isinstance(mesh.norm, LogNorm)
    drawn = mesh.get_array().reshape(20, 20)
    assert drawn[0, 1] == 0.05
    assert drawn[0, 2] == mesh.norm.vmin
    assert np.ma.getmaskarray(drawn)[2, 3]
    assert any("logarithmic" in text and "grey" in text for text in texts(figure))


def test_magnitude_map_grows_in_lightness():
    colors = matplotlib.colormaps[plots.style.MAGNITUDE_MAP](np.linspace(0, 1, 50))[:, :3]
    assert (np.diff(colors @ [0.2126, 0.7152, 0.0722]) > 0).all()


@pytest.mark.parametrize(
    ("outputs", "inputs", "words", "pair"), [(60, 1, "entry", False), (30, 2, "input, unit", True)]
)
def test_axes_of_a_vector_count_its_entries(outputs, inputs, words, pair):
    F = np.eye(60)
    figure = plots.heatmap(F, {"diagonal": F}, layer="0", outputs=outputs, inputs=inputs, caption="")
    figure.draw_without_rendering()
    assert words in [axes.get_xlabel() for axes in figure.axes]
    names = [tick.get_text() for axes in figure.axes for tick in axes.get_xticklabels() if axes.images]
    assert names
    assert all(("," in name) == pair for name in names)
