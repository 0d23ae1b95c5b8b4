"""An RMSNorm of one's own: seen by itself, or by an adapter of four lines that says what it divides by.

fisherlab compare --model examples.own_norm:factory --samples 8
python examples/own_norm.py
"""

import torch
from torch import Tensor, nn

import fisherlab as fl


class Norm(nn.Module):
    """The input over its root mean square, times 1 + weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Over the last dimension."""
        return (1 + self.weight) * x * x.square().mean(-1, keepdim=True).rsqrt()


class NormAdapter(fl.NormAdapter):
    """What the weight multiplies."""

    modules = (Norm,)

    def normalised(self, module: Norm, x: Tensor) -> Tensor:
        """The input over its root mean square."""
        return x * x.square().mean(-1, keepdim=True).rsqrt()


def factory() -> tuple[nn.Module, tuple[Tensor, Tensor], str]:
    """What `--model` calls: a model, points and their classes, and the likelihood."""
    model = nn.Sequential(nn.Linear(4, 8), Norm(8), nn.Tanh(), nn.Linear(8, 3))
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(16, 4, generator=generator)
    return model, (points, torch.randint(3, (16,), generator=generator)), "categorical"


if __name__ == "__main__":
    torch.manual_seed(0)
    model, data, likelihood = factory()
    # No adapter is needed: a module with a vector `weight` is called with other weights, and recognised
    # where its output is weight times something, plus something.
    seen = fl.exact_fisher(model, data, likelihood, layers="1")["1"]
    # One is faster, and takes a norm whose output is more than that.
    fl.register_layer(NormAdapter())
    told = fl.exact_fisher(model, data, likelihood, layers="1")["1"]
    print(f"trace {seen.trace():.6f} as recognised, {told.trace():.6f} by the adapter")
