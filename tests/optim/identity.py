"""The identity behind a layer-wise rate, whatever F̂ is, from gradients of samples by plain autograd."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from optim.cases import weights
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fisherlab.optim import NaturalGradient

EXACT = {"momentum": 0.0, "weight_decay": 0.0, "rate_damping": 0.0, "rate": "layerwise", "kl_clip": None}


def assert_identity(
    model: nn.Module,
    optimizer: NaturalGradient,
    x: Tensor,
    y: Tensor,
    step: Callable[[], Any] | None = None,
    call: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """After one step v = (W − W')/lr has ⟨v, ∇h⟩ = (1/N) Σ_n ⟨v, ∇ℓ_n⟩², layer by layer.

    Args:
        model: before the step.
        optimizer: made with `EXACT`.
        x: inputs.
        y: classes.
        step: takes the step; None: the usual one.
        call: the model's function; None: the model itself.
    """
    call = model if call is None else call
    names, own = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)

    def gradient(inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        found = torch.autograd.grad(cross_entropy(call(inputs), targets), own, allow_unused=True)
        return {n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, own, found, strict=True)}

    def usual() -> None:
        optimizer.zero_grad()
        cross_entropy(call(x), y).backward()
        optimizer.step()

    single = [gradient(x[n : n + 1], y[n : n + 1]) for n in range(len(x))]
    assert_identity_of(model, optimizer, gradient(x, y), single, usual if step is None else step)


def assert_identity_of(
    model: nn.Module,
    optimizer: NaturalGradient,
    whole: Mapping[str, Tensor],
    single: Sequence[Mapping[str, Tensor]],
    step: Callable[[], Any],
) -> None:
    """The same from ∇h and the ∇ℓ_n by name of the parameters, and the step."""
    before = weights(model)
    step()
    after = weights(model)
    moved = False
    for name, view in optimizer._layers.items():
        lr = optimizer._group_of[name]["lr"]
        v = view.to_matrix({p: (before[p] - after[p]) / lr for p in view.parameters})
        left = (v * view.to_matrix({p: whole[p] for p in view.parameters})).sum()
        right = torch.stack(
            [(v * view.to_matrix({p: one[p] for p in view.parameters})).sum().square() for one in single]
        ).mean()
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-14, msg=lambda m, n=name: f"{n}: {m}")
        moved = moved or bool(left > 1e-12)
    assert moved
