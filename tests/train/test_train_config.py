import math
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fisherlab.errors import InputError, InputTypeError
from fisherlab.loop.schedules import SCHEDULES
from fisherlab.runs.config import read_config
from fisherlab.train.config import PRECISIONS, TrainConfig
from fisherlab.train.recipes import with_recipe

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
RATES = st.floats(1e-6, 1e3)
CONFIGS = st.builds(
    TrainConfig,
    model=NAMES,
    data=st.none() | NAMES,
    optimizer=NAMES,
    lr=st.none() | RATES,
    damping=st.none() | RATES | st.tuples(RATES, RATES),
    options=st.dictionaries(st.sampled_from(["rate", "decay", "betas"]), NAMES | RATES | st.booleans()),
    epochs=st.none() | st.integers(1, 1000),
    batch=st.integers(1, 10**6),
    schedule=st.sampled_from(SCHEDULES),
    precision=st.sampled_from(PRECISIONS),
    augment=st.lists(NAMES, max_size=2).map(tuple),
    checkpoint_steps=st.lists(st.integers(1, 99), max_size=3).map(tuple),
    keep_best=st.booleans(),
    seed=st.integers(0, 2**63 - 1),
)


@given(CONFIGS)
def test_toml_gives_back_what_was_written(config):
    import tomllib

    values = tomllib.loads(config.to_toml())
    assert values.pop("command") == "train"
    assert TrainConfig.from_dict(values) == config


def test_resolved_writes_the_defaults_out_and_stays_so():
    config = TrainConfig(model="m", optimizer="lngd", device="cpu").resolved()
    assert (config.lr, config.momentum, config.weight_decay) == (0.1, 0.9, 0.004)
    assert (config.damping, config.statistics_every, config.epochs) == ((1e-5, 1e-2), 10, 10)
    assert config.resolved() == config
    assert TrainConfig(model="m", optimizer="adam", device="cpu").resolved().momentum is None
    assert TrainConfig(model="m", steps=7, device="cpu").resolved().epochs is None


@pytest.mark.parametrize(
    "values",
    [
        {"batch": 0},
        {"seed": -1},
        {"seed": 2**63},
        {"clip": 0.0},
        {"clip": float("inf")},
        {"label_smoothing": 1.0},
        {"schedule": "linear"},
        {"precision": "16"},
        {"epochs": 1, "steps": 1},
        {"warm_up": 1, "warm_up_epochs": 1.0},
        {"keep_last": 0},
    ],
    ids=str,
)
def test_values_out_of_range(values):
    with pytest.raises(InputError, match=next(iter(values))):
        TrainConfig(model="m", **values)


@pytest.mark.parametrize("name", [field.name for field in fields(TrainConfig)])
def test_another_type_is_refused_by_name(name):
    with pytest.raises(InputTypeError, match=f"^{name} must be "):
        TrainConfig.from_dict({"model": "m", name: {1: 2}})


def test_the_path_is_in_front_of_what_is_wrong(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('command = "train"\nmodel = "m"\nseeds = 1\n')
    with pytest.raises(InputError, match=r"c\.toml': unknown key 'seeds'; did you mean seed"):
        read_config(path, TrainConfig)
    path.write_text('command = "compare"\nmodel = "m"\n')
    with pytest.raises(InputError, match='command = "train"'):
        read_config(path, TrainConfig)
    with pytest.raises(InputError, match="check the path"):
        read_config(Path("nowhere.toml"), TrainConfig)


def test_the_recipe_is_the_protocol_of_the_paper_and_options_overrule_it():
    lngd = TrainConfig(**with_recipe("paper-cifar10", {}))
    assert (lngd.model, lngd.batch, lngd.epochs) == ("cifar-resnet18", 256, 200)
    assert (lngd.schedule, lngd.step_every, lngd.augment) == ("step", 40.0, ("crop", "flip"))
    assert (lngd.statistics_every, lngd.inverse_every, lngd.options) == (
        100,
        100,
        {"decay": 0.95, "kl_clip": math.inf},
    )
    adam = TrainConfig(**with_recipe("paper-cifar10", {"optimizer": "adam", "epochs": 3}))
    assert (adam.momentum, adam.weight_decay, adam.statistics_every, adam.epochs) == (None, 0.004, None, 3)
    assert replace(lngd, device="cpu").resolved().momentum == 0.9
    assert with_recipe("paper-cifar10", {"steps": 5}).get("epochs") is None
    with pytest.raises(InputError, match="did you mean paper-cifar10"):
        with_recipe("paper-cifar", {})
