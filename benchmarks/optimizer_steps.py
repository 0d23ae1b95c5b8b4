"""What a step of LNGD and of KFAC costs beside SGD and Adam: time, and peak memory.

    python benchmarks/optimizer_steps.py [--cases cifar-resnet20 encoder] [--repeats 20]

All take the same forward and backward pass of the same network on the same batch. Steps that refresh
statistics and inverses are timed apart from those that do not; a method's step at a refresh every k steps
is their mix. Times are medians of rounds in which the contenders take turns.
"""

import argparse
import copy
import importlib.util
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import accumulate
from operator import itemgetter
from typing import Any
from unittest import mock

import torch
from common import RESULTS, machine, peak_memory, report_peak, rounds, write_table
from kronecker_statistics_networks import network
from torch import nn
from torch.profiler import ProfilerActivity, profile

from fisherlab.optim import KFAC, LNGD
from fisherlab.optim.steps import StepMaker

CASES = {"cifar-resnet20": ("sgd", 128), "encoder": ("adam", 64)}
EVERY = (100, 10)
SMALL = 4  # samples of the steps that are made before memory is measured
NEVER = 10**9
ASDL = "kfac of asdl"


def optimizers(batch: int) -> dict[str, Callable[..., torch.optim.Optimizer]]:
    """By name a function of the model and the steps between refreshes."""

    def ours(kind: type[torch.optim.Optimizer], **options) -> Callable[..., torch.optim.Optimizer]:
        return lambda model, every: kind(model, 1e-3, statistics_every=every, inverse_every=every, **options)

    return {
        "sgd": lambda model, every: torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9),
        "adam": lambda model, every: torch.optim.Adam(model.parameters(), lr=1e-4),
        "lngd": ours(LNGD),
        "lngd, rate from a quarter": ours(LNGD, rate_samples=batch // 4),
        "lngd-sample": ours(LNGD, rate="fixed"),
        "kfac": ours(KFAC),
    }


def stepper(name: str, case: str, batch: int, every: int) -> Callable[[], None]:
    """One step of training, after one that made statistics and inverses."""
    model, inputs, targets, _ = network(case, batch, torch.float32)
    model = copy.deepcopy(model).train()
    if name == ASDL:
        return asdl_stepper(model, inputs, targets, every)
    optimizer = optimizers(batch)[name](model, every)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()

    step()
    return step


def asdl_stepper(model, inputs, targets, every) -> Callable[[], None]:
    """The same with the KFAC of asdl (asdfghjkl on PyPI): a drawn label a sample, then SGD with momentum."""
    from asdl.fisher import FISHER_MC
    from asdl.precondition import KfacGradientMaker, PreconditioningConfig

    config = PreconditioningConfig(
        data_size=len(inputs),
        damping=0.03,
        curvature_upd_interval=every,
        preconditioner_upd_interval=every,
        ema_decay=0.05,
    )
    maker = KfacGradientMaker(model, config, fisher_type=FISHER_MC)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        with mock.patch("torch.cuda.nvtx.range_push"), mock.patch("torch.cuda.nvtx.range_pop"):
            maker.setup_loss_call(nn.functional.cross_entropy, maker.setup_model_call(model, inputs), targets)
            maker.forward_and_backward()
        optimizer.step()

    step()
    return step


def by_layer(case: str, steps: int = 5) -> list[list[str]]:
    """Where LNGD's own time goes: ms of a plain step from a layer's gradient to its rate, largest first."""
    _, batch = CASES[case]
    step = stepper("lngd", case, batch, NEVER)
    spent: dict[str, float] = defaultdict(float)
    complete = StepMaker.complete

    def timed(self, name: str, damping_of: Callable[[str], Any]) -> None:
        start = time.process_time()
        complete(self, name, damping_of)
        spent[name] += time.process_time() - start

    with mock.patch.object(StepMaker, "complete", timed):
        for _ in range(steps):
            step()
    whole = sum(spent.values())
    largest = sorted(spent, key=spent.__getitem__, reverse=True)
    rows = [
        [case, name, f"{1e3 * spent[name] / steps:.1f}", f"{spent[name] / whole:.0%}"] for name in largest[:6]
    ]
    rest = whole - sum(spent[name] for name in largest[:6])
    return [*rows, [case, f"{len(largest) - 6} others", f"{1e3 * rest / steps:.1f}", f"{rest / whole:.0%}"]]


