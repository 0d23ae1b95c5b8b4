"""Nested state as named tensors and JSON: no pickle, and the same memory layout when it is read again."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fisherlab.errors import NotSupportedError


def packed(value: Any) -> tuple[dict[str, Tensor], str]:
    """Tensors by number, and JSON that says where they belong.

    Dictionaries keep the types of their keys, tuples stay tuples, and floats every bit. A tensor whose
    dimensions lie in another order in memory keeps that order, because products of matrices may be rounded
    by it. They are on the CPU, in the memory of the value where it is there already: they are to be written
    before it changes.

    Raises:
        NotSupportedError: for anything but numbers, texts, tensors and containers of these.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_packed(value, tensors))
    seen: set[int] = set()
    for name, tensor in tensors.items():  # safetensors takes none that shares memory with another
        memory = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return tensors, text


def unpacked(tensors: Mapping[str, Tensor], text: str, device: torch.device | str = "cpu") -> Any:
    """What `packed` was given; tensors are on the device, in memory of their own."""
    return _unpacked(json.loads(text), tensors, device)


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        name = str(len(tensors))
        strides = value.stride()
        order = sorted(range(value.dim()), key=lambda d: -strides[d])
        if not value.permute(order).is_contiguous():
            order = list(range(value.dim()))
        tensors[name] = value.detach().permute(order).to("cpu").contiguous()
        return {"tensor": name, "order": order}
    if isinstance(value, Mapping):
        return {"pairs": [[_packed(k, tensors), _packed(v, tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_packed(one, tensors) for one in value]}
    raise NotSupportedError(
        f"the state holds a {type(value).__name__}, which a checkpoint cannot keep; use another optimizer"
    )


def _unpacked(value: Any, tensors: Mapping[str, Tensor], device: torch.device | str) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        order = value["order"]
        own = tensors[value["tensor"]].to(device, copy=True, memory_format=torch.contiguous_format)
        return own.permute([order.index(d) for d in range(len(order))])
    if "pairs" in value:
        return {_unpacked(k, tensors, device): _unpacked(v, tensors, device) for k, v in value["pairs"]}
    if "list" in value:
        return [_unpacked(one, tensors, device) for one in value["list"]]
    return tuple(_unpacked(one, tensors, device) for one in value["tuple"])
