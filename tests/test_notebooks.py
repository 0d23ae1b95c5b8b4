"""The notebooks: each runs to its end with its own checks, and the files of a pair hold the same cells."""

import os
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
RUNNER = Path(__file__).with_name("notebook_cells.py")
SCRIPTS = sorted(FOLDER.glob("*.py"))
SLOW = {"06_the_paper_again.py"}


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """No network, no data but the stand-in, one thread, and one cache for the trained network."""
    cache = tmp_path_factory.mktemp("cache")
    kept = {name: value for name, value in os.environ.items() if name != "FISHERLAB_DATA"}
    return {
        **kept,
        "FISHERLAB_OFFLINE": "1",
        "MPLBACKEND": "agg",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(cache),
    }


def test_there_are_notebooks():
    assert len(SCRIPTS) == 7


@pytest.mark.parametrize(
    "script",
    [pytest.param(s, id=s.stem, marks=[pytest.mark.slow] * (s.name in SLOW)) for s in SCRIPTS],
)
def test_a_notebook_runs_to_its_end_and_its_figures_can_be_drawn(script, surroundings, tmp_path):
    command = [sys.executable, str(RUNNER), str(script)]
    done = subprocess.run(command, cwd=tmp_path, env=surroundings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert int(done.stdout.split()[-1]) >= 1


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_the_two_files_of_a_notebook_hold_the_same_cells(script):
    text, notebook = (jupytext.read(path) for path in (script, script.with_suffix(".ipynb")))
    cells, paired = ([(c.cell_type, c.source) for c in one.cells] for one in (text, notebook))
    assert paired == cells
    assert not any(cell.get("outputs") for cell in notebook.cells)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_every_notebook_is_in_the_lists(script):
    for path in (FOLDER / "README.md", ROOT / "README.md"):
        assert f"{script.stem}.ipynb" in path.read_text(encoding="utf-8")
