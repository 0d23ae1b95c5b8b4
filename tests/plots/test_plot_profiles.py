"""Networks with many layers: nothing is lost, nothing overlaps, and a figure stays on a page."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba

from fisherlab import plots
from fisherlab.plots import style
from fisherlab.records.frames import compared_layers, numbers
from fisherlab.records.labels import ordinal

STEPS = ("nearest-kronecker", "kfac", "lngd-lr", "lngd")
COUNTS = [30, 200]
PAGE_HEIGHT = 10.0


def names(count):
    return [f"decoder.layers.{index}.cross_attention.out_projection" for index in range(count)]


def sweep(layers, methods=("kfac", "lngd")):
    rows = [
        (layer, method, 10.0 ** (place - 5) * (1 + index), 0.9 - 0.1 * place, 0.8)
        for index, layer in enumerate(layers)
        for method in methods
        for place in range(6)
    ]
    columns = ["layer", "approximation", "damping", "direction_cosine", "decrease_share"]
    return pd.DataFrame(rows, columns=columns)


def waterfall(layers):
    values = 0.2 + 0.5 * np.random.default_rng(0).random((len(layers), len(STEPS)))
    rows = [(layer, step, values[i, j]) for i, layer in enumerate(layers) for j, step in enumerate(STEPS)]
    return pd.DataFrame(rows, columns=["layer", "step", "scaled_error"]), values


def drawn(axes):
    """The curves of a panel, [layers, series]."""
    curves = [line.get_ydata() for line in axes.lines if line.get_marker() not in ("None", "_", "|")]
    return np.array(curves, float).T


@pytest.fixture(params=["errors", "waterfall", "directions"])
def make(request, make_records, caption):
    def draw(layers):
        if request.param == "errors":
            return plots.errors(make_records(layers), caption=caption)
        if request.param == "waterfall":
            return plots.waterfall(waterfall(layers)[0], caption=caption)
        return plots.directions(sweep(layers), caption=caption)

    return draw


@pytest.mark.parametrize("count", COUNTS)
def test_figures_stay_on_a_page_and_names_have_room(make, count):
    figure = make(names(count))
    assert figure.get_figheight() <= PAGE_HEIGHT
    figure.draw_without_rendering()
    axes = figure.axes[-1]
    boxes = [tick.get_window_extent() for tick in axes.get_xticklabels()]
    assert len(boxes) >= 10
    assert not any(box.overlaps(other) for box, other in pairwise(boxes))
    words = axes.xaxis.label.get_window_extent()
    assert words.y0 >= 0
    assert words.x1 <= figure.bbox.x1
    panels = [one.get_tightbbox() for one in figure.axes]
    strips = [text.get_window_extent() for text in figure.texts]
    strips += [legend.get_window_extent() for legend in figure.legends]
    assert not any(strip.overlaps(panel) for strip in strips for panel in panels)


def test_the_rule_of_the_named_layers_is_written_below(make):
    axes = make(names(161)).axes[-1]
    places = np.round(axes.get_xticks()).astype(int)
    step = places[1]
    np.testing.assert_array_equal(places, np.arange(0, 161, step))
    assert axes.get_xlabel() == f"161 layers, every {ordinal(step)} named"
    assert make(names(19)).axes[-1].get_xlabel().startswith("19 layers")


def test_every_error_of_every_layer_is_drawn(make_records, caption):
    records = make_records(names(40))
    records.loc[3, "scaled_error"] = np.nan
    figure = plots.errors(records, caption=caption)
    for axes, metric in zip(figure.axes, ("relative_error", "scaled_error", "population_error"), strict=True):
        np.testing.assert_array_equal(drawn(axes), records[metric].to_numpy().reshape(40, 5))


def test_far_errors_make_the_axis_logarithmic(make_records, caption):
    records = make_records(names(40))
    records.loc[records["approximation"] == "lngd", "relative_error"] = 300.0
    records.loc[0, "relative_error"] = 0.0
    figure = plots.errors(records, caption=caption)
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear", "linear"]
    assert (drawn(figure.axes[0])[:, 4] == 300).all()
    low, high = figure.axes[0].get_ylim()
    assert 0 < low <= drawn(figure.axes[0]).min() < 300 <= high
    assert "below 0.001" in figure.axes[0].get_title(loc="right")


def test_errors_that_pandas_calls_missing_are_gaps(make_records, caption, texts):
    records = make_records(names(40)).astype({"population_error": object, "relative_error": object})
    records["population_error"] = pd.NA
    records.loc[0, "relative_error"] = pd.NA
    figure = plots.errors(records, caption=caption)
    assert np.isnan(drawn(figure.axes[0])).sum() == 1
    assert texts(figure).count("n/a") == 1


def test_a_second_target_is_a_hollow_curve(make_records, caption):
    records = make_records(names(40))
    second = records[records["approximation"] == "lngd"].assign(target="layerwise", relative_error=0.5)
    axes = plots.errors(pd.concat([records, second]), caption=caption).axes[0]
    (hollow,) = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
    np.testing.assert_array_equal(hollow.get_ydata(), np.full(40, 0.5))


def test_layers_with_the_diagonal_only_are_left_out_and_counted(make_records, caption):
    norms = make_records([f"norm{index}" for index in range(90)], ["diagonal"])
    records = pd.concat([norms, make_records(names(30))])
    axes = plots.errors(records, caption=caption).axes[-1]
    assert len(drawn(axes)) == 30
    assert axes.get_xlabel() == "30 layers\n90 with the diagonal only are left out"
    frame = pd.concat([sweep(["norm"], ["diagonal"]), sweep(names(30))])
    axes = plots.directions(frame, caption=caption).axes[-1]
    assert len(drawn(axes)) == 30
    assert "1 with the diagonal only" in axes.get_xlabel()


def test_a_network_of_norms_alone_is_drawn(make_records, caption):
    records = make_records([f"norm{index}" for index in range(90)], ["diagonal"])
    assert len(drawn(plots.errors(records, caption=caption).axes[0])) == 90


def test_waterfall_curves_are_the_steps(caption):
    frame, values = waterfall(names(30))
    axes = plots.waterfall(frame, caption=caption).axes[0]
    np.testing.assert_array_equal(drawn(axes), values)
    assert axes.get_ylim()[1] > values.max()


def test_waterfall_leaves_out_layers_without_steps(caption):
    frame, values = waterfall(names(30))
    frame["scaled_error"] = frame["scaled_error"].astype(object)
    frame.loc[frame["layer"] == names(30)[4], "scaled_error"] = None
    axes = plots.waterfall(frame, caption=caption).axes[0]
    np.testing.assert_array_equal(drawn(axes), np.delete(values, 4, axis=0))
    assert axes.get_xlabel() == "29 layers\n1 without these steps are left out"


def test_directions_have_a_row_for_the_kth_damping_of_each_layer(caption):
    figure = plots.directions(sweep(names(20)), caption=caption)
    assert len(figure.axes) == 12
    for place in range(6):
        cosine, share = figure.axes[2 * place : 2 * place + 2]
        np.testing.assert_allclose(drawn(cosine), 0.9 - 0.1 * place)
        np.testing.assert_allclose(drawn(share), 0.8)
        assert f"no. {place + 1}" in cosine.get_ylabel()


def test_directions_of_a_layer_without_any_are_a_gap(caption):
    frame = sweep(names(20))
    frame.loc[frame["layer"] == names(20)[3], "direction_cosine"] = np.nan
    frame.loc[0, "direction_cosine"] = -0.7
    figure = plots.directions(frame, caption=caption)
    assert np.isnan(drawn(figure.axes[0])[3]).all()
    assert figure.axes[0].get_ylim()[0] < -0.7


def test_layers_to_compare_have_more_than_the_diagonal():
    frame = pd.DataFrame(
        {"layer": ["a", "b", "a", "c"], "approximation": ["kfac", "diagonal", "diagonal", "diagonal"]}
    )
    assert compared_layers(frame) == (["a"], ["b", "c"])
    assert compared_layers(frame[frame["layer"] != "a"]) == (["b", "c"], [])


def test_numbers_of_any_column_are_floats():
    column = numbers(pd.Series([1, None, pd.NA, "text", 2.5], dtype=object))
    np.testing.assert_array_equal(column, [1, np.nan, np.nan, np.nan, 2.5])
    assert numbers(pd.Series([1, None], dtype="Int64")).dtype == float


@pytest.mark.parametrize("count", [2, 20, 40])
def test_layers_with_drawn_labels_are_shaded_and_the_legend_says_so(count, make_records, caption):
    layers = names(count)
    records = make_records(layers)
    records["kind"] = ["monte-carlo" if layer == layers[1] else "predictive" for layer in records["layer"]]
    errors = plots.errors(records, caption=caption)
    directions = plots.directions(sweep(layers), caption=caption, shaded=layers[1:2])
    for figure in (errors, directions):
        assert "drawn labels" in figure.legends[0].get_texts()[-1].get_text()
        plain = plots.errors(records.drop(columns="kind"), caption=caption)
        assert "drawn labels" not in plain.legends[0].get_texts()[-1].get_text()
    shade = to_rgba(style.SHADE)
    assert len([one for one in errors.axes[0].patches if one.get_facecolor() == shade]) == 1
    if count == 2:
        faces = [axes.get_facecolor() == shade for axes in directions.axes]
        assert faces == [False, True, False, True]
    else:
        (span,) = [one for one in directions.axes[0].patches if one.get_facecolor() == shade]
        assert (span.get_x(), span.get_width()) == (0.5, 1.0)
