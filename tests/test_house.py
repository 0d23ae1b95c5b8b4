"""What keeps the house in order: one meaning a class name, and a map that is true."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def house() -> ModuleType:
    spec = importlib.util.spec_from_file_location("house", ROOT / "benchmarks" / "house.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_class_name_means_one_thing(house):
    for name, places in house.class_names(house.modules()).items():
        # but a method as a matrix and as an optimizer, such as approximations.KFAC and optim.KFAC
        assert sorted(place.split(".")[1] for place in places) == ["approximations", "optim"], name


def test_the_map_is_that_of_the_import_contract(house):
    assert house.drawing() in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_every_folder_has_a_place_on_the_map(house):
    drawn = house.drawing()
    for name, path in house.modules().items():
        if name.count(".") == 1:
            shown = path.parent if path.name == "__init__.py" else path
            assert f" {shown.relative_to(ROOT)}" in drawn, name


def test_files_that_are_named_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    named = re.findall(r"`((?:fisherlab|tests|benchmarks|cli|figures)/[\w/.]+)`", text)
    assert len(named) > 25
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_circles_are_those_that_are_known(house):
    found = house.circles(house.imports(house.modules(), late=True))
    assert found == [["fisherlab.operators.base", "fisherlab.operators.dense"]]
