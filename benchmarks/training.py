"""Training with SGD, Adam, Muon, SOAP and the second-order methods, on MNIST, Fashion-MNIST and a text.

    python benchmarks/training.py [--tasks mnist-mlp fashion-cnn] [--methods sgd lngd] [--seeds 3]

Every method is trained with each learning rate of its grid and seed 0; the one with the lowest last training
loss is trained with the other seeds. Finished runs are kept in the cache, so the work can be done in pieces.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from statistics import mean, median, stdev

import torch
from common import RESULTS, compare_times, machine, write_table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fisherlab import datasets, models
from fisherlab.base.writing import write
from fisherlab.errors import NumericalError
from fisherlab.figures.two_layers import TwoLayers
from fisherlab.models.seeding import seeded
from fisherlab.optim import EKFAC, KFAC, LNGD, TKFAC, NGPlus, Shampoo
from fisherlab.train.optimizers import create
from fisherlab.train.recipes import IMPORTED

EVERY, TIMED = 25, 10  # steps between looks, steps a timing
RIVALS = {"kfac": KFAC, "ekfac": EKFAC, "tkfac": TKFAC, "ngplus": NGPlus, "shampoo": Shampoo}
ABLATIONS = {"lngd": {}, "lngd-lr": {"source": "predictive"}, "lngd-sample": {"rate": "fixed"}}
QUARTER = "lngd, rate from a quarter"
METHODS = ("sgd", "adam", *IMPORTED, *RIVALS, *ABLATIONS, QUARTER)
LADDER = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


@dataclass(frozen=True, eq=False)
class Task:
    """What is trained, for how long, and with which learning rates.

    In the first `warm_up` steps the learning rate grows, over the rest it falls to zero. `damping` is that of
    the LNGD family, `middles` holds the middle of each method's grid, `watched` says how many training
    samples are looked at on the way.
    """

    build: Callable[[], nn.Module]
    dataset: str
    preprocess: Callable[[datasets.Dataset], Tensor]
    batch: int
    steps: int
    warm_up: int
    damping: tuple[float, float]
    middles: Mapping[str, float]
    targets: Callable[[datasets.Dataset], Tensor] = lambda data: data.targets
    likelihood: str = "categorical"
    watched: int = 2500

    def grid(self, method: str) -> tuple[float, ...]:
        """Three neighbours of LADDER."""
        place = LADDER.index(self.middles[method])
        return LADDER[place - 1 : place + 2]

    def factor(self, step: int) -> float:
        """The share of the learning rate in a step, counted from 0."""
        return min((step + 1) / self.warm_up, (self.steps - step) / (self.steps - self.warm_up))


def small_cnn() -> nn.Sequential:
    """Two convolutions with batch norm and a linear layer on 3 x 3 squares."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False),  # [n, 16, 14, 14]
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),  # [n, 32, 7, 7]
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AvgPool2d(3, 2),
        nn.Flatten(),  # [n, 288]
        nn.Linear(288, 10),
    )


MLP, CHARLM = models.spec("mnist-mlp"), models.spec("charlm")
TASKS = {
    "mnist-mlp": Task(
        MLP.build,
        dataset="mnist",
        preprocess=MLP.preprocess,
        batch=256,
        steps=1175,
        warm_up=118,
        damping=(1e-5, 1.0),
        middles={"sgd": 0.3, "adam": 0.03, "muon": 0.03, "soap": 0.03}
        | {"kfac": 0.03, "ekfac": 0.01, "tkfac": 0.03, "ngplus": 0.03, "shampoo": 0.01}
        | {"lngd": 0.3, "lngd-lr": 0.1, "lngd-sample": 0.03, QUARTER: 0.3},
    ),
    "fashion-cnn": Task(
        small_cnn,
        dataset="fashion-mnist",
        preprocess=lambda data: (data.inputs - 0.2860) / 0.3530,
        batch=128,
        steps=600,
        warm_up=60,
        damping=(1e-5, 1e-2),
        middles={"sgd": 0.3, "adam": 0.1, "muon": 0.1, "soap": 0.03}
        | {"kfac": 0.1, "ekfac": 0.03, "tkfac": 0.1, "ngplus": 1.0, "shampoo": 0.03}
        | {"lngd": 0.1, "lngd-lr": 0.3, "lngd-sample": 0.03, QUARTER: 0.1},
    ),
    "charlm": Task(
        CHARLM.build,
        dataset="characters",
        preprocess=CHARLM.preprocess,
        targets=CHARLM.targets,
        likelihood="token-categorical",
        batch=16,
        steps=300,
        warm_up=30,
        damping=(1e-5, 1e-2),
        middles={"sgd": 0.3, "adam": 0.003, "muon": 0.01, "soap": 0.01}
        | {"kfac": 0.1, "ekfac": 0.03, "tkfac": 0.1, "ngplus": 0.1, "shampoo": 0.01}
        | {"lngd": 0.3, "lngd-lr": 0.3, "lngd-sample": 0.03, QUARTER: 0.3},
        watched=64,
    ),
}


