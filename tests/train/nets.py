"""Small models with their data, and what test processes do with them."""

import os
from pathlib import Path

import torch
from torch import nn

from fisherlab.errors import FisherlabError
from fisherlab.models.nets.cifar_resnet import CifarResNet

CLASSES = 3


def vectors(samples: int = 70) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(samples, 6, generator=generator)
    return inputs, inputs[:, :CLASSES].argmax(1)


def mlp():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    return model, vectors(), "categorical"


def with_dropout():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, CLASSES))
    return model, vectors(), "categorical"


def images():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, CLASSES),
    )
    generator = torch.Generator().manual_seed(6)
    inputs = torch.randn(70, 2, 8, 8, generator=generator)
    return model, (inputs, inputs.mean((2, 3)).argmax(1)), "categorical"


def deep():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, CLASSES))
    return model, vectors(), "categorical"


def filters():
    """Filters, a norm and biases; batch norm makes the first layers' outputs of the order of one."""
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 3, 3, padding=1),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(12, CLASSES),
    )
    return model, images()[1], "categorical"


def tokens():
    generator = torch.Generator().manual_seed(7)
    text = torch.randint(7, (40, 6), generator=generator)
    targets = text.roll(-1, 1)
    targets[::3, 4:] = -100
    return nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 7)), (text, targets), "token-categorical"


def pixels():
    inputs = vectors()[0].sigmoid()
    return nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 6)), (inputs, inputs), "bernoulli"


def numbers():
    inputs, _ = vectors()
    return nn.Linear(6, 2), (inputs, inputs[:, :2]), "gaussian"


def bad_labels():
    inputs, targets = vectors()
    return nn.Linear(6, CLASSES), (inputs, targets + 1), "categorical"


def resnet8():
    """Small images, in batches that two processes cannot halve."""
    generator = torch.Generator().manual_seed(8)
    inputs = torch.randn(23, 3, 8, 8, generator=generator)
    return CifarResNet((4, 8, 16), blocks=1, projection=False), (inputs, torch.arange(23) % 10), "categorical"


def own_norm():
    return nn.Sequential(OwnNorm(6), nn.Linear(6, CLASSES)), vectors(), "categorical"


class OwnNorm(nn.BatchNorm1d):
    def forward(self, x):
        return super().forward(x)


def train_as(rank: int, size: int, port: int, folder: str, runs: dict[str, dict]) -> None:
    """One of several processes that train together: runs by name, at `dies` the last process ends.

    A run with `stop` is interrupted after that step, and continued.
    """
    from fisherlab.base import distributed
    from fisherlab.train import TrainConfig, train
    from fisherlab.train import resume as go_on

    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    os.environ |= {name: str(value) for name, value in place.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.chdir(folder)
    torch.set_num_threads(1)

    class Killed(BaseException):
        pass

    with distributed.launched():
        for name, settings in runs.items():
            stop, dies = settings.pop("stop", None), settings.pop("dies", None)

            def report(progress, _, stop=stop, dies=dies):
                if progress.step == stop:
                    raise Killed
                if progress.step == dies and rank == size - 1:
                    os._exit(9)

            try:
                train(TrainConfig(**settings), Path(name), report=report, pictures=False)
            except Killed:
                go_on(Path(name), pictures=False)
            except FisherlabError as error:
                Path(f"{name}-{rank}.txt").write_text(str(error))


def resident_bytes() -> int:
    """The memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory_of_steps(folder: str, settings: dict, steps: tuple[int, ...], answers) -> None:
    """Puts the memory at some steps of a run."""
    from fisherlab.train import TrainConfig, train

    torch.set_num_threads(1)
    found = []

    def report(progress, _):
        if progress.step in steps:
            found.append(resident_bytes())

    train(TrainConfig(**settings), Path(folder, "memory"), report=report)
    answers.put(found)


def train_there(folder: str, settings: dict, resume: bool) -> None:
    """A run called "cut" in a process of its own, one thread, begun or continued."""
    from fisherlab.train import TrainConfig, train
    from fisherlab.train import resume as go_on

    os.chdir(folder)
    torch.set_num_threads(1)
    if resume:
        go_on(Path("cut"))
    else:
        train(TrainConfig(**settings), Path("cut"))
