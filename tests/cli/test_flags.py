"""The options of a command are those of its configuration."""

from dataclasses import fields

import pytest

from fisherlab.cli import figures, sweep, train
from fisherlab.cli.flags import given_values
from fisherlab.figures.config import FiguresConfig
from fisherlab.runs.flags import flagged
from fisherlab.train.config import TrainConfig
from fisherlab.train.sweep.config import SweepConfig

COMMANDS = [(train, TrainConfig, ()), (sweep, SweepConfig, ("train",)), (figures, FiguresConfig, ("names",))]


@pytest.mark.parametrize(("module", "config", "others"), COMMANDS)
def test_every_field_is_an_option(module, config, others):
    names = {param.name for param in module.command.params}
    assert {field.name for field in fields(config)} - set(others) == set(flagged(config))
    assert set(flagged(config)) <= names


def test_what_is_not_given_is_not_there():
    values = train.command.make_context("train", []).params
    assert given_values(TrainConfig, {name: values[name] for name in flagged(TrainConfig)}) == {}


def test_texts_become_what_the_configuration_has():
    given = {"augment": "crop, flip", "checkpoint_steps": "3,5", "damping": "0.1", "keep_best": False}
    found = given_values(TrainConfig, {**given, "options": ("decay=0.9", "rate=fixed", "batch-dim=[0, 1]")})
    assert found == {
        "augment": ("crop", "flip"),
        "checkpoint_steps": (3, 5),
        "damping": 0.1,
        "keep_best": False,
        "options": {"decay": 0.9, "rate": "fixed", "batch_dim": (0, 1)},
    }
    assert given_values(TrainConfig, {"damping": "1e-5,1"}) == {"damping": (1e-5, 1.0)}
    assert given_values(SweepConfig, {"damping": "0.1", "seeds": "3"}) == {"damping": (0.1,), "seeds": (3,)}
