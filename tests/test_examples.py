"""The files of examples/ run as they stand."""

import runpy
import sys
from pathlib import Path

import pytest

from fisherlab import models

EXAMPLES = Path(__file__).parent.parent / "examples"
NEEDS = {"experts": "transformers", "gpt2": "transformers", "hf_llama": "transformers", "lora": "peft"}
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_an_example_runs_and_its_factory_is_a_model(name, monkeypatch, capsys):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert capsys.readouterr().out
    monkeypatch.chdir(EXAMPLES.parent)
    try:
        prepared = models.prepare(f"examples.{name}:factory", samples=2)
    finally:
        for module in [one for one in sys.modules if one.partition(".")[0] == "examples"]:
            del sys.modules[module]
    assert len(prepared.targets) == 2
