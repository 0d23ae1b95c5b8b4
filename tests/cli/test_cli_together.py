"""Commands that are started together do not meet."""

import importlib
import inspect
import signal
import time
from pathlib import Path

import pytest

from fisherlab.cli.app import _COMMANDS
from fisherlab.errors import InputError
from fisherlab.runs import lock
from fisherlab.runs.part import RunPart

SMALL = ("compare", "--model", "small_nets:small", "--layers", "2", "--no-spectra")
WRITERS = {  # every command that writes a directory, as it may be given
    "compare": ("--model", "small_nets:small"),
    "represent": ("--model", "small_nets:small"),
    "trace": ("--model", "small_nets:small"),
    "train": ("--model", "small_nets:small", "--steps", "1"),
    "sweep": ("--model", "small_nets:small", "--steps", "1", "--lr", "0.1"),
    "figures": ("theorem-1", "--scale", "smoke"),
    "report": ("finished",),
    "run": ("config.toml",),
}


def test_these_are_all_commands_that_write_a_directory():
    commands = {name: importlib.import_module(f"fisherlab.cli.{name}").command for name in _COMMANDS}
    assert set(WRITERS) == {
        name for name, command in commands.items() if "out" in {param.name for param in command.params}
    }


@pytest.mark.parametrize("command", WRITERS)
def test_every_command_refuses_a_directory_that_is_being_written(command, refused, place, monkeypatch):
    monkeypatch.setattr(lock, "_WAIT", 0.0)
    (place / "config.toml").write_text('command = "compare"\nmodel = "small_nets:small"\n')
    with RunPart.claim(place / "busy"):
        before = sorted(place.rglob("*"))
        for force in ((), ("--force",)):
            line = refused(command, *WRITERS[command], "--out", "busy", *force)
            assert "'busy' is being written by another process (" in line
        assert [path for path in sorted(place.rglob("*")) if "__pycache__" not in path.parts] == before


def test_a_result_is_saved_under_the_same_lock(place, monkeypatch):
    from fisherlab.comparison.result import Comparison
    from fisherlab.runs.save import Result

    monkeypatch.setattr(lock, "_WAIT", 0.0)
    kinds = [kind for kind in (Result, *Result.__subclasses__()) if "save" in vars(kind)]
    assert set(kinds) == {Result, Comparison}
    for kind in kinds:
        needed = [one for one in inspect.signature(kind.save).parameters if one not in ("self", "directory")]
        with RunPart.claim(place / "busy"), pytest.raises(InputError, match="is being written by another"):
            kind.save(None, place / "busy", **dict.fromkeys(needed, False))


def test_a_run_is_refused_while_another_lives_and_sweeps_when_that_is_killed(
    start, refused, run, place, no_pictures
):
    process = start("compare", "--model", "small_nets:slow", "--out", "run")
    deadline = time.monotonic() + 120
    while not (place / "working").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert f"is being written by another process ({process.pid})" in refused(*SMALL, "--out", "run")
    process.kill()
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert lock.lock_of(Path("run")).is_file()
    run(*SMALL, "--out", "run", code=0)
    assert {path.name for path in place.glob("*run*")} == {"run"}
    assert not list(Path("run").rglob(".*"))


@pytest.mark.slow
def test_commands_started_together_without_a_directory_all_end_with_their_own(start, place):
    """And of those that want one directory, one has it, with its own configuration and page."""
    alone = [start(*SMALL, "--seed", str(seed)) for seed in range(4)]
    shared = [start(*SMALL, "--seed", str(seed), "--out", "shared") for seed in range(2)]
    printed = [process.communicate(timeout=600) for process in alone]
    refusals = [process.communicate(timeout=600)[1] for process in shared]
    outs = [stdout.partition("run directory: ")[2].splitlines()[0] for stdout, _ in printed]
    assert len(set(outs)) == 4
    whole = {path.name for path in Path(outs[0]).iterdir()}
    assert {"records.csv", "summary.json", "report.html", "heatmap-2.png"} <= whole
    for seed, out in enumerate(outs):
        assert {path.name for path in Path(out).iterdir()} == whole
        assert f"seed = {seed}" in Path(out, "config.toml").read_text()
    assert {path.name for path in (place / "runs").iterdir()} == {Path(out).name for out in outs}
    codes = [process.returncode for process in shared]
    assert sorted(codes) == [0, 2]
    loser, winner = codes.index(2), codes.index(0)
    assert f"is being written by another process ({shared[winner].pid})" in refusals[loser]
    assert f"seed = {winner}" in Path("shared", "config.toml").read_text()