def peak_of_tensors(work: Callable[[], Any]) -> float:
    """MiB that tensors take at most at one time, of those that the work makes, as torch counts them."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    results = found.profiler.kineto_results
    changes = [(event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]"]
    return max(accumulate(change for _, change in sorted(changes, key=itemgetter(0)))) / 2**20


def measure(case: str, repeats: int) -> list[list[str]]:
    """Rows: ms of a plain step, of a step with a refresh, ratios to the reference, MiB."""
    reference, batch = CASES[case]
    names = list(optimizers(batch))
    if case == "cifar-resnet20" and importlib.util.find_spec("asdl") is not None:
        names.append(ASDL)  # it knows no Linear on sequences
    plain = rounds({name: stepper(name, case, batch, NEVER) for name in names}, repeats)
    ours = [name for name in names if name not in ("sgd", "adam")]
    fresh = rounds({name: stepper(name, case, batch, 1) for name in ours}, max(3, repeats // 4))
    median = {name: float(torch.tensor(times).median()) for name, times in plain.items()}
    refresh = {name: float(torch.tensor(times).median()) for name, times in fresh.items()}
    resident = {name: peak_memory(__file__, name, case) for name in names}
    tensors = {name: peak_of_tensors(lambda name=name: stepper(name, case, batch, NEVER)()) for name in names}
    rows = []
    for name in names:
        extra = refresh.get(name, median[name]) - median[name]
        ratios = [(median[name] + extra / every) / median[reference] for every in EVERY]
        row = [case, str(batch), name, f"{1e3 * median[name]:.0f}"]
        row += [f"{1e3 * refresh[name]:.0f}" if name in refresh else ""]
        row += [f"{ratio:.2f}" for ratio in ratios]
        for memory in (tensors, resident):
            row += [f"{memory[name]:.0f}", f"{memory[name] / memory['sgd']:.2f}"]
        print(" | ".join(row), flush=True)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        name, case = arguments.memory
        batch = CASES[case][1]
        stepper(name, case, SMALL, NEVER)()  # imports, and the code of libraries, are not the work
        report_peak(lambda: stepper(name, case, batch, NEVER)())
        return
    rows = [row for case in arguments.cases for row in measure(case, arguments.repeats)]
    notes = [
        f"machine: {machine()}",
        "networks: cifar-resnet20 (batch norm; ratios over SGD with momentum) and a Transformer encoder",
        "encoder: 4 layers, 64 positions, width 128; ratios over Adam; all float32",
        "step: forward, backward and step; refresh: one with new statistics and inverses; medians of rounds",
        "every 100, every 10: the mix at that many steps between refreshes, over the reference",
        "MiB: the most that tensors take at once over two steps, the first a refresh, by torch's profiler",
        "resident: growth of the process's peak resident set over the same, with what malloc keeps; in a "
        "process of its own",
    ]
    header = [
        "network",
        "batch",
        "optimizer",
        "step ms",
        "refresh ms",
        "every 100",
        "every 10",
        "MiB",
        "of SGD",
        "resident",
        "of SGD",
    ]
    path = RESULTS / "optimizer_steps.md"
    write_table(path, "The cost of a step", notes, header, rows)
    layers = [row for case in arguments.cases for row in by_layer(case)]
    lines = [
        "",
        "## Where LNGD's own time goes",
        "",
        "From a layer's gradient to its rate: D = F̂⁻¹ ∇h and one more",
    ]
    lines[-1] += " forward of the layer with D as its weight, ms of a plain step."
    lines += ["", "| network | layer | ms | share |", "|---|---|---|---|"]
    lines += ["| " + " | ".join(row) + " |" for row in layers]
    path.write_text(path.read_text(encoding="utf-8") + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
