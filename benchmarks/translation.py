"""Translation with SGD, Adam, KFAC and LNGD: a small Transformer on Multi30k, English to German.

    python benchmarks/translation.py [--methods sgd lngd] [--seeds 2] [--steps 1500] [--runs DIR]

Every method is trained for a few steps with each learning rate of its grid; the one with the lowest loss on
the validation pairs is trained to the end with every seed, and tested on the test pairs. Runs lie in DIR:
finished ones are taken as they are and interrupted ones go on, so the work can be done in pieces.
"""

import argparse
import math
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import pandas as pd
import torch
from common import RESULTS, finished_run, machine, processor_seconds, save_png, write_table

from fisherlab.base.writing import write
from fisherlab.plots import label
from fisherlab.plots.methods import method_curves
from fisherlab.runs.finished import FinishedRun
from fisherlab.train import TrainConfig
from fisherlab.train.run import log

GRIDS = {
    "sgd": (0.1, 0.3, 1.0),
    "adam": (0.001, 0.003, 0.01),
    "kfac": (0.01, 0.03, 0.1),
    "lngd": (0.01, 0.03, 0.1),
}
CADENCE = {"statistics_every": 20, "inverse_every": 20}
PLAIN = {"other_lr": 1.0, "kl_clip": math.inf}
OWN: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9},
    "kfac": {**CADENCE, "options": {**PLAIN}},
    "lngd": {**CADENCE, "damping": (1e-5, 1e4), "options": {**PLAIN, "rate_damping": 1e-7}},
}
COMMON: dict[str, Any] = {
    "model": "transformer-small-tied",
    "data": "multi30k",
    "batch": 32,
    "schedule": "polynomial",
    "power": 1.0,
    "label_smoothing": 0.1,
    "diagnostics_every": 10**9,
    "keep_last": 1,
}
SENTENCES = 256
TIMED = 20  # steps a timing, one refresh of the statistics among them


@dataclass(frozen=True)
class Budget:
    """Steps of a training and of one of the grid, evaluations of a training, seeds, and where runs lie."""

    steps: int
    grid_steps: int
    evaluations: int
    seeds: int
    runs: Path


# --- runs -----------------------------------------------------------------------------------------


def config_of(method: str, lr: float, seed: int, steps: int, **more: Any) -> TrainConfig:
    """A training; the learning rate grows over a tenth of the steps, and then falls to zero."""
    return TrainConfig(
        **COMMON, **OWN.get(method, {}), optimizer=method, lr=lr, seed=seed, steps=steps,
        warm_up=steps // 10, device="cpu", **more,
    )  # fmt: skip


def grid_run(budget: Budget, method: str, lr: float) -> tuple[Path, TrainConfig]:
    """Where a run of the grid lies, and what it is."""
    config = config_of(
        method, lr, 0, budget.grid_steps, test_split="val", eval_samples=0, evaluate_every=1000
    )
    return budget.runs / f"grid-{method}-{lr:g}-{budget.grid_steps}", config


