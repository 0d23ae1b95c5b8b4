"""Today's approximations in three divergences, by curvature and by steps, at three stages of a training.

    python benchmarks/divergences.py [--networks mnist-mlp charlm] [--training /tmp/training-cache.json]

Each network is measured as initialised, trained with Adam for some steps, and measured on the same samples in
the middle and at the end. Records go to benchmarks/results/divergences.csv, findings to
docs/results/divergences.md with their pictures. Finished networks are kept in the cache, so the work can be
done in pieces. Whether any of it predicts training is asked of the runs of training.py, from its cache.
"""

import argparse
import copy
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch
from common import RESULTS, machine
from divergence_findings import write_training
from divergence_page import write_page
from scoreboard import loss
from torch import Tensor, nn
from training import TASKS, data_of

import fisherlab as fl
from fisherlab import metrics
from fisherlab.approximations import Approximation, build_from_block, build_operator, create, layer_work
from fisherlab.approximations.kl import FlipFlop, KLKronecker, flip_flop
from fisherlab.approximations.shampoo import SOAP
from fisherlab.base.writing import write
from fisherlab.collect.batches import called, each
from fisherlab.collect.collector import Collector
from fisherlab.comparison.joint import JointModel, LayerParts, StepPart, step_part
from fisherlab.comparison.measure import ROW_DAMPING
from fisherlab.comparison.targets import GRADIENT, main_statistics, main_target
from fisherlab.divergences import BAND_NAMES, Curvature, Divergences
from fisherlab.errors import NumericalError
from fisherlab.exact.fisher import gram_block
from fisherlab.exact.plans import BlockPlan, make_plans
from fisherlab.layers import Layers
from fisherlab.likelihoods import as_likelihood
from fisherlab.linalg.numerics import eigenvectors_kept, symmetric_eigh, without_negative
from fisherlab.models import prepare
from fisherlab.models.seeding import seeded
from fisherlab.operators import EigenKroneckerOperator, GramOperator, KroneckerOperator, LinearOperator
from fisherlab.statistics import PassRequest, SplitSums, gather

MEMORY = 2**31
FLOORS = (1e-4, 1e-2)
"""Of kl-kronecker, by the mean eigenvalue of F; λ is 0.1 of it."""


@fl.register_approximation
class KLSOAP(SOAP):
    """SOAP in the basis of kl-kronecker, beside SOAP in one table."""

    name: ClassVar[str] = "kl-soap"
    label: ClassVar[str] = "KL-SOAP"
    colour: ClassVar[str | None] = "#2e7d8c"

    def __init__(self) -> None:
        super().__init__(basis="kl")

    def from_block(self, exact: LinearOperator) -> EigenKroneckerOperator:
        """With the floor of `best_in_logdet`."""
        factors = best_in_logdet(exact)
        basis = symmetric_eigh(factors.A)[1], symmetric_eigh(factors.B)[1]
        return EigenKroneckerOperator(*basis, exact.diagonal_in_basis(*basis))


def best_in_logdet(F: LinearOperator) -> FlipFlop:
    """The fixed point at the lowest of these floors that has one: of so few samples few have at 1e-6."""
    for floor in FLOORS[:-1]:
        with suppress(NumericalError):
            return flip_flop(F, floor)
    return flip_flop(F, FLOORS[-1])


METHODS = (
    *("nearest-kronecker", "kfac", "ekfac", "tkfac", "kl-kronecker", "shampoo", "soap", "kl-soap"),
    *("adam", "adafactor", "foof", "ngplus", "lngd", "lngd-lr", "sgd", "sign", "muon"),
)


@dataclass(frozen=True)
class Case:
    """How a network is trained and measured.

    Attributes:
        samples: that it is measured on.
        batch: of the training.
        steps: of the training.
        layers: names or globs of those measured; norms are left out.
        draws: labels drawn a sample; None: the exact expectation.
        pool: samples of the training; those measured are the first of them.
    """

    samples: int
    batch: int
    steps: int
    layers: tuple[str, ...] = ("*",)
    draws: int | None = None
    pool: int = 5000


