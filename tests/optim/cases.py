"""Small networks in float64, their batches, and every method."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from model_cases import Mean, Net
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fisherlab.optim import EKFAC, KFAC, LNGD, TKFAC, NaturalGradient, NGPlus

Batch = tuple[Tensor, Tensor]
CLASSES = 3


def twice() -> Net:
    """One module called twice."""
    return Net(
        lambda net, x: net.last(net.same(net.same(x).tanh()).relu()),
        same=nn.Linear(6, 6),
        last=nn.Linear(6, CLASSES),
    )


class Block(nn.Module):
    """One block of a Transformer."""

    def __init__(self, size: int = 6) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(size), nn.LayerNorm(size)
        self.attention = nn.MultiheadAttention(size, 2, batch_first=True)
        self.up, self.down = nn.Linear(size, 8), nn.Linear(8, size)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.down(nn.functional.gelu(self.up(self.second(x))))


def _mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4, bias=False), nn.ReLU(), nn.Linear(4, CLASSES)
    )


def _images(*layers: nn.Module, width: int) -> nn.Module:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, CLASSES))


def _cnn() -> nn.Module:
    return _images(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 3, 3, stride=2, padding=1, padding_mode="circular"),
        nn.Tanh(),
        width=3,
    )


def _grouped() -> nn.Module:
    return _images(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 2, groups=2), nn.Tanh(), width=6)


def _transposed() -> nn.Module:
    return _images(
        nn.ConvTranspose2d(2, 4, 3, stride=2, output_padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3), width=3
    )


def _sequences() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), Mean(), nn.Linear(4, CLASSES))


def _transformer() -> nn.Module:
    return nn.Sequential(Block(), Mean(), nn.Linear(6, CLASSES))


_VECTOR, _IMAGE, _SEQUENCE = (6,), (2, 5, 5), (4, 6)
_BUILT: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (_mlp, _VECTOR),
    "cnn": (_cnn, _IMAGE),
    "transformer": (_transformer, _SEQUENCE),
    "twice": (twice, _VECTOR),
    "grouped": (_grouped, _IMAGE),
    "transposed": (_transposed, _IMAGE),
    "sequences": (_sequences, _SEQUENCE),
}
NETWORKS = tuple(_BUILT)

METHODS: dict[str, Callable[..., NaturalGradient]] = {
    "lngd": LNGD,
    "lngd-draws": partial(LNGD, sampling=2),
    "lngd-lr": partial(LNGD, source="predictive"),
    "lngd-empirical": partial(LNGD, source="empirical"),
    "lngd-sample": partial(LNGD, rate="fixed"),
    "kfac": KFAC,
    "kfac-empirical": partial(KFAC, source="empirical"),
    "kfac-layerwise": partial(KFAC, rate="layerwise", lr=0.1),
    "ekfac": EKFAC,
    "tkfac": TKFAC,
    "ngplus": NGPlus,
}


def network(name: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The same weights for the same seed."""
    torch.manual_seed(seed)
    return _BUILT[name][0]().to(dtype)


def batches(
    name: str, count: int = 1, samples: int = 8, seed: int = 1, dtype: torch.dtype = torch.float64
) -> list[Batch]:
    """Random inputs and classes."""
    generator = torch.Generator().manual_seed(seed)
    shape = (samples, *_BUILT[name][1])
    return [
        (
            torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype),
            torch.randint(CLASSES, (samples,), generator=generator),
        )
        for _ in range(count)
    ]


def backward(model: nn.Module, batch: Batch, weight: float = 1.0) -> Tensor:
    """One forward and one backward pass; the loss."""
    loss = cross_entropy(model(batch[0]), batch[1]) * weight
    loss.backward()
    return loss


def train(model: nn.Module, optimizer: Any, data: Iterable[Batch]) -> dict[str, Tensor]:
    """The usual loop, a step a batch; the weights after it."""
    for batch in data:
        optimizer.zero_grad()
        backward(model, batch)
        optimizer.step()
    return weights(model)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_close(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float = 1e-10
) -> None:
    """Equal numbers by name."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Equal to the bit, by name."""
    assert found.keys() == expected.keys()
    assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []
