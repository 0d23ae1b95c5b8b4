"""Optimizers at the edge, without a KL-clip and with that of their defaults: small batches, scaled losses.

python benchmarks/optimizer_edges.py [--cases "batch 1" "loss x 1e6"] [--methods kfac ekfac]
"""

import argparse
import math
import re
import warnings
from typing import Any

import torch
from common import machine
from torch import Tensor, nn
from torch.nn import functional

from fisherlab import datasets
from fisherlab.errors import NumericalError
from fisherlab.optim.methods import OPTIMIZERS

CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "batch 1": {"batch": 1, "steps": 600},
    "batch 2": {"batch": 2, "steps": 400},
    "loss x 1e6": {"scale": 1e6},
    "lr x 10": {"faster": 10},
}
SAMPLES = 4000


def task() -> tuple[Tensor, Tensor]:
    """MNIST at 14 x 14, as vectors."""
    data = datasets.load("mnist", "train")
    images = functional.avg_pool2d(data.inputs[:SAMPLES].float().reshape(-1, 1, 28, 28), 2)
    return images.reshape(SAMPLES, -1) / images.max(), data.targets[:SAMPLES]


def network() -> nn.Sequential:
    """196-32-32-10."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(196, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)
    )  # fmt: skip


def train(
    method: str,
    x: Tensor,
    y: Tensor,
    *,
    batch: int = 64,
    steps: int = 200,
    scale: float = 1.0,
    faster: float = 1,
    **options: Any,
) -> tuple[float, float, list[str]]:
    """The largest loss of a batch, the last one of all samples (NaN: refused before), and what was said."""
    named, model, losses = OPTIMIZERS[method], network(), []
    lr = faster * named.options()["lr"]
    generator = torch.Generator().manual_seed(0)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        optimizer = named.make(model, lr, **named.fixed, **options)
        try:
            for _ in range(steps):
                chosen = torch.randint(len(x), (batch,), generator=generator)
                optimizer.zero_grad()
                loss = functional.cross_entropy(model(x[chosen]), y[chosen])
                (scale * loss).backward()
                optimizer.step()
                losses.append(loss.item())
            with torch.no_grad():
                last = float(functional.cross_entropy(model(x), y))
        except NumericalError:
            last = math.nan
    return max(losses), last, [str(one.message) for one in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--methods", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    x, y = task()
    print(f"machine: {machine()}\n\n| case | method | without a clip | with its default | said |")
    print("|---|---|---|---|---|")
    for case in arguments.cases:
        for method in arguments.methods:
            free = train(method, x, y, kl_clip=None, **CASES[case])
            own = train(method, x, y, **CASES[case])
            said = "; ".join(re.split(r",(?![^(]*\))", text)[0] for text in own[2])
            numbers = " | ".join(f"{peak:.3g}, {last:.3g}" for peak, last, _ in (free, own))
            print(f"| {case} | {method} | {numbers} | {said} |", flush=True)


if __name__ == "__main__":
    main()
