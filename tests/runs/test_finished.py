"""Reading a finished run back, and what is not one."""

import json

import pytest

from fisherlab.errors import InputError
from fisherlab.runs.finished import read_run


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "r"
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps({"command": "train", "value": 0.5}))
    (folder / "provenance.json").write_text(json.dumps({"seed": 3}))
    (folder / "config.toml").write_text('command = "train"\nmodel = "m"\n')
    return folder


def test_a_run_is_read_back(run):
    found = read_run(run)
    assert (found.command, found.name) == ("train", "r")
    assert found.summary["value"] == 0.5
    assert found.provenance == {"seed": 3}
    assert found.config["model"] == "m"


def test_a_run_without_a_configuration_is_one(run):
    (run / "config.toml").unlink()
    assert read_run(run).config == {}


@pytest.mark.parametrize("name", ["summary.json", "provenance.json"])
def test_a_directory_without_its_files_is_foreign(run, name):
    (run / name).unlink()
    with pytest.raises(InputError, match=f"no finished run of fisherlab: it has no {name}"):
        read_run(run)


@pytest.mark.parametrize("name", ["summary.json", "provenance.json", "config.toml"])
def test_damaged_files_are_named(run, name):
    (run / name).write_text("{[")
    with pytest.raises(InputError, match=f"{name}' is damaged"):
        read_run(run)


def test_a_summary_of_another_program_is_foreign(run):
    (run / "summary.json").write_text("[1]")
    with pytest.raises(InputError, match="does not hold a JSON object"):
        read_run(run)
    (run / "summary.json").write_text("{}")
    with pytest.raises(InputError, match="no run of fisherlab"):
        read_run(run)


def test_unfinished_and_missing_runs_are_refused_by_name(run):
    part = run.rename(run.with_name("r.part"))
    with pytest.raises(InputError, match=r"r\.part' has not ended"):
        read_run(part)
    with pytest.raises(InputError, match="r' has not ended"):
        read_run(run)
    with pytest.raises(InputError, match="nowhere' is not a directory"):
        read_run(run.with_name("nowhere"))
