"""Weights from files: read, checked against the model, and only then loaded."""

import hashlib
import os
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fisherlab.arguments import checked
from fisherlab.base.tensorfiles import read_tensors
from fisherlab.base.writing import as_path
from fisherlab.errors import InputError

# Types that weights are kept in; those of 8 bits come with scales that are kept beside them.
_REAL = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# What torch says of objects that its restricted unpickler does not build.
_REFUSED = re.compile(r"unsupported (global|class)|trying to call|can only (create|build)", re.I)


@dataclass(frozen=True)
class Weights:
    """The contents of a checkpoint file.

    Attributes:
        tensors: names to tensors, on the CPU.
        sha256: of the file.
        step: the training step in a safetensors header, if it holds one.
    """

    tensors: dict[str, Tensor]
    sha256: str
    step: int | None


@checked
def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> Weights:
    """Load a checkpoint into a model; on failure the model is unchanged.

    Args:
        model: the network that the checkpoint belongs to.
        path: a ``.safetensors`` file, or a state dict saved with `torch.save`, which is read
            without executing any code in it.

    Returns:
        What was loaded, with the sha256 of the file.

    Raises:
        InputError: if the file is missing, damaged or holds more than tensors, if names or
            shapes belong to another network, or if a weight is not finite.
    """
    weights = read_weights(path)
    put_weights(model, weights, path)
    return weights


def put_weights(model: nn.Module, weights: Weights, path: str | os.PathLike[str]) -> None:
    """Put weights read from `path` into a model, as for `load_weights`."""
    check_weights(model, weights.tensors, path)
    model.load_state_dict(weights.tensors)


def read_weights(path: str | os.PathLike[str]) -> Weights:
    """Read a checkpoint file, as for `load_weights`, without a model to compare with."""
    file = as_path("the checkpoint", path)
    if not file.is_file():
        raise InputError(f"the checkpoint {str(file)!r} is not a file; check the path.")
    try:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"the checkpoint {str(file)!r} cannot be read: {error.strerror}.") from error
    if file.suffix == ".safetensors":
        tensors, step = _read_safetensors(file)
    else:
        tensors, step = _read_torch(file), None
    return Weights(tensors, digest, step)


def check_weights(model: nn.Module, tensors: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Refuse weights that do not fit the model: the first mismatch is named.

    Raises:
        InputError: for a missing or an unexpected name, another shape, NaN or infinity.
    """
    where = f"the checkpoint {str(path)!r}"
    expected = model.state_dict()
    for name, tensor in expected.items():
        if name not in tensors:
            raise InputError(f"{where} belongs to another network: it has no {name!r}.")
        given = tensors[name]
        kind = _unlike(given, tensor)
        if kind:
            raise InputError(
                f"{where} holds {name!r} as a {kind} tensor, which the network cannot take; save it as a "
                f"dense one of {str(tensor.dtype).removeprefix('torch.')}."
            )
        if given.shape != tensor.shape:
            raise InputError(
                f"{where} belongs to another network: {name!r} has shape "
                f"{tuple(given.shape)}, not {tuple(tensor.shape)}."
            )
    for name, tensor in tensors.items():
        if name not in expected:
            raise InputError(f"{where} belongs to another network: the model has no {name!r}.")
        if not tensor.to(expected[name].dtype).isfinite().all():  # as the network will have them
            raise InputError(f"{where} holds NaN or infinity in {name!r}; use an earlier one.")


def _unlike(given: Tensor, own: Tensor) -> str:
    """What makes a tensor one that cannot be put into another; empty: nothing does."""
    if given.is_nested:
        return "nested"
    if given.layout != own.layout:
        return "sparse"
    for kind in ("meta", "quantized"):
        if getattr(given, f"is_{kind}"):
            return kind
    if given.is_complex() and not own.is_complex():
        return "complex"
    whole = own.is_floating_point() and given.dtype not in _REAL
    return str(given.dtype).removeprefix("torch.") if whole else ""


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], int | None]:
    """The tensors of a safetensors file, and the step in its header."""
    try:
        found = read_tensors(path)
    except InputError as error:
        raise InputError(
            f"the checkpoint {str(path)!r} {error}; give a whole .safetensors file or a state dict saved "
            "with torch.save."
        ) from error
    step = found.header.get("step", "")
    return found.tensors, int(step) if step.isdecimal() and step.isascii() else None


def _read_torch(path: Path) -> dict[str, Tensor]:
    """The state dict in a file of `torch.save`; nothing in the file is executed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler can fail in any way on arbitrary bytes
        if isinstance(error, pickle.UnpicklingError) and _REFUSED.search(str(error)):
            raise InputError(
                f"the checkpoint {str(path)!r} holds more than tensors and will not be executed; "
                f"save model.state_dict() as safetensors instead."
            ) from error
        raise _damaged(path, error) from error
    if not isinstance(content, Mapping) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise InputError(
            f"the checkpoint {str(path)!r} is no state dict (a mapping of names to tensors); "
            f"save model.state_dict() alone."
        )
    return dict(content)


def _damaged(path: Path, error: Exception) -> InputError:
    """The error for a file that cannot be decoded."""
    return InputError(
        f"the checkpoint {str(path)!r} is damaged or not a checkpoint ({type(error).__name__}); "
        f"give a .safetensors file or a state dict saved with torch.save."
    )
