"""Safetensors files with a seal: a checksum of every byte of the file, header and data, in its own header."""

import hashlib
import io
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import IO, NamedTuple

from torch import Tensor

from fisherlab.base.writing import beside
from fisherlab.errors import InputError

_SEAL = "sha256"  # its name in the header
_BLANK = "0" * 64  # what stands in its place while the checksum is taken
_PLACE = re.compile(rb'("sha256":")[0-9a-f]{64}"')  # within a text of the header each " would be \"
_ERRNO = re.compile(r"os error (\d+)")


class TensorFile(NamedTuple):
    """What a safetensors file holds.

    Attributes:
        tensors: by name, on the CPU.
        header: its texts, without the seal.
        sealed: whether it has a seal, which then fits.
    """

    tensors: dict[str, Tensor]
    header: dict[str, str]
    sealed: bool


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    """Writes a sealed safetensors file beside its place, and renames it.

    Args:
        path: where; its folder is there.
        tensors: contiguous, each with memory of its own.
        header: texts that stand in the file's header.

    Returns:
        The sha256 of the file, in hexadecimal.

    Raises:
        OSError: where it cannot be written; a file that was there stays as it was.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with beside(path) as part:
        try:
            save_file(dict(tensors), part, {**header, _SEAL: _BLANK})
        except SafetensorError as error:
            number = _ERRNO.search(str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        with part.open("r+b") as stream:
            head = _in_order(_head(stream))
            sealed = _with_seal(head, _digest(head, stream))
            stream.seek(0)
            stream.write(sealed)
            return _digest(sealed, stream)


def tensors_as_bytes(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> bytes:
    """What `write_tensors` writes."""
    from safetensors.torch import save

    payload = save(dict(tensors), {**header, _SEAL: _BLANK})
    head = _in_order(_head(io.BytesIO(payload)))
    data = payload[len(head) :]
    return _with_seal(head, hashlib.sha256(head + data).hexdigest()) + data


def read_tensors(path: Path) -> TensorFile:
    """Reads a safetensors file, and compares its seal where it has one.

    Raises:
        InputError: for a file that cannot be read, is damaged or something else; the message begins with
            "is" or "cannot" and is to follow what the file is called.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            seal = header.pop(_SEAL, None)
            if seal is not None and seal != _seal_of(path):
                raise InputError("is damaged: its checksum is that of other contents")
            return TensorFile(
                {key: file.get_tensor(key) for key in file.keys()},  # noqa: SIM118
                header,
                seal is not None,
            )
    except SafetensorError as error:
        raise InputError(f"is damaged or no safetensors file ({error})") from error
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error})") from error


def _seal_of(path: Path) -> str:
    """The seal that would fit a file."""
    with path.open("rb") as stream:
        return _digest(_with_seal(_head(stream), _BLANK), stream)


def _head(stream: IO[bytes]) -> bytes:
    """The size of the header, 8 bytes, and the header."""
    size = stream.read(8)
    return size + stream.read(int.from_bytes(size, "little"))


def _in_order(head: bytes) -> bytes:
    """The head with its texts in the order of their names, which safetensors writes in any order."""
    header = json.loads(head[8:])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    assert len(text) <= len(head) - 8, "safetensors writes JSON in another way"
    return head[:8] + text.ljust(len(head) - 8)


def _with_seal(head: bytes, seal: str) -> bytes:
    return _PLACE.sub(rb"\g<1>" + seal.encode() + b'"', head, count=1)


def _digest(head: bytes, stream: IO[bytes]) -> str:
    """The sha256 of a head and of the data behind it."""
    stream.seek(len(head))
    known = hashlib.sha256(head)
    return hashlib.file_digest(stream, lambda: known).hexdigest()  # type: ignore[arg-type]
