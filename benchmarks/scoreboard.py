"""The scoreboard: every built-in model × stage × (init, middle, end of training) × approximation.

    python benchmarks/scoreboard.py [--models cifar-cnn …] [--samples 32] [--minutes 2]

Each model is compared as initialised, trained with Adam on its training data for 1,000 steps or a stated
time, and compared on the same samples halfway and at the end (nothing is kept of the training but the number
of steps and the loss). The cost of an approximation is the time of its statistics, from one drawn label a
sample as an optimizer takes them, over that of a gradient of the same samples. Records go to
docs/results/scoreboard/<model>.csv, tables to docs/results/scoreboard.md, the picture beside it.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from common import machine, rounds
from torch import nn
from torch.nn import functional

import fisherlab as fl
from fisherlab import plots
from fisherlab.collect.batches import called, each
from fisherlab.models import prepare
from fisherlab.records.columns import RECORD_COLUMNS
from fisherlab.records.definitions import STAND_IN
from fisherlab.runs.origin import Origin

RESULTS = Path(__file__).parent.parent / "docs" / "results"
MODELS = {
    "mnist-mlp": 256,
    "cifar-cnn": 128,
    "cifar-resnet20": 128,
    "cifar-resnet18": 64,
    "vit-tiny": 64,
    "charlm": 32,
    "charlstm": 32,
    "transformer-small": 64,
    "resnet50": 8,
}
"""Batch sizes of the training."""

METHODS = ("diagonal", "foof", "kfac", "ekfac", "tkfac", "tekfac", "lngd", "lngd-lr", "nearest-kronecker")
LARGE = ("cifar-resnet18", "resnet50")
"""Without tekfac, whose second pass over these takes as long as all other methods."""
MOST_STEPS = 1000
NUMBERS = (
    *("relative_error", "scaled_error", "population_error", "trace_ratio"),
    *("direction_cosine", "decrease_share"),
)
STATES = ("init", "middle", "end")
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
KEPT = ["state", *(column for column in RECORD_COLUMNS if column not in _LEFT_OUT)]


def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy over samples or tokens."""
    return functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def trained(model: nn.Module, name: str, minutes: float) -> Iterator[str]:
    """Trains in place; gives what was done, in the middle and at the end."""
    made = prepare(name, samples=5000 if name != "resnet50" else 64, trained=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    step, value = 0, float("nan")
    for part in (0.5, 1.0):
        model.train()
        started = time.perf_counter()
        while step < part * MOST_STEPS and time.perf_counter() - started < 30 * minutes:
            chosen = torch.randint(len(made.targets), (MODELS[name],), generator=generator)
            optimizer.zero_grad()
            outputs = called(model, each(made.inputs, lambda x, chosen=chosen: x[chosen]))
            found = loss(outputs, made.targets[chosen])
            found.backward()
            optimizer.step()
            step, value = step + 1, float(found.detach())
        model.eval()
        yield f"adam, {step} steps of {MODELS[name]}, loss {value:.2f}"


def costs(made, methods: list[str]) -> dict[str, float]:
    """For each method the time of its statistics over that of a gradient of the same samples."""
    inputs, targets = made.inputs, made.targets

    def gradient() -> None:
        made.model.zero_grad()
        loss(called(made.model, inputs), targets).backward()

    def statistics(method: str) -> None:
        options = {"likelihood": made.likelihood, "kind": "monte-carlo", "approximations": method}
        fl.collect_statistics(made.model, made.data, **options)

    measured = [method for method in methods if method != "nearest-kronecker"]  # made from F itself
    contenders = {m: (lambda m=m: statistics(m)) for m in measured} | {"gradient": gradient}
    least = {name: min(seconds) for name, seconds in rounds(contenders, 2).items()}
    made.model.zero_grad()
    return {method: least[method] / least["gradient"] for method in measured}


def records(name: str, samples: int, minutes: float) -> pd.DataFrame:
    """The records of one model in the three states."""
    made = prepare(name, samples=samples, trained=False)
    found, done = [], trained(made.model, name, minutes)
    methods = [method for method in METHODS if not (method == "tekfac" and name in LARGE)]
    for state in STATES:
        checkpoint = made.checkpoint if state == "init" else next(done)
        about = Origin(name, made.dataset.label, checkpoint=checkpoint, step=None, seed=0)
        started = time.perf_counter()
        comparison = fl.compare(made.model, made.data, methods, made.likelihood, spectra=False, about=about)
        print(f"{name}: {checkpoint}: compared in {time.perf_counter() - started:.0f} s", flush=True)
        found.append(comparison.records.assign(state=state)[KEPT])
    frame = pd.concat(found)
    return frame.assign(gradients=frame["approximation"].map(costs(made, methods)))


def compared(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the loss Fisher of layers that have more than a diagonal: norms are left out."""
    main = frame[frame["target"] != "layerwise"]
    factored = set(main["layer"][main["approximation"] != "diagonal"])
    return main[main["layer"].isin(factored)].copy()


def thirds(frame: pd.DataFrame) -> pd.DataFrame:
    """Medians over the first, middle and last third of the layers; the last layer alone."""
    main = compared(frame)
    layers = list(dict.fromkeys(main["layer"]))
    stage = {layer: ("early", "middle", "late")[3 * i // len(layers)] for i, layer in enumerate(layers)}
    stage[layers[-1]] = "last layer"
    main["stage"] = main["layer"].map(stage)
    keys = ["state", "stage", "approximation"]
    return main.groupby(keys, sort=False)[list(NUMBERS)].median().reset_index()


def overall(frame: pd.DataFrame) -> pd.DataFrame:
    """Medians over all layers, and the cost."""
    keys = ["model", "state", "approximation"]
    numbers = [*NUMBERS, "gradients"]
    return compared(frame).groupby(keys, sort=False)[numbers].median().reset_index()


def row(*cells: object) -> str:
    """A line of a Markdown table; – where there is no number."""
    shown = (c if isinstance(c, str) else "–" if c != c else f"{c:.3g}" for c in cells)
    return "| " + " | ".join(shown) + " |"


def section(name: str, frame: pd.DataFrame) -> list[str]:
    """The tables of one model."""
    states = "; ".join(dict.fromkeys(frame["checkpoint"]))
    drawn = frame[frame["kind"] == "monte-carlo"]["layer"].nunique()
    data, samples, dtype = frame["dataset"].iloc[0], frame["samples"].max(), frame["dtype"].iloc[0]
    lines = [f"## {name}", ""]
    lines += [f"Data: {data}, {samples} samples, seed 0, {dtype}. {states}."]
    lines += [f"{frame['layer'].nunique()} layers, {drawn} of them with drawn labels.", ""]
    cost = overall(frame).drop_duplicates("approximation").set_index("approximation")["gradients"].dropna()
    lines += ["Cost of the statistics in gradients of the same samples: "]
    lines[-1] += ", ".join(f"{method} {value:.2g}" for method, value in cost.items()) + "."
    head = "| | layers | approximation | error | scaled | population | trace ratio | cosine | share |"
    lines += ["", head, "|---" * 9 + "|"]
    lines += [row(*cells) for cells in thirds(frame).itertuples(index=False)]
    return [*lines, ""]


INTRODUCTION = f"""# Scoreboard: the approximations on every built-in model

Made by `python benchmarks/scoreboard.py`; the numbers of every layer are in `scoreboard/<model>.csv`. Medians
over thirds of the layers (norm layers left out: their only approximation is the diagonal): relative error,
scaled error (best common factor), population error, tr F̂/tr F, cosine with the exact damped step, share of
its decrease (damping 0.1 × mean eigenvalue, traces matched). Predictive labels, or one drawn label a sample
where a model's paragraph says so. Machine of the last run: {machine()}.

LNGD, foof and diagonals of layer-wise draws have no common scale with the Fisher of the loss: read their
scaled error. Where labels are drawn, F has one column a sample, and the in-sample errors and shares mostly
measure sampling: read the population error there (–: the estimate is negative in most layers, more samples
are needed).

![Medians over all layers](scoreboard.png)
"""


def write_results() -> None:
    """docs/results/scoreboard.md and its picture, from all records there are."""
    folder = RESULTS / "scoreboard"
    frames = {
        name: pd.read_csv(folder / f"{name}.csv") for name in MODELS if (folder / f"{name}.csv").exists()
    }
    lines = [INTRODUCTION]
    for name, frame in frames.items():
        lines += section(name, frame)
    (RESULTS / "scoreboard.md").write_text("\n".join(lines), encoding="utf-8")
    samples = sorted({str(frame["samples"].max()) for frame in frames.values()}, key=int)
    data = {name: str(frame["dataset"].iloc[0]) for name, frame in frames.items()}
    drawn = [name for name, frame in frames.items() if "monte-carlo" in set(frame["kind"])]
    caption = (
        f"Medians over all layers but norms; {'/'.join(samples)} samples, seed 0, float32, {machine()}. "
        "Training: Adam, steps and losses in scoreboard.md. Labels are drawn for layers of "
        f"{', '.join(drawn)}: errors there mostly measure sampling."
    )
    caption += "".join(f" {name}: data {words}." for name, words in data.items() if STAND_IN in words)
    figure = plots.scoreboard(pd.concat([overall(frame) for frame in frames.values()]), caption=caption)
    plots.save(figure, RESULTS / "scoreboard")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=2.0)
    arguments = parser.parse_args()
    (RESULTS / "scoreboard").mkdir(parents=True, exist_ok=True)
    for name in arguments.models:
        frame = records(name, arguments.samples, arguments.minutes)
        frame.to_csv(RESULTS / "scoreboard" / f"{name}.csv", index=False, float_format="%.4g")
    write_results()


if __name__ == "__main__":
    main()
