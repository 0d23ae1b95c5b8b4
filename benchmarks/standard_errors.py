"""Are the standard errors of the population error right? Its spread over disjoint samples says so.

Three trained networks, each looked at on many disjoint random samples of its data: the standard deviation of
the estimates is what their standard error should be on average. Run from the repository's root:

    python benchmarks/standard_errors.py [--resamples 60] [--write docs/results/standard-errors.md]
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

import fisherlab as fl
from fisherlab.approximations import create_all
from fisherlab.collect.collector import Collector
from fisherlab.comparison.passes import Experiment
from fisherlab.comparison.targets import main_target
from fisherlab.exact.plans import make_plans
from fisherlab.likelihoods import as_likelihood
from fisherlab.likelihoods.labels import PREDICTIVE
from fisherlab.models.loading import prepare
from fisherlab.statistics import gather

METHODS = ("kfac", "ekfac", "tkfac", "tekfac", "lngd", "lngd-lr", "diagonal", "ngplus")
LOW, HIGH = 0.8, 1.25


class Case(NamedTuple):
    """A trained network with data to take samples of."""

    name: str
    model: nn.Module
    inputs: Tensor
    targets: Tensor
    likelihood: str
    layers: Sequence[str]
    samples: int


class Attention(nn.Module):
    """One block of a causal language model over a dozen tokens."""

    def __init__(self, tokens: int, width: int, length: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.place = nn.Parameter(torch.randn(length, width) / 4)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.head = nn.Linear(width, tokens)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, t, tokens]."""
        h = self.embedding(x) + self.place
        q, k, v = self.qkv(h).chunk(3, -1)
        h = h + self.out(functional.scaled_dot_product_attention(q, k, v, is_causal=True))
        h = h + self.down(functional.gelu(self.up(h)))
        return self.head(h)


def perceptron() -> Case:
    """The trained mnist-mlp."""
    loaded = prepare("mnist-mlp", samples=60_000)
    assert isinstance(loaded.inputs, Tensor)
    return Case("mnist-mlp", loaded.model, loaded.inputs, loaded.targets, "categorical", ("2", "4", "6"), 400)


def convolutions() -> Case:
    """Two convolutions and a linear layer on MNIST."""
    loaded = prepare("mnist-mlp", samples=60_000, trained=False)
    assert isinstance(loaded.inputs, Tensor)
    images = loaded.inputs.view(-1, 1, 14, 14)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 10),
    )
    _train(model, images, loaded.targets, 600)
    return Case("small conv net", model, images, loaded.targets, "categorical", ("0", "2", "5"), 200)


def transformer() -> Case:
    """A language model on a Markov chain."""
    generator = torch.Generator().manual_seed(0)
    chain = torch.softmax(2 * torch.randn(12, 12, generator=generator), -1)
    text = torch.randint(12, (20_000, 1), generator=generator)
    for _ in range(8):
        text = torch.cat([text, torch.multinomial(chain[text[:, -1]], 1, generator=generator)], 1)
    torch.manual_seed(0)
    model = Attention(12, 12, 8)
    _train(model, text[:, :-1], text[:, 1:], 400)
    layers = ("qkv", "out", "up", "down", "head")
    return Case("small transformer", model, text[:, :-1], text[:, 1:], "token-categorical", layers, 200)


CASES = {"mnist-mlp": perceptron, "conv": convolutions, "transformer": transformer}


