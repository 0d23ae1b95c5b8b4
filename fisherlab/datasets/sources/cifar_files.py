"""The forms in which CIFAR-10 is stored, each decoded to the records of the official binary files.

A record is 3,073 bytes: the class, then the 32x32 red, green and blue values, row by row.
"""

import io
import itertools
import pickle
from typing import Any

import numpy as np
from numpy.typing import NDArray

Records = NDArray[np.uint8]

SIDE = 32
PIXELS = 3 * SIDE * SIDE

_CLASSES = 10
_RECONSTRUCT = {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")}
_ARRAY_TYPES = {("numpy", "ndarray"), ("numpy", "dtype")}


class FormatError(ValueError):
    """The bytes are not a valid file of this form; the message says why."""


def binary_records(payload: bytes) -> Records:
    """The records [n, 3073] of an official binary file.

    Raises:
        FormatError: if the length is no multiple of a record's.
    """
    if not payload or len(payload) % (1 + PIXELS):
        raise FormatError(f"its {len(payload)} bytes are no whole number of records of {1 + PIXELS} bytes")
    return np.frombuffer(payload, np.uint8).reshape(-1, 1 + PIXELS)


def pickled_records(payload: bytes) -> Records:
    """The records [n, 3073] of a file of the "python version", a pickled dictionary.

    Only the builtin containers and numpy's plain arrays are reconstructed; a pickle that names any other
    object is refused before the object is looked up.

    Raises:
        FormatError: if the pickle is broken, names another object, or holds no images and classes.
    """
    try:
        content = _ArrayUnpickler(io.BytesIO(payload), encoding="bytes").load()
    except FormatError:
        raise
    except Exception as error:  # a broken pickle can raise nearly anything
        raise FormatError(f"its pickle is broken ({type(error).__name__})") from error
    entries = content if isinstance(content, dict) else {}
    images, classes = (entries.get(key, entries.get(key.decode())) for key in (b"data", b"labels"))
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or not isinstance(classes, list):
        raise FormatError("it holds no array 'data' of bytes with a list 'labels'")
    labels = np.array(classes)
    if labels.dtype.kind != "i" or labels.ndim != 1 or labels.min() < 0 or labels.max() >= _CLASSES:
        raise FormatError("its labels are not classes from 0 to 9")
    return _records(images, labels.astype(np.uint8))


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler that knows numpy's arrays and no other object."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _RECONSTRUCT:
            return _empty_array
        if (module, name) in _ARRAY_TYPES:
            return getattr(np, name)
        raise FormatError(f"its pickle names {module}.{name}, which is no part of an array")


def _empty_array(kind: type, shape: tuple[int, ...], _: bytes) -> NDArray[Any]:
    """What numpy's `_reconstruct` gives a pickle: an array without values, whose state comes next."""
    if kind is not np.ndarray or shape != (0,):
        raise FormatError("its pickle makes an object that is no plain array")
    return np.ndarray((0,), np.uint8)


def mosaic_records(payload: bytes, classes: NDArray[np.uint8]) -> Records:
    """The records [n, 3073] of images that lie in one lossless picture, row by row in tiles of 32x32.

    Args:
        payload: the picture.
        classes: uint8 [n].

    Raises:
        FormatError: if it is no picture of n tiles.
    """
    picture = _picture(payload)
    rows, columns = picture.shape[0] // SIDE, picture.shape[1] // SIDE
    if picture.shape[:2] != (rows * SIDE, columns * SIDE):
        raise FormatError(f"its size {picture.shape[1]}x{picture.shape[0]} is no multiple of {SIDE}")
    tiles = picture.reshape(rows, SIDE, columns, SIDE, 3).transpose(0, 2, 4, 1, 3)
    return _records(tiles.reshape(rows * columns, PIXELS), classes)


def jpeg_records(payload: bytes) -> Records:
    """The records [n, 3073] of JPEG files that lie end to end in an npz file.

    Its arrays: `jpeg` uint8, all files; `offset` int64 [n + 1], where each starts; `label` uint8 [n].

    Raises:
        FormatError: if the arrays are not these.
    """
    try:
        with np.load(io.BytesIO(payload), allow_pickle=False) as arrays:
            stream, offsets, classes = (arrays[name] for name in ("jpeg", "offset", "label"))
    except (OSError, ValueError, KeyError) as error:
        raise FormatError(f"it is no npz file of JPEG files ({error})") from error
    files = stream.tobytes()
    pictures = [
        _picture(files[start:stop]) for start, stop in itertools.pairwise(offsets)
    ]  # JPEG files can only be decoded one by one
    if any(picture.shape != (SIDE, SIDE, 3) for picture in pictures):
        raise FormatError(f"its pictures are not all {SIDE}x{SIDE}")
    images = np.stack(pictures).transpose(0, 3, 1, 2)
    return _records(images.reshape(len(pictures), -1), classes)


def labels_array(payload: bytes) -> NDArray[np.uint8]:
    """The classes uint8 [n] in an npy file.

    Raises:
        FormatError: if it is no such file.
    """
    try:
        labels = np.load(io.BytesIO(payload), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise FormatError(f"it is no npy file of numbers ({error})") from error
    if labels.dtype != np.uint8 or labels.ndim != 1:
        raise FormatError(f"its labels are {labels.dtype} of shape {labels.shape}, not bytes in a row")
    return labels


def _picture(payload: bytes) -> NDArray[np.uint8]:
    """A picture as uint8 [height, width, 3]."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(payload)) as opened:
            return np.asarray(opened.convert("RGB"))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise FormatError(f"it is no picture ({error})") from error


def _records(pixels: NDArray[np.uint8], classes: NDArray[np.uint8]) -> Records:
    """Records from pixels [n, 3072], channel by channel, and classes [n]."""
    if pixels.shape != (len(classes), PIXELS):
        raise FormatError(f"it holds pixels of shape {pixels.shape} for {len(classes)} classes")
    return np.concatenate([classes[:, None], pixels], axis=1)
