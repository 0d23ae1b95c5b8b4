"""Runs that start at once in one folder: each has a directory of its own, or is told who has it."""

import json
import re
from pathlib import Path

from torture.trials import Child, Tally, fisherlab, fresh, listing

_FILES = {"records.csv", "config.toml", "summary.json", "provenance.json", "report.html"}


def _compare(seed: int, *more: str) -> tuple[str, ...]:
    start = ("compare", "--model", "torture.nets:mlp", "--no-spectra", "-q", "--seed", str(seed))
    return (*start, "--samples", str(16 + seed), *more)


def default_names(place: Path, at_once: int, rounds: int) -> Tally:
    """Without `--out`, all end well and in as many directories."""
    tally = Tally(f"{at_once} started at once without --out")
    for _ in range(rounds):
        with fresh(place, "crowd") as folder:
            children = [Child(fisherlab(*_compare(seed)), folder) for seed in range(at_once)]
            ended = [child.ended() for child in children]
            for one in ended:
                tally.count(f"{one}" if one.code else "")
            runs = sorted((folder / "runs").iterdir())
            seeds = set()
            for path in runs:
                failure, seed = _whole(path)
                seeds.add(seed)
                tally.count(failure, 0)
            if len(seeds) != at_once or len(runs) != at_once:
                tally.count(f"{len(runs)} entries of {len(seeds)} runs: {[path.name for path in runs]}", 0)
            if listing(folder) != {str(p.relative_to(folder)) for r in runs for p in (r, *r.iterdir())} | {
                "runs"
            }:
                tally.count("other files are left behind", 0)
    return tally


def one_name(place: Path, at_once: int, rounds: int) -> Tally:
    """With one `--out`, one has it and the others are refused with its process number."""
    tally = Tally(f"{at_once} started at once into one --out")
    for _ in range(rounds):
        with fresh(place, "crowd") as folder:
            children = [Child(fisherlab(*_compare(seed, "--out", "run")), folder) for seed in range(at_once)]
            numbers = {str(child.pid) for child in children}
            ended = [child.ended() for child in children]
            won = [seed for seed, one in enumerate(ended) if not one.code]
            if len(won) != 1:
                tally.count(f"{len(won)} ended well")
                continue
            for seed, one in enumerate(ended):
                if seed == won[0]:
                    failure, found = _whole(folder / "run")
                    tally.count(failure or ("" if found == seed else f"the files are of run {found}"))
                else:
                    told = set(re.findall(r"\d+", one.err)) & numbers or "exists already" in one.err
                    good = one.refused and one.code == 2 and told
                    tally.count("" if good else f"not refused with the process number: {one}")
            if {path.name for path in folder.iterdir()} - {"__pycache__"} != {"run"}:
                tally.count(f"left behind: {sorted(path.name for path in folder.iterdir())}", 0)
    return tally


def _whole(path: Path) -> tuple[str, int]:
    """What is wrong with a run's directory, and the seed that all its files are of."""
    missing = _FILES - {one.name for one in path.iterdir()}
    if missing:
        return f"{path.name} lacks {sorted(missing)}", -1
    said = {
        json.loads((path / "summary.json").read_text(encoding="utf-8"))["seed"],
        json.loads((path / "provenance.json").read_text(encoding="utf-8"))["seed"],
        int(re.search(r"^seed = (\d+)", (path / "config.toml").read_text(encoding="utf-8"), re.M)[1]),
    }
    rows = (path / "records.csv").read_text(encoding="utf-8").splitlines()
    samples = rows[1].split(",")[rows[0].split(",").index("samples")]
    said.add(int(samples) - 16)
    return ("" if len(said) == 1 else f"{path.name} is of the runs {sorted(said)}"), min(said)
