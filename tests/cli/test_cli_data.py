import gzip
import hashlib
import json
from pathlib import Path

import pytest

from fisherlab.datasets import registry
from fisherlab.datasets.registry import DataFile, ImageSource

CONTENT = gzip.compress(b"images")


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Path:
    """One known data set of a single file; returns where its folder may lie."""
    file = DataFile("images.gz", hashlib.sha256(CONTENT).hexdigest())
    source = ImageSource(
        name="only",
        description="",
        origin="",
        layouts=("only",),
        mirrors=("http://127.0.0.1:9/",),
        splits={"train": (file, file)},
        shape=(28, 28),
        classes=(),
        stand_in=False,
    )
    monkeypatch.setattr(registry, "SOURCES", {"only": source})
    folder = Path("store/only")
    folder.mkdir(parents=True)
    return folder


def _statuses(result) -> set[str]:
    return {row["status"] for row in json.loads(result.stdout)}


def test_verify_reports_files_that_are_missing(run, only):
    result = run("data", "verify", "--json", "--data-dir", "store")
    assert (result.exit_code, _statuses(result), result.stderr) == (0, {"missing"}, "")


def test_verify_reports_files_that_are_right(run, only):
    (only / "images.gz").write_bytes(CONTENT)
    result = run("data", "verify", "--json", "--data-dir", "store")
    assert (result.exit_code, _statuses(result), result.stderr) == (0, {"ok"}, "")


def test_verify_fails_for_a_damaged_file(run, only):
    (only / "images.gz").write_bytes(CONTENT[:-1])
    result = run("data", "verify", "--json", "--data-dir", "store")
    assert (result.exit_code, _statuses(result)) == (1, {"damaged"})
    assert len(result.stderr.splitlines()) == 1
    assert "store/only/images.gz" in result.stderr


def test_verify_prints_a_table(run, only):
    result = run("data", "verify", code=0)
    assert "images.gz" in result.stdout
    assert "missing" in result.stdout


def test_get_prints_the_files(run, only, monkeypatch):
    monkeypatch.setattr("fisherlab.datasets.get", lambda name: [Path("cache") / name / "images.gz"])
    assert run("data", "get", "only").stdout == "cache/only/images.gz\n"
    printed = json.loads(run("data", "get", "only", "--json").stdout)
    assert printed == {"name": "only", "files": ["cache/only/images.gz"]}


def test_get_fails_where_no_mirror_answers(run, only):
    result = run("data", "get", "only", "-q", code=1)
    assert len(result.stderr.splitlines()) == 1
    assert "could not be downloaded" in result.stderr
    assert not result.stdout


def test_get_suggests_near_names(run, only):
    result = run("data", "get", "onyl", code=2)
    assert "did you mean only?" in result.stderr
