"""What the benchmarks share: the network, timing in rounds, peak memory, and the machine's description."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fisherlab.models import prepare

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fisherlab.runs.finished import FinishedRun
    from fisherlab.train import TrainConfig

RESULTS = Path(__file__).parent / "results"


def network(samples: int, dtype: torch.dtype) -> tuple[nn.Module, torch.Tensor, torch.Tensor, str]:
    """The trained mnist-mlp, inputs, targets, and the data's label."""
    made = prepare("mnist-mlp", samples=samples, dtype=dtype)
    return made.model, made.inputs, made.targets, made.dataset.label


def rounds(
    contenders: dict[str, Callable[[], Any]], repeats: int, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Seconds of each contender, run in turn, `repeats` times after one warm-up.

    Of the processor where torch has one thread, which other work leaves alone; else of the clock.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    for contender in contenders.values() if warm_up else ():
        contender()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, contender in contenders.items():
            start = clock()
            contender()
            seconds[name].append(clock() - start)
    return seconds


def compare_times(seconds: dict[str, list[float]], own: str) -> dict[str, tuple[float, float]]:
    """For each contender the median of its seconds, and the median over rounds of its time over `own`'s."""
    return {
        name: (median(times), median(t / o for t, o in zip(times, seconds[own], strict=True)))
        for name, times in seconds.items()
    }


def finished_run(out: Path, config: "TrainConfig") -> "FinishedRun":
    """The training run in a directory: found, continued or made; one that diverged is a result too."""
    from fisherlab.runs.finished import read_run
    from fisherlab.train import DivergedError, resume, train

    try:
        if out.with_name(out.name + ".part").is_dir():
            resume(out)
        elif not out.exists():
            train(config, out)
    except DivergedError as error:
        print(error, flush=True)
    return read_run(out)


def save_png(figure: "Figure", path: Path) -> None:
    """Writes a figure as `path`.png alone."""
    from fisherlab.plots import save

    for written in save(figure, path):
        if written.suffix == ".pdf":
            written.unlink()


def processor_seconds(
    configs: "dict[str, TrainConfig]", repeats: int, timed: int
) -> dict[str, tuple[float, float]]:
    """For each training the processor's seconds a step and their ratio to SGD's.

    From rounds of `timed` steps, with one refresh of the statistics among them, in which all trainings take
    turns; the learning rates are so small that the networks stay as they are.
    """
    work = {name: _steps_of(config, timed) for name, config in configs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats + 1):
        for name, steps in work.items():
            start = time.process_time()
            steps()
            seconds[name].append((time.process_time() - start) / timed)
    return compare_times({name: times[1:] for name, times in seconds.items()}, "sgd")


def _steps_of(config: "TrainConfig", timed: int) -> Callable[[], None]:
    """Takes the next `timed` steps of a training, over and over on a few batches."""
    from fisherlab.collect.batches import called
    from fisherlab.loop.objectives import objective
    from fisherlab.train.optimizers import create
    from fisherlab.train.task.prepare import prepare as prepare_task

    batches = 40
    config = replace(config, samples=batches * config.batch, test_split="none", lr=1e-6).resolved()
    task = prepare_task(config, torch.device("cpu"))
    settings = config.settings() | ({"other_lr": 1e-6} if "other_lr" in config.options else {})
    optimizer = create(
        *(config.optimizer, task.model, settings),
        likelihood=task.likelihood,
        seed=0,
        inputs=task.train.take(slice(0, 2))[0],
    )
    aim = objective(task.likelihood, config.label_smoothing)
    places = count()
    task.model.train()

    def steps() -> None:
        for _ in range(timed):
            at = config.batch * (next(places) % batches)
            inputs, targets = task.train.take(slice(at, at + config.batch))
            optimizer.zero_grad()
            outputs = called(task.model, inputs)
            (aim.total(outputs, targets, config.label_smoothing) / aim.count(targets)).backward()
            optimizer.step()

    return steps


def contender_rows(
    first: list[str],
    times: dict[str, tuple[float, float]],
    batches: dict[str, int],
    notes: dict[str, str],
    memory: Callable[[str], float],
    *,
    digits: int,
) -> list[list[str]]:
    """Rows of a table, a contender each, fastest first, then those that failed; they are printed too.

    Args:
        first: what all rows begin with.
        times: for each contender its seconds and its ratio, see `compare_times`.
        batches: the batch size of each.
        notes: its difference from fisherlab's result, or why it gives none.
        memory: from a contender's name to its MiB.
        digits: of the ratio, after the point.
    """
    rows = []
    for name in sorted(times, key=lambda name: times[name]):
        seconds, ratio = times[name]
        row = [*first, name, "" if name == "fisherlab" else str(batches[name])]
        numbers = [f"{1000 * seconds:.0f}", f"{ratio:.{digits}f}", f"{memory(name):.0f}"]
        rows.append([*row, *numbers, notes.get(name, "")])
    rows += [[*first, name, "", "", "", "", note] for name, note in notes.items() if name not in batches]
    print(*(" | ".join(row) for row in rows), sep="\n", flush=True)
    return rows


def peak_memory(script: str, *arguments: str) -> float:
    """MiB above the state before the work, of a contender in a process of its own."""
    command = [sys.executable, script, "--memory", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
    return float(json.loads(done.stdout.splitlines()[-1]))


def report_peak(work: Callable[[], Any]) -> None:
    """Prints the growth of this process's peak resident set over the work, in MiB (Linux)."""
    before = restart_peak()
    work()
    print(json.dumps(resident("VmHWM") - before))


def restart_peak() -> float:
    """The peak resident set starts again from what is resident now; returns that, in MiB (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return resident("VmHWM")


def resident(field: str) -> float:
    """A size of this process in MiB: `VmHWM`, the peak resident set, or `VmRSS`, what is resident (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field))) / 1024


def machine() -> str:
    """One line: processor, cores, torch."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "?")
    threads = torch.get_num_threads()
    return (
        f"{name}, {os.cpu_count()} cores, {threads} threads, {platform.system()}, torch {torch.__version__}"
    )


def write_table(path: Path, title: str, notes: list[str], header: list[str], rows: list[list[str]]) -> None:
    """A Markdown table with its conditions, to a file and to stdout."""
    lines = [f"# {title}", "", *(f"- {note}" for note in notes), ""]
    lines += ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    text = "\n".join(lines) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(text)
