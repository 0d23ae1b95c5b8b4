"""The idx format of MNIST: a big-endian header, then the values, compressed with gzip.

The header is two zero bytes, the type (8: unsigned byte), the number of dimensions k, and k
unsigned 32-bit sizes. The magic number 2051 (images) is type 8 with three dimensions, 2049
(labels) type 8 with one.
"""

import zlib

import numpy as np
from numpy.typing import NDArray

_UNSIGNED_BYTE = 8
GZIP = 31  # zlib's window setting that expects a gzip header and checks its trailer


class IdxError(ValueError):
    """The bytes are no valid gzip-compressed idx file; the message says why."""


def decode_idx(payload: bytes) -> NDArray[np.uint8]:
    """The array in a gzip-compressed idx file of unsigned bytes.

    Args:
        payload: the bytes of the file.

    Returns:
        uint8 array of the sizes in the header, read-only.

    Raises:
        IdxError: if the gzip stream is broken or cut off, the magic number is wrong, or the
            number of values is not what the header says.
    """
    try:
        raw = zlib.decompress(payload, wbits=GZIP)
    except zlib.error as error:
        raise IdxError(f"its gzip stream is broken ({error})") from error
    if len(raw) < 4 or raw[:3] != bytes((0, 0, _UNSIGNED_BYTE)):
        raise IdxError(f"its magic number {raw[:4].hex()!r} is not one of an idx file of bytes")
    dimensions = raw[3]
    start = 4 + 4 * dimensions
    if len(raw) < start:
        raise IdxError("its header is cut off")
    sizes = np.frombuffer(raw, dtype=">u4", count=dimensions, offset=4).astype(np.int64)
    if len(raw) - start != sizes.prod():
        raise IdxError(f"it holds {len(raw) - start} values where its header says {sizes.prod()}")
    return np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(sizes)
