from pathlib import Path

import pytest

import fisherlab.figures
from fisherlab.errors import InputError
from fisherlab.figures.catalogue import ENTRIES, TrainingExhibit, chosen
from fisherlab.figures.config import FiguresConfig
from fisherlab.figures.printed import TABLES
from fisherlab.figures.scales import METHODS, SCALES
from fisherlab.runs.config import read_config
from fisherlab.train.config import TrainConfig


def test_every_script_is_in_the_catalogue() -> None:
    folder = Path(fisherlab.figures.__file__).parent
    scripts = {p.stem for kind in ("figure", "table", "theorem") for p in folder.glob(f"{kind}_*.py")}
    own = {entry.name.replace("-", "_") for entry in ENTRIES if not isinstance(entry, TrainingExhibit)}
    assert scripts == own
    assert all(callable(entry.make) for entry in ENTRIES)


def test_every_training_has_a_task_and_a_printed_table() -> None:
    for entry in ENTRIES:
        if isinstance(entry, TrainingExhibit):
            assert entry.table in TABLES
            assert all(hasattr(scale, entry.task) for scale in SCALES.values())


def test_the_paper_is_complete() -> None:
    names = {f"figure-{n}" for n in range(1, 8)} | {f"table-{n}" for n in range(1, 7)}
    assert names | {"theorem-1", "theorem-2"} == {entry.name for entry in ENTRIES}


def test_names_are_chosen_in_the_catalogues_order() -> None:
    assert [entry.name for entry in chosen(["table-4", "figure-2", "table-4"])] == ["figure-2", "table-4"]
    assert chosen(["all"]) == chosen([]) == ENTRIES


def test_an_unknown_name_says_what_is_near() -> None:
    with pytest.raises(InputError, match="did you mean figure-1"):
        chosen(["figure1"])


@pytest.mark.parametrize("name", sorted(SCALES))
def test_every_method_of_every_scale_is_a_valid_training(name: str) -> None:
    scale = SCALES[name]
    assert scale.name == name
    for task in (scale.digits, scale.images, scale.imagenet, scale.translation):
        for method in task.rates if task else ():
            config = TrainConfig(**task.values(method)).resolved()
            assert (config.optimizer, config.lr) == (method, task.rates[method])
    assert set(METHODS) <= set(scale.images.rates)


def test_a_configuration_survives_its_file(tmp_path: Path) -> None:
    config = FiguresConfig(names=("table-4",), scale="smoke", seed=3).resolved()
    (tmp_path / "config.toml").write_text(config.to_toml())
    assert read_config(tmp_path / "config.toml", FiguresConfig) == config


@pytest.mark.parametrize(
    "values", [{"scale": "huge"}, {"names": ("figure-8",)}, {"seed": -1}, {"runs": "nowhere"}]
)
def test_values_that_cannot_be_used_are_refused(values: dict) -> None:
    with pytest.raises(InputError):
        FiguresConfig(**values)
