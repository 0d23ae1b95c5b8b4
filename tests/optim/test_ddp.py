"""Two processes on halves of the batch take the steps of one on the whole batch."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from model_cases import Net
from optim.cases import METHODS, assert_close, batches, network, weights
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

import fisherlab as fl

STEPS, SAMPLES, TOLERANCE = 3, 12, 1e-10
NETS = ("mlp", "transformer", "grouped")
# One basis, from the first step: where an eigenspace has several dimensions, a later one goes by rounding.
DUE = {"statistics_every": 2, "inverse_every": 2}
RATES = ("layerwise", "fixed")

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")


def options_of(method: str, rate: str) -> dict:
    options = DUE | {"inverse_every": 99} if method == "ekfac" else DUE
    return options | {"rate": rate}


def plain_cases() -> list[tuple[str, str, str]]:
    return [
        (name, method, rate)
        for name in NETS
        for method in METHODS
        for rate in RATES
        if name == "mlp" or (method, rate) in (("lngd", "layerwise"), ("ngplus", "fixed"))
    ]


def trained(
    name: str, method: str, rate: str, own: slice, wrap, clip: float | None = None, **more
) -> dict[str, Tensor]:
    """Some steps with this process's part of each batch."""
    model = network(name)
    reduction = more.get("loss_reduction", "mean")
    module = wrap(model)
    optimizer = METHODS[method](module, **options_of(method, rate), **more)
    for x, y in batches(name, STEPS, SAMPLES):
        optimizer.zero_grad()
        cross_entropy(module(x[own]), y[own], reduction=reduction).backward()
        if clip is not None:
            clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
    numbers = torch.tensor(optimizer.rates().drop(columns="layer").to_numpy())
    return weights(model) | {"rates": numbers.nan_to_num()}


EXTRAS = {
    "momentum on the gradient": {"momentum_on": "gradient"},
    "coupled decay": {"weight_decay_mode": "coupled"},
    "clipped": {"clip": 0.05},
    "sum": {"loss_reduction": "sum"},
}


UNEVEN = [(reduction, method) for reduction in ("mean", "sum") for method in ("lngd", "ngplus", "ekfac")]