CASES = {
    "mnist-mlp": Case(128, 256, 1000, pool=20_000),
    "fashion-cnn": Case(64, 128, 300),
    "cifar-cnn": Case(48, 128, 200),
    "cifar-resnet8": Case(32, 64, 120),
    "charlm": Case(24, 8, 80, ("blocks.[03].attention.[qv]", "blocks.[03].attention.out", "head"), 6),
    "charlstm": Case(32, 16, 60, ("lstm.?h_l1", "head"), 2),
    "transformer-small": Case(16, 16, 40, ("encoder.[01].attention.v", "decoder.1.*attention.[qv]"), 6),
    "cifar-resnet20": Case(16, 64, 60, ("conv", "stages.0.[02].conv?", "stages.1.1.conv1", "linear")),
    "vit-tiny": Case(8, 16, 30, ("blocks.[05].attention.v", "head")),
}
STAGES = ("init", "middle", "end")


@dataclass
class Network:
    """A network with its training data."""

    model: nn.Module
    inputs: Any
    targets: Tensor
    likelihood: str
    label: str


def network(name: str) -> Network:
    """As initialised, with seed 0."""
    if name in TASKS and name not in fl.models.names():
        task = TASKS[name]
        (inputs, targets), _, label = data_of(task)
        return Network(seeded(task.build, 0), inputs, targets, task.likelihood, label)
    made = prepare(name, samples=CASES[name].pool, trained=False)
    return Network(made.model, made.inputs, made.targets, made.likelihood, made.dataset.label)


