import gzip
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fisherlab.datasets.sources.idx import IdxError, decode_idx


def encode(values: np.ndarray) -> bytes:
    return struct.pack(f">I{values.ndim}I", 0x800 + values.ndim, *values.shape) + values.tobytes()


@given(arrays(np.uint8, array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5)))
def test_decoding_inverts_encoding(values: np.ndarray) -> None:
    decoded = decode_idx(gzip.compress(encode(values)))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, values)


def test_the_magic_numbers_of_mnist_are_understood() -> None:
    labels = struct.pack(">II", 2049, 3) + bytes((7, 2, 1))
    assert decode_idx(gzip.compress(labels)).tolist() == [7, 2, 1]
    images = struct.pack(">IIII", 2051, 1, 1, 2) + bytes((5, 6))
    assert decode_idx(gzip.compress(images)).tolist() == [[[5, 6]]]


@given(st.data())
def test_a_file_cut_off_anywhere_is_refused(data: st.DataObject) -> None:
    payload = gzip.compress(encode(np.arange(60, dtype=np.uint8).reshape(3, 4, 5)))
    length = data.draw(st.integers(0, len(payload) - 1))
    with pytest.raises(IdxError, match="gzip"):
        decode_idx(payload[:length])


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "magic number"),
        (struct.pack(">II", 0x0D01, 1) + bytes(4), "magic number"),
        (struct.pack(">II", 2051, 1), "header is cut off"),
        (struct.pack(">II", 2049, 3) + bytes(2), "holds 2 values where its header says 3"),
        (struct.pack(">II", 2049, 3) + bytes(4), "holds 4 values where its header says 3"),
    ],
)
def test_a_wrong_header_is_refused(raw: bytes, reason: str) -> None:
    with pytest.raises(IdxError, match=reason):
        decode_idx(gzip.compress(raw))
