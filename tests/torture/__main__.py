"""Everything that should not break, tried at length: `python -m torture` from the folder of the tests.

Writes docs/results/reliability.md; with --short it takes less than a minute and writes nothing.
"""

import argparse
import json
import os
import platform
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partialmethod
from itertools import islice
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before torch is imported: a process that forks has one thread
os.environ["FISHERLAB_OFFLINE"] = "1"

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "reliability.md"
Part = Callable[[Path, random.Random, bool], "Iterator[object]"]


def _kills(place: Path, dice: random.Random, short: bool) -> Iterator[object]:
    from torture import kills

    for part, tries in ((kills.training, 80), (kills.statistics, 50), (kills.compare, 50), (kills.sweep, 20)):
        if part is not kills.sweep or not short:  # whose trials are processes that import torch anew
            yield part(place, 2 if short else tries, dice)


def _files(place: Path, dice: random.Random, short: bool) -> Iterator[object]:
    from torture import files

    yield from files.files(place, 120 if short else 800, dice)


def _crowd(place: Path, dice: random.Random, short: bool) -> Iterator[object]:
    from torture import crowd

    for part in (crowd.default_names, crowd.one_name):
        yield part(place, 3 if short else 8, 1 if short else 4)


def _disk(place: Path, dice: random.Random, short: bool) -> Iterator[object]:
    from torture import disk

    yield from disk.full(place, 4 if short else 100, dice)


def _inputs(place: Path, dice: random.Random, short: bool) -> Iterator[object]:
    from torture import inputs

    yield inputs.functions(100 if short else 3000)
    yield inputs.options(place, 20 if short else 1000)


PARTS: dict[str, Part] = {
    "kills": _kills,
    "files": _files,
    "inputs": _inputs,
    "crowd": _crowd,
    "disk": _disk,
}


def main() -> int:
    """Runs the parts asked for; returns 1 where anything failed."""
    parser = argparse.ArgumentParser(prog="python -m torture", description=__doc__)
    parser.add_argument(
        "parts", nargs="*", default=list(PARTS), metavar="PART", help=f"of {', '.join(PARTS)}"
    )
    parser.add_argument("--short", action="store_true", help="few tries; prints JSON and writes nothing")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the damages")
    asked = parser.parse_args()
    _import_all()
    if asked.short:
        _with_one_picture()
    begun, tallies = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as place:
        os.environ["XDG_CACHE_HOME"] = str(Path(place, "cache"))
        os.environ["HOME"] = place
        for name in asked.parts:
            for tally in PARTS[name](Path(place), random.Random(f"{name} {asked.seed}"), asked.short):
                print(f"{tally.what}: {tally.tries} tries, {len(tally.failures)} failures", file=sys.stderr)
                tallies.append(tally)
    if asked.short:
        print(json.dumps([asdict(tally) for tally in tallies]))
    elif asked.parts == list(PARTS):
        RESULTS.write_text(_table(tallies, time.perf_counter() - begun, asked.seed), encoding="utf-8")
    return int(any(tally.failures for tally in tallies))


def _import_all() -> None:
    """What the commands import when they need it, so that a fork has it."""
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    import matplotlib.figure  # noqa: F401
    import optuna  # noqa: F401
    import pandas  # noqa: F401
    import scipy.linalg  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import torch

    import fisherlab.cli
    import fisherlab.comparison.run
    import fisherlab.representations.result
    import fisherlab.traces.result
    import fisherlab.train  # noqa: F401

    torch.set_num_threads(1)


def _with_one_picture() -> None:
    """Leaves out most pictures, which take most of the time of a small run."""
    from fisherlab.comparison.result import Comparison
    from fisherlab.representations.result import Representations
    from fisherlab.traces.result import Traces

    for kind in (Comparison, Representations, Traces):
        kind.figures = partialmethod(_first, kind.figures)  # type: ignore[method-assign]


def _first(result: object, figures: Callable[[object], Iterator[object]]) -> Iterator[object]:
    return islice(figures(result), 1)


def _table(tallies: list, seconds: float, seed: int) -> str:
    import torch

    lines = [
        "# Reliability",
        "",
        "What should not break, tried at length by `cd tests && python -m torture`: runs are killed with",
        "SIGKILL at random moments, files are damaged or replaced by foreign ones, runs start at once in one",
        "folder, files cannot grow beyond a random byte. Tests run a short form of it.",
        "",
        f"Seed {seed}; {platform.machine()}, {_processor()}, {os.cpu_count()} cores; Python "
        f"{platform.python_version()}, torch {torch.__version__}; {seconds / 60:.0f} min.",
        "",
        "| what | tries | failures |",
        "|---|---:|---:|",
        *(f"| {tally.what} | {tally.tries} | {len(tally.failures)} |" for tally in tallies),
        f"| **all** | {sum(t.tries for t in tallies)} | {sum(len(t.failures) for t in tallies)} |",
    ]
    failed = [f"- {tally.what}: {failure}" for tally in tallies for failure in tally.failures]
    return "\n".join([*lines, *(["", "Failures:", "", *failed] if failed else []), ""])


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    sys.exit(main())