def stages(net: Network, case: Case) -> Iterator[str]:
    """The states of the network in turn, in words; it is trained in place between them."""
    optimizer = torch.optim.Adam(net.model.parameters(), lr=1e-3)
    generator, step = torch.Generator().manual_seed(0), 0
    for stop in (0, case.steps // 2, case.steps):
        net.model.train()
        while step < stop:
            chosen = torch.randint(len(net.targets), (case.batch,), generator=generator)
            optimizer.zero_grad()
            loss(
                called(net.model, each(net.inputs, lambda x, at=chosen: x[at])), net.targets[chosen]
            ).backward()
            optimizer.step()
            step += 1
        net.model.eval()
        with torch.no_grad():
            first = called(net.model, each(net.inputs, lambda x: x[:256]))
            yield f"{step} steps, loss {float(loss(first, net.targets[:256])):.2f}"


# --- one network measured -------------------------------------------------------------------------


def sums_of(
    net: Network, samples: slice, layers: Sequence[str], draws: int | None, methods: Sequence[Approximation]
) -> tuple[Layers, dict[str, BlockPlan], dict[str, SplitSums]]:
    """What blocks, gradients and approximations are made of, of these samples in float64."""
    model = copy.deepcopy(net.model).double()
    inputs = each(net.inputs, lambda x: x[samples].double() if x.is_floating_point() else x[samples])
    found = fl.find_layers(model, layers)
    found = found.select([name for name in found if not found[name].vector])
    labels = {"draws": draws or 1, "generator": torch.Generator().manual_seed(0)}
    collector = Collector(
        model, found, (inputs, net.targets[samples]), as_likelihood(net.likelihood), **labels
    )
    kind = "predictive" if draws is None else "monte-carlo"
    count = len(net.targets[samples])
    plans = make_plans(collector, kind, "auto", MEMORY, 2**20, together=False)
    columns = {n: count * collector.sizes.label_columns_of(p.kind.with_columns, n) for n, p in plans.items()}
    low = [name for name in plans if columns[name] < found[name].size]
    if low:  # the eigenvectors of F are cheaper in Gram form wherever its rank is below its size
        gram = make_plans(collector, kind, "gram", MEMORY, 2**20, together=False)
        plans |= {name: gram[name] for name in low}
    work = {}
    for name, plan in plans.items():
        own = layer_work(found[name], methods, plan.kind)
        statistics = (*main_statistics(plan), GRADIENT, *own.statistics)
        kept = {"keep": count, "keep_kinds": frozenset({plan.kind}), "lazy": plan.method == "gram"}
        work[name] = PassRequest(own.kind, statistics, own.bases, **kept)
    gathered = gather(collector, work)
    made = {
        name: SplitSums.of_kept(sums.kept, halves=False) if plans[name].method == "gram" else sums
        for name, sums in gathered.items()
    }
    return found, plans, made


def fitted(
    method: Approximation,
    layers: Layers,
    plans: dict[str, BlockPlan],
    sums: SplitSums,
    name: str,
    F: LinearOperator,
) -> LinearOperator:
    """F̂ of one layer."""
    if isinstance(method, KLKronecker):
        factors = best_in_logdet(F)
        return KroneckerOperator(factors.A, factors.B)
    if method.from_exact:
        return build_from_block(method, F)
    return build_operator(method, layers[name], sums.all, method.label_kind(plans[name].kind))


def damped_von_neumann(found: Divergences, damping: float) -> float:
    """Tr F_λ(log F_λ − log F̂_λ)/tr F_λ: tells what is the damping's doing and what the divergence's."""
    size, trace, values, masses = found.F.shape[0], found.trace, found._values, found._masses
    own = without_negative(found.F.eigenvalues()) + damping
    entropy = float((own * own.log()).sum()) + (size - len(own)) * damping * math.log(damping)
    outside = (size - len(values)) * damping + trace - float(masses.sum())
    cross = float(((masses + damping) * (values + damping).log()).sum()) + outside * math.log(damping)
    return (entropy - cross) / (trace + size * damping)


def gains(curvature: Curvature, gradient: Tensor, damping: float, whole: float) -> dict[str, float]:
    """By bands of the spectrum, the share of ∇hᵀF_λ⁻¹∇h that the best step gains there; and in the rest."""
    pieces = [torch.tensordot(u, gradient, 2).square() for _, _, u in curvature.pieces()]
    parts = torch.cat(pieces) / (curvature.eigenvalues + damping)
    bands = [float(part.sum()) / whole for part in parts.split(curvature.directions)]
    names = [f"gain_{band}" for band in (*BAND_NAMES, "rest")]
    return dict(zip(names, [*bands, 1 - sum(bands)], strict=True))


def matrix_numbers(
    F: LinearOperator, approximation: LinearOperator, curvature: Curvature, damping: float
) -> dict:
    """Errors, divergences and calibrations; what is infinite is missing."""
    found, values = Divergences(F, approximation), {}
    values["relative_error"], values["scaled_error"], _ = metrics.errors(F, approximation)
    values["logdet_divergence"], values["logdet_divergence_scaled"] = found.logdet(damping)
    with suppress(NumericalError):
        values["von_neumann_divergence"] = found.von_neumann()
    values["von_neumann_damped"] = damped_von_neumann(found, damping)
    bands = found.calibration(curvature).bands
    return values | {f"calibration_{band}": value for band, value in zip(BAND_NAMES, bands, strict=True)}


def measured(net: Network, case: Case) -> pd.DataFrame:
    """A row a (layer, approximation); the share of the joint step of all layers in each of them."""
    methods = [create(name) for name in METHODS]
    matrices = [method for method in methods if method.matrix]
    layers, plans, gathered = sums_of(net, slice(case.samples), case.layers, case.draws, matrices)
    rows: list[dict[str, Any]] = []
    parts: dict[str, LayerParts] = {}
    for name in list(gathered):
        sums = gathered.pop(name)
        view, plan = layers[name], plans[name]
        target = main_target(view, plan, sums, MEMORY)
        F, gradient = target.exact.widened(torch.float64), target.gradient.double()
        damping = ROW_DAMPING * target.unit
        between = gram_block(sums.kept.double(), plan.kind)
        assert isinstance(between, GramOperator)
        steps: dict[str, StepPart] = {}
        with eigenvectors_kept():
            curvature = Curvature(F)
            (best,) = metrics.exact_steps(F, gradient, [damping])
            gained = gains(curvature, gradient, damping, float((best * gradient).sum()))
            for method in methods:
                row = {"layer": name, "approximation": method.name, "outputs": view.outputs}
                row |= {"inputs": view.inputs, "columns": len(between.gram()), "kind": str(plan.kind.target)}
                row |= gained | dict(
                    zip((f"directions_{b}" for b in BAND_NAMES), curvature.directions, strict=True)
                )
                taken = {"": method.step(gradient)} if not method.matrix else {}
                if method.matrix:
                    approximation = fitted(method, layers, plans, sums, name, F)
                    row |= matrix_numbers(F, approximation, curvature, damping)
                    matched = metrics.trace_matched(F, approximation)
                    taken = {"": matched.solve(gradient, damping)}
                    taken["root_"] = matched.power(-0.5, damping).apply(gradient)
                for root, step in taken.items():
                    quality = metrics.step_quality(F.quadratic(step), best, step, gradient, damping)
                    row[f"{root}direction_cosine"], row[f"{root}decrease_share"] = quality
                    steps[f"{root}{method.name}"] = step_part(between, step, gradient)
                rows.append(row)
        own = step_part(between, gradient, gradient)
        parts[name] = LayerParts(damping, between.gram(), own, steps)
        print(f"  {name}: {plan.method}, {time.process_time():.0f} s", flush=True)
    joint = JointModel(parts)
    for row in rows:
        row["joint_share"] = joint.share(row["approximation"])[0]
        if "root_decrease_share" in row:
            row["root_joint_share"] = joint.share(f"root_{row['approximation']}")[0]
    return pd.DataFrame(rows)


def records(name: str, folder: Path) -> pd.DataFrame:
    """The three stages of a network, from the cache or measured now."""
    path, case = folder / f"{name}.csv", CASES[name]
    if not path.exists():
        net, frames = network(name), []
        for stage, state in zip(STAGES, stages(net, case), strict=True):
            print(f"{name}, {stage}: {state}, {time.process_time():.0f} s", flush=True)
            about = {"model": name, "stage": stage, "dataset": net.label, "state": state}
            frames.append(measured(net, case).assign(**about, samples=case.samples))
        write(path, pd.concat(frames).to_csv(index=False, float_format="%.5g").encode())
    return pd.read_csv(path)


# --- what the number of samples does --------------------------------------------------------------

COUNTS, FRESH = (16, 64, 256, 1024), 8192


def sample_counts(folder: Path) -> pd.DataFrame:
    """Layers 2, 4 and 6 of the mnist-mlp at its end: F̂ of N samples against F of them, and of fresh ones."""
    path = folder / "counts.csv"
    if not path.exists():
        net, names, rows = network("mnist-mlp"), ("2", "4", "6"), []
        for _ in stages(net, CASES["mnist-mlp"]):
            pass
        methods = [one for one in map(create, METHODS) if one.matrix]
        layers, plans, fresh = sums_of(net, slice(FRESH), names, None, [])
        aims = {name: main_target(layers[name], plans[name], fresh[name], MEMORY) for name in names}
        start = FRESH
        for count in COUNTS:
            layers, plans, own = sums_of(net, slice(start, start + count), names, None, methods)
            start += count
            for name in names:
                same = main_target(layers[name], plans[name], own[name], MEMORY)
                made_of = {m.name: fitted(m, layers, plans, own[name], name, same.exact) for m in methods}
                for against, target in (("same", same), ("fresh", aims[name])):
                    F, gradient, damping = target.exact, target.gradient.double(), ROW_DAMPING * target.unit
                    curvature = Curvature(F)
                    (best,) = metrics.exact_steps(F, gradient, [damping])
                    gained = gains(curvature, gradient, damping, float((best * gradient).sum()))
                    for method, approximation in made_of.items():
                        row = {"samples": count, "layer": name, "against": against, "approximation": method}
                        row |= matrix_numbers(F, approximation, curvature, damping)
                        step = metrics.trace_matched(F, approximation).solve(gradient, damping)
                        quality = metrics.step_quality(F.quadratic(step), best, step, gradient, damping)
                        rows.append(row | gained | {"decrease_share": quality.decrease_share})
        write(path, pd.DataFrame(rows).to_csv(index=False, float_format="%.5g").encode())
    return pd.read_csv(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--networks", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "divergences")
    parser.add_argument("--training", type=Path, help="the cache of training.py, for finding c")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.cache.mkdir(parents=True, exist_ok=True)
    for name in arguments.networks:
        records(name, arguments.cache)
    frame = pd.concat(
        [records(name, arguments.cache) for name in CASES if (arguments.cache / f"{name}.csv").exists()]
    )
    frame.to_csv(RESULTS / "divergences.csv", index=False, float_format="%.4g")
    if arguments.training is not None:
        write_training(arguments.training)
    cases = {name: (case.batch, case.draws) for name, case in CASES.items()}
    write_page(frame, sample_counts(arguments.cache), cases, machine())


if __name__ == "__main__":
    main()
