"""Small models with their data, and what test processes do with them."""

import os
from pathlib import Path

import torch
from torch import nn

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


def train_as(rank: int, size: int, port: int, folder: str, settings: dict) -> None:
    """One of several processes of a run called "together"."""
    from fisherlab.base import distributed
    from fisherlab.train import TrainConfig, train

    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    os.environ |= {name: str(value) for name, value in place.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with distributed.launched():
        train(TrainConfig(**settings), Path(folder, "together"))


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
