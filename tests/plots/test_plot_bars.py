import numpy as np
import pandas as pd
import pytest

from fisherlab import plots
from fisherlab.errors import InputError

STEPS = ("nearest-kronecker", "kfac", "lngd-lr", "lngd")


def heights(axes):
    return [bar.get_height() for bar in axes.patches]


def steps(values, layer="4"):
    names = STEPS[: len(values)]
    return pd.DataFrame({"layer": layer, "step": names, "scaled_error": values})


def test_bars_have_the_heights_of_the_records(make_records, caption):
    records = make_records(["0", "2"])
    figure = plots.errors(records, caption=caption)
    for axes, metric in zip(figure.axes, ("relative_error", "scaled_error", "population_error"), strict=True):
        assert sorted(heights(axes)) == pytest.approx(sorted(records[metric]))


def test_every_bar_carries_its_number(make_records, caption, texts):
    records = make_records(["0", "2"])
    found = texts(plots.errors(records, caption=caption))
    for value in records["relative_error"]:
        assert plots.number(value) in found


def test_far_errors_are_cut_and_named(make_records, caption, texts):
    records = make_records(["0", "2"])
    far = records["approximation"] == "lngd"
    records.loc[far, "relative_error"] = 123.0
    figure = plots.errors(records, caption=caption)
    near = records.loc[~far, "relative_error"].max()
    assert near < max(heights(figure.axes[0])) < 2 * near
    assert figure.axes[0].get_ylim()[1] < 2 * near
    found = texts(figure)
    assert found.count("123") == 2
    assert sum("cut" in text for text in found) == 1


def test_numbers_and_whiskers_stay_inside_their_panel(make_records, caption):
    records = make_records(["0", "2"])
    far = records["approximation"] == "lngd"
    records.loc[far, ["population_error", "population_error_se"]] = 40.0
    records.loc[records["approximation"] == "kfac", "population_error_se"] = 1.5
    axes = plots.errors(records, caption=caption).axes[2]
    top = axes.get_ylim()[1]
    numbers = {text.get_text(): text.xy[1] for text in axes.texts}
    assert all(y < top for y in numbers.values())
    assert numbers["40.0"] > max(heights(axes))
    whiskers = np.concatenate([line.vertices for bars in axes.collections for line in bars.get_paths()])
    assert np.nanmax(whiskers[:, 1]) < top
    kfac = records.loc[records["approximation"] == "kfac", "population_error"]
    assert np.nanmax(whiskers[:, 1]) == pytest.approx(kfac.max() + 1.5)


def test_errors_that_are_all_large_are_not_cut(make_records, caption):
    records = make_records(["0"], relative_error=5.0)
    assert heights(plots.errors(records, caption=caption).axes[0]) == [5.0] * 5


def test_second_target_is_a_series_of_its_own(make_records, caption):
    records = make_records(["0", "2"])
    second = records[records["approximation"] == "lngd"].assign(target="layerwise")
    figure = plots.errors(pd.concat([records, second]), caption=caption)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names[-2:] == ["LNGD", "LNGD (layerwise target)"]
    assert len(figure.axes[0].patches) == 12


def test_missing_errors_say_so(make_records, caption, texts):
    records = make_records(["0", "2"])
    records.loc[records["layer"] == "2", "population_error"] = np.nan
    assert texts(plots.errors(records, caption=caption)).count("n/a") == 5
    without = records.drop(columns=["population_error", "population_error_se"])
    figure = plots.errors(without, caption=caption)
    assert texts(figure).count("n/a") == 1
    assert len({axes.get_xlim() for axes in figure.axes}) == 1


@pytest.mark.parametrize(("layers", "names"), [(1, 1), (1, 12), (7, 5), (18, 5)])
def test_every_layer_and_approximation_is_drawn(make_records, caption, layers, names):
    records = make_records(
        [f"stage.{index}.conv" for index in range(layers)], [f"method-{k}" for k in range(names)]
    )
    figure = plots.errors(records, caption=caption)
    first = [axes for axes in figure.axes if axes.get_ylabel() == "relative error"]
    assert sum(len(axes.patches) for axes in first) == layers * names


def test_waterfall_bars_go_from_value_to_value(caption):
    (axes,) = plots.waterfall(steps([0.3, 0.4, 0.7, 0.6]), caption=caption).axes
    spans = [(bar.get_y(), bar.get_y() + bar.get_height()) for bar in axes.patches]
    np.testing.assert_allclose(spans, [(0, 0.3), (0.3, 0.4), (0.4, 0.7), (0.7, 0.6)], atol=1e-12)
    assert axes.get_ylim()[1] > 0.7
    added, removed = axes.patches[2].get_facecolor(), axes.patches[3].get_facecolor()
    assert added != removed


def test_waterfall_steps_over_a_missing_value(caption, texts):
    figure = plots.waterfall(steps([0.3, np.nan, 0.7]), caption=caption)
    spans = [(bar.get_y(), bar.get_y() + bar.get_height()) for bar in figure.axes[0].patches]
    np.testing.assert_allclose(spans, [(0, 0.3), (0.3, 0.7)], atol=1e-12)
    assert texts(figure).count("n/a") == 1


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_waterfall_has_a_panel_a_layer(caption, count):
    frame = pd.concat(steps([0.3, 0.4, 0.5, 0.6], str(layer)) for layer in range(count))
    figure = plots.waterfall(frame, caption=caption)
    assert sum(axes.get_visible() for axes in figure.axes) == count


def test_layers_with_the_diagonal_only_are_left_out_and_counted(make_records, caption, texts):
    records = pd.concat([make_records(["0", "2"]), make_records(["norm"], ["diagonal"])])
    figure = plots.errors(records, caption=caption)
    assert "layer (1 with the diagonal only are left out)" in texts(figure)
    assert "n/a" not in texts(figure)
    assert "norm" not in texts(figure)
    assert heights(plots.errors(make_records(["norm"], ["diagonal"]), caption=caption).axes[0])


def test_the_main_target_of_a_layer_is_that_of_its_first_row(make_records, caption):
    drawn = make_records(["2"]).assign(target="drawn")
    figure = plots.errors(pd.concat([make_records(["0"]), drawn]), caption=caption)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert not any("target" in name for name in names)
    assert len(figure.axes[0].patches) == 10


def test_waterfall_leaves_out_layers_without_steps(caption, texts):
    frame = pd.concat([steps([0.3, 0.4], "0"), steps([None, None], "norm")])
    figure = plots.waterfall(frame, caption=caption)
    assert sum(axes.get_visible() for axes in figure.axes) == 1
    assert any("1 without these steps" in text.replace("\n", " ") for text in texts(figure))


def test_waterfall_without_any_number_is_drawn(caption, texts):
    figure = plots.waterfall(steps([np.nan] * 4), caption=caption)
    assert texts(figure).count("n/a") == 4


def test_incomplete_records_are_refused(make_records, caption):
    with pytest.raises(InputError, match="scaled_error"):
        plots.errors(make_records(["0"]).drop(columns="scaled_error"), caption=caption)
    with pytest.raises(InputError, match="no rows"):
        plots.errors(make_records(["0"]).iloc[:0], caption=caption)
