"""KFAC's and EKFAC's statistics of mnist-mlp: fisherlab against its peers, in one run.

    python benchmarks/kronecker_statistics.py [--samples 10000] [--repeats 7]

All four layers, predictive kind, the same trained network and data; each peer at the batch size that suits it
best. "hooks" is the floor for KFAC: plain hooks, C backward passes, two products a layer. Results are
checked against each other before they are timed.
"""

import argparse
import copy
import functools

import torch
from common import RESULTS, machine, network, peak_memory, report_peak, rounds, write_table
from peers import (
    Loader,
    backpack_factors,
    curvlinops_ekfac,
    curvlinops_factors,
    hook_factors,
    nngeometry_ekfac,
    nngeometry_factors,
)

import fisherlab as fl

LAYERS = ["0", "2", "4", "6"]
BATCHES = (500, 2000, 10000)
PEERS = {
    "kfac": {
        "hooks (floor)": hook_factors,
        "curvlinops": curvlinops_factors,
        "nngeometry": nngeometry_factors,
        "BackPACK": backpack_factors,
    },
    "ekfac": {"curvlinops": curvlinops_ekfac, "nngeometry": nngeometry_ekfac},
}


def ours(method, model, inputs, targets):
    """fisherlab's statistics and operators."""
    return fl.approximate(method, model, (inputs, targets))


def contender(name, method, model, inputs, targets, batch):
    """A function without arguments that computes the statistics of a method."""
    if name == "fisherlab":
        return functools.partial(ours, method, model, inputs, targets)
    return functools.partial(PEERS[method][name], model, LAYERS, Loader(inputs, targets, batch))


def difference(method, found, own):
    """Largest relative difference over the layers; of A ⊗ B, whose factors have no common scale."""
    differences = []
    for layer, operator in own.items():
        if method == "ekfac":
            values = operator.eigenvalues()
            differences.append(float((found[layer].double() - values).abs().max() / values[-1]))
        else:
            for theirs, mine in zip(found[layer], operator.factors, strict=True):
                a, b = theirs.double() / theirs.trace(), mine / mine.trace()
                differences.append(float((a - b).abs().max() / b.abs().max()))
    return max(differences)


def best_batch(name, method, model, inputs, targets):
    """The batch size of the fastest of the trials."""
    sizes = sorted({min(batch, len(inputs)) for batch in BATCHES})
    made = {str(size): contender(name, method, model, inputs, targets, size) for size in sizes}
    seconds = rounds(made, 2)
    return int(min(seconds, key=lambda size: min(seconds[size])))


def working(method, model, inputs, targets):
    """The best batch size of each peer that gives a result, and why the others do not."""
    batches, failed = {}, {}
    for name in PEERS[method]:
        try:
            batches[name] = best_batch(name, method, model, inputs, targets)
        except Exception as error:  # whatever a peer raises is its result here
            failed[name] = f"fails: {type(error).__name__}"
    return batches, failed


def measure(method, samples, dtype, repeats):
    """Rows of the table for one method and precision."""
    model, inputs, targets, label = network(samples, dtype)
    batches, failed = working(method, copy.deepcopy(model), inputs, targets)
    batches["fisherlab"] = samples
    made = {n: contender(n, method, model, inputs, targets, size) for n, size in batches.items()}
    own = made["fisherlab"]()
    kind = str(dtype).removeprefix("torch.")
    seconds = {name: min(times) for name, times in rounds(made, repeats).items()}
    rows = []
    for name in sorted(seconds, key=lambda name: seconds[name]):
        size = str(batches[name])
        memory = peak_memory(__file__, name, method, str(samples), kind, size)
        differs = "" if name == "fisherlab" else f"{difference(method, made[name](), own):.0e}"
        ratio = f"{seconds[name] / seconds['fisherlab']:.2f}"
        row = [method, str(samples), kind, name, size, f"{1000 * seconds[name]:.1f}", ratio]
        rows.append([*row, f"{memory:.0f}", differs])
    rows += [[method, str(samples), kind, name, "", "", "", "", why] for name, why in failed.items()]
    return rows, label


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=10000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--memory", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        name, method, samples, kind, batch = arguments.memory
        model, inputs, targets, _ = network(int(samples), getattr(torch, kind))
        contender(name, method, model, inputs[:64], targets[:64], 64)()  # imports are not the work
        report_peak(contender(name, method, model, inputs, targets, int(batch)))
        return
    rows = []
    for method in PEERS:
        for dtype in (torch.float32, torch.float64):
            found, label = measure(method, arguments.samples, dtype, arguments.repeats)
            rows += found
    notes = [
        f"machine: {machine()}",
        f"network and data: mnist-mlp (trained), {label}, all layers; predictive kind",
        "time: best of the rounds, contenders in turn; ratio: time over fisherlab's",
        "memory: growth of the peak resident set in a process of its own",
        "difference: largest from fisherlab's factors (each by its trace), or eigenvalues, relative",
    ]
    header = ["method", "samples", "dtype", "by", "batch", "ms", "ratio", "MiB", "difference"]
    write_table(RESULTS / "kronecker_statistics.md", "KFAC and EKFAC statistics", notes, header, rows)


if __name__ == "__main__":
    main()
