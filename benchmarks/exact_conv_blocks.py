"""Exact Fisher blocks of convolutions: fisherlab against the fastest of its peers, in one run.

    python benchmarks/exact_conv_blocks.py [--cases first narrow resnet] [--repeats 3]

Every contender computes the dense block of one convolution's weights on the same network and data; each
peer at the batch size that suits it best. Results are checked against each other before they are timed.
Times are medians of rounds in which the contenders take turns.
"""

import argparse
import copy
import functools

import torch
from common import (
    RESULTS,
    compare_times,
    contender_rows,
    machine,
    peak_memory,
    report_peak,
    rounds,
    write_table,
)
from kronecker_statistics_networks import PASSES, network, passes_alone
from peers import Loader, backpack_blocks, nngeometry_blocks, torch_func_blocks
from torch import nn

import fisherlab as fl

CASES = {
    "first": ("cifar-cnn", "0", "3→16, 32×32"),
    "narrow": ("narrow", "2", "8→16, 16×16"),
    "resnet": ("cifar-resnet20", "stages.0.0.conv1", "16→16, 32×32"),
}
PEERS = {
    "torch.func": torch_func_blocks,
    "nngeometry": nngeometry_blocks,
    "BackPACK": backpack_blocks,
}
BATCHES = (16, 64, 128)
SMALL = 4  # samples of the work that is done before memory is measured


def narrow() -> nn.Module:
    """Two convolutions 3×3 of 8 and 16 channels, without biases."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
        nn.ReLU(),
        nn.AvgPool2d(16),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


def problem(case, samples, dtype):
    """The network, images, targets and the data's label."""
    name = CASES[case][0]
    model, inputs, targets, label = network("cifar-cnn" if name == "narrow" else name, samples, dtype)
    if name == "narrow":
        torch.manual_seed(0)
        model = narrow().to(dtype)
    return model, inputs, targets, label


def ours(model, layer, inputs, targets):
    """fisherlab's block of the weight, in the order of the parameter."""
    data = inputs, targets
    return fl.exact_fisher(model, data, layers=[layer], bias="ignore")[layer].dense("row")


def theirs(compute, model, layer, loader):
    """A peer's block of the weight."""
    weights = model.get_submodule(layer).weight.numel()
    return compute(model, [layer], loader)[layer][:weights, :weights]


def contender(name, case, model, inputs, targets, batch):
    """A function without arguments that computes the block of a case."""
    layer = CASES[case][1]
    if name == "fisherlab":
        return functools.partial(ours, model, layer, inputs, targets)
    if name == PASSES:
        loader = Loader(inputs, targets, batch)
        return functools.partial(passes_alone, copy.deepcopy(model), [layer], loader)
    return functools.partial(theirs, PEERS[name], copy.deepcopy(model), layer, Loader(inputs, targets, batch))


def best_batches(case, model, inputs, targets, own):
    """For each peer its fastest batch size and its largest difference from `own`, or why there is none."""
    sizes = sorted({min(batch, len(inputs)) for batch in BATCHES})
    batches, notes = {}, {}
    for name in PEERS:
        made = {str(size): contender(name, case, model, inputs, targets, size) for size in sizes}
        try:
            block = made[str(sizes[0])]()
            seconds = rounds(made, 1, warm_up=False)
        except Exception as error:  # whatever a peer raises is its result here
            notes[name] = f"fails: {type(error).__name__}"
            continue
        notes[name] = f"{float((block.double() - own).abs().max() / own.abs().max()):.0e}"
        batches[name] = int(min(seconds, key=lambda size: seconds[size][0]))
    return batches, notes


def measure(case, samples, dtype, repeats):
    """Rows of the table for one case and precision."""
    model, inputs, targets, label = problem(case, samples, dtype)
    own = contender("fisherlab", case, model, inputs, targets, samples)()
    batches, notes = best_batches(case, model, inputs, targets, own)
    batches |= {"fisherlab": samples, PASSES: min(BATCHES)}
    made = {n: contender(n, case, model, inputs, targets, size) for n, size in batches.items()}
    times = compare_times(rounds(made, repeats), "fisherlab")
    kind = str(dtype).removeprefix("torch.")
    first = [CASES[case][2], f"{len(own)}×{len(own)}", str(samples), kind]
    rows = contender_rows(
        first,
        times,
        batches,
        notes,
        lambda name: peak_memory(__file__, name, case, str(samples), kind, str(batches[name])),
        digits=1,
    )
    return rows, label


def report_memory(name, case, samples, kind, batch):
    """Prints the peak memory of one contender."""
    model, inputs, targets, _ = problem(case, int(samples), getattr(torch, kind))
    contender(name, case, model, inputs[:SMALL], targets[:SMALL], SMALL)()  # imports are not the work
    report_peak(contender(name, case, model, inputs, targets, int(batch)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "float64"), default=["float32", "float64"])
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        report_memory(*arguments.memory)
        return
    rows = []
    for case in arguments.cases:
        for kind in arguments.dtypes:
            found, label = measure(case, arguments.samples, getattr(torch, kind), arguments.repeats)
            rows += found
    notes = [
        f"machine: {machine()}",
        f"data: {label}; networks as initialised, batch norms settled on the data; predictive kind",
        "block: of the weight alone, channels × kernel 3×3; result dense in the order of the parameter",
        "ms: median of the rounds, contenders in turn; ratio: median over rounds of time over fisherlab's",
        f"{PASSES}: forward passes and C - 1 columns back to the layer's outputs: "
        "what no exact method can do without",
        "MiB: growth of the peak resident set in a process of its own",
        "difference: largest entry-wise from fisherlab's, over the largest entry",
        "curvlinops multiplies with the identity, which takes minutes here: left out",
    ]
    header = ["convolution", "block", "samples", "dtype", "by", "batch", "ms", "ratio", "MiB", "difference"]
    path = RESULTS / "exact_conv_blocks.md"
    write_table(path, "Exact Fisher blocks of convolutions", notes, header, rows)


if __name__ == "__main__":
    main()
