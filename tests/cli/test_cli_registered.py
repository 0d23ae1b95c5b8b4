"""An approximation that the module of the user's model registers is known by its name."""

import csv
import sys
import textwrap
from pathlib import Path

import pytest

from fisherlab.approximations import base

NET = """
    import torch
    from torch import nn

    import fisherlab as fl

    INPUTS = torch.randn(32, 6)  # of the import: with the seed


    @fl.register_approximation
    class Twin(fl.approximations.KFAC):
        name = "twin"


    def net():
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
        return model, (INPUTS, torch.arange(32) % 3), "categorical"
"""


@pytest.fixture(autouse=True)
def own_net(place, monkeypatch, no_pictures):
    """The module `own_net`, whose registration ends with the test."""
    (place / "own_net.py").write_text(textwrap.dedent(NET))
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))
    monkeypatch.delitem(sys.modules, "own_net", raising=False)


OPTIONS = ("--approximations", "twin,kfac", "--device", "cpu", "-q")


def values(table: Path, column: str) -> dict[str, list[str]]:
    """The values of every approximation."""
    found: dict[str, list[str]] = {}
    with table.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["approximation"], []).append(row[column])
    return found


def forget() -> None:
    """As a new process would begin."""
    sys.modules.pop("own_net")
    base._REGISTRY.pop("twin")


def test_compare_knows_it(run, place):
    run("compare", "--model", "own_net:net", *OPTIONS, "--out", "c", code=0)
    found = values(place / "c" / "records.csv", "scaled_error")
    assert found["twin"] == found["kfac"]
    forget()
    run("run", "c/config.toml", "--out", "again", code=0)
    assert values(place / "again" / "records.csv", "scaled_error") == found


def test_trace_knows_it_of_a_model(run, place):
    run("trace", "--model", "own_net:net", *OPTIONS, "--out", "t", code=0)
    found = values(place / "t" / "traces.csv", "trace_approx")
    assert found["twin"] == found["kfac"]


def test_trace_knows_it_of_a_run_whose_data_are_of_its_seed(run, place):
    training = ("--steps", "2", "--batch", "8", "--seed", "5", "--device", "cpu", "-q")
    run("train", "--model", "own_net:net", *training, "--out", "r", code=0)
    forget()
    run("trace", "--run", "r", *OPTIONS, "--out", "t", code=0)
    found = values(place / "t" / "traces.csv", "trace_approx")
    assert found["twin"] == found["kfac"]


def test_without_that_module_it_is_unknown(run):
    result = run("compare", "--model", "small_nets:small", *OPTIONS, code=2)
    assert "unknown approximation 'twin'" in result.stderr
