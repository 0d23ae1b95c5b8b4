"""What operators are given: real tensors and numbers, or one sentence that says what to give instead."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from fisherlab.errors import InputError, InputTypeError


def real_tensor(what: str, value: Any) -> Tensor:
    """The value itself, a dense tensor of real floating-point numbers.

    Raises:
        InputTypeError: it is none.
    """
    if not isinstance(value, Tensor):
        array = "; convert it with torch.from_numpy(x)" if hasattr(value, "__array__") else ""
        raise InputTypeError(f"{what} must be a torch tensor, not {type(value).__name__}{array}.")
    if value.is_nested or value.layout != torch.strided:
        raise InputTypeError(
            f"{what} must be a dense tensor, not {'nested' if value.is_nested else value.layout}; "
            "convert it with x.to_dense()."
        )
    if not value.is_floating_point():
        raise InputTypeError(
            f"{what} must hold real floating-point numbers, not {value.dtype}; convert it, such as with "
            "x.double()."
        )
    return value


def fitting(what: str, value: Any, like: Any) -> Tensor:
    """A real tensor in the dtype of an operator, on whose device it is.

    Raises:
        InputTypeError: it is no real tensor.
        InputError: it is on another device.
    """
    tensor = real_tensor(what, value)
    if tensor.device != like.device:
        raise InputError(f"{what} is on {tensor.device} and the operator on {like.device}; bring it there.")
    return tensor.to(like.dtype)


def number(what: str, value: Any) -> float:
    """A real number as a float; it may be a tensor with one entry.

    Raises:
        InputTypeError: it is none.
    """
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputTypeError(f"{what} is a number, not a {type(value).__name__}") from error


def check_sizes(outputs: Any, inputs: Any) -> None:
    """Raises InputTypeError, or InputError, unless m and d of an operator are whole numbers from 1 on."""
    for size in (outputs, inputs):
        if isinstance(size, bool) or not isinstance(size, Integral):
            raise InputTypeError(f"the outputs and inputs of an operator are whole numbers, not {size!r}.")
        if size < 1:
            raise InputError(f"an operator has outputs and inputs, at least 1 of each, not {size}.")


def finite(what: str, value: Any) -> float:
    """As `number`, and finite.

    Raises:
        InputTypeError: it is no number.
        InputError: it is not finite.
    """
    found = number(what, value)
    if not math.isfinite(found):
        raise InputError(f"{what} must be finite, not {found}.")
    return found
