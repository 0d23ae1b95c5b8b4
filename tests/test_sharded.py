"""Models whose parameters are shared out among processes are refused everywhere, and the way out is right."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import fisherlab as fl

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")

SAMPLES = 7  # three and four


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6), nn.Tanh(), nn.Sequential(nn.Linear(6, 5), nn.ReLU()), nn.Linear(5, 3)
    )


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(SAMPLES, 4, generator=generator, dtype=torch.float64), torch.arange(SAMPLES) % 3


# --- what every process does ----------------------------------------------------------------------------


def fully_sharded(mesh: Any) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    model = network().double()
    fully_shard(model[2], mesh=mesh)
    return fully_shard(model, mesh=mesh)


def between_passes(mesh: Any) -> nn.Module:
    """The parameters of the root are plain tensors then."""
    model = fully_sharded(mesh)
    cross_entropy(model(data()[0]), data()[1])
    assert not hasattr(model[0].weight, "full_tensor")
    return model


def in_part(mesh: Any) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    model = network().double()
    fully_shard(model[2], mesh=mesh)
    return model


def by_tensors(mesh: Any) -> nn.Module:
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    return parallelize_module(network().double(), mesh, {"0": ColwiseParallel()})


def older(mesh: Any) -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(network().double(), device_id=torch.device("cpu"))


SHARDED = {one.__name__: one for one in (fully_sharded, between_passes, in_part, by_tensors, older)}


def doors() -> dict[str, Callable[[nn.Module], Any]]:
    """Every public function and class that takes a model."""
    functions = (fl.exact_fisher, fl.compare, fl.collect_statistics, fl.represent, fl.traces.trace)
    found: dict[str, Any] = {one.__name__: lambda model, one=one: one(model, data()) for one in functions}
    found["approximate"] = lambda model: fl.approximate("kfac", model, data())
    found["trace of checkpoints"] = lambda model: fl.traces.trace(
        model, data(), [fl.traces.Checkpoint("init", network().state_dict())]
    )
    found["find_layers"] = fl.find_layers
    for name in fl.optim.__all__:
        make = getattr(fl.optim, name)
        general = name in ("NaturalGradient", "Preconditioner")
        found[name] = (lambda model, make=make: make(model, "kfac")) if general else make
    return found


def said(action: Callable[..., Any], *arguments: Any) -> str:
    try:
        action(*arguments)
    except fl.errors.InputError as error:
        return str(error)
    return ""


def sharded_later(mesh: Any, name: str) -> str:
    """What an optimizer says whose model was sharded after it was made."""
    from torch.distributed.fsdp import fully_shard

    model = network().double()
    optimizer = getattr(fl.optim, name)(model)
    fully_shard(model, mesh=mesh)

    def step() -> None:
        cross_entropy(model(data()[0]), data()[1]).backward()
        optimizer.step()

    return said(step)


def numbers(model: nn.Module) -> dict[str, Tensor]:
    exact = fl.exact_fisher(model, data())
    found = {f"exact {name}": block.dense() for name, block in exact.items()}
    return found | {f"ekfac {n}": F.dense() for n, F in fl.approximate("ekfac", model, data()).items()}


def gathered(mesh: Any) -> dict[str, Tensor]:
    """Of a plain model with the weights of a sharded one, as the refusal says."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    model = network().double()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    weights = get_model_state_dict(fully_sharded(mesh), options=StateDictOptions(full_state_dict=True))
    model.load_state_dict(weights)
    return numbers(model)


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    found: dict[Any, Any] = {"gathered": gathered(mesh)}
    for way, make in SHARDED.items():
        model = make(mesh)
        found |= {(way, door): said(action, model) for door, action in doors().items()}
    found |= {("later", name): sharded_later(mesh, name) for name in ("LNGD", "KFAC")}
    torch.save(found, Path(folder, f"rank-{rank}.pt"))
    dist.destroy_process_group()


# --- what came of it ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processes(tmp_path_factory) -> list[dict[Any, Any]]:
    folder = tmp_path_factory.mktemp("sharded")
    path = os.pathsep.join(filter(None, [str(Path(fl.__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(Path(__file__).resolve()), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("way", SHARDED)
def test_every_door_refuses_a_sharded_model(processes, way):
    causes = {"by_tensors": "parameter '0.weight' is a DTensor; ", "older": "the model is sharded by FSDP; "}
    cause = causes.get(way, "the model is sharded by fully_shard; ")
    for process in processes:
        for door in doors():
            message = process[way, door]
            assert message.startswith(cause), door
            assert "use DistributedDataParallel" in message
            assert "\n" not in message


def test_a_model_that_is_sharded_after_its_optimizer_was_made_is_refused(processes):
    for process in processes:
        for name in ("LNGD", "KFAC"):
            assert process["later", name].startswith("the model is sharded by fully_shard; ")


def test_a_plain_model_with_the_gathered_weights_has_the_numbers_of_one_process(processes):
    expected = numbers(network().double())
    for process in processes:
        found = process["gathered"]
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert float((found[name] - value).norm()) <= 1e-10 * float(value.norm()), name


def both(folder: str) -> None:
    """Two processes, forked so that modules are imported once."""
    fl.exact_fisher(network().double(), data())
    context = multiprocessing.get_context("fork")
    started = [context.Process(target=work, args=(rank, folder)) for rank in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0, 0]


if __name__ == "__main__":
    both(sys.argv[1])
