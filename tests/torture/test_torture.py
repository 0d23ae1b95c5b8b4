"""A short form of `python -m torture`, in a process of its own, which forks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("part", ["kills", "files", "crowd", "disk"])
def test_nothing_breaks(part):
    command = [sys.executable, "-m", "torture", part, "--short"]
    ended = subprocess.run(
        command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=600
    )
    tallies = json.loads(ended.stdout)
    assert sum(tally["tries"] for tally in tallies) >= 4
    assert [failure for tally in tallies for failure in tally["failures"]] == [], ended.stderr
