from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fisherlab.approximations import DEFAULT_APPROXIMATIONS
from fisherlab.base.devices import resolve_device
from fisherlab.comparison.config import CompareConfig
from fisherlab.errors import InputError, InputTypeError
from fisherlab.exact.options import BIAS_MODES, DEFAULTS
from fisherlab.layers import discovery
from fisherlab.runs.config import DTYPES, read_config

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
PATHS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
CONFIGS = st.builds(
    CompareConfig,
    model=NAMES,
    checkpoint=st.none() | PATHS,
    data=st.none() | NAMES,
    data_dir=st.none() | PATHS,
    samples=st.none() | st.integers(1, 10**9),
    layers=st.lists(NAMES, max_size=3).map(tuple),
    approximations=st.lists(NAMES, max_size=3).map(tuple),
    kind=NAMES,
    likelihood=st.none() | NAMES,
    bias=st.sampled_from(BIAS_MODES),
    memory=NAMES,
    max_columns=st.integers(1, 10**9),
    dtype=st.none() | st.sampled_from(DTYPES),
    draws=st.integers(1, 10**6),
    device=NAMES,
    seed=st.integers(0, 2**63 - 1),
    spectra=st.booleans(),
    save_matrices=st.booleans(),
)


@given(CONFIGS)
def test_toml_gives_back_what_was_written(config):
    text = config.to_toml()
    assert text.startswith('command = "compare"\n')
    assert CompareConfig.from_toml(text) == config


@given(CONFIGS)
def test_toml_holds_every_value_that_is_set(config):
    unset = {field.name for field in fields(config) if getattr(config, field.name) is None}
    assert set(config.to_dict()) == {field.name for field in fields(config)} - unset


def test_defaults_are_those_of_the_library():
    config = CompareConfig(model="mnist-mlp")
    shared = {name for name in DEFAULTS if hasattr(config, name)}
    assert shared == {"exclude", "bias", "memory", "max_columns", "draws", "strict"}
    assert all(getattr(config, name) == DEFAULTS[name] for name in shared)
    assert BIAS_MODES == discovery.BIAS_MODES
    assert config.resolved().approximations == DEFAULT_APPROXIMATIONS


def test_resolved_makes_paths_absolute_and_names_whole(place):
    config = CompareConfig(model="m", checkpoint="a/b.pt", data_dir="data", kind="type-2", device="cpu")
    expected = replace(
        config,
        checkpoint=str(place / "a" / "b.pt"),
        data_dir=str(place / "data"),
        kind="predictive",
        approximations=DEFAULT_APPROXIMATIONS,
    )
    assert config.resolved() == expected
    assert expected.resolved() == expected


@pytest.mark.parametrize(
    "values",
    [
        {"samples": 0},
        {"max_columns": 0},
        {"draws": -1},
        {"seed": -1},
        {"seed": 2**63},
        {"bias": "both"},
        {"dtype": "half"},
    ],
    ids=str,
)
def test_values_out_of_range(values):
    with pytest.raises(InputError, match=next(iter(values)).replace("_", ".")):
        CompareConfig(model="m", **values)


@pytest.mark.parametrize("field", [field.name for field in fields(CompareConfig)])
def test_another_type_is_refused_by_name(field):
    with pytest.raises(InputTypeError, match=f"^{field} must be "):
        CompareConfig.from_dict({"model": "m", field: 1.5})


def test_the_path_is_in_front_of_what_is_wrong(place):
    Path("c.toml").write_text('command = "compare"\nmodel = "m"\nseeds = 1\n')
    with pytest.raises(InputError, match=r"^in 'c\.toml': unknown key 'seeds'; did you mean seed"):
        read_config("c.toml", CompareConfig)


@pytest.mark.parametrize(
    ("gpus", "asked", "given"),
    [
        (0, "auto", "cpu"),
        (0, "cpu", "cpu"),
        (2, "auto", "cuda:0"),
        (2, "cpu", "cpu"),
        (2, "cuda", "cuda:0"),
        (2, "cuda:1", "cuda:1"),
    ],
)
def test_device(monkeypatch, gpus, asked, given):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpus > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert resolve_device(asked) == given


@pytest.mark.parametrize(
    ("gpus", "asked", "words"),
    [
        (0, "cuda", "no usable CUDA GPU"),
        (1, "cuda:1", "has 1 CUDA GPU;"),
        (2, "cuda:2", "has 2 CUDA GPUs;"),
        (2, "cuda:", "unknown device"),
        (2, "cpu:0", "unknown device"),
        (2, "gpu", "unknown device"),
    ],
)
def test_device_that_is_not_there(monkeypatch, gpus, asked, words):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpus > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    with pytest.raises(InputError, match=words):
        resolve_device(asked)