def whole_run(budget: Budget, method: str, lr: float, seed: int) -> tuple[Path, TrainConfig]:
    """Where a whole training lies, and what it is."""
    per_epoch = -(-29_000 // COMMON["batch"])
    every = budget.steps / budget.evaluations / per_epoch
    config = config_of(method, lr, seed, budget.steps, eval_samples=SENTENCES, evaluate_every=every)
    return budget.runs / f"{method}-{lr:g}-{budget.steps}-seed{seed}", config


def done(out: Path, config: TrainConfig) -> FinishedRun:
    """The run in a directory: found, continued or made."""
    run = finished_run(out, config)
    bleu = run.summary["bleu"]
    print(
        f"{out.name}: {run.summary['outcome']}, step {run.summary['step']}, test loss {test_loss(run):.4f}"
        + (f", BLEU {bleu['value']}" if bleu else ""),
        flush=True,
    )
    return run


def test_loss(run: FinishedRun) -> float:
    """The last one; infinite where the training diverged."""
    value = run.summary["test_loss"]
    return math.inf if value is None or run.summary["outcome"] == "diverged" else float(value)


def best_rate(budget: Budget, method: str) -> float:
    """The learning rate of the grid with the lowest loss on the validation pairs."""
    losses = {lr: test_loss(done(*grid_run(budget, method, lr))) for lr in GRIDS[method]}
    return min(losses, key=losses.__getitem__)


def runs_of(budget: Budget, methods: Iterable[str]) -> dict[str, tuple[float, list[FinishedRun]]]:
    """For each method its learning rate and its trainings; the first seed of all methods comes first."""
    methods = list(methods)
    rates = {method: best_rate(budget, method) for method in methods}
    runs: dict[str, list[FinishedRun]] = {method: [] for method in methods}
    for seed in range(budget.seeds):
        for method in methods:
            runs[method].append(done(*whole_run(budget, method, rates[method], seed)))
    return {method: (rates[method], runs[method]) for method in methods}


# --- the page -------------------------------------------------------------------------------------


def table_of(
    results: dict[str, tuple[float, list[FinishedRun]]], times: dict[str, tuple[float, float]]
) -> pd.DataFrame:
    """A row an evaluation; seconds are steps times the processor's seconds a step of the method."""
    columns = ("step", "epoch", "train_loss", "test_loss", "perplexity", "bleu")
    rows = [
        {"method": method, "lr": lr, "seed": run.config["seed"]}
        | {column: line[column] for column in columns}
        | {"seconds": line["step"] * times[method][0]}
        for method, (lr, runs) in results.items()
        for run in runs
        for line in log.read(run.folder)
        if line["kind"] == "evaluation"
    ]
    return pd.DataFrame(rows)


def target_of(frame: pd.DataFrame) -> float:
    """The largest whole BLEU that all methods but one reach, with their mean over seeds."""
    best = sorted(frame.groupby(["method", "step"])["bleu"].mean().groupby("method").max(), reverse=True)
    return float(math.floor(best[max(0, len(best) - 2)]))


def rows_of(
    results: dict[str, tuple[float, list[FinishedRun]]],
    times: dict[str, tuple[float, float]],
    frame: pd.DataFrame,
    target: float,
) -> list[list[str]]:
    rows = []
    for method, (lr, runs) in results.items():
        curve = frame[frame["method"] == method].groupby("step")["bleu"].mean()
        reached = curve[curve >= target]
        step = int(reached.index[0]) if len(reached) else None
        own, ratio = times[method]
        ends = [run.summary["bleu"]["value"] for run in runs if run.summary["bleu"]["value"] is not None]
        losses = [test_loss(run) for run in runs]
        end = lr in (GRIDS[method][0], GRIDS[method][-1])
        row = [label(method), f"{lr:g}" + ("*" if end else "")]
        row += ["–", "–"] if step is None else [f"{step:,}", f"{step * own / 60:.1f}"]
        row += [f"{1000 * own:.0f}", f"{ratio:.2f}", f"{curve.max():.2f}"]
        rows.append([*row, f"{mean(ends):.2f}" if ends else "diverged", f"{mean(losses):.3f}"])
    return rows


def notes_of(budget: Budget, results: dict[str, tuple[float, list[FinishedRun]]], target: float) -> list[str]:
    first = next(iter(results.values()))[1][0]
    bleu = first.summary["bleu"]
    grids = "; ".join(f"{method} " + ", ".join(f"{lr:g}" for lr in GRIDS[method]) for method in results)
    own = "; ".join(f"{method} {OWN[method]}" for method in results if method in OWN)
    return [
        f"machine: {machine()}",
        f"model {COMMON['model']}: the source's and the target's embedding and the output layer are one "
        "matrix, which is in no block of KFAC and LNGD and takes the step of SGD with momentum there",
        f"data {first.summary['dataset']}, {first.summary['samples']:,} pairs; tested on "
        f"{first.summary['test']}; the paper's table 3 is of Transformer-Big on WMT En-De, to BLEU 32",
        f"{budget.steps:,} steps of {COMMON['batch']} pairs, float32, label smoothing "
        f"{COMMON['label_smoothing']}; the rate grows over a tenth of the steps and falls linearly to zero; "
        f"seeds: {budget.seeds}",
        f"grids: {grids}; the lowest loss on the validation pairs after {budget.grid_steps} steps with a "
        "schedule as long, seed 0; * an end of the grid",
        f"settings: {own}; all others are the defaults",
        "LNGD's ν₂ is so large that λ_Φ is the mean eigenvalue of Φ: its default, 0.01, leaves Φ of a few "
        "hundred positions all but singular, and the training diverged; its μ is small, because the default "
        "0.001 is large beside ⟨D, ∇ℓ⟩² in the encoder's layers, which then hardly move",
        f"target: BLEU {target:g}, the largest whole number that all methods but one reach",
        f"steps to target and best: greedy decoding of the same {SENTENCES} test sentences at each "
        f"evaluation, {budget.evaluations} in a training, mean over seeds; at the end: all "
        f"{bleu['sentences']:,}, beam {bleu['beam']}; signature {bleu['signature']}",
        f"seconds: of the processor, one thread, no evaluations: {TIMED} steps with a refresh among them, "
        "median over rounds in which all methods take turns; × SGD: median over rounds",
    ]


def examples_of(results: dict[str, tuple[float, list[FinishedRun]]]) -> str:
    """How long the translations are beside the references, and how often a word comes twice in a row."""
    header = ["method", "words a sentence", "in the references", "words repeated %"]
    rows = []
    for method, (_, runs) in results.items():
        path = runs[0].folder / "translations.csv"
        if not path.is_file():
            continue
        frame = pd.read_csv(path, keep_default_na=False)
        words = [text.split() for text in frame["translation"]]
        total = max(1, sum(map(len, words)))
        twice = sum(a == b for own in words for a, b in pairwise(own))
        reference = mean(len(text.split()) for text in frame["reference"])
        rows.append([method, total / len(words), reference, 100 * twice / total])
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += [f"| {name} | {a:.1f} | {b:.1f} | {c:.1f} |" for name, a, b, c in rows]
    return "\n## The translations\n\nOf seed 0, all test sentences.\n\n" + "\n".join(lines) + "\n"


def report(budget: Budget, results: dict[str, tuple[float, list[FinishedRun]]], repeats: int) -> None:
    """Writes `translation.md`, `.csv` and `.png`."""
    configs = {method: config_of(method, lr, 0, TIMED) for method, (lr, _) in results.items()}
    times = processor_seconds(configs, repeats, TIMED)
    frame = table_of(results, times)
    target = target_of(frame)
    notes = notes_of(budget, results, target)
    header = ["method", "lr", f"steps to BLEU {target:g}", "minutes", "s / 1k steps", "× SGD"]
    header += [f"best BLEU ({SENTENCES})", "BLEU at the end", "test loss"]
    path = RESULTS / "translation.md"
    write_table(path, "Translation", notes, header, rows_of(results, times, frame, target))
    path.write_text(path.read_text(encoding="utf-8") + examples_of(results), encoding="utf-8")
    write(RESULTS / "translation.csv", frame.to_csv(index=False, float_format="%.6g").encode())
    caption = (
        f"{COMMON['model']} on {notes[2].partition(';')[0].removeprefix('data ')}, batch {COMMON['batch']}; "
        f"BLEU of {SENTENCES} test sentences, greedy decoding; seeds: {budget.seeds}; seconds of the "
        "processor, one thread, evaluations left out"
    )
    figure = method_curves(
        frame.rename(columns={"train_loss": "loss", "bleu": "metric"}),
        loss="training loss",
        metric="BLEU",
        title="A small Transformer on Multi30k, English to German",
        caption=caption,
    )
    save_png(figure, RESULTS / "translation")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=GRIDS, default=list(GRIDS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--grid-steps", type=int, default=150)
    parser.add_argument("--evaluations", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5, help="rounds of the timings")
    parser.add_argument("--runs", type=Path, default=Path(tempfile.gettempdir()) / "translation-runs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    budget = Budget(
        arguments.steps, arguments.grid_steps, arguments.evaluations, arguments.seeds, arguments.runs
    )
    report(budget, runs_of(budget, arguments.methods), arguments.repeats)


if __name__ == "__main__":
    main()
