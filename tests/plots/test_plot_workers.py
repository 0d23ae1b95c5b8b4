"""Figures written by several processes: the same bytes as by one, whatever happens to the others."""

import os
import signal
import subprocess
import sys
import time

import pytest

from fisherlab.plots import new_figure, save, workers


def figures(count):
    for number in range(count):
        figure = new_figure(3.0, 1.0, caption=f"figure {number}")
        figure.subplots().plot([0, number, 1])
        yield f"picture-{number}", figure


@pytest.fixture
def expected(tmp_path):
    for name, figure in figures(7):
        save(figure, tmp_path / "expected" / name)
    return {path.name: path.read_bytes() for path in (tmp_path / "expected").iterdir()}


def written(folder):
    with workers.saver(7) as write:
        for name, figure in figures(7):
            write(figure, folder / name)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_several_processes_write_the_same_files(tmp_path, expected, monkeypatch):
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda pid: range(3), raising=False)
    sent = []
    submitted = workers._submitted
    monkeypatch.setattr(workers, "_submitted", lambda *args: (sent.append(args[1]), submitted(*args))[1])
    assert written(tmp_path / "found") == expected
    assert sent


def test_a_process_that_dies_loses_nothing(tmp_path, expected, monkeypatch):
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda pid: range(2), raising=False)
    draw, own = workers._draw, os.getpid()

    def killed(*work):
        if os.getpid() != own:
            os.kill(os.getpid(), signal.SIGKILL)
        draw(*work)

    monkeypatch.setattr(workers, "_draw", killed)
    assert written(tmp_path / "found") == expected


def test_few_figures_or_one_core_need_no_process(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_submitted", None)
    with workers.saver(workers.MANY - 1) as write:
        for name, figure in figures(1):
            write(figure, tmp_path / name)
    assert (tmp_path / "picture-0.pdf").is_file()
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda pid: range(1), raising=False)
    assert len(written(tmp_path / "alone")) == 14


SCRIPT = """
import os, sys, time
from pathlib import Path
from fisherlab.plots import new_figure, workers

os.sched_getaffinity = lambda pid: range(3)
folder = Path(sys.argv[1])


def noted(figure, path):
    path.write_text(f"{os.getpid()} {'torch' in sys.modules}")
    time.sleep(float(sys.argv[2]))


workers.save = noted
with workers.saver(7) as write:
    for number in range(7):
        write(new_figure(3.0, 1.0, caption="figure"), folder / str(number))
(folder / "done").touch()
"""


@pytest.fixture
def start(tmp_path):
    """Starts a script without a guard, which draws for so many seconds a figure, in a group of its own."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    folder = tmp_path / "pictures"
    folder.mkdir()

    def started(seconds):
        command = [sys.executable, str(script), str(folder), str(seconds)]
        handled = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
        return subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=handled
        )

    return folder, started


def noted(folder):
    """(process, whether it has torch) of every figure that was begun."""
    texts = [path.read_text().split() for path in folder.iterdir() if path.name != "done"]
    return {(int(text[0]), text[1] == "True") for text in texts if text}


def alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_script_without_a_guard_runs_once_and_leaves_no_process(start):
    folder, started = start
    process = started(0.3)
    assert (process.communicate(timeout=300)[1], process.returncode) == ("", 0)
    found = noted(folder)
    assert len(found) > 1
    assert not any(torch or alive(own) for own, torch in found)


def test_an_interruption_is_answered_by_one_process_and_leaves_none(start):
    folder, started = start
    process = started(30)
    while len(noted(folder)) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode
    assert stderr.count("Traceback") == stderr.count("KeyboardInterrupt") == 1
    assert not (folder / "done").exists()
    assert not any(alive(own) for own, _ in noted(folder))
