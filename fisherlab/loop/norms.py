"""Batch norms of a batch that several processes share: moments and gradients are those of the whole batch.

`torch.nn.SyncBatchNorm` is the same on GPUs only, and another class, which hooks and adapters would not know.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from fisherlab.base import distributed
from fisherlab.collect.hooks import is_looked_at
from fisherlab.errors import NotSupportedError


def norms_to_share(model: nn.Module) -> list[_BatchNorm]:
    """The batch norms that see the samples of their own process only.

    Raises:
        NotSupportedError: for one with a forward pass of its own; names it.
    """
    found = []
    for name, norm in model.named_modules():
        if not isinstance(norm, _BatchNorm) or isinstance(norm, nn.SyncBatchNorm):
            continue
        if "forward" in vars(norm) or type(norm).forward is not _BatchNorm.forward:
            raise NotSupportedError(
                f"batch norm {name!r} ({type(norm).__name__}) has a forward pass of its own, which several "
                "processes cannot share; train in one process, or give --local-batch-norm"
            )
        found.append(norm)
    return found


@contextmanager
def shared(norms: Iterable[_BatchNorm]) -> Iterator[None]:
    """Batch norms take the moments of all processes' samples in training, for the time of the block.

    Their classes, parameters, buffers and names stay as they are. All processes have to run the same passes,
    as under `DistributedDataParallel`.
    """
    norms = list(norms)
    try:
        for norm in norms:
            norm.forward = partial(_forward, norm)  # type: ignore[method-assign]
        yield
    finally:
        for norm in norms:
            vars(norm).pop("forward", None)


def _forward(norm: _BatchNorm, x: Tensor) -> Tensor:
    """`_BatchNorm.forward`, in training over all processes; looks of fisherlab's own are each process's."""
    if not norm.training or is_looked_at():
        return _BatchNorm.forward(norm, x)
    norm._check_input_dim(x)
    mean, variance, count = _moments(x.detach())
    _go_on(norm, mean, variance, count)
    y: Tensor = _Normalised.apply(x, norm.weight, norm.bias, mean, variance, count, norm.eps)
    return y


def _moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance [channels] over all processes, and how many numbers a channel has [1].

    Each process's own are put together (Chan, Golub and LeVeque 1983): no difference of large squares.
    """
    x, places = x.to(torch.promote_types(x.dtype, torch.float32)), _places(x)
    mean = x.mean(places)
    variance = (x - mean.view(_shape(x))).square_().mean(places)  # var_mean takes four times as long
    own = torch.cat([mean, variance, mean.new_tensor([x.numel() // len(mean)])])
    means, variances, counts = distributed.stacked(own).split((len(mean), len(mean), 1), dim=1)
    count = counts.sum(0)
    share = counts / count
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean).square())).sum(0), count


@torch.no_grad()
def _go_on(norm: _BatchNorm, mean: Tensor, variance: Tensor, count: Tensor) -> None:
    """Moves the running moments, as torch does: the variance there is Σ (x − mean)² / (count − 1)."""
    if norm.running_mean is None or norm.running_var is None:
        return
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    weight = 1 / norm.num_batches_tracked if norm.momentum is None else norm.momentum
    spread = variance * (count / (count - 1))
    for running, new in ((norm.running_mean, mean), (norm.running_var, spread)):
        running.add_(weight * (new.to(running.dtype) - running))


class _Normalised(torch.autograd.Function):
    """γ∘x̂ + β with the moments of all processes, of which x is a part."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        count: Tensor,
        eps: float,
    ) -> Tensor:
        """Evaluation's formula: [n, channels, …]."""
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps = eps
        scale, shift = (None if one is None else one.to(mean.dtype) for one in (weight, bias))
        return functional.batch_norm(x, mean, variance, scale, shift, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """The sums Σ g and Σ g∘x̂ are those of all processes in ∂x; in ∂γ and ∂β each has its own."""
        x, weight, mean, variance, count = ctx.saved_tensors
        places, shape = _places(x), _shape(x)
        slope = torch.rsqrt(variance + ctx.eps)
        g, normalised = g.to(mean.dtype), functional.batch_norm(x.to(mean.dtype), mean, variance, eps=ctx.eps)
        own = torch.stack([g.sum(places), (g * normalised).sum(places)])
        whole = own.clone()
        distributed.add_up([whole])
        shift, turn = (one.view(shape) for one in whole / count)
        factor = slope if weight is None else slope * weight
        gx = normalised.mul_(-turn).add_(g).sub_(shift).mul_(factor.view(shape))
        wanted = ctx.needs_input_grad
        found = gx.to(x.dtype), *(one.to(weight.dtype) if weight is not None else None for one in own.flip(0))
        return *(one if want else None for one, want in zip(found, wanted, strict=False)), *(None,) * 4


def _places(x: Tensor) -> list[int]:
    """The dimensions that a channel's moments are over."""
    return [dim for dim in range(x.dim()) if dim != 1]


def _shape(x: Tensor) -> tuple[int, ...]:
    """That of a number a channel."""
    return (-1, *(1,) * (x.dim() - 2))
