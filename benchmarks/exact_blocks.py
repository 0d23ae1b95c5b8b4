"""Exact Fisher blocks of mnist-mlp: fisherlab against the fastest of its peers, in one run.

    python benchmarks/exact_blocks.py [--samples 10000] [--repeats 5]

Every contender computes the two 400×400 blocks of the 20→20 layers (and, on 2,000 samples, the first
layer's 3920×3920 block) on the same trained network and data, as dense matrices; each peer at the
batch size that suits it best. Results are checked against each other before they are timed.
"""

import argparse
import functools

import torch
from common import RESULTS, machine, network, peak_memory, report_peak, rounds, write_table
from peers import Loader, backpack_blocks, curvlinops_blocks, nngeometry_blocks, torch_func_blocks

import fisherlab as fl

PEERS = {
    "torch.func": torch_func_blocks,
    "curvlinops": curvlinops_blocks,
    "nngeometry": nngeometry_blocks,
    "BackPACK": backpack_blocks,
}
BATCHES = (500, 2000, 10000)
CASES = {"400": ["2", "4"], "3920": ["0"]}


def ours(model, layers, inputs, targets):
    """fisherlab's blocks, in the order of the parameters."""
    blocks = fl.exact_fisher(model, (inputs, targets), layers=layers)
    return {layer: block.dense("row") for layer, block in blocks.items()}


def contender(name, case, model, inputs, targets, batch):
    """A function without arguments that computes the blocks of a case."""
    layers = CASES[case]
    if name == "fisherlab":
        return functools.partial(ours, model, layers, inputs, targets)
    return functools.partial(PEERS[name], model, layers, Loader(inputs, targets, batch))


def check(results, dtype):
    """Largest difference of each peer from fisherlab, relative to the largest entry."""
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    notes = {}
    for name, blocks in results.items():
        differences = [
            float((blocks[x].double() - results["fisherlab"][x]).abs().max() / blocks[x].abs().max())
            for x in blocks
        ]
        notes[name] = max(differences)
        if not max(differences) < tolerance:
            print(f"{name} differs by {max(differences):.1e}")
    return notes


def best_batch(name, case, model, inputs, targets):
    """The batch size of the fastest of three trials."""
    sizes = sorted({min(batch, len(inputs)) for batch in BATCHES})
    made = {str(size): contender(name, case, model, inputs, targets, size) for size in sizes}
    seconds = rounds(made, 1)
    return int(min(seconds, key=lambda size: seconds[size][0]))


def measure(case, samples, dtype, repeats, peers):
    """Rows of the table for one case and precision."""
    model, inputs, targets, label = network(samples, dtype)
    batches = {name: best_batch(name, case, model, inputs, targets) for name in peers}
    batches["fisherlab"] = samples
    made = {n: contender(n, case, model, inputs, targets, size) for n, size in batches.items()}
    differences = check({name: work() for name, work in made.items()}, dtype)
    seconds = {name: min(times) for name, times in rounds(made, repeats).items()}
    kind = str(dtype).removeprefix("torch.")
    memory = {n: peak_memory(__file__, n, case, str(samples), kind, str(size)) for n, size in batches.items()}
    own = seconds["fisherlab"]
    rows = [
        [
            f"{case}×{case}",
            str(samples),
            kind,
            name,
            str(batches[name]),
            f"{1000 * seconds[name]:.0f}",
            f"{seconds[name] / own:.1f}",
            f"{memory[name]:.0f}",
            f"{differences[name]:.0e}",
        ]
        for name in sorted(seconds, key=lambda name: seconds[name])
    ]
    return rows, label


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=10000)
    parser.add_argument("--wide-samples", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        name, case, samples, kind, batch = arguments.memory
        model, inputs, targets, _ = network(int(samples), getattr(torch, kind))
        work = contender(name, case, model, inputs, targets, int(batch))
        small = contender(name, case, model, inputs[:64], targets[:64], 64)
        if case == "400":
            small()  # imports and one-time allocations are not the work
        report_peak(work)
        return
    rows = []
    for dtype in (torch.float64, torch.float32):
        found, label = measure("400", arguments.samples, dtype, arguments.repeats, list(PEERS))
        rows += found
        wide = ["torch.func", "nngeometry", "BackPACK"]
        found, _ = measure("3920", arguments.wide_samples, dtype, max(1, arguments.repeats // 2), wide)
        rows += found
    notes = [
        f"machine: {machine()}",
        f"network and data: mnist-mlp (trained), {label}; predictive kind",
        "time: best of the rounds, contenders in turn; ratio: time over fisherlab's",
        "memory: growth of the peak resident set in a process of its own",
        "difference: largest entry-wise from fisherlab's, over the largest entry",
        "curvlinops multiplies with the identity: left out at 3920×3920, where it takes minutes",
    ]
    header = ["block", "samples", "dtype", "by", "batch", "ms", "ratio", "MiB", "difference"]
    write_table(RESULTS / "exact_blocks.md", "Exact Fisher blocks", notes, header, rows)


if __name__ == "__main__":
    main()
