import io
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fisherlab.datasets.sources import cifar_files
from fisherlab.datasets.sources.cifar_files import FormatError, binary_records, pickled_records

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (3, 3072), dtype=np.uint8)
LABELS = [7, 0, 9]

# What Python 2 wrote: the array by its old module name, texts as byte strings.
OLD_ARRAY = (
    b"\x80\x02}q\x00(U\x04dataq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03"
    b"K\x00\x85U\x01b\x87Rq\x04(K\x01K\x03M\x00\x0c\x86cnumpy\ndtype\nq\x05U\x02u1K\x00K\x01\x87Rq\x06"
    b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T\x00\x24\x00\x00"
    + PIXELS.tobytes()
    + b"tbU\x06labelsq\x07]q\x08(K\x07K\x00K\x09eu."
)


class Calls:
    """An object whose pickle calls a function."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


called = []


def mark(*arguments) -> None:
    called.append(arguments)


@given(st.integers(1, 4), st.integers(0, 9))
def test_binary_records_are_label_and_pixels(count: int, label: int) -> None:
    payload = b"".join(bytes([label]) + PIXELS[0].tobytes() for _ in range(count))
    records = binary_records(payload)
    assert records.shape == (count, 3073)
    assert (records[:, 0] == label).all()
    assert (records[:, 1:] == PIXELS[0]).all()
    with pytest.raises(FormatError, match="no whole number"):
        binary_records(payload[:-1])


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("keys", [(b"data", b"labels"), ("data", "labels")])
def test_a_pickle_of_an_array_and_a_list_is_read(protocol, keys) -> None:
    content = {keys[0]: PIXELS, keys[1]: LABELS, b"batch_label": b"one", b"filenames": [b"a.png"]}
    if protocol == 5:  # numpy pickles by a buffer there, which no CIFAR-10 file does
        with pytest.raises(FormatError, match="_frombuffer"):
            pickled_records(pickle.dumps(content, protocol=protocol))
        return
    records = pickled_records(pickle.dumps(content, protocol=protocol))
    assert records[:, 0].tolist() == LABELS
    assert np.array_equal(records[:, 1:], PIXELS)


def test_a_pickle_of_python_2_is_read() -> None:
    records = pickled_records(OLD_ARRAY)
    assert records[:, 0].tolist() == LABELS
    assert np.array_equal(records[:, 1:], PIXELS)


@pytest.mark.parametrize(
    "evil",
    [
        Calls(mark, "here"),
        Calls(eval, "1 + 1"),
        Calls(np.load, "/dev/null"),
        Calls(getattr, "", "join"),
        {b"data": PIXELS, b"labels": LABELS, b"more": Calls(print, "here")},
    ],
)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_names_another_object_is_refused(evil, protocol, capsys) -> None:
    with pytest.raises(FormatError, match="which is no part of an array"):
        pickled_records(pickle.dumps(evil, protocol=protocol))
    assert not called
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1, 2], "no array 'data'"),
        ({b"data": [1], b"labels": LABELS}, "no array 'data'"),
        ({b"data": PIXELS.astype(np.float32), b"labels": LABELS}, "no array 'data'"),
        ({b"data": PIXELS, b"labels": [1, 2]}, "for 2 classes"),
        ({b"data": PIXELS, b"labels": [1, 2, 10]}, "not classes from 0 to 9"),
        ({b"data": PIXELS, b"labels": [1, 2, -1]}, "not classes from 0 to 9"),
        ({b"data": PIXELS, b"labels": ["1", "2", "3"]}, "not classes from 0 to 9"),
        ({b"data": PIXELS, b"labels": []}, "not classes from 0 to 9"),
        ({b"data": PIXELS[:, :9], b"labels": LABELS}, "pixels of shape"),
    ],
)
def test_a_pickle_of_other_content_is_refused(content, reason) -> None:
    with pytest.raises(FormatError, match=reason):
        pickled_records(pickle.dumps(content, protocol=4))


@given(st.integers(0, len(OLD_ARRAY) - 1))
def test_a_pickle_cut_off_anywhere_is_refused(length: int) -> None:
    with pytest.raises(FormatError):
        pickled_records(OLD_ARRAY[:length])


def test_pictures_and_arrays_that_are_none_are_refused() -> None:
    with pytest.raises(FormatError, match="no picture"):
        cifar_files.mosaic_records(b"RIFF", np.zeros(1, np.uint8))
    with pytest.raises(FormatError, match="no npz file"):
        cifar_files.jpeg_records(b"PK")
    with pytest.raises(FormatError, match="no npy file"):
        cifar_files.labels_array(b"\x93NUMPY")
    wrong, objects = io.BytesIO(), io.BytesIO()
    np.save(wrong, np.zeros(3))
    np.save(objects, np.array([Calls(mark, "here")], dtype=object), allow_pickle=True)
    with pytest.raises(FormatError, match="float64"):
        cifar_files.labels_array(wrong.getvalue())
    with pytest.raises(FormatError, match="no npy file"):
        cifar_files.labels_array(objects.getvalue())
    assert not called
