"""Theorem 2: the error of a wide two-layer network against the bound (1 − α)^k."""

from typing import Any

import numpy as np
import pandas as pd

from fisherlab.plots.rates import error_bounds

from .two_layers import TwoLayers
from .workshop import Caption, Workshop

ALPHAS = (0.1, 0.5)
# Fewer samples than inputs, so that these are independent, and a layer 50 times as wide as there are samples.
_SAMPLES, _INPUTS, _WIDTH, _STEPS = 20, 30, 1024, 30
_THEOREM = "the theorem's: Ψ a full Gram matrix"


def make(workshop: Workshop) -> dict[str, Any]:
    """Writes `theorem-2`."""
    network = TwoLayers(_SAMPLES, _INPUTS, _WIDTH, workshop.seed)
    panels = {alpha: _paths(network, alpha) for alpha in ALPHAS}
    below = all(
        (paths[_THEOREM] <= (1 - alpha) ** np.arange(_STEPS + 1) * (1 + 1e-9)).all()  # rounding
        for alpha, paths in panels.items()
    )
    caption = Caption(
        "the error of a two-layer ReLU network, its first layer trained",
        f"width {_WIDTH}, {_SAMPLES} random samples with {_INPUTS} inputs of length 1 (no data set), "
        f"float64, seed {workshop.seed}, device cpu; whole batch, no momentum, "
        "no damping in the theorem's method",
        "a theorem without numbers: ‖y − v_k‖² ≤ (1 − α)^k ‖y − v_0‖²",
        (18,),
        [
            f"The theorem's method is {'below' if below else 'NOT below'} the bound in every step. LNGD, "
            "with its default damping and μ, is measured; no theorem stands behind it"
        ],
    )
    frame = pd.concat([_rows(alpha, paths) for alpha, paths in panels.items()])
    workshop.figure(
        "theorem-2",
        lambda title, text: error_bounds(panels, title=title, caption=text),
        caption,
        frame,
    )
    return {"below_the_bound": bool(below)}


def _paths(network: TwoLayers, alpha: float) -> dict[str, Any]:
    """Method -> ‖y − v_k‖²/‖y − v_0‖², [steps + 1]."""
    found = {
        _THEOREM: network.errors(alpha, _STEPS),
        "LNGD": network.lngd_errors(alpha, _STEPS, "layerwise"),
        "LNGD, every rate α = 1": network.lngd_errors(alpha, _STEPS, "fixed"),
    }
    return {name: (errors / errors[0]).numpy() for name, errors in found.items()}


def _rows(alpha: float, paths: dict[str, Any]) -> pd.DataFrame:
    steps = np.arange(_STEPS + 1)
    return pd.DataFrame({"alpha": alpha, "step": steps, "bound": (1 - alpha) ** steps, **paths})
