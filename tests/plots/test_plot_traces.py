import numpy as np
import pandas as pd
import pytest

from fisherlab.errors import InputError
from fisherlab.plots import overtime, runs, traces, training

NAMES = ("kfac", "ekfac", "lngd")


def frame(layers=4, checkpoints=5, names=NAMES, norms=0, steps=None):
    """Records of a training with the trace ratios 1 + 0.1·checkpoint, 1 and 50."""
    ratio = {"kfac": lambda c: 1 + 0.1 * c, "ekfac": lambda c: 1.0, "lngd": lambda c: 50.0}
    rows = []
    for c in range(checkpoints):
        step = c * 10 if steps is None else steps[c]
        base = {"checkpoint": f"step-{step}" if c else "init", "step": step}
        for place in range(layers):
            exact = 2.0 ** (c - place)
            for name in names:
                one = ratio.get(name, lambda c: 2.0)(c)
                rows.append(
                    base
                    | {"layer": f"block.{place}.linear", "approximation": name, "trace_exact": exact}
                    | {"trace_approx": exact * one, "trace_ratio": one, "scaled_error": 0.3}
                    | {"direction_cosine": 0.9, "decrease_share": 0.8}
                    | {"effective_rank": 10.0 + place, "condition": 100.0 * (1 + c)}
                )
        for place in range(norms):
            rows.append(
                base
                | {"layer": f"norm.{place}", "approximation": "diagonal", "trace_exact": 1.0}
                | {"trace_approx": 1.0, "trace_ratio": 1.0, "scaled_error": 0.1, "direction_cosine": 0.9}
                | {"decrease_share": 0.8, "effective_rank": np.nan, "condition": np.nan}
            )
    return pd.DataFrame(rows)


def shown(figure):
    return [axes for axes in figure.axes if axes.get_visible()]


def meshes(figure):
    """The values of each map."""
    return [np.asarray(a.collections[0].get_array()).reshape(-1) for a in figure.axes if a.collections]


def test_few_layers_have_a_panel_each_with_all_curves(caption, texts):
    figure = traces.traces(frame(layers=3), caption=caption)
    panels = shown(figure)
    assert len(panels) == 3
    first = panels[0]
    assert first.get_yscale() == "log"
    np.testing.assert_array_equal(first.lines[0].get_xdata(), [0, 10, 20, 30, 40])
    np.testing.assert_allclose(first.lines[0].get_ydata(), 2.0 ** np.arange(5))
    np.testing.assert_allclose(first.lines[3].get_ydata(), 50 * 2.0 ** np.arange(5))
    assert {"layer block.0.linear", "exact $F$", "KFAC", "EKFAC", "LNGD"} <= set(texts(figure))
    assert caption in " ".join(texts(figure)).replace("\n", " ")


@pytest.mark.parametrize("layers", [60, 90])
def test_many_layers_are_a_map_of_the_exact_trace(caption, texts, layers):
    figure = traces.traces(frame(layers=layers, checkpoints=6, norms=7), caption=caption)
    (values, *_) = meshes(figure)
    expected = 2.0 ** (np.arange(6)[None] - np.arange(layers)[:, None])
    np.testing.assert_allclose(values, expected.ravel())
    assert any("7 with the diagonal only are left out" in text for text in texts(figure))
    assert any(text.startswith("90 layers, every 2nd") for text in texts(figure)) == (layers == 90)


def test_one_checkpoint_is_drawn_against_the_layers(caption):
    (axes,) = shown(traces.traces(frame(layers=30, checkpoints=1), caption=caption))
    np.testing.assert_allclose(axes.lines[0].get_ydata(), 2.0 ** -np.arange(30.0))


@pytest.mark.parametrize("layers", [4, 60])
def test_a_ratio_of_one_is_white_and_others_are_on_their_side(caption, layers):
    figure = traces.ratios(frame(layers=layers), caption=caption)
    kfac, ekfac, lngd = meshes(figure)[:3]
    np.testing.assert_allclose(ekfac, 0, atol=1e-15)
    np.testing.assert_allclose(kfac.reshape(layers, 5)[0], np.log10(1 + 0.1 * np.arange(5)))
    np.testing.assert_allclose(lngd, np.log10(50))
    mesh = figure.axes[1].collections[0]
    assert mesh.norm.vmin == -mesh.norm.vmax
    assert min(mesh.cmap(mesh.norm(0.0))[:3]) > 0.95
    red, _, blue, _ = mesh.cmap(mesh.norm(np.log10(1.4)))
    assert red > blue


def test_numbers_stand_in_the_cells_that_have_room(caption, texts):
    few = texts(traces.ratios(frame(), caption=caption))
    assert few.count("50.0") == 4 * 5
    many = texts(traces.ratios(frame(layers=60, checkpoints=8), caption=caption))
    assert "50.0" not in many
    assert "LNGD\n50.0" in many
    assert "KFAC\n1.00 to 1.70" in many
    one = traces.ratios(frame(checkpoints=1), caption=caption)
    assert {"KFAC", "EKFAC", "LNGD"} <= set(texts(one))
    assert texts(one).count("50.0") == 4


def test_ratios_that_are_not_known_or_not_positive_are_grey(caption):
    records = frame()
    records.loc[0, "trace_ratio"] = np.nan
    records.loc[1, "trace_ratio"] = 0.0
    kfac, ekfac, _ = meshes(traces.ratios(records, caption=caption))[:3]
    assert np.ma.getmaskarray(kfac)[0] or np.isnan(kfac[0])
    assert np.ma.getmaskarray(ekfac)[0] or np.isnan(ekfac[0])


@pytest.mark.parametrize("layers", [1, 4, 9])
def test_quality_has_three_panels_a_layer(caption, layers):
    figure = training.quality(frame(layers=layers), caption=caption)
    assert len(shown(figure)) == 3 * layers
    np.testing.assert_allclose(shown(figure)[0].lines[0].get_ydata(), 0.3)


def test_quality_keeps_negative_cosines_inside(caption):
    records = frame()
    records.loc[0, "direction_cosine"] = -0.7
    figure = training.quality(records, caption=caption)
    assert min(axes.get_ylim()[0] for axes in shown(figure)) <= -0.7


def test_spread_draws_medians_and_bands(caption):
    rows = [
        ("init" if step == 0 else f"s{step}", step, name, metric, 0.2, 0.4, 0.5)
        for step in (0, 10, 20)
        for name in NAMES
        for metric in ("scaled_error", "direction_cosine")
    ]
    columns = ["checkpoint", "step", "approximation", "metric", "low", "median", "high"]
    figure = training.spread(pd.DataFrame(rows, columns=columns), caption=caption)
    for axes in shown(figure):
        assert len(axes.lines) == len(axes.collections) == 3
        np.testing.assert_allclose(axes.lines[0].get_ydata(), 0.4)


@pytest.mark.parametrize("count", [3, 40])
def test_stages_draw_every_stage_and_the_whole(caption, texts, count):
    rows = [
        (f"s{step}", step, stage, name, value, 2.0)
        for step in (1, 2)
        for name in ("kfac", "ekfac")
        for stage, value in [*((f"stages.{k}", 1.0) for k in range(count)), ("all", float(count))]
    ]
    columns = ["checkpoint", "step", "stage", "approximation", "trace_exact", "trace_ratio"]
    figure = training.stages(pd.DataFrame(rows, columns=columns), caption=caption)
    left, right = figure.axes[:2]
    assert len(left.lines) == count + 1
    np.testing.assert_allclose(left.lines[-1].get_ydata(), count)
    np.testing.assert_allclose(right.lines[0].get_ydata(), 2.0)
    assert ("stages.1" in texts(figure)) == (count == 3)


def test_spectra_have_a_line_a_layer(caption, texts):
    for layers in (3, 30):
        figure = training.spectra(frame(layers=layers, norms=2), caption=caption)
        assert f"(of {layers} of {layers + 2} layers" in " ".join(texts(figure))
        assert len(figure.axes[0].lines) == layers
        np.testing.assert_allclose(figure.axes[1].lines[0].get_ydata(), 100.0 * np.arange(1, 6))
    alone = training.spectra(frame(layers=5, checkpoints=1), caption=caption)
    np.testing.assert_allclose(alone.axes[0].lines[0].get_ydata(), 10.0 + np.arange(5))


def test_the_optimizer_has_a_panel_for_what_it_knows(caption):
    rows = [(step, f"l{k}", 0.1 * k + 0.1, 5.0, None) for step in (10, 20, 30) for k in range(3)]
    records = pd.DataFrame(rows, columns=["step", "layer", "rate", "trace_input", "trace_output"])
    panels = shown(training.optimizer(records, caption=caption))
    assert len(panels) == 2
    np.testing.assert_allclose(panels[0].lines[2].get_ydata(), 0.3)


def test_steps_far_apart_get_a_logarithmic_axis_that_ends_at_them(caption):
    steps = [0, 1, 30, 900, 20000]
    axes = shown(traces.traces(frame(steps=steps), caption=caption))[0]
    assert axes.get_xscale() == "symlog"
    low, high = axes.get_xlim()
    assert -1 < low <= 0 < 20000 <= high < 40000
    assert 0 in axes.get_xticks()
    assert shown(traces.traces(frame(), caption=caption))[0].get_xscale() == "linear"


def test_checkpoints_without_steps_keep_their_names(caption, texts):
    records = frame().assign(step=np.nan)
    found = overtime.time_of(records)
    assert not found.stepped
    assert found.texts[0] == "init"
    assert "checkpoint" in texts(traces.traces(records, caption=caption))


@pytest.mark.parametrize(
    "draw", [traces.traces, traces.ratios, training.quality, training.stages, training.spectra]
)
def test_incomplete_frames_are_refused(caption, draw):
    with pytest.raises(InputError, match="no column"):
        draw(pd.DataFrame({"checkpoint": ["init"]}), caption=caption)


def test_curves_of_runs(caption, texts):
    rows = [
        (run, epoch, 2.0 * epoch, None if epoch == 0 else 0.5 / epoch, 0.9)
        for run in ("one", "two")
        for epoch in range(4)
    ]
    table = pd.DataFrame(rows, columns=["run", "epoch", "seconds", "train_loss", "accuracy"])
    figure = runs.curves(table, "accuracy", caption=caption)
    loss, seconds, accuracy, _ = figure.axes
    np.testing.assert_allclose(loss.lines[0].get_xdata(), [1, 2, 3])
    np.testing.assert_allclose(seconds.lines[1].get_xdata(), [2, 4, 6])
    np.testing.assert_allclose(accuracy.lines[0].get_ydata(), 0.9)
    assert {"one", "two", "training loss", "accuracy"} <= set(texts(figure))
    assert len(runs.curves(table, None, caption=caption).axes) == 2
