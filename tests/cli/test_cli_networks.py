"""Models of one's own that take inputs by name and return several things, from the command line."""

import json
from pathlib import Path

import pytest

from cli.compare import command
from cli.messages import as_options, speak_of

SEVERAL = """
import torch
from torch import nn
from torch.utils.data import DataLoader


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, x, doubled=False):
        hidden = torch.tanh(self.first(2 * x if doubled else x))
        return {"hidden": hidden, "scores": self.last(hidden)}


def factory():
    rows = [{"x": torch.randn(4), "labels": torch.tensor(n % 3)} for n in range(12)]
    return Several(), DataLoader(rows, batch_size=5)
"""


@pytest.fixture(autouse=True)
def several(place) -> None:
    (place / "several.py").write_text(SEVERAL)


@pytest.mark.parametrize("command", ["compare", "represent", "trace"])
def test_an_output_is_named_and_the_run_can_be_repeated(run, command):
    few = ["--samples", "10"] + (["--approximations", "kfac"] if command != "represent" else [])
    run(command, "--model", "several:factory", *few, "--output", "scores", "--out", "one", code=0)
    assert 'model_output = "scores"' in Path("one/config.toml").read_text()
    assert json.loads(Path("one/provenance.json").read_text())["output"] == "scores of dict"
    run("run", "one/config.toml", "--out", "two", code=0)
    assert Path("one/config.toml").read_text() == Path("two/config.toml").read_text()


@pytest.mark.parametrize("optimizer", ["kfac", "sgd"])
def test_a_training_has_the_output_that_is_named(run, refused, optimizer):
    """A run that is traced later, and the trainings of a sweep, have it too."""
    own = ("--model", "several:factory", "--optimizer", optimizer, "--epochs", "1")
    assert "say which with --output" in refused("train", *own)
    run("train", *own, "--output", "scores", "--lr", "0.01", "--out", "trained", code=0)
    assert 'model_output = "scores"' in Path("trained/config.toml").read_text()
    run("trace", "--run", "trained", "--approximations", "kfac", "--out", "traced", code=0)
    assert 'model_output = "scores"' in Path("traced/config.toml").read_text()
    hidden = ("--output", "hidden", "--lr", "0.01", "--out", "other")
    run("train", *own, *hidden, code=0)
    losses = [Path(name, "log.jsonl").read_text() for name in ("trained", "other")]
    assert losses[0] != losses[1]


def test_without_a_name_the_outputs_are_listed_in_one_line(refused):
    line = refused("compare", "--model", "several:factory", "--approximations", "kfac")
    assert "several tensors (hidden [2, 3], scores [2, 3]); say which with --output" in line


def test_what_is_said_is_said_in_the_options_of_the_command(refused):
    """Arguments of the package are options here, with their values as they are given."""
    own = ("--model", "several:factory", "--approximations", "kfac")
    line = refused("compare", *own, "--output", "scores", "--exclude", "*")
    assert "--exclude * leaves out all of the 2 layers; name fewer with --exclude" in line
    assert "--output nope is not in the model's dict" in refused("compare", *own, "--output", "nope")
    line = refused("trace", "--model", "several:factory", "--exclude", "first", "--exclude", "last")
    assert "--exclude first,last leaves out all" in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("leave it out with exclude=, or not", "leave it out with --exclude, or not"),
        ("give exclude=('a', 'b.c')\n or max_columns=3.", "give --exclude a,b.c or --max-columns 3."),
        ("as strict=True does; use kind='monte-carlo'", "as --strict does; use --kind monte-carlo"),
        ("use method='gram', batch_dim=1", "use method='gram', batch_dim=1"),  # no options of the command
        ("not 'exclude=a' (f(output == 3, x.memory=2))", "not 'exclude=a' (f(output == 3, x.memory=2))"),
    ],
)
def test_arguments_are_told_as_options(text, expected):
    speak_of(command)
    try:
        assert as_options(text) == expected
    finally:
        speak_of(None)
    assert as_options(text) == " ".join(text.split())
