"""What several test files ask of a model."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fisherlab.datasets import Dataset
from fisherlab.models.seeding import seeded


class Net(nn.Module):
    """Parts under their names, and a forward pass that is a function of the network and its inputs."""

    def __init__(self, forward: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self._forward = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self._forward(self, *inputs, **named)


class Mean(nn.Module):
    """[n, t, d] to [n, d]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def made(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A model in float64 and evaluation mode, norms with statistics of their own."""
    model = seeded(build, seed).double().eval()
    generator = torch.Generator().manual_seed(seed)
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            noise = torch.rand(buffer.shape, generator=generator, dtype=torch.float64)
            buffer.copy_(noise + (0.5 if name.endswith("var") else -0.5))
    return model


def states_equal(first: nn.Module, second: nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def state_of(model: nn.Module) -> dict:
    """All of a model and of torch that a measurement leaves as it is."""
    return {
        "state": {k: v.clone() for k, v in [*model.named_parameters(), *model.named_buffers()]},
        "gradients": {
            n: None if p.grad is None else (id(p.grad), p.grad.clone()) for n, p in model.named_parameters()
        },
        "free": [p.requires_grad for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "hooks": [
            len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
            for m in model.modules()
        ],
        "random": torch.get_rng_state(),
        "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "grad": torch.is_grad_enabled(),
        "attributes": [sorted(vars(m)) for m in model.modules()],
    }


def assert_same(one: object, two: object) -> None:
    """Equal to the bit, however deep."""
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_same(one[key], two[key])
    elif isinstance(one, Tensor):
        assert torch.equal(one, two)
    elif isinstance(one, (tuple, list)):
        assert len(one) == len(two)
        for left, right in zip(one, two, strict=True):
            assert_same(left, right)
    else:
        assert one == two


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def random_images(samples: int, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(samples, 3, size, size, generator=generator, dtype=torch.float64)


def image_set(name: str, shape: tuple[int, ...], samples: int = 12) -> Dataset:
    """Random images in [0, 1] under the name of a data set."""
    generator = torch.Generator().manual_seed(2)
    return Dataset(
        name=name,
        inputs=torch.rand(samples, *shape, generator=generator),
        targets=torch.arange(samples) % 10,
        split="train",
        checksum="random",
        stand_in="synthetic",
        source="made",
        classes=tuple("0123456789"),
    )


def text_set(samples: int = 9, length: int = 6, tokens: int = 11) -> Dataset:
    """Random texts without padding."""
    generator = torch.Generator().manual_seed(3)
    text = torch.randint(tokens, (samples, length + 1), generator=generator)
    return Dataset(
        name="letters",
        inputs=text[:, :-1],
        targets=text[:, 1:],
        split="train",
        checksum="random",
        stand_in="",
        source="made",
        classes=(),
        vocabulary=tuple("abcdefghijk"[:tokens]),
    )


def translation_set(samples: int = 9, length: int = 7, tokens: int = 13) -> Dataset:
    """Random sentences of different lengths; tokens 0, 1, 2 are padding, start and end."""
    generator = torch.Generator().manual_seed(4)

    def sentences() -> Tensor:
        words = torch.randint(3, tokens, (samples, length), generator=generator)
        ends = torch.randint(1, length, (samples, 1), generator=generator)
        places = torch.arange(length)
        return torch.where(places < ends, words, torch.where(places == ends, 2, 0))

    source, target = sentences(), sentences()
    start = torch.cat([torch.ones(samples, 1, dtype=torch.int64), target], 1)[:, :-1]
    return Dataset(
        name="pairs",
        inputs=(source, torch.where(target == 0, 0, start)),
        targets=target,
        split="train",
        checksum="random",
        stand_in="",
        source="made",
        classes=(),
        vocabulary=tuple("_^$abcdefghijklmnop"[:tokens]),
        padding=0,
    )
