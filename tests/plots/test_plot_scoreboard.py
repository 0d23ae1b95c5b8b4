import numpy as np
import pandas as pd
import pytest

from fisherlab import plots
from fisherlab.errors import InputError


def frame() -> pd.DataFrame:
    rows = [
        {"model": model, "state": state, "approximation": name}
        for model in ("mnist-mlp", "cifar-cnn")
        for state in ("init", "end")
        for name in ("kfac", "lngd")
    ]
    numbers = np.linspace(0.004, 0.9, len(rows))
    return pd.DataFrame(rows).assign(scaled_error=numbers, gradients=10 * numbers + 1)


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_every_number_stands_in_its_cell():
    figure = plots.scoreboard(frame(), caption="mnist; seed 0")
    errors, costs = figure.axes
    assert errors.get_title(loc="left").startswith("scaled error")
    assert costs.get_title(loc="left").startswith("cost")
    shown = np.asarray(errors.images[0].get_array())
    assert shown.shape == (2, 4)
    expected = frame().scaled_error.to_numpy().reshape(4, 2).T
    np.testing.assert_allclose(shown, expected)
    assert [t for t in texts(errors) if t.startswith(".")] == [f"{x:.2f}"[1:] for x in expected.flatten()]
    assert [t.get_text() for t in errors.get_yticklabels()] == ["KFAC", "LNGD"]
    assert [t.get_text() for t in errors.get_xticklabels()] == ["init", "end"] * 2
    assert {"mnist-mlp", "cifar-\ncnn"} <= set(texts(errors))


def test_what_is_not_known_has_no_number():
    rows = frame().assign(decrease_share=np.nan, gradients=np.nan)
    rows.loc[0, "scaled_error"] = np.nan
    (errors,) = plots.scoreboard(rows, caption="").axes
    assert len([t for t in texts(errors) if t.startswith(".")]) == len(rows) - 1


def test_a_missing_column_is_named():
    with pytest.raises(InputError, match="state"):
        plots.scoreboard(frame().drop(columns="state"), caption="")
