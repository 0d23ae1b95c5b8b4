"""A short form of `python -m torture`, in a process of its own, which forks."""

import json
import subprocess
import sys
from pathlib import Path


def test_nothing_breaks():
    command = [sys.executable, "-m", "torture", "--short"]
    ended = subprocess.run(
        command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=600
    )
    tallies = json.loads(ended.stdout)
    assert sum(tally["tries"] for tally in tallies) > 100
    assert [failure for tally in tallies for failure in tally["failures"]] == [], ended.stderr
