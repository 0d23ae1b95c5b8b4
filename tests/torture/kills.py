"""`kill -9` at any moment: what exists is complete, and what goes on ends with the same bits."""

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from torture.trials import Child, Ended, Tally, fisherlab, fresh, listing, run

_OPTIMIZERS = ("lngd", "ekfac", "sgd", "kfac", "adam")
_MOST = 3  # kills of one run, so that most end by themselves


def _killed(work: Callable[[], int | None], folder: Path, longest: float, dice: random.Random) -> Ended:
    child = Child(work, folder)
    child.wait(dice.uniform(0, longest))
    return child.kill(with_children=True)


def training(place: Path, kills: int, dice: random.Random) -> Tally:
    """Trainings are killed and resumed; weights and log are those of a training that was not."""
    tally = Tally("training killed, resumed to the same bits")
    options = ("--epochs", "6", "--batch", "8", "--checkpoint-every", "3", "--statistics-every", "2")
    number = 0
    while tally.tries < kills:
        optimizer, model = _OPTIMIZERS[number % len(_OPTIMIZERS)], ("mlp", "images")[number % 2]
        extra = options if optimizer not in ("sgd", "adam") else options[:-2]
        start = ("train", "--model", f"torture.nets:{model}", "--optimizer", optimizer, *extra, "-q")
        with fresh(place, "whole") as folder:
            whole = run(folder, *start, "--out", "run")
            if whole.code:
                tally.count(f"{optimizer}: {whole}")
                return tally
            expected, files = _trained(folder / "run"), listing(folder)
        with fresh(place, "cut") as folder:
            tally.count(_resumed(folder, start, whole.seconds, dice, tally, expected, files))
        number += 1
    return tally


def _resumed(
    folder: Path,
    start: tuple[str, ...],
    longest: float,
    dice: random.Random,
    tally: Tally,
    expected: object,
    files: set[str],
) -> str:
    for _ in range(dice.randint(1, _MOST)):
        if (folder / "run").exists():
            break
        killed = _killed(fisherlab(*_next(folder, start)), folder, longest, dice)
        tally.tries += 1
        if killed.code > 0:
            return f"before the kill: {killed}"
    if not (folder / "run").exists():
        ended = run(folder, *_next(folder, start))
        if ended.code:
            return f"resuming: {ended}"
    if listing(folder) != files:
        return f"other files than without a kill: {sorted(listing(folder) ^ files)}"
    return "" if _trained(folder / "run") == expected else "other bits than without a kill"


def _next(folder: Path, start: tuple[str, ...]) -> tuple[str, ...]:
    """The command that goes on: what a user would type."""
    if (folder / "run").exists() or (folder / "run.part" / "config.toml").exists():
        return (start[0], "--resume", "run", "-q")
    return (*start, "--out", "run")


def _trained(folder: Path) -> object:
    sums = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((folder / "checkpoints").glob("*.safetensors"))
    }
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return sums, [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def statistics(place: Path, kills: int, dice: random.Random) -> Tally:
    """Statistics are killed and collected on; the file's bytes are those of one that was not."""
    tally = Tally("statistics killed, collected on to the same bits")

    def collect() -> None:
        from torture.nets import in_batches

        import fisherlab as fl

        model, data, _ = in_batches()
        fl.collect_statistics(model, data, approximations=("kfac", "ekfac", "lngd"), path="statistics")

    with fresh(place, "whole") as folder:
        whole = Child(collect, folder).ended()
        if whole.code:
            tally.count(str(whole))
            return tally
        expected = (folder / "statistics").read_bytes()
    while tally.tries < kills:
        with fresh(place, "cut") as folder:
            for _ in range(dice.randint(1, _MOST)):
                killed = _killed(collect, folder, whole.seconds, dice)
                tally.count("" if killed.code <= 0 else f"before the kill: {killed}")
            ended = Child(collect, folder).ended()
            if ended.code:
                tally.count(f"collecting on: {ended}", 0)
            elif listing(folder) != {"statistics"}:
                tally.count(f"left behind: {sorted(listing(folder))}", 0)
            elif (folder / "statistics").read_bytes() != expected:
                tally.count("other bits than without a kill", 0)
    return tally


def compare(place: Path, kills: int, dice: random.Random) -> Tally:
    """Comparisons are killed; a directory that exists is complete, and the next start leaves nothing else."""
    tally = Tally("compare killed: complete or not there, started again")
    start = ("compare", "--model", "torture.nets:mlp", "--no-spectra", "--out", "run", "-q")
    with fresh(place, "whole") as folder:
        whole = run(folder, *start)
        if whole.code:
            tally.count(str(whole))
            return tally
        files, numbers = listing(folder), _numbers(folder)
    while tally.tries < kills:
        with fresh(place, "cut") as folder:
            for _ in range(dice.randint(1, _MOST)):
                killed = _killed(fisherlab(*start), folder, whole.seconds, dice)
                failure = "" if killed.code <= 0 else f"before the kill: {killed}"
                if (folder / "run").exists():
                    missing = {name for name in files if name.startswith("run")} - listing(folder)
                    tally.count(failure or (f"incomplete: {sorted(missing)}" if missing else ""))
                    shutil.rmtree(folder / "run")
                else:
                    tally.count(failure)
            ended = run(folder, *start)
            if ended.code:
                tally.count(f"started again: {ended}", 0)
            elif listing(folder) != files:
                tally.count(f"left behind: {sorted(listing(folder) ^ files)}", 0)
            elif not _numbers(folder).equals(numbers):
                tally.count("other numbers than without a kill", 0)
    return tally


def _numbers(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "run" / "records.csv").drop(columns=["seconds"])


def sweep(place: Path, kills: int, dice: random.Random) -> Tally:
    """Sweeps are killed, alone or with their trials, and resumed; the table is that of one that was not."""
    tally = Tally("sweep killed, resumed to the same table")
    start = (
        "sweep",
        "--model",
        "torture.nets:mlp",
        "--optimizer",
        "sgd",
        "--lr",
        "0.1,0.01",
        "--epochs",
        "1",
    )
    with fresh(place, "whole") as folder:
        whole = run(folder, *start, "--out", "run", "-q")
        if whole.code:
            tally.count(str(whole))
            return tally
        files, table = listing(folder), _trials(folder)
    while tally.tries < kills:
        with fresh(place, "cut") as folder:
            for _ in range(dice.randint(1, _MOST)):
                if (folder / "run").exists():
                    break
                child = Child(fisherlab(*_next(folder, (*start, "-q"))), folder)
                child.wait(dice.uniform(0, whole.seconds))
                killed = child.kill(with_children=dice.random() < 0.5)
                tally.count("" if killed.code <= 0 else f"before the kill: {killed}")
            ended = run(folder, *_next(folder, (*start, "-q"))) if not (folder / "run").exists() else None
            if ended is not None and ended.code:
                tally.count(f"resuming: {ended}", 0)
            elif listing(folder) != files:
                tally.count(f"left behind: {sorted(listing(folder) ^ files)}", 0)
            elif not _trials(folder).equals(table):
                tally.count("another table than without a kill", 0)
    return tally


def _trials(folder: Path) -> pd.DataFrame:
    table = pd.read_csv(folder / "run" / "trials.csv")
    return table.drop(columns=[name for name in table if "seconds" in name])
