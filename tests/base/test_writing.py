"""Files beside their place: whole or not there, and what is no file is not replaced."""

import os

import pytest

from fisherlab.base.writing import beside, place_for, write
from fisherlab.errors import InputError


@pytest.mark.parametrize("link", [False, True])
def test_a_pipe_is_not_replaced(tmp_path, link):
    """Nor a device: the superuser could rename a file over /dev/null."""
    path = pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    if link:
        path = tmp_path / "link"
        path.symlink_to(pipe)
    before = path.lstat(), sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match="a device or a pipe"):
        place_for("the file", path)
    with pytest.raises(FileExistsError, match="a device or a pipe"):
        write(path, b"1")
    assert (path.lstat(), sorted(tmp_path.iterdir())) == before


def test_what_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    write(path, b"1")
    with pytest.raises(ZeroDivisionError), beside(path) as part:
        part.write_bytes(b"%d" % (1 / 0))
    assert path.read_bytes() == b"1"
    assert list(tmp_path.iterdir()) == [path]
