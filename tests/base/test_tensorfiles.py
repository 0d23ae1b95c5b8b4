"""Sealed files: every bit of them counts."""

import hashlib
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from fisherlab.base.tensorfiles import read_tensors, tensors_as_bytes, write_tensors
from fisherlab.errors import InputError

TENSORS = {
    "a": torch.arange(6, dtype=torch.float64).reshape(2, 3),
    "b/ü": torch.tensor([1, -2], dtype=torch.int8),
    "empty": torch.zeros(0, 3),
    'quoted "sha256":"': torch.tensor(0.5),
}
HEADER = {"step": "7", "text": 'with "quotes", a \\ and "sha256":"' + "0" * 64 + '"', "é": "\x1f\n∑"}


@pytest.fixture
def path(tmp_path):
    write_tensors(tmp_path / "file.safetensors", TENSORS, HEADER)
    return tmp_path / "file.safetensors"


def test_what_is_written_is_read(path):
    tensors, header, sealed = read_tensors(path)
    assert sealed
    assert header == HEADER
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert load_file(path).keys() == TENSORS.keys()  # for others it is a file as any other


def test_the_sum_returned_is_that_of_the_file_and_the_bytes_are_always_the_same(path):
    for _ in range(10):
        assert write_tensors(path, TENSORS, HEADER) == hashlib.sha256(path.read_bytes()).hexdigest()
        assert path.read_bytes() == tensors_as_bytes(TENSORS, dict(reversed(HEADER.items())))


def test_every_flipped_bit_is_found(path):
    whole = path.read_bytes()
    for place in range(8 * len(whole)):
        broken = bytearray(whole)
        broken[place // 8] ^= 1 << place % 8
        path.write_bytes(broken)
        try:
            tensors, _, sealed = read_tensors(path)
        except InputError:
            continue
        # only where the name of the seal itself is gone the file is one without a seal, its numbers untouched
        assert not sealed
        assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 100, -1])
def test_a_file_that_was_cut_is_found(path, cut):
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match="is damaged or no safetensors file"):
        read_tensors(path)


def test_a_file_without_a_seal_says_so(path):
    save_file({"w": torch.ones(3)}, path, {"step": "3"})
    tensors, header, sealed = read_tensors(path)
    assert (list(tensors), header, sealed) == (["w"], {"step": "3"}, False)


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    sync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda handle: (done.append(len(list(tmp_path.glob("f")))), sync(handle))
    )
    write_tensors(tmp_path / "f", TENSORS, HEADER)
    assert done == [0]