def optimizer_of(task: Task, method: str) -> Callable[[nn.Module, float], torch.optim.Optimizer]:
    """From a network and a learning rate to the optimizer; no weight decay in any."""
    if method == "sgd":
        return lambda model, lr: torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    if method == "adam":
        return lambda model, lr: torch.optim.Adam(model.parameters(), lr)
    if method in IMPORTED:
        recipe = IMPORTED[method]
        options = {**recipe["options"], "weight_decay": 0.0}
        inputs = data_of(task)[0][0][:2]
        return lambda model, lr: create(
            recipe["optimizer"],
            *(model, {**options, "lr": lr}),
            likelihood=task.likelihood,
            seed=0,
            inputs=inputs,
        )
    common = {"weight_decay": 0.0, "kl_clip": None, "likelihood": task.likelihood}
    if method in RIVALS:
        return partial(RIVALS[method], **common)
    options = {"rate_samples": task.batch // 4} if method == QUARTER else ABLATIONS[method]
    return partial(LNGD, damping=task.damping, **common, **options)


# --- one run --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """How a training ended, in evaluation mode.

    `loss` is the mean cross-entropy over the training set (infinite: diverged), `accuracy` that of the test
    set in percent, `curve` the loss of the first WATCHED training samples after each EVERY steps.
    """

    loss: float
    accuracy: float
    curve: list[float]

    def steps_to(self, target: float) -> int | None:
        """The first of the steps looked at where the loss is at most `target`."""
        return next((EVERY * (i + 1) for i, loss in enumerate(self.curve) if loss <= target), None)


@cache
def data_of(task: Task) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], str]:
    """Inputs and targets of training and of testing, and the data's label."""
    train, test = (datasets.load(task.dataset, split) for split in ("train", "test"))
    pairs = [(task.preprocess(one), task.targets(one)) for one in (train, test)]
    return pairs[0], pairs[1], train.label


def batches(task: Task, seed: int):
    """The batches of a training; each epoch has an order of its own, and its last batch may be smaller."""
    (inputs, targets), _, _ = data_of(task)
    generator = torch.Generator().manual_seed(seed)
    step = 0
    while True:
        for kept in torch.randperm(len(inputs), generator=generator).split(task.batch):
            if step == task.steps:
                return
            step += 1
            yield inputs[kept], targets[kept]


def train(task: Task, method: str, lr: float, seed: int) -> Run:
    """Train once; the seed is of the initial weights and of the order of the samples."""
    (inputs, targets), test, _ = data_of(task)
    model = seeded(task.build, seed).train()
    optimizer = optimizer_of(task, method)(model, lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, task.factor)
    curve = []
    try:
        for step, (x, y) in enumerate(batches(task, seed), start=1):
            optimizer.zero_grad()
            cross_entropy(model(x).movedim(-1, 1), y).backward()
            optimizer.step()
            schedule.step()
            if step % EVERY == 0:
                curve.append(evaluate(model, inputs[: task.watched], targets[: task.watched])[0])
    except NumericalError:  # the weights or the loss have left the numbers
        return Run(math.inf, math.nan, curve)
    loss = evaluate(model, inputs, targets)[0]
    return Run(loss if math.isfinite(loss) else math.inf, 100 * evaluate(model, *test)[1], curve)


@torch.no_grad()
def evaluate(model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[float, float]:
    """Mean cross-entropy and accuracy in evaluation mode."""
    model.eval()
    loss = right = 0.0
    size = 2500 if targets.dim() == 1 else 64  # a sequence holds as many numbers as dozens of images
    for x, y in zip(inputs.split(size), targets.split(size), strict=True):
        outputs = model(x).movedim(-1, 1)
        loss += float(cross_entropy(outputs, y, reduction="sum"))
        right += float((outputs.argmax(1) == y).sum())
    model.train()
    return loss / targets.numel(), right / targets.numel()


# --- all runs -------------------------------------------------------------------------------------


def cached_run(path: Path, name: str, method: str, lr: float, seed: int) -> Run:
    """A run from the cache, or a new one that goes there."""
    task = TASKS[name]
    key = f"{name} {method} lr={lr:g} seed={seed} {task.steps}x{task.batch} {task.damping}"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if key not in known:
        run = train(task, method, lr, seed)
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        known[key] = asdict(run)
        write(path, json.dumps(known, indent=1).encode())
        print(f"{key}: loss {run.loss:.4f}, accuracy {run.accuracy:.2f}", flush=True)
    return Run(**known[key])


def runs_of(path: Path, name: str, method: str, seeds: int) -> tuple[float, list[Run]]:
    """The best learning rate of the grid, judged by seed 0, and the runs of all seeds with it."""
    tried = {lr: cached_run(path, name, method, lr, 0) for lr in TASKS[name].grid(method)}
    best = min(tried, key=lambda lr: tried[lr].loss)
    return best, [cached_run(path, name, method, best, seed) for seed in range(seeds)]


def times_of(name: str, methods: list[str], repeats: int) -> dict[str, tuple[float, float]]:
    """Processor seconds a step and their ratio to SGD's, from rounds of TIMED steps with one refresh."""
    task = TASKS[name]

    def some_steps(method: str) -> Callable[[], None]:
        model = seeded(task.build, 0).train()
        optimizer, stream = optimizer_of(task, method)(model, 1e-4), batches(task, 0)

        def steps() -> None:
            for x, y in islice(stream, TIMED):
                optimizer.zero_grad()
                cross_entropy(model(x).movedim(-1, 1), y).backward()
                optimizer.step()

        return steps

    work = {method: some_steps(method) for method in methods}
    seconds: dict[str, list[float]] = {method: [] for method in methods}
    for _ in range(repeats + 1):
        for method in methods:
            start = time.process_time()
            work[method]()
            seconds[method].append(time.process_time() - start)
    kept = {method: [one / TIMED for one in times[1:]] for method, times in seconds.items()}
    return compare_times(kept, "sgd")


def rows_of(path: Path, name: str, methods: list[str], seeds: int, repeats: int) -> list[list[str]]:
    """The table of a task; SGD is always among the methods."""
    methods = list(dict.fromkeys(["sgd", *methods]))
    results = {method: runs_of(path, name, method, seeds) for method in methods}
    times = times_of(name, methods, repeats)
    target = mean(run.curve[-1] for run in results["sgd"][1])
    rows = []
    for method, (lr, runs) in results.items():
        grid = TASKS[name].grid(method)
        reached = [steps for steps in (run.steps_to(target) for run in runs) if steps is not None]
        seconds, ratio = times[method]
        steps = f"{median(reached):.0f}" if reached else "–"
        row = [name, method, f"{lr:g}" + ("*" if lr in (grid[0], grid[-1]) else "")]
        row += [spread([run.loss for run in runs], 4), spread([run.accuracy for run in runs], 2)]
        rows.append([*row, f"{steps} ({len(reached)}/{len(runs)})", f"{1000 * seconds:.1f}", f"{ratio:.2f}"])
    return rows


def spread(values: list[float], digits: int) -> str:
    """Mean ± standard deviation of the runs that did not diverge, and how many did."""
    kept = [value for value in values if math.isfinite(value)]
    if len(kept) < 2:
        return f"{kept[0]:.{digits}f}" if kept else "diverged"
    text = f"{mean(kept):.{digits}f} ± {stdev(kept):.{digits}f}"
    return text + (f", {len(values) - len(kept)} diverged" if len(kept) < len(values) else "")


# --- theorem 2 ------------------------------------------------------------------------------------

SAMPLES, INPUTS, WIDTH, LOOKS = 20, 30, 1024, (10, 20, 30)


def theorem_rows() -> list[list[str]]:
    """‖y − v_k‖²/‖y − v_0‖² beside the theorem's bound."""
    network, rows = TwoLayers(SAMPLES, INPUTS, WIDTH, seed=0), []
    for alpha in (0.1, 0.5):
        paths = {
            "the theorem's: Ψ a full Gram matrix": network.errors(alpha, max(LOOKS)),
            "LNGD": network.lngd_errors(alpha, max(LOOKS), "layerwise"),
            "LNGD, α_l = 1": network.lngd_errors(alpha, max(LOOKS), "fixed"),
        }
        rows.append([f"{alpha:g}", "bound (1 − α)^k", *(f"{(1 - alpha) ** k:.1e}" for k in LOOKS)])
        for name, errors in paths.items():
            rows.append([f"{alpha:g}", name, *(f"{errors[k] / errors[0]:.1e}" for k in LOOKS)])
    return rows


# --- the page -------------------------------------------------------------------------------------


def table(header: list[str], rows: list[list[str]]) -> str:
    return "".join("| " + " | ".join(line) + " |\n" for line in [header, ["---"] * len(header), *rows])


def notes_of(names: list[str], seeds: int) -> list[str]:
    notes = [f"machine: {machine()}"]
    for name in names:
        task = TASKS[name]
        parameters = sum(p.numel() for p in task.build().parameters())
        grids = "; ".join(
            f"{method} " + ", ".join(f"{lr:g}" for lr in task.grid(method)) for method in METHODS
        )
        notes += [
            f"{name}: data {data_of(task)[2]}, {parameters:,} parameters, {task.steps} steps of "
            f"{task.batch}, warm-up {task.warm_up}, float32; LNGD's damping {task.damping}",
            f"{name}, grids: {grids}",
        ]
    return [
        *notes,
        "all methods: momentum 0.9 (Adam, Muon and SOAP their own), no weight decay, a linear warm-up, then "
        "linear to zero; statistics and inverses every 10 steps, λ = 0.03 (not tuned), no KL-clip, other "
        "settings the defaults",
        "grids: three neighbours of 0.001, 0.003, 0.01, …, moved until the best of seed 0 is the middle one",
        f"lr: the lowest training loss of seed 0; * an end of the grid. mean ± sd over {seeds} seeds",
        "muon: torch.optim.Muon on the matrices of hidden layers, AdamW with the same learning rate on all "
        "else (adjust_lr_fn = match_rms_adamw, Liu et al. 2025, 2502.16982); soap: pytorch_optimizer's SOAP "
        "on all parameters, a basis every 10 steps",
        f"{QUARTER}: `rate_samples` is a quarter of the batch",
        "loss: the whole training set, evaluation mode; accuracy: the whole test set",
        "steps to SGD: median of the seeds that reach SGD's last loss (mean over seeds; the first "
        f"{', '.join(f'{TASKS[name].watched:,}' for name in names)} training samples, looked at every "
        f"{EVERY} steps), and how many do; all within the schedule of the whole training",
        f"ms: of the processor, a step, from {TIMED} with a refresh among them; median over rounds in which "
        "all methods take turns; × SGD: median over rounds",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=15, help="rounds of the timings")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "training-cache.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        row
        for name in arguments.tasks
        for row in rows_of(arguments.cache, name, arguments.methods, arguments.seeds, arguments.repeats)
    ]
    header = ["task", "method", "lr", "training loss", "test accuracy %", "steps to SGD", "ms", "× SGD"]
    path = RESULTS / "training.md"
    write_table(path, "Training", notes_of(arguments.tasks, arguments.seeds), header, rows)
    theorem = (
        f"\n## Theorem 2\n\nA two-layer ReLU network of width {WIDTH}, its first layer trained on {SAMPLES} "
        f"samples with {INPUTS} inputs, whole batch, no damping in the theorem's method, no momentum: "
        "‖y − v_k‖²/‖y − v_0‖². The bound is proved for the first method; LNGD's rows are measured, and no "
        "theorem stands behind them.\n\n"
        + table(["α", "method", *(f"k = {k}" for k in LOOKS)], theorem_rows())
    )
    path.write_text(path.read_text(encoding="utf-8") + theorem, encoding="utf-8")
    print(theorem)


if __name__ == "__main__":
    main()
