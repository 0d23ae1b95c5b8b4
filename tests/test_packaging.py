"""What is installed: every package is listed, and the package starts without its heavy parts."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_every_package_is_listed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found = {
        ".".join(init.parent.relative_to(ROOT).parts) for init in (ROOT / "fisherlab").rglob("__init__.py")
    }
    assert set(project["tool"]["setuptools"]["packages"]) == found | {"fisherlab.cli", "fisherlab.figures"}


def test_constraints_pin_every_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower().splitlines()
    pinned = {line.partition("==")[0].replace("_", "-") for line in lines}
    extras = [name for extra in project["optional-dependencies"].values() for name in extra]
    for requirement in project["dependencies"] + extras:
        name = requirement.partition(">=")[0].partition("[")[0]
        assert name in pinned | {"fisherlab"}


@pytest.mark.parametrize("heavy", ["torch", "numpy", "pandas", "matplotlib", "scipy"])
def test_importing_fisherlab_loads_nothing_heavy(heavy):
    code = f"import sys, fisherlab; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
