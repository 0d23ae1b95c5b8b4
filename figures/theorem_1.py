"""Theorem 1: layer-wise rates never reach less in the quadratic model than the best single rate."""

from typing import Any

import pandas as pd
import torch

from fisherlab.models import prepare
from fisherlab.plots.rates import quadratic_models

from .quadratic import steps
from .workshop import Caption, Workshop

_BATCH, _LR, _SAMPLES = 256, 0.1, 5000  # choices; the batch is that of the other trainings
_ROUNDING = 1 + 1e-9  # far above the rounding of these sums in float64


def make(workshop: Workshop) -> dict[str, Any]:
    """Writes `theorem-1`."""
    prepared = prepare(
        "mnist-mlp",
        seed=workshop.seed,
        data_dir=workshop.data_dir,
        samples=min(_SAMPLES, workshop.scale.samples or _SAMPLES),
        dtype=torch.float64,
        device=workshop.device,
        trained=False,
    )
    assert isinstance(prepared.inputs, torch.Tensor)
    frame = _frame(prepared, workshop)
    worst = float((frame["single"] / frame["layerwise"]).max())
    verdict = "holds in every step" if worst <= _ROUNDING else "does NOT hold here"
    caption = Caption(
        "a rate a layer against the best single rate, in the quadratic model of each step",
        f"{workshop.scale.digits.words}; data {prepared.dataset.label}, {len(prepared.dataset):,} samples; "
        f"seed {workshop.seed}; device {workshop.device}, float64; {len(frame)} steps of LNGD from the "
        f"initial weights, batch {_BATCH}, lr {_LR:g}, statistics every 10 steps, no momentum, μ = 0",
        "a theorem without numbers: the rates of eq. 12 are never worse than one rate for all layers",
        (9, 10, 17),
        [
            f"single / layer-wise is at most {worst:.3f}: the theorem {verdict}. With the products of "
            "different layers (right) nothing is proved: the steps of the layers add up, and a full step can "
            "raise the model; lr below 1 allows for that"
        ],
    )
    values = {name: frame[name].to_numpy() for name in frame}
    workshop.figure(
        "theorem-1",
        lambda title, text: quadratic_models(
            values["step"],
            {"layer-wise": values["layerwise"], "single": values["single"]},
            {"layer-wise": values["layerwise_full"], "single": values["single_full"]},
            title=title,
            caption=text,
        ),
        caption,
        frame,
    )
    return {"data": [prepared.dataset.label], "largest_ratio": worst}


def _frame(prepared: Any, workshop: Workshop) -> pd.DataFrame:
    """A row a step: what both choices of rates reach in the two models."""
    taken = steps(
        prepared.model.train(),
        prepared.inputs,
        prepared.targets,
        lr=_LR,
        batch=_BATCH,
        count=workshop.scale.theorem_steps,
        seed=workshop.seed,
    )
    rows = [
        {
            "step": step,
            "layerwise": float(quadratic.block_diagonal(rates)),
            "single": float(quadratic.block_diagonal(quadratic.best_single)),
            "layerwise_full": float(quadratic.full(rates)),
            "single_full": float(quadratic.full(quadratic.best_single)),
        }
        for step, (quadratic, rates) in enumerate(taken, start=1)
    ]
    return pd.DataFrame(rows)
