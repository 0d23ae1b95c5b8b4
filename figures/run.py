"""All figures and tables asked for, one after the other, into one directory that can be continued."""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from fisherlab.errors import FisherlabError, InputError
from fisherlab.runs.config import read_config
from fisherlab.runs.directory import CONFIG, write_json
from fisherlab.runs.origin import provenance
from fisherlab.runs.part import Names, RunPart

from .catalogue import Exhibit, chosen
from .config import FiguresConfig
from .method_runs import MethodRuns, OnTrainingStep
from .scales import SCALES
from .workshop import Workshop

log = logging.getLogger("fisherlab")

RUNS = "runs"


def make(
    config: FiguresConfig,
    out: Names,
    *,
    force: bool = False,
    report: OnTrainingStep = lambda what, step, steps: None,
    accepted: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Makes figures and tables with the runs they need, and writes the directory.

    It is `OUT.part` until all is there. One that was interrupted is continued: its finished runs are used.

    Args:
        config: what to make.
        out: the directory, or names for it (`Names`).
        force: whether one that is there may be replaced.
        report: is told of each training step.
        accepted: is called once the configuration has proved right, and may be called again.

    Returns:
        What `summary.json` holds.

    Raises:
        InputError: for a configuration that cannot be used, or a directory that is taken.
        FisherlabError: where some of them could not be made; the others have been written.
    """
    started = time.perf_counter()
    config = config.resolved()
    part = _opened(config, out, force=force)
    out = part.out

    def told(what: str, step: int, steps: int) -> None:
        accepted()
        report(what, step, steps)

    try:
        workshop = _workshop(config, part.path, told)
        made, failed = _all_made(chosen(config.names), workshop)
        accepted()
        if not made:
            raise next(iter(failed.values()))
        summary = _write(config, part.path, out, made, failed, started)
        part.finish()
    finally:
        _close(part)
    if failed:
        reasons = "; ".join(f"{name}: {error}" for name, error in failed.items())
        raise FisherlabError(
            f"{len(made)} of {len(made) + len(failed)} were made, in {str(out)!r}; the rest failed: {reasons}"
        )
    return summary


def _opened(config: FiguresConfig, out: Names, *, force: bool) -> RunPart:
    """`OUT.part`, empty or as an interruption left it.

    Raises:
        InputError: where it was left by other workshop.
    """
    part = RunPart.claim(out, force=force, go_on=True)
    try:
        if force or not part.begun:
            part.begin(config)
            return part
        begun = read_config(part.path / CONFIG, FiguresConfig)
        if (begun.scale, begun.seed) != (config.scale, config.seed):
            raise InputError(
                f"{str(part.path)!r} was begun with scale {begun.scale} and seed {begun.seed}; give these, "
                "choose another --out, or --force"
            )
    except BaseException:
        part.release()
        raise
    log.info("continuing %s", part.path)
    return part


def _close(part: RunPart) -> None:
    """Leaves a directory that can be continued; one without any run is removed."""
    if part.path.is_dir() and not any((part.path / RUNS).glob("*")):
        part.discard()
    else:
        part.release()


def _workshop(config: FiguresConfig, folder: Path, report: OnTrainingStep) -> Workshop:
    scale = SCALES[config.scale]
    others = [] if config.runs is None else [Path(config.runs)]
    runs = MethodRuns(
        folder / RUNS,
        others,
        seed=config.seed,
        device=config.device,
        data_dir=config.data_dir,
        report=report,
    )
    return Workshop(scale, config.seed, config.device, config.data_dir, folder, runs)


def _all_made(
    entries: tuple[Exhibit, ...], workshop: Workshop
) -> tuple[dict[str, dict[str, Any]], dict[str, FisherlabError]]:
    """The numbers of each, and the errors of those that could not be made."""
    made: dict[str, dict[str, Any]] = {}
    failed: dict[str, FisherlabError] = {}
    for entry in entries:
        log.info("%s: %s", entry.name, entry.title)
        started = time.perf_counter()
        try:
            numbers = entry.make(workshop)
        except FisherlabError as error:
            if len(entries) == 1:
                raise
            log.warning("%s could not be made: %s", entry.name, error)
            failed[entry.name] = error
            continue
        made[entry.name] = {"seconds": round(time.perf_counter() - started, 3), **numbers}
    return made, failed


def _write(
    config: FiguresConfig,
    folder: Path,
    out: Path,
    made: Mapping[str, dict[str, Any]],
    failed: Mapping[str, FisherlabError],
    started: float,
) -> dict[str, Any]:
    """Configuration, summary and provenance; returns the summary."""
    data = sorted({name for numbers in made.values() for name in numbers.get("data", ())})
    summary = {
        "command": FiguresConfig.command,
        "inputs": config.to_dict(),
        "directory": str(out),
        "made": made,
        "failed": {name: str(error) for name, error in failed.items()},
        "files": sorted(
            path.name for path in folder.iterdir() if path.suffix in (".png", ".pdf", ".csv", ".md")
        ),
    }
    found = provenance(
        device=str(torch.device(config.device)),
        seed=config.seed,
        dataset=", ".join(data),
        stand_in=any("stand-in" in name for name in data),
        checksum=None,
        checkpoint={"name": RUNS, "sha256": None, "step": None},
        seconds=time.perf_counter() - started,
    )
    (folder / CONFIG).write_text(config.to_toml(), encoding="utf-8")
    write_json(folder / "summary.json", summary)
    write_json(folder / "provenance.json", found)
    return summary