def uneven(reduction: str, method: str, own: slice, wrap) -> dict[str, Tensor]:
    """Parts of seven and five samples; the loss is the part of a mean, times the processes, or a sum."""
    part = {None: slice(None), 0: slice(7), SAMPLES // 2: slice(7, None)}[own.start]
    count = 1 if reduction == "sum" else SAMPLES if own.start is None else SAMPLES / 2
    model = network("mlp")
    module = wrap(model)
    make = METHODS[method] if method != "ekfac" else partial(fl.optim.EKFAC, source="empirical")
    optimizer = make(module, **options_of(method, "layerwise"), loss_reduction=reduction)
    for x, y in batches("mlp", STEPS, SAMPLES):
        optimizer.zero_grad()
        (cross_entropy(module(x[part]), y[part], reduction="sum") / count).backward()
        optimizer.step()
    return weights(model)


def accumulated(own: slice, wrap) -> dict[str, Tensor]:
    """Two micro-batches a step, the first without communication."""
    model = network("mlp")
    module = wrap(model)
    optimizer = METHODS["ngplus"](module)
    for x, y in batches("mlp", 2, SAMPLES):
        optimizer.zero_grad()
        x, y = x[own], y[own]
        half = len(x) // 2
        if isinstance(module, DistributedDataParallel):
            with module.no_sync():
                (cross_entropy(module(x[:half]), y[:half]) / 2).backward()
        else:
            (cross_entropy(module(x[:half]), y[:half]) / 2).backward()
        (cross_entropy(module(x[half:]), y[half:]) / 2).backward()
        optimizer.step()
    return weights(model)


def resumed(own: slice, wrap) -> dict[str, Tensor]:
    """With a stop after the first step; every process has the whole state."""
    data = batches("mlp", 3, SAMPLES)
    model = network("mlp")
    optimizer = METHODS["lngd-lr"](wrap(model), **DUE)
    for stage in (data[:1], data[1:]):
        module = wrap(model)
        other = METHODS["lngd-lr"](module, **DUE)
        other.load_state_dict(optimizer.state_dict())
        for x, y in stage:
            other.zero_grad()
            cross_entropy(module(x[own]), y[own]).backward()
            other.step()
        optimizer = other
        fresh = network("mlp")
        fresh.load_state_dict(model.state_dict())
        model = fresh
    return weights(model)


def everything(own: slice, wrap) -> dict:
    found = {case: trained(*case, own, wrap) for case in plain_cases()}
    found |= {
        extra: trained("mlp", "lngd", "layerwise", own, wrap, **options) for extra, options in EXTRAS.items()
    }
    found |= {case: uneven(*case, own, wrap) for case in UNEVEN}
    return found | {"accumulated": accumulated(own, wrap), "resumed": resumed(own, wrap)}


def branches(branch: int) -> Net:
    """One of two layers, another in each process."""
    return Net(
        lambda net, x: (net.first if net.branch == 0 else net.second)(x),
        first=nn.Linear(6, 3),
        second=nn.Linear(6, 3),
        branch=branch,
    )


def unlike(rank: int) -> list[str]:
    """What is said where a layer took part in one process only."""
    said = []
    for method in ("lngd", "kfac", "ekfac"):  # the last two wait for the other process during the passes
        for steps in (0, 1):  # of both processes alike, before
            torch.manual_seed(0)
            model = branches(0).double()
            module = DistributedDataParallel(model, find_unused_parameters=True)
            optimizer = METHODS[method](module)
            x, y = batches("mlp")[0]
            for step in range(steps + 1):
                model.branch = rank * (step == steps)
                optimizer.zero_grad()
                try:
                    cross_entropy(module(x), y).backward()
                    optimizer.step()
                except fl.FisherlabError as error:
                    said.append(str(error))
    return said


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    half = SAMPLES // 2
    own = slice(rank * half, (rank + 1) * half)
    found = everything(own, DistributedDataParallel) | {"unlike": unlike(rank)}
    torch.save(found, folder / f"rank-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("two")
    roots = [str(Path(fl.__file__).parents[1]), str(Path(__file__).parents[1])]
    path = os.pathsep.join(filter(None, [*roots, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(Path(__file__).resolve())]
    running = [
        subprocess.Popen(
            [*command, str(rank), str(folder)], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=200)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], "\n".join(errors)[-4000:]
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=False) for rank in range(2)]


def same(module: nn.Module) -> nn.Module:
    return module


@pytest.fixture(scope="module")
def one_process() -> dict:
    return everything(slice(None), same)


@pytest.mark.parametrize("case", [*plain_cases(), *EXTRAS, *UNEVEN, "accumulated", "resumed"], ids=str)
def test_two_processes_take_the_steps_of_one(processes, one_process, case):
    if case == "accumulated":  # halves of halves: other micro-batches, the same whole
        one_process = {case: whole()}
    if case == "sum":  # the gradient is the mean of two sums of half the samples
        one_process = {case: one_process["mlp", "lngd", "layerwise"]}
    for process in processes:
        assert_close(process[case], one_process[case], TOLERANCE)


def whole() -> dict[str, Tensor]:
    model = network("mlp")
    optimizer = METHODS["ngplus"](model)
    for x, y in batches("mlp", 2, SAMPLES):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    return weights(model)


def test_both_processes_have_the_same_weights_to_the_bit(processes):
    first, second = processes
    for case, expected in first.items():
        if case == "unlike":
            continue
        assert all(
            torch.equal(second[case][name], value) for name, value in expected.items() if name != "rates"
        )


def test_a_layer_that_only_one_process_used_is_refused_in_both(processes):
    for process in processes:
        assert len(process["unlike"]) == 6
        for message in process["unlike"]:
            assert "took part in this step in some processes only; use it in all of them" in message


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
