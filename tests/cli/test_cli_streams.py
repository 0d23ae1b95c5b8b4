"""Printing never fails a run: closed and full streams, readers that are gone, terminals of few characters."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fisherlab.cli import main
from fisherlab.cli.streams import Printable

SMALL = ("compare", "--model", "small_nets:small", "--layers", "2", "--no-spectra", "--out", "run")


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A line of bash in which $F is the command; its exit code is that of the last part that failed."""
    own = {**os.environ, "F": f"{sys.executable} -m fisherlab", **environment}
    return subprocess.run(["bash", "-o", "pipefail", "-c", line], env=own, capture_output=True)


def stream(encoding: str, errors: str = "strict") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors)


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("ascii", "tr F = 2x3 S l e2 a. -1 - |x| ? - |"),
        ("latin-1", "tr F = 2×3 S l é² ä. -1 - |x| ? - |"),
        ("cp437", "tr F = 2x3 Σ l é² ä. -1 - |x| ? ─ │"),
        ("utf-8", "tr F̂ = 2×3 Σ λ é² ä… −1 – ‖x‖ 漢 ─ │"),
    ],
)
def test_characters_that_a_stream_does_not_have_are_replaced(encoding, expected):
    under = stream(encoding)
    printable = Printable(under)
    text = "tr F̂ = 2×3 Σ λ é² ä… −1 – ‖x‖ 漢 ─ │"
    assert printable.write(text) == len(text)
    printable.flush()
    assert under.buffer.getvalue().decode(encoding) == expected


def test_what_is_no_character_is_replaced():
    under = stream("utf-8")
    printable = Printable(under)
    printable.writelines(["a \udcff", " b"])
    printable.flush()
    assert under.buffer.getvalue() == b"a ? b"


class Broken(io.RawIOBase):
    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    def fileno(self) -> int:
        return self.descriptor


def test_the_first_error_is_kept_and_the_rest_is_dropped(tmp_path):
    broken = Broken()
    with (tmp_path / "file").open("wb") as file:
        broken.descriptor = file.fileno()
        printable = Printable(io.TextIOWrapper(io.BufferedWriter(broken, 8), encoding="utf-8"))
        for _ in range(3):
            printable.write("a line that is longer\n")
            printable.flush()
        assert printable.error.errno == 28
        assert os.path.samestat(os.fstat(file.fileno()), Path(os.devnull).stat())
        broken.write = len  # what is held back goes there


@pytest.fixture
def on_ascii(monkeypatch):
    """Runs the command line in this process with streams of ASCII; gives the exit code and both texts."""

    def invoke(*arguments: str) -> tuple[int, str, str]:
        streams = stream("ascii"), stream("ascii", "backslashreplace")
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", streams[0])
            patched.setattr(sys, "stderr", streams[1])
            with pytest.raises(SystemExit) as ended:
                main(list(arguments))
            assert (sys.stdout, sys.stderr) == streams
        out, err = (one.buffer.getvalue().decode("ascii") for one in streams)
        return ended.value.code, out, err

    return invoke


def test_every_help_and_table_fits_ascii(on_ascii):
    from fisherlab.cli.app import _COMMANDS

    tables = [("list", what) for what in ("models", "data", "approximations", "optimizers")]
    for command in [*tables, *((name, "--help") for name in _COMMANDS)]:
        code, out, err = on_ascii(*command)
        assert (code, err) == (0, ""), command
        assert len(out) > 200


def test_a_run_on_ascii(on_ascii, no_pictures):
    code, out, _ = on_ascii(*SMALL)
    assert code == 0
    assert "mxd = 3x5" in out
    assert "damping l " in out
    assert "?" not in out
    assert out.endswith(f"report: {Path('run', 'report.html')}\n")


def test_json_is_escaped_and_loses_nothing(on_ascii):
    code, out, _ = on_ascii("list", "approximations", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0
    assert "⊗" in rows["kfac"]["formula"]


def test_a_word_of_another_alphabet_is_bad_input_as_any_other(on_ascii):
    code, out, err = on_ascii("compare", "--model", "mnist-mlπ")
    assert (code, out) == (2, "")
    assert err.startswith("fisherlab: error: unknown model 'mnist-mlp'; did you mean mnist-mlp?")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_the_reason_and_the_run_is_complete(monkeypatch, capfd, no_pictures):
    with monkeypatch.context() as patched, Path("/dev/full").open("w") as full:
        patched.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as ended:
            main(list(SMALL))
    assert ended.value.code == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert last == "fisherlab: error: the output could not be printed: No space left on device"
    assert {"records.csv", "summary.json", "report.html"} <= {path.name for path in Path("run").iterdir()}


@pytest.mark.parametrize(
    ("line", "code", "err"),
    [
        ("$F --help >&-", 0, b""),
        ("$F --version >&- 2>&- <&-", 0, b""),
        ("$F nothing 2>&-", 2, b""),
        (
            "$F --help > /dev/full",
            1,
            b"fisherlab: error: the output could not be printed: No space left on device\n",
        ),
        ("$F --help > /dev/full 2>&1", 1, b""),
        ("$F nothing 2> /dev/full", 2, b""),
        ("$F --help | true", 141, b""),
        ("LC_ALL=C PYTHONCOERCECLOCALE=0 PYTHONUTF8=0 $F --help | LC_ALL=C grep -cv '[^ -~]'", 0, b""),
    ],
)
def test_streams_of_a_shell(line, code, err):
    if "/dev/full" in line and not Path("/dev/full").exists():
        pytest.skip("no device that is always full")
    done = shell(line)
    assert (done.returncode, done.stderr) == (code, err)


def test_a_file_that_is_opened_later_does_not_get_what_is_printed(tmp_path):
    """With a number of its own closed, the next file would have it."""
    code = (
        "import os, sys; from fisherlab.cli.streams import printable\n"
        f"with printable(): file = open({str(tmp_path / 'file')!r}, 'w'); os.write(1, b'lost'); print(1)\n"
        "sys.exit(file.fileno() < 3)"
    )
    done = subprocess.run(["bash", "-c", f'{sys.executable} -c "$0" >&- 2>&-', code])
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == ""
