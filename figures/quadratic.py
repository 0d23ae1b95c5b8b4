"""Theorem 1 on the steps of a training: the quadratic model with LNGD's rates and the best single one."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fisherlab.optim import LNGD


@dataclass(frozen=True)
class Quadratic:
    """What a step with rates α_l along −D_l does to a quadratic model of the loss h, up to h itself.

    Attributes:
        slopes: ⟨D_l, ∇_l ℓ_n⟩, [samples, layers]; their mean over the samples is ⟨D_l, ∇_l h⟩.
    """

    slopes: Tensor

    def block_diagonal(self, rates: Tensor) -> Tensor:
        """−Σ_l α_l ⟨D_l, ∇_l h⟩ + ½ Σ_l α_l² Θ_l, Θ_l = (1/N) Σ_n ⟨D_l, ∇_l ℓ_n⟩²: the theorem's model."""
        return (0.5 * rates**2 * self.slopes.square().mean(0) - rates * self.slopes.mean(0)).sum()

    def full(self, rates: Tensor) -> Tensor:
        """The same with the products of different layers: ½ (1/N) Σ_n (Σ_l α_l ⟨D_l, ∇_l ℓ_n⟩)²."""
        return 0.5 * (self.slopes @ rates).square().mean() - self.slopes.mean(0) @ rates

    @property
    def best_rates(self) -> Tensor:
        """The rate of each layer that is best in the block-diagonal model, eq. 12: ⟨D_l, ∇_l h⟩ / Θ_l."""
        return self.slopes.mean(0) / self.slopes.square().mean(0)

    @property
    def best_single(self) -> Tensor:
        """The one rate for all layers that is best there."""
        single = self.slopes.mean(0).sum() / self.slopes.square().mean(0).sum()
        return single.expand(self.slopes.shape[1])


def steps(
    model: nn.Module, inputs: Tensor, targets: Tensor, *, lr: float, batch: int, count: int, seed: int
) -> Iterator[tuple[Quadratic, Tensor]]:
    """Trains in place with LNGD, and yields each step's model and the rates that LNGD took.

    D_l is what the weights moved by over the rate; the slopes are from the gradients of the single samples.
    No momentum, no decay and μ = 0, so that a step is −lr α_l D_l and α_l is eq. 12 itself.

    Args:
        model: linear layers without biases and element-wise activations, in float64.
        inputs: [n, ...].
        targets: classes [n].
        lr: LNGD's.
        batch: samples a step.
        count: steps.
        seed: of the order of the samples.
    """
    plain = copy.deepcopy(model)  # without the optimizer's hooks
    optimizer = LNGD(
        model,
        lr,
        momentum=0.0,
        weight_decay=0.0,
        rate_damping=0.0,
        kl_clip=None,
        damping=(1e-5, 1.0),
    )
    generator = torch.Generator().manual_seed(seed)

    def loss(weights: dict[str, Tensor], one: Tensor, label: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(plain, weights, one), label)

    for _ in range(count):
        chosen = torch.randint(len(inputs), (batch,), generator=generator)
        x, y = inputs[chosen], targets[chosen]
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        rates = torch.tensor(optimizer.diagnostics()["rate"].to_numpy(dtype=float))
        gradients = vmap(grad(loss), (None, 0, 0))(before, x, y)
        slopes = [
            (gradients[name] * (before[name] - p.detach())).flatten(1).sum(1).cpu() / (lr * float(rate))
            for rate, (name, p) in zip(rates, model.named_parameters(), strict=True)
        ]
        yield Quadratic(torch.stack(slopes, 1)), rates
