import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fisherlab.cli import main

MODELS = """
    import time

    import torch
    from torch import nn


    def _made(samples=32):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3, bias=False))
        return model, torch.randn(samples, 6), torch.arange(samples) % 3


    def small():
        model, inputs, targets = _made()
        return model, (inputs, targets), "categorical"


    def talkative():
        print("a model that talks")
        return small()


    def empty():
        model, inputs, targets = _made()
        return model, (inputs[:0], targets[:0]), "categorical"


    def nan_inputs():
        model, inputs, targets = _made()
        inputs[7, 2] = float("nan")
        return model, (inputs, targets), "categorical"


    def narrow():
        model, inputs, targets = _made()
        return model, (inputs[:, :5], targets), "categorical"


    def nan_weights():
        model, inputs, targets = _made()
        model[0].weight.data[1, 1] = float("nan")
        return model, (inputs, targets), "categorical"


    def wrong_labels():
        model, inputs, targets = _made()
        return model, (inputs, targets + 1), "categorical"


    def warns():
        import logging, warnings

        logging.getLogger("fisherlab").warning("a notice")
        warnings.warn("a warning")
        return nan_inputs()


    class Broken(nn.Linear):
        def forward(self, x):
            raise ZeroDivisionError("in the model")


    def broken():
        model, inputs, targets = _made()
        return nn.Sequential(model[0], Broken(5, 3)), (inputs, targets), "categorical"


    class Slow(nn.Linear):
        def forward(self, x):
            open("working", "w").close()
            time.sleep(60)
            return super().forward(x)


    def slow():
        model, inputs, targets = _made()
        return nn.Sequential(model[0], Slow(5, 3)), (inputs, targets), "categorical"
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, home: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a module of small models, an empty cache and no network."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "small_nets.py").write_text(textwrap.dedent(MODELS))
    monkeypatch.chdir(work)
    monkeypatch.delitem(sys.modules, "small_nets", raising=False)
    return work


Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    """Runs the command line in this process; it ends with the exit code that is given, if one is."""

    def invoke(*arguments: str, code: int | None = None) -> Result:
        result = CliRunner().invoke(main, list(arguments))
        assert code in (None, result.exit_code), result.output
        return result

    return invoke


@pytest.fixture
def refused(run: Run) -> Callable[..., str]:
    """Runs the command line on bad input; gives its one line on stderr, where nothing else is printed."""

    def invoke(*arguments: str) -> str:
        result = run(*arguments, code=2)
        assert not result.stdout
        (line,) = result.stderr.splitlines()
        assert line.startswith("fisherlab: error: ")
        return line

    return invoke


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the pictures, which take most of the time of a small run."""
    monkeypatch.setattr("fisherlab.comparison.pictures.figures", lambda *arguments: iter(()))


def _interruptible() -> None:
    """Signals as from a terminal: a shell that runs the tests in the background has the first ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the command line as a process of its own."""
    started: list[subprocess.Popen[str]] = []

    def launch(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "fisherlab", *arguments]
        pipe = subprocess.PIPE
        started.append(
            subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, preexec_fn=_interruptible)
        )
        return started[-1]

    yield launch
    for process in started:
        process.kill()
        process.communicate()
