"""Errors of the approximations on every built-in model, as initialised and after training.

    python benchmarks/errors_by_model.py [--models cifar-cnn …] [--samples 32] [--minutes 2]

Each model is compared as initialised, trained with Adam on its training data for 1,000 steps or a stated
time (in this script; nothing is kept but the number of steps and the loss), and compared again on the same
samples. The records go to docs/results/errors/<model>.csv, the table over thirds of the layers to
docs/results/errors.md.
"""

import argparse
import time
from pathlib import Path

import pandas as pd
import torch
from common import machine
from torch import nn
from torch.nn import functional

import fisherlab as fl
from fisherlab.data import called, each
from fisherlab.models import prepare
from fisherlab.result import RECORD_COLUMNS, About

RESULTS = Path(__file__).parent.parent / "docs" / "results"
MODELS = {
    "mnist-mlp": 256,
    "cifar-cnn": 128,
    "cifar-resnet20": 128,
    "cifar-resnet18": 64,
    "vit-tiny": 64,
    "charlm": 32,
    "transformer-small": 64,
    "resnet50": 8,
}
"""Batch sizes of the training."""

_MOST_STEPS = 1000
METHODS = ("kfac", "ekfac", "tkfac", "lngd", "nearest-kronecker")
_LEFT_OUT = {
    "best_scale",
    "gap_to_nearest",
    "trace_exact",
    "trace_approx",
    "diagonal_error",
    "damping",
    "preconditioned_condition",
    "seconds",
    "bytes",
}
KEPT = [column for column in RECORD_COLUMNS if column not in _LEFT_OUT]


def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy over samples or tokens."""
    return functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def train(model: nn.Module, name: str, batch: int, minutes: float) -> str:
    """Trains in place; returns what was done."""
    made = prepare(name, samples=5000 if name != "resnet50" else 64, trained=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    model.train()
    started, step, value = time.perf_counter(), 0, float("nan")
    while step < _MOST_STEPS and time.perf_counter() - started < 60 * minutes:
        chosen = torch.randint(len(made.targets), (batch,), generator=generator)
        optimizer.zero_grad()
        outputs = called(model, each(made.inputs, lambda x, chosen=chosen: x[chosen]))
        found = loss(outputs, made.targets[chosen])
        found.backward()
        optimizer.step()
        step, value = step + 1, float(found.detach())
    model.eval()
    return f"adam, {step} steps of {batch}, loss {value:.2f}"


def records(name: str, samples: int, minutes: float) -> pd.DataFrame:
    """The records of one model before and after training."""
    made = prepare(name, samples=samples, trained=False)
    found = []
    for trained in (False, True):
        checkpoint = train(made.model, name, MODELS[name], minutes) if trained else made.checkpoint
        about = About(name, made.dataset.label, checkpoint=checkpoint, step=None, seed=0)
        started = time.perf_counter()
        comparison = fl.compare(made.model, made.data, METHODS, made.likelihood, spectra=False, about=about)
        print(f"{name}: {checkpoint}: compared in {time.perf_counter() - started:.0f} s", flush=True)
        found.append(comparison.records[KEPT])
    return pd.concat(found)


def thirds(frame: pd.DataFrame) -> pd.DataFrame:
    """Medians over the first, middle and last third of the layers, norms left out; the last layer alone."""
    main = frame[(frame["target"] != "layerwise") & (frame["approximation"] != "diagonal")].copy()
    layers = list(dict.fromkeys(main["layer"]))
    stage = {layer: ("early", "middle", "late")[3 * i // len(layers)] for i, layer in enumerate(layers)}
    stage[layers[-1]] = "last layer"
    main["stage"] = main["layer"].map(stage)
    main["state"] = ["init" if text.startswith("init") else "trained" for text in main["checkpoint"]]
    numbers = [
        "relative_error",
        "scaled_error",
        "population_error",
        "trace_ratio",
        "direction_cosine",
        "decrease_share",
    ]
    keys = ["model", "state", "stage", "approximation"]
    return main.groupby(keys, sort=False)[numbers].median().reset_index()


def write_table() -> None:
    """docs/results/errors.md from all records there are."""
    lines = [
        "# Errors of the approximations on every built-in model",
        "",
        "Made by `python benchmarks/errors_by_model.py`; numbers of every layer are in `errors/<model>.csv`.",
        "Medians over thirds of the layers (norm layers left out: their only approximation is the diagonal);",
        "relative error, scaled error (best common factor), tr F̂/tr F, cosine with the exact damped step,",
        "share of its decrease (damping 0.1 × mean eigenvalue, traces matched). In-sample errors, predictive",
        "labels or one drawn label a sample where a record's note says so. "
        f"Machine of the last run: {machine()}.",
        "LNGD has no common scale with the Fisher of the loss: read its scaled error. Where labels are",
        "drawn, F has one column a sample, and the in-sample errors and shares mostly measure sampling:",
        "read the population error there (–: the estimate is negative in most layers, more samples are",
        "needed).",
        "",
    ]
    for name in MODELS:
        path = RESULTS / "errors" / f"{name}.csv"
        if not path.exists():
            continue
        frame = pd.read_csv(path)
        states = "; ".join(dict.fromkeys(frame["checkpoint"]))
        lines += [f"## {name}", ""]
        drawn = frame[frame["kind"] == "monte-carlo"]["layer"].nunique()
        lines += [
            f"Data: {frame['dataset'].iloc[0]}, {frame['samples'].max()} samples, seed 0, "
            f"{frame['dtype'].iloc[0]}. {states}. {frame['layer'].nunique()} layers, {drawn} of them with "
            "drawn labels.",
            "",
            "| | layers | approximation | error | scaled | population | trace ratio | cosine | share |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for row in thirds(frame).itertuples():
            numbers = (row.relative_error, row.scaled_error, row.population_error, row.trace_ratio)
            shares = (row.direction_cosine, row.decrease_share)
            shown = " | ".join("–" if x != x else f"{x:.3g}" for x in (*numbers, *shares))
            lines.append(f"| {row.state} | {row.stage} | {row.approximation} | {shown} |")
        lines.append("")
    (RESULTS / "errors.md").write_text("\n".join(lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=2.0)
    arguments = parser.parse_args()
    (RESULTS / "errors").mkdir(parents=True, exist_ok=True)
    for name in arguments.models:
        frame = records(name, arguments.samples, arguments.minutes)
        frame.to_csv(RESULTS / "errors" / f"{name}.csv", index=False, float_format="%.4g")
    write_table()


if __name__ == "__main__":
    main()
