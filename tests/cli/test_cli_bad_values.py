"""Every option of every command refuses what its configuration does not allow, in one line that names it."""

from collections.abc import Iterator
from typing import Any, get_type_hints

import click
import pytest
from annotated_types import Ge, Gt, Lt

from fisherlab import cli
from fisherlab.arguments import IsPath, OneOf, expected_fields
from fisherlab.cli.options import PlacePath
from fisherlab.comparison.config import CompareConfig
from fisherlab.figures.config import FiguresConfig
from fisherlab.representations.config import RepresentConfig
from fisherlab.traces.config import TraceConfig
from fisherlab.train.config import TrainConfig
from fisherlab.train.sweep.config import SweepConfig

MODEL = ("--model", "small_nets:small")
COMMANDS = {
    "compare": (CompareConfig, MODEL),
    "represent": (RepresentConfig, MODEL),
    "trace": (TraceConfig, MODEL),
    "train": (TrainConfig, MODEL),
    "sweep": (SweepConfig, MODEL),
    "figures": (FiguresConfig, ()),
    "report": (None, ("nowhere",)),
    "run": (None, ("nowhere.toml",)),
}
PATHS = ("", "a" * 300, "x\0y", "a/" * 3000)


def bounds_of(annotation: Any) -> Iterator[Any]:
    """What stands beside a type, and beside its parts."""
    yield from getattr(annotation, "__metadata__", ())
    for one in getattr(annotation, "__args__", ()):
        yield from bounds_of(one)


def wrong(annotation: Any, plain: Any) -> Iterator[str]:
    """Texts that the option of a field does not take."""
    for bound in bounds_of(annotation):
        match bound:
            case Ge():
                yield str(bound.ge - 1)
            case Gt():
                yield from (str(bound.gt), "nan", "inf")
            case Lt():
                yield str(bound.lt)
            case OneOf():
                yield "nope"
            case IsPath():
                yield from PATHS
    kinds = {plain, *getattr(plain, "__args__", ())}
    if int in kinds:
        yield from ("x", "1.5", "1e3")
    if float in kinds:
        yield "x"


def cases() -> Iterator[tuple[str, str, str]]:
    for name, (config, _) in COMMANDS.items():
        command = cli.main.get_command(click.Context(cli.main), name)
        fields = {} if config is None else expected_fields(config)
        plain = {} if config is None else get_type_hints(config)
        for option in command.params:
            if isinstance(option.type, PlacePath):
                yield from ((name, option.opts[0], value) for value in PATHS)
            elif option.name in fields and option.opts[0].startswith("--"):
                values = dict.fromkeys(wrong(fields[option.name], plain[option.name]))
                yield from ((name, option.opts[0], value) for value in values)


CASES = list(cases())


def test_there_is_something_to_walk():
    assert len(CASES) > 200
    assert {name for name, _, _ in CASES} == set(COMMANDS)


@pytest.mark.parametrize(
    ("command", "option", "value"), CASES, ids=[f"{c}{o}={v[:8]!r}" for c, o, v in CASES]
)
def test_a_wrong_value_is_one_line_that_names_the_option(refused, place, command, option, value):
    before = sorted(place.iterdir())
    line = refused(command, *COMMANDS[command][1], option, value)
    assert option.removeprefix("--").replace("-", "_") in line.replace("-", "_")
    assert "Error:" not in line
    assert len(line) < 500
    assert sorted(place.iterdir()) == before


@pytest.mark.parametrize(
    "command", [["report", "deep"], ["trace", "--run", "deep"], ["run", "deep/config.toml"]]
)
def test_what_is_nested_without_an_end_is_damaged(refused, place, command):
    (place / "deep").mkdir()
    (place / "deep" / "config.toml").write_text("command = 'compare'\nmodel = 'm'\nx = " + "[" * 100_000)
    for name in ("summary.json", "provenance.json"):
        (place / "deep" / name).write_text("[" * 100_000)
    assert "deep" in refused(*command)


@pytest.mark.parametrize("folder", [".", "/"])
def test_a_folder_that_is_no_run_is_not_continued(refused, place, folder):
    refused("train", "--resume", folder)
