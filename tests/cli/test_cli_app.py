import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.cells import cell_len

COMMANDS = [
    [],
    ["compare"],
    ["run"],
    ["list"],
    ["list", "models"],
    ["list", "data"],
    ["list", "approximations"],
    ["list", "optimizers"],
    ["train"],
    ["data"],
    ["data", "get"],
    ["data", "verify"],
]


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_no_help_imports_anything_heavy():
    done = _python(f"""
import contextlib, io, sys
from fisherlab.cli import main
for command in {COMMANDS}:
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            main([*command, "--help"])
        except SystemExit as error:
            assert error.code == 0, command
heavy = {{"torch", "numpy", "pandas", "matplotlib", "rich", "tomli_w", "jinja2"}} & set(sys.modules)
assert not heavy, heavy
""")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_names_the_command(run, command):
    result = run(*command, "--help", code=0)
    assert result.stdout.startswith(f"Usage: main {' '.join(command)}".rstrip())
    assert not result.stderr


@pytest.mark.parametrize("group", [[], ["list"], ["data"]], ids=["root", "list", "data"])
def test_a_group_alone_shows_its_help(run, group):
    assert run(*group).stdout == run(*group, "--help").stdout


def test_version(run):
    from fisherlab import __version__

    assert __version__ in run("--version").stdout


@pytest.fixture
def failing(monkeypatch) -> None:
    """Something inside fisherlab that raises what nobody expected."""

    def fails(*given):
        raise ZeroDivisionError("in the work")

    monkeypatch.setattr("fisherlab.comparison.passes.Experiment.results", fails)


def test_unexpected_failure_is_one_line_with_exit_code_1(run, place, failing):
    result = run("compare", "--model", "small_nets:small", code=1)
    assert result.stderr == ("fisherlab: error: ZeroDivisionError: in the work; -v shows the traceback\n")
    assert not result.stdout
    assert not (place / "runs").exists()


def test_verbose_shows_the_traceback_of_a_failure(run, failing):
    result = run("compare", "--model", "small_nets:small", "-v", code=1)
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("fisherlab: error: ZeroDivisionError: in the work\n")


def test_a_model_that_raises_is_bad_input(run, place):
    result = run("compare", "--model", "small_nets:broken", code=2)
    assert result.stderr.startswith("fisherlab: error: the model fails on inputs")
    assert "ZeroDivisionError: in the model" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (place / "runs").exists()


def test_verbose_shows_what_lies_behind_bad_input(run):
    result = run("compare", "--model", "small_nets:narrow", "-v", code=2)
    assert "RuntimeError: mat1 and mat2" in result.stderr.partition("fisherlab: error:")[0]


def test_a_whole_run_as_a_process_of_its_own(start, place):
    process = start("compare", "--model", "small_nets:small", "--layers", "2", "--json", "--out", "run")
    stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr) == (0, "")
    assert json.loads(stdout) == json.loads((place / "run" / "summary.json").read_text())
    pictures = ("heatmap-2", "spectrum-2", "errors", "coupling", "directions", "waterfall")
    for name in (f"{picture}.{kind}" for picture in pictures for kind in ("png", "pdf")):
        assert (place / "run" / name).stat().st_size > 1000, name


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_exits_130_and_leaves_nothing(start, place: Path, signal_number):
    process = start("compare", "--model", "small_nets:slow", "--out", "run")
    deadline = time.monotonic() + 120
    while not (place / "working").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (place / "working").exists()
    process.send_signal(signal_number)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert not stdout
    assert not list(place.glob("run*"))


def test_interruption_while_files_are_written_removes_them(run, place, no_pictures, monkeypatch):
    def interrupted(page, **content):
        assert (page.parent / "records.csv").is_file()
        raise KeyboardInterrupt

    monkeypatch.setattr("fisherlab.report.write_page", interrupted)
    result = run("compare", "--model", "small_nets:small", "--no-spectra", "--out", "run", code=130)
    assert result.stderr.split() == ["fisherlab:", "interrupted"]
    assert not list(place.glob("run*"))


def test_a_reader_that_goes_away_gives_no_traceback(start):
    process = start("list", "approximations")
    process.stdout.close()
    stderr = process.stderr.read()
    process.wait(timeout=60)
    assert not stderr


def test_messages_leave_the_package_logger_as_it_was(run):
    import logging

    log = logging.getLogger("fisherlab")
    before = log.level, log.propagate, list(log.handlers), signal.getsignal(signal.SIGTERM)
    run("list", "models", "--json")
    run("compare", "--model", "no-such-model", "-v")
    assert (log.level, log.propagate, list(log.handlers), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("what", ["models", "data", "approximations"])
def test_list_prints_every_registered_name(run, what):
    from fisherlab import approximations, datasets, models

    known = {
        "models": models.names(),
        "data": datasets.names(),
        "approximations": approximations.registered(),
    }[what]
    rows = json.loads(run("list", what, "--json").stdout)
    assert [row["name"] for row in rows] == sorted(known)
    assert all(row["source"] for row in rows)
    table = run("list", what).stdout
    words = {word for row in rows for value in row.values() for word in str(value).split()}
    assert words <= set(table.split())
    assert max(map(cell_len, table.splitlines())) <= 100  # a hat takes no place
    assert "\x1b" not in table
