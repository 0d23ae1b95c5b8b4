"""A disk that fills at any byte: one line that says so, nothing half-written, and what was there stays."""

import random
from pathlib import Path

from torture.trials import Child, Tally, fisherlab, fresh, listing, run

_COMMANDS = {
    "compare": ("compare", "--model", "torture.nets:mlp", "--no-spectra", "-q", "--out", "run"),
    "represent": ("represent", "--model", "torture.nets:mlp", "-q", "--out", "run"),
    "train": ("train", "--model", "torture.nets:mlp", "--epochs", "2", "--batch", "16", "-q", "--out", "run"),
    "trace": ("trace", "--model", "torture.nets:mlp", "-q", "--out", "run"),
}


def full(place: Path, tries: int, dice: random.Random) -> list[Tally]:
    """Files may not grow beyond a random number of bytes, below what the largest file of a whole run has."""
    return [_full(place, command, tries // len(_COMMANDS), dice) for command in _COMMANDS]


def _full(place: Path, command: str, tries: int, dice: random.Random) -> Tally:
    tally = Tally(f"{command}: no space for a file from some byte on")
    arguments = _COMMANDS[command]
    with fresh(place, "whole") as folder:
        whole = run(folder, *arguments)
        if whole.code:
            tally.count(str(whole))
            return tally
        files = listing(folder)
        sizes = sorted(path.stat().st_size for path in (folder / "run").rglob("*") if path.is_file())
    while tally.tries < tries:
        largest = dice.choice([0, 1, *(size - 1 for size in sizes), dice.randrange(sizes[-1])])
        with fresh(place, "full") as folder:
            (folder / "kept").write_text("a file of someone else")
            ended = Child(fisherlab(*arguments), folder, largest).ended()
            left = {name for name in listing(folder) if not name.startswith("run.part")} - {"kept"}
            resumable = command == "train" and (folder / "run.part" / "config.toml").is_file()
            if not ended.code and listing(folder) == files | {"kept"}:
                continue  # its files are a few bytes smaller this time, and all fit
            if not ended.refused:
                tally.count(f"{largest} bytes: {ended}")
            elif left:
                tally.count(f"{largest} bytes: left behind {sorted(left)}")
            elif (folder / "run.part").exists() and not resumable:
                tally.count(f"{largest} bytes: run.part is left behind")
            elif (folder / "run.part").exists() and "--resume" not in ended.err:
                tally.count(f"{largest} bytes: the run could be continued, and {ended} does not say so")
            else:
                tally.count()
    return tally
