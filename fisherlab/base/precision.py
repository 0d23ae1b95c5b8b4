"""Products in full precision for the time of a block, whatever the caller allows its own."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

T = TypeVar("T")

_PRODUCTS = ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")


def reference(module: nn.Module) -> nn.Parameter:
    """The parameter whose dtype and device are the model's: the first of real numbers."""
    return min(module.parameters(), key=lambda p: not p.is_floating_point())


@contextmanager
def full_precision(devices: Iterable[str]) -> Iterator[None]:
    """Without autocast on devices of these types, and without TF32 or bfloat16 in products of float32.

    Since version 2.9 torch keeps a precision for each kind of product beside its older flags, and refuses to
    read a flag that contradicts it: both are set, and put back as they were.
    """
    backends = torch.backends
    matmul = _readable(torch.get_float32_matmul_precision, "highest")
    cudnn = _readable(lambda: backends.cudnn.allow_tf32, True)
    precisions = [(product, product.fp32_precision) for product in _products()]
    with ExitStack() as stack:
        for device in filter(torch.amp.is_autocast_available, devices):
            stack.enter_context(torch.autocast(device, enabled=False))
        try:
            torch.set_float32_matmul_precision("highest")
            backends.cudnn.allow_tf32 = False
            for product, _ in precisions:
                product.fp32_precision = "ieee"
            yield
        finally:
            torch.set_float32_matmul_precision(matmul)
            backends.cudnn.allow_tf32 = cudnn
            for product, precision in precisions:
                product.fp32_precision = "none"  # what a wider setting gives it
                if product.fp32_precision != precision:
                    product.fp32_precision = precision


def _products() -> list[Any]:
    """The kinds of products that have a precision of their own; none before torch 2.9."""
    found = []
    for name in _PRODUCTS:
        backend, _, kind = name.partition(".")
        product = getattr(getattr(torch.backends, backend), kind, None)
        if hasattr(product, "fp32_precision"):
            found.append(product)
    return found


def _readable(read: Callable[[], T], default: T) -> T:
    """A flag, or torch's default where it contradicts the newer settings."""
    try:
        return read()
    except RuntimeError:
        return default
