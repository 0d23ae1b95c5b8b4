"""CIFAR-10 with SGD, Adam, Muon, SOAP, KFAC and LNGD: a ResNet-8, each at the best of its grid.

    python benchmarks/cifar_training.py [--methods sgd lngd] [--seeds 3] [--epochs 2] [--runs DIR]

Every method is trained for one epoch with each learning rate of its grid; the one with the lowest training
loss over the last third of it is trained with every seed. Runs lie in DIR: finished ones are taken as they
are and interrupted ones go on, so the work can be done in pieces. Configurations and logs go to
benchmarks/results/cifar_training/.
"""

import argparse
import math
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pandas as pd
import torch
from common import RESULTS, finished_run, machine, processor_seconds, save_png, write_table

from fisherlab.base.writing import write
from fisherlab.plots import label
from fisherlab.plots.methods import method_curves
from fisherlab.runs.finished import FinishedRun
from fisherlab.train import TrainConfig
from fisherlab.train.recipes import IMPORTED
from fisherlab.train.run import log

GRIDS = {
    "sgd": (0.03, 0.1, 0.3, 1.0),
    "adam": (0.001, 0.003, 0.01, 0.03),
    "muon": (0.003, 0.01, 0.03, 0.1),
    "soap": (0.001, 0.003, 0.01, 0.03),
    "kfac": (0.01, 0.03, 0.1, 0.3),
    "lngd": (0.03, 0.1, 0.3, 1.0),
    "lngd-small-mu": (0.01, 0.03, 0.1, 0.3),
}
OWN: dict[str, dict[str, Any]] = {
    **{name: dict(recipe) for name, recipe in IMPORTED.items()},
    "sgd": {"momentum": 0.9},
    **{name: {"options": {"kl_clip": math.inf}} for name in ("kfac", "lngd")},
    "lngd-small-mu": {"optimizer": "lngd", "options": {"rate_damping": 1e-7, "kl_clip": math.inf}},
}
LABELS = {"lngd-small-mu": "LNGD, μ = 1e-7", "muon": "Muon", "soap": "SOAP"}
COMMON: dict[str, Any] = {
    "model": "cifar-resnet8",
    "data": "cifar10",
    "split": "train-1-4",
    "test_split": "held-out",
    "batch": 128,
    "schedule": "polynomial",
    "power": 1.0,
    "warm_up": 50,
    "weight_decay": 0.0,
    "augment": ("crop", "flip"),
    "log_every": 20,
    "checkpoint_steps": (0,),
    "keep_last": 1,
}
TIMED = 10  # steps a timing, one refresh of the statistics among them
STEPS_PER_EPOCH = -(-40_000 // COMMON["batch"])


def config_of(method: str, lr: float, seed: int, epochs: int) -> TrainConfig:
    """A training; the learning rate grows over 50 steps and falls linearly to zero."""
    return TrainConfig(
        **(COMMON | {"optimizer": method} | OWN.get(method, {})),
        lr=lr, seed=seed, epochs=epochs, device="cpu",
    )  # fmt: skip


def done(out: Path, config: TrainConfig) -> FinishedRun:
    """The run in a directory: found, continued or made."""
    run = finished_run(out, config)
    print(f"{out.name}: {run.summary['outcome']}, {run.summary['value']}", flush=True)
    return run


def late_loss(run: FinishedRun) -> float:
    """The mean training loss over the last third of the steps logged; infinite where it diverged."""
    lines = [line["loss"] for line in log.read(run.folder) if line["kind"] == "step"]
    return mean(lines[2 * len(lines) // 3 :]) if run.summary["outcome"] == "finished" else float("inf")


def runs_of(folder: Path, methods: list[str], seeds: int, epochs: int) -> dict[str, list[FinishedRun]]:
    """For each method its trainings at the best learning rate of its grid."""
    found = {}
    for method in methods:
        losses = {
            lr: late_loss(done(folder / f"grid-{method}-{lr:g}", config_of(method, lr, 0, 1)))
            for lr in GRIDS[method]
        }
        best = min(losses, key=losses.__getitem__)
        found[method] = [
            done(folder / f"{method}-seed{seed}", config_of(method, best, seed, epochs))
            for seed in range(seeds)
        ]
    return found


def evaluations(runs: dict[str, list[FinishedRun]], seconds: dict[str, float]) -> pd.DataFrame:
    """A row an evaluation; seconds are steps times the processor's seconds a step of the method."""
    rows = [
        {
            "method": method,
            "seed": run.config["seed"],
            "epoch": line["epoch"],
            "step": line["step"],
            "seconds": line["step"] * seconds[method],
            "loss": line["train_loss"],
            "test_loss": line["test_loss"],
            "metric": 100 * line["accuracy"],
        }
        for method, own in runs.items()
        for run in own
        for line in log.read(run.folder)
        if line["kind"] == "evaluation"
    ]
    return pd.DataFrame(rows)


def steps_to(run: FinishedRun, loss: float) -> int | None:
    """The first step at which the mean of five logged losses (100 steps) is at most `loss`."""
    lines = [line for line in log.read(run.folder) if line["kind"] == "step"]
    means = pd.Series([line["loss"] for line in lines]).rolling(5).mean()
    reached = [line["step"] for line, value in zip(lines, means, strict=True) if value <= loss]
    return reached[0] if reached else None


def rows_of(
    runs: dict[str, list[FinishedRun]], frame: pd.DataFrame, times: dict[str, tuple[float, float]]
) -> list[list[str]]:
    target = max(late_end(run) for run in runs["sgd"])
    rows = []
    for method, own in runs.items():
        last = frame[frame["method"] == method].groupby("seed").last()
        reached = [step for run in own if (step := steps_to(run, target)) is not None]
        seconds, ratio = times[method]
        steps = mean(reached) if reached else float("nan")
        lr = own[0].config["lr"]
        row = [labelled(method), f"{lr:g}" + ("*" if lr in (GRIDS[method][0], GRIDS[method][-1]) else "")]
        row += [f"{shown(steps)} ({len(reached)}/{len(own)})", shown(steps * seconds)]
        row += [f"{STEPS_PER_EPOCH * seconds:.0f}", f"{ratio:.2f}"]
        row += [spread(last["loss"], 3), spread(last["test_loss"], 3), spread(last["metric"], 2)]
        rows.append(row)
    for row in rows:
        row.insert(4, "–" if "–" in (row[3], rows[0][3]) else f"{float(rows[0][3]) / float(row[3]):.2f}")
    return rows


def labelled(method: str) -> str:
    return LABELS.get(method) or label(method)


def late_end(run: FinishedRun) -> float:
    """The mean of the last five logged losses."""
    return mean([line["loss"] for line in log.read(run.folder) if line["kind"] == "step"][-5:])


def shown(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.0f}"


def spread(values: pd.Series, digits: int) -> str:
    return f"{values.mean():.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def report(runs: dict[str, list[FinishedRun]], repeats: int, epochs: int) -> None:
    """Writes the table, the evaluations, the curves, the configurations and the logs."""
    rates = {method: own[0].config["lr"] for method, own in runs.items()}
    times = processor_seconds({m: config_of(m, lr, 0, 1) for m, lr in rates.items()}, repeats, TIMED)
    frame = evaluations(runs, {method: seconds for method, (seconds, _) in times.items()})
    seeds, first = len(next(iter(runs.values()))), next(iter(runs.values()))[0]
    data = f"{first.summary['dataset']}, training batches 1-4; tested on training batch 5, held out"
    notes = [
        f"machine: {machine()}",
        f"network cifar-resnet8, 75,290 parameters, batch norm; data {data}",
        f"{epochs} epochs of {STEPS_PER_EPOCH} steps of {COMMON['batch']}, crop and flip, no weight decay, "
        "50 steps of warm-up, then linear to zero; statistics and inverses every 10 steps; float32; other "
        f"settings the defaults; {seeds} seeds, mean ± sd",
        "grids: "
        + "; ".join(f"{labelled(method)} " + ", ".join(f"{lr:g}" for lr in GRIDS[method]) for method in runs)
        + "; the lowest training loss over the last third of one epoch, seed 0; * an end of the grid",
        "Muon: torch.optim.Muon on hidden layers, AdamW with the same learning rate on all else "
        "(adjust_lr_fn = match_rms_adamw); SOAP: pytorch_optimizer's, a basis every 10 steps",
        "μ = 1e-7 was found by hand on this network; the other methods keep their defaults",
        "target: the training loss of SGD's last 100 steps (its worst seed); the first step at which the "
        "mean over 100 steps is there, and how many seeds reach it",
        f"seconds: of the processor, one thread, without evaluation: {TIMED} steps with a refresh among "
        "them, median over rounds in which all methods take turns; acceleration: t_SGD/t; × SGD: of a step",
        "training loss: mean over the last epoch's steps, augmented",
        "paper's table 6 (ResNet-18, 200 epochs, to 91 %): s/epoch over SGD's: Adam 1.11, KFAC 1.73, "
        "LNGD 1.49; acceleration over SGD: Adam 1.08, KFAC 1.11, LNGD 1.42",
    ]
    header = ["method", "lr", "steps to target", "seconds", "acceleration", "s/epoch", "× SGD"]
    header += ["training loss", "test loss", "accuracy %"]
    write_table(RESULTS / "cifar_training.md", "CIFAR-10", notes, header, rows_of(runs, frame, times))
    write(RESULTS / "cifar_training.csv", frame.to_csv(index=False, float_format="%.6g").encode())
    caption = (
        f"cifar-resnet8 on {data}; batch {COMMON['batch']}, the best learning rate of a grid; {seeds} seeds: "
        "mean and range; seconds of the processor, one thread, without evaluation"
    )
    figure = method_curves(
        frame.replace({"method": LABELS}),
        loss="training loss, mean over an epoch",
        metric="held-out accuracy, %",
        title="A ResNet-8 on CIFAR-10",
        caption=caption,
    )
    save_png(figure, RESULTS / "cifar_training")
    for own in runs.values():
        for run in own:
            for name in ("config.toml", "log.jsonl"):
                write(RESULTS / "cifar_training" / run.name / name, (run.folder / name).read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=GRIDS, default=list(GRIDS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7, help="rounds of the timings")
    parser.add_argument("--runs", type=Path, default=Path(tempfile.gettempdir()) / "cifar-runs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs = runs_of(arguments.runs, arguments.methods, arguments.seeds, arguments.epochs)
    report(runs, arguments.repeats, arguments.epochs)


if __name__ == "__main__":
    main()
