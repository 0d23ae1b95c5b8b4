"""Networks of which a run takes a moment, with what makes resuming hard: dropout, batch norms, an order."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

CLASSES = 3


def vectors(samples: int = 96) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs [n, 6] and classes."""
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(samples, 6, generator=generator)
    return inputs, inputs[:, :CLASSES].argmax(1)


def mlp():
    """With dropout."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, CLASSES))
    return model, vectors(), "categorical"


def images():
    """With a convolution and a batch norm."""
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, CLASSES),
    )
    generator = torch.Generator().manual_seed(6)
    inputs = torch.randn(96, 2, 8, 8, generator=generator)
    return model, (inputs, inputs.mean((2, 3)).argmax(1)), "categorical"


def in_batches():
    """The first network, and its data in many small batches."""
    model, data, likelihood = mlp()
    return model, DataLoader(TensorDataset(*data), batch_size=4), likelihood
