import numpy as np
import pandas as pd
import pytest

APPROXIMATIONS = ("nearest-kronecker", "kfac", "ekfac", "tkfac", "lngd")


@pytest.fixture
def caption():
    return "stand-in: digits, 500 samples; mnist-mlp, trained; seed 0; cpu"


@pytest.fixture
def fisher():
    """An exact Fisher [60, 60] of a layer with 6 units and 10 inputs, and its KFAC."""
    rng = np.random.default_rng(0)
    a = np.maximum(rng.normal(size=(300, 10)), 0) * np.exp(rng.normal(size=10))
    g = rng.normal(size=(300, 6)) * np.exp(rng.normal(size=6)) * a[:, :1]
    gradients = np.einsum("ni,no->nio", a, g).reshape(300, 60)
    return gradients.T @ gradients / 300, np.kron(a.T @ a, g.T @ g) / 300**2


@pytest.fixture
def make_records():
    def make(layers, names=APPROXIMATIONS, **columns):
        rng = np.random.default_rng(1)
        rows = [(layer, name) for layer in layers for name in names]
        frame = pd.DataFrame(rows, columns=["layer", "approximation"])
        for metric in ("relative_error", "scaled_error", "population_error"):
            frame[metric] = 0.3 + 0.5 * rng.random(len(rows))
        return frame.assign(population_error_se=0.02, target="predictive", **columns)

    return make


@pytest.fixture
def texts():
    """Every visible text of a figure."""
    from matplotlib.text import Text

    def find(figure):
        return [text.get_text() for text in figure.findobj(Text) if text.get_visible()]

    return find
