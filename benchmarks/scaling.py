"""Time and memory of fisherlab's statistics against the number of samples: t = a + b N.

    python benchmarks/scaling.py [--samples 256 512 1024 2048] [--repeats 5]

cifar-cnn, predictive kind. Times are medians of rounds in which the sizes take turns; memory is the
growth of the peak resident set over the work in a process of its own.
"""

import argparse
import functools
from statistics import correlation, linear_regression

import torch
from common import RESULTS, machine, peak_memory, report_peak, rounds, write_table

import fisherlab as fl
from fisherlab.models import prepare

METHODS = ("kfac", "ekfac", "tkfac", "lngd")
SMALL = 4  # samples of the work that is done before memory is measured


def network(samples: int, dtype: torch.dtype):
    """cifar-cnn as initialised, images, targets, and the data's label."""
    made = prepare("cifar-cnn", samples=samples, dtype=dtype, trained=False)
    return made.model, made.inputs, made.targets, made.dataset.label


def work(method, model, inputs, targets):
    """A function without arguments that collects the statistics of a method."""
    data = inputs, targets
    return functools.partial(fl.collect_statistics, model, data, approximations=method)


def measure(method, sizes, dtype, repeats):
    """Rows of the table for one method, and the data's label."""
    model, inputs, targets, label = network(max(sizes), dtype)
    made = {str(n): work(method, model, inputs[:n], targets[:n]) for n in sizes}
    times = {int(n): sorted(seconds)[repeats // 2] for n, seconds in rounds(made, repeats).items()}
    line = linear_regression(sizes, [times[n] for n in sizes])
    fit = correlation(sizes, [times[n] for n in sizes]) ** 2
    kind = str(dtype).removeprefix("torch.")
    rows = []
    for n in sizes:
        memory = peak_memory(__file__, method, str(n), kind)
        each = 1e6 * times[n] / n
        expected = line.intercept + line.slope * n
        row = [method, kind, str(n), f"{1000 * times[n]:.0f}", f"{1000 * expected:.0f}", f"{each:.0f}"]
        rows.append([*row, f"{memory:.0f}", f"{fit:.4f}"])
    print(*(" | ".join(row) for row in rows), sep="\n", flush=True)
    return rows, label


def report_memory(method, samples, kind):
    """Prints the peak memory of one method."""
    model, inputs, targets, _ = network(int(samples), getattr(torch, kind))
    work(method, model, inputs[:SMALL], targets[:SMALL])()  # imports are not the work
    report_peak(work(method, model, inputs, targets))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, nargs="+", default=[256, 512, 1024, 2048])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        report_memory(*arguments.memory)
        return
    rows = []
    for method in arguments.methods:
        found, label = measure(method, sorted(arguments.samples), torch.float32, arguments.repeats)
        rows += found
    notes = [
        f"machine: {machine()}",
        f"network and data: cifar-cnn as initialised, {label}; predictive kind",
        "ms: median of the rounds, sizes in turn; fitted: a + b N by least squares, with its R²",
        "MiB: growth of the peak resident set in a process of its own",
    ]
    header = ["method", "dtype", "N", "ms", "fitted ms", "µs a sample", "MiB", "R²"]
    write_table(RESULTS / "scaling.md", "Cost against the number of samples", notes, header, rows)


if __name__ == "__main__":
    main()
