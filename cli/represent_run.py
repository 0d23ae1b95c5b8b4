"""Representation vectors, from the configuration to the run's directory and what is printed."""

import sys
import time
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fisherlab.config import DTYPES
from fisherlab.representations.config import DEFAULT_SAMPLES, RepresentConfig

from . import rundirs
from .messages import accept, log
from .options import Output
from .printing import print_json, print_rich

if TYPE_CHECKING:
    from fisherlab.models import Prepared
    from fisherlab.representations import Representations
    from fisherlab.result import About


def perform(config: RepresentConfig, output: Output) -> None:
    """Measures representation vectors, writes the run's directory and prints the result.

    Raises:
        FisherlabError: for a configuration that cannot be run; nothing has been written then.
    """
    started = time.perf_counter()
    out = rundirs.choose(output.out, config.command, config.model, force=output.force)
    with redirect_stdout(sys.stderr):  # a model of the user's own may print
        config = config.resolved()
        prepared = _prepare(config, output.progress)
        result = _represent(config, prepared, output.progress)
        summary = _write(_as_used(config, prepared), result, out, output, started)
    if output.as_json:
        print_json(summary)
        return
    print_rich(result.table())
    click.echo(f"run directory: {out}")


def _prepare(config: RepresentConfig, progress: bool) -> "Prepared":
    import torch

    from fisherlab import models
    from fisherlab.progress import bar

    _check_layers(config)
    own_data = ":" in config.model and config.data is None
    with bar(progress and config.checkpoint is None, "preparing the model", None) as report:
        prepared = models.prepare(
            config.model,
            seed=config.seed,
            checkpoint=config.checkpoint,
            data=config.data,
            data_dir=config.data_dir,
            samples=config.samples or (None if own_data else DEFAULT_SAMPLES),
            dtype=None if config.dtype is None else getattr(torch, config.dtype),
            device=config.device,
            progress=lambda done, steps: report(done),
        )
    if config.checkpoint is None and ":" not in config.model:
        log.info("no checkpoint was given; weights of %s: %s", config.model, prepared.checkpoint)
    return prepared


def _check_layers(config: RepresentConfig) -> None:
    """Refuses unknown layers of a built-in model before it is trained."""
    from fisherlab import models
    from fisherlab.layers import find_layers
    from fisherlab.models.seeding import seeded

    if ":" not in config.model:
        find_layers(seeded(models.spec(config.model).build, config.seed), config.layers)


def _represent(config: RepresentConfig, prepared: "Prepared", progress: bool) -> "Representations":
    import torch

    from fisherlab.representations import represent

    return represent(
        prepared.model,
        prepared.data,
        config.likelihood or prepared.likelihood,
        config.layers,
        generator=torch.Generator().manual_seed(config.seed),
        progress=progress,
        about=_about(config, prepared),
        on_start=accept,
    )


def _about(config: RepresentConfig, prepared: "Prepared") -> "About":
    from fisherlab.result import About

    dataset, checkpoint = prepared.dataset, prepared.checkpoint
    if config.checkpoint is not None and Path(checkpoint).is_relative_to(Path.cwd()):
        checkpoint = str(Path(checkpoint).relative_to(Path.cwd()))
    return About(
        model=prepared.name,
        dataset=dataset.label,
        checkpoint=checkpoint,
        step=prepared.step,
        seed=config.seed,
        checksum=dataset.checksum,
        stand_in=bool(dataset.stand_in),
        checkpoint_hash=prepared.checkpoint_hash or None,
    )


def _as_used(config: RepresentConfig, prepared: "Prepared") -> RepresentConfig:
    """The configuration with what the model and its data decided."""
    likelihood = prepared.likelihood if isinstance(prepared.likelihood, str) else None
    dtype = str(next(prepared.model.parameters()).dtype).removeprefix("torch.")
    return replace(
        config,
        data=None if prepared.dataset.name == config.model else prepared.dataset.name,
        samples=len(prepared.dataset),
        likelihood=config.likelihood or likelihood,
        dtype=dtype if dtype in DTYPES else None,
    )


def _write(
    config: RepresentConfig, result: "Representations", out: Path, output: Output, started: float
) -> dict[str, Any]:
    """Writes the run's directory; returns what `summary.json` holds."""
    from fisherlab.progress import bar
    from fisherlab.representations.files import write_representations
    from fisherlab.rundir import run_directory

    summary = {
        "command": config.command,
        "inputs": config.to_dict(),
        "directory": str(out),
        **result.summary(),
    }
    with run_directory(out, force=output.force) as part, bar(output.progress, "pictures", None) as report:
        (part / "config.toml").write_text(config.to_toml(), encoding="utf-8")
        write_representations(result, part, summary, started=started, report=report)
    return summary