def _train(model: nn.Module, inputs: Tensor, targets: Tensor, steps: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        chosen = torch.randint(len(inputs), (128,), generator=generator)
        outputs = model(inputs[chosen])
        loss = functional.cross_entropy(outputs.flatten(0, -2), targets[chosen].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def resampled(case: Case, resamples: int, methods: Sequence[str]) -> pd.DataFrame:
    """The population errors on disjoint random samples, as a comparison makes them, and nothing else."""
    order = torch.randperm(len(case.inputs), generator=torch.Generator().manual_seed(2))
    rows = []
    for start in range(0, resamples * case.samples, case.samples):
        chosen = order[start : start + case.samples]
        rows += population_errors(case, (case.inputs[chosen], case.targets[chosen]), methods)
    return pd.DataFrame(rows)


def population_errors(
    case: Case, data: tuple[Tensor, Tensor], methods: Sequence[str]
) -> list[dict[str, Any]]:
    """A row a (layer, approximation, target)."""
    layers, memory = fl.find_layers(case.model, case.layers), 2**32
    collector = Collector(case.model, layers, data, as_likelihood(case.likelihood))
    plans = make_plans(collector, PREDICTIVE, "auto", memory // 2, 4096, copies=3, together=False)
    experiment = Experiment(collector, plans, create_all(methods), True, memory, False)
    gathered = gather(collector, {name: experiment._work(name) for name in plans}, halves=True)
    rows = []
    for name, plan in plans.items():
        task, sums = experiment._task(name), experiment._summed(name, gathered[name])
        target = main_target(task.view, plan, sums, memory)
        targets = [target, *task._layerwise_targets(target, sums)]
        for method in task.asked:
            fitted = task._fitted(target, method, sums)
            for own in targets if method.layerwise else targets[:1]:
                assert own.halves is not None
                error, standard_error, _ = own.halves.error(fitted.halves, fitted.refit)
                row = {"layer": name, "approximation": method.name, "target": own.name}
                rows.append({**row, "population_error": error, "population_error_se": standard_error})
    return rows


def summary(records: pd.DataFrame) -> pd.DataFrame:
    """A row a (layer, approximation, target): the estimates' mean and spread, and se by spread."""
    groups = records.groupby(["layer", "approximation", "target"], sort=False)
    table = groups.agg(
        estimate=("population_error", "mean"),
        spread=("population_error", "std"),
        se=("population_error_se", "mean"),
        estimates=("population_error", "count"),
    )
    table["ratio"] = table["se"] / table["spread"]
    return table.reset_index()


def as_markdown(name: str, samples: int, table: pd.DataFrame) -> str:
    """A row a method and target, a column a layer: the ratio, in brackets the estimate and its spread."""
    lines = [f"## {name}, {samples} samples", ""]
    layers = list(dict.fromkeys(table["layer"]))
    lines += ["| F̂ | target | " + " | ".join(layers) + " |", "|---|---|" + "---|" * len(layers)]
    for (method, target), rows in table.groupby(["approximation", "target"], sort=False):
        cells = []
        for layer in layers:
            own = rows[rows["layer"] == layer]
            if own.empty or own["ratio"].isna().any():
                cells.append("")
                continue
            row = own.iloc[0]
            mark = "" if LOW <= row["ratio"] <= HIGH else " *"
            cells.append(f"{row['ratio']:.2f}{mark} ({row['estimate']:.3f} ± {row['spread']:.3f})")
        lines.append(f"| {method} | {target} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Prints the tables, and writes them where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resamples", type=int, default=60)
    parser.add_argument("--only", choices=CASES, nargs="*", default=list(CASES))
    parser.add_argument("--write", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    known = 100 / (2 * (args.resamples - 1)) ** 0.5
    parts = [
        "# Standard errors of the population error\n",
        "Mean standard error by the standard deviation of the estimates over "
        f"{args.resamples} disjoint random samples, which is itself known to {known:.0f} %. In brackets the "
        "estimates' mean and that deviation.\n`python benchmarks/standard_errors.py` makes this page; a star "
        f"marks what is outside {LOW} to {HIGH}.\n",
    ]
    for name in args.only:
        case, started = CASES[name](), time.time()
        table = summary(resampled(case, args.resamples, METHODS))
        inside = table["ratio"].between(LOW, HIGH).sum()
        print(table.to_string())
        print(f"{inside} of {len(table)} inside; {time.time() - started:.0f} s", flush=True)
        parts.append(as_markdown(case.name, case.samples, table))
    if args.write:
        args.write.write_text("\n".join(parts))


if __name__ == "__main__":
    main()
