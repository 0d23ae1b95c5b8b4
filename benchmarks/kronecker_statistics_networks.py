"""KFAC's and EKFAC's statistics of convolutional networks and a Transformer encoder, against peers.

    python benchmarks/kronecker_statistics_networks.py [--cases cifar-cnn …] [--methods kfac ekfac]

Linear and Conv2d layers (weight and bias as one matrix, positions by "expand"), predictive kind, the same
network and data for all; each peer at the batch size that suits it best. Results are checked against each
other before they are timed. Times are medians of rounds in which the contenders take turns.
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
from peers import Loader, curvlinops_ekfac, curvlinops_factors, nngeometry_ekfac, nngeometry_factors
from torch import Tensor, nn

import fisherlab as fl
from fisherlab.likelihoods import Categorical, label_columns
from fisherlab.models import prepare

SAMPLES = {"cifar-cnn": 256, "cifar-resnet20": 64, "encoder": 64}
BATCHES = (16, 64, 256)
PASSES, PASSES_OF = "the passes alone", {"kfac": 1, "ekfac": 2}
SMALL = 4  # samples of the work that is done before memory is measured
PEERS = {
    "kfac": {"curvlinops": curvlinops_factors, "nngeometry": nngeometry_factors},
    "ekfac": {"curvlinops": curvlinops_ekfac, "nngeometry": nngeometry_ekfac},
}


class EncoderLayer(nn.Module):
    """Self-attention and a network of two layers, each after a norm and with a residual sum."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[n, t, width] to the same."""
        y = self.norm1(x)
        q, k, v = (
            part(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        weights = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1)
        x = x + self.out((weights @ v).transpose(1, 2).flatten(2))
        return x + self.down(torch.relu(self.up(self.norm2(x))))


class Encoder(nn.Module):
    """Four layers on the 64 patches 4×4 of an image of 32×32, width 128, and a Linear on their mean."""

    def __init__(self, width: int = 128, heads: int = 4, layers: int = 4):
        super().__init__()
        self.embed = nn.Linear(48, width)
        self.layers = nn.Sequential(*(EncoderLayer(width, heads) for _ in range(layers)))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images [n, 3, 32, 32] to logits [n, 10]."""
        patches = nn.functional.unfold(x, 4, stride=4).transpose(1, 2)  # [n, 64, 48]
        return self.head(self.layers(self.embed(patches)).mean(1))


def network(case: str, samples: int, dtype: torch.dtype) -> tuple[nn.Module, Tensor, Tensor, str]:
    """An untrained network in evaluation mode, images, targets, and the data's label."""
    torch.manual_seed(0)
    name = "cifar-cnn" if case == "encoder" else case
    made = prepare(name, samples=max(SAMPLES[case], samples), dtype=dtype, trained=False)
    model = Encoder().to(dtype) if case == "encoder" else made.model
    return model.eval(), made.inputs[:samples].clone(), made.targets[:samples].clone(), made.dataset.label


def layer_names(model: nn.Module) -> list[str]:
    """The layers that all contenders know."""
    return [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]


def ours(method, layers, model, inputs, targets):
    """fisherlab's statistics and operators."""
    data = inputs, targets
    return fl.collect_statistics(model, data, layers=layers, approximations=method).build(method)


def passes_alone(model: nn.Module, layers: list[str], loader: Loader, times: int = 1) -> None:
    """What no method can do without: forward passes, and C − 1 columns back to the layers' outputs."""
    outputs: list[Tensor] = []
    hooks = [
        model.get_submodule(layer).register_forward_hook(lambda _, __, output: outputs.append(output))
        for layer in layers
    ]
    for _ in range(times):
        for x, _ in loader:
            f = model(x)
            for column in label_columns(Categorical(), "predictive", f.detach(), None):
                torch.autograd.grad(f, outputs, column, retain_graph=True)
            outputs.clear()
    for hook in hooks:
        hook.remove()


def contender(name, method, model, inputs, targets, batch):
    """A function without arguments that computes the statistics of a method."""
    layers = layer_names(model)
    if name == "fisherlab":
        return functools.partial(ours, method, layers, model, inputs, targets)
    if name == PASSES:
        loader = Loader(inputs, targets, batch)
        return functools.partial(passes_alone, copy.deepcopy(model), layers, loader, PASSES_OF[method])
    return functools.partial(
        PEERS[method][name], copy.deepcopy(model), layers, Loader(inputs, targets, batch)
    )


def difference(method, found, own):
    """Largest relative difference over the layers; of A ⊗ B, whose factors have no common scale."""
    differences = []
    for layer, operator in own.items():
        if method == "ekfac":
            values = operator.eigenvalues().double()
            differences.append(float((found[layer].double() - values).abs().max() / values[-1]))
        else:
            for theirs, mine in zip(found[layer], operator.factors, strict=True):
                a, b = (x.double() / x.double().trace() for x in (theirs, mine))
                differences.append(float((a - b).abs().max() / b.abs().max()))
    return max(differences)


def best_batches(method, model, inputs, targets, own):
    """For each peer its fastest batch size and its difference from `own`, or why it gives no result."""
    sizes = sorted({min(batch, len(inputs)) for batch in BATCHES})
    batches, notes = {}, {}
    for name in PEERS[method]:
        made = {str(size): contender(name, method, model, inputs, targets, size) for size in sizes}
        try:
            notes[name] = f"{difference(method, made[str(sizes[0])](), own):.0e}"
            seconds = rounds(made, 1, warm_up=False)
        except Exception as error:  # whatever a peer raises is its result here
            notes[name] = f"fails: {type(error).__name__}"
            continue
        batches[name] = int(min(seconds, key=lambda size: seconds[size][0]))
    return batches, notes


def measure(case, method, samples, dtype, repeats):
    """Rows of the table for one network, method and precision."""
    model, inputs, targets, label = network(case, samples, dtype)
    own = contender("fisherlab", method, model, inputs, targets, samples)()
    batches, notes = best_batches(method, model, inputs, targets, own)
    batches |= {"fisherlab": samples, PASSES: min(BATCHES)}
    made = {n: contender(n, method, model, inputs, targets, size) for n, size in batches.items()}
    times = compare_times(rounds(made, repeats), "fisherlab")
    kind = str(dtype).removeprefix("torch.")
    first = [case, method, str(samples), kind]
    rows = contender_rows(
        first,
        times,
        batches,
        notes,
        lambda name: peak_memory(__file__, name, case, method, str(samples), kind, str(batches[name])),
        digits=2,
    )
    return rows, label


def report_memory(name, case, method, samples, kind, batch):
    """Prints the peak memory of one contender."""
    model, inputs, targets, _ = network(case, int(samples), getattr(torch, kind))
    contender(name, method, model, inputs[:SMALL], targets[:SMALL], SMALL)()  # imports are not the work
    report_peak(contender(name, method, model, inputs, targets, int(batch)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=SAMPLES, default=list(SAMPLES))
    parser.add_argument("--methods", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "float64"), default=["float32", "float64"])
    parser.add_argument("--samples", type=int, help="samples instead of the case's own")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", nargs=6, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        report_memory(*arguments.memory)
        return
    rows = []
    for case in arguments.cases:
        samples = arguments.samples or SAMPLES[case]
        for method in arguments.methods:
            for kind in arguments.dtypes:
                found, label = measure(case, method, samples, getattr(torch, kind), arguments.repeats)
                rows += found
    notes = [
        f"machine: {machine()}",
        f"data: {label}; networks as initialised, batch norms settled on the data; predictive kind",
        "layers: Linear and Conv2d, bias in the matrix; encoder: 4 layers, 64 positions, width 128",
        "ms: median of the rounds, contenders in turn; ratio: median over rounds of time over fisherlab's",
        f"{PASSES}: forward passes and C - 1 columns back to the layers' outputs, for EKFAC twice (its basis "
        "comes first): what no exact method can do without",
        "batch: the fastest of those tried for a peer; fisherlab cuts by itself",
        "MiB: growth of the peak resident set in a process of its own",
        "difference: largest from fisherlab's factors (each by its trace), or eigenvalues, relative",
    ]
    header = ["network", "method", "samples", "dtype", "by", "batch", "ms", "ratio", "MiB", "difference"]
    path = RESULTS / "kronecker_statistics_networks.md"
    write_table(path, "KFAC and EKFAC statistics of networks", notes, header, rows)


if __name__ == "__main__":
    main()
