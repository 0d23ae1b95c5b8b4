"""A comparison, from its configuration to its directory and what is printed."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fisherlab.config import DTYPES, CompareConfig

from . import rundirs
from .messages import accept, log
from .options import Output
from .printing import print_json, print_rich

if TYPE_CHECKING:
    from fisherlab.approximations import Statistics
    from fisherlab.models import Prepared
    from fisherlab.result import Comparison


def perform(config: CompareConfig, output: Output) -> None:
    """Runs a comparison, writes its directory and prints its result; of several processes the first does.

    Raises:
        FisherlabError: for a configuration that cannot be run; nothing has been written then.
    """
    from fisherlab import distributed

    with distributed.launched():
        _perform(config, output, first=distributed.rank() == 0)


def _perform(config: CompareConfig, output: Output, first: bool) -> None:
    started = time.perf_counter()
    out = rundirs.choose(output.out, "compare", config.model, force=output.force)
    with redirect_stdout(sys.stderr):  # a model of the user's own may print
        config = config.resolved()
        prepared = _prepare(config, output.progress and first)
        comparison = _compare(config, prepared, output.progress and first)
        if not first:
            return
        config = _as_used(config, prepared, comparison)
        summary = _write(config, comparison, out, output, started)
    if output.as_json:
        print_json(summary)
        return
    print_rich(comparison.table())
    click.echo(f"run directory: {out}\nreport: {out / 'report.html'}")


def _prepare(config: CompareConfig, progress: bool) -> "Prepared":
    import torch

    from fisherlab import models

    _check_layers(config)
    with _training(progress) as step:
        prepared = models.prepare(
            config.model,
            seed=config.seed,
            checkpoint=config.checkpoint,
            data=config.data,
            data_dir=config.data_dir,
            samples=config.samples,
            dtype=None if config.dtype is None else getattr(torch, config.dtype),
            device=config.device,
            progress=step,
        )
    if config.checkpoint is None and ":" not in config.model:
        log.info(
            "no checkpoint was given: the weights of %s were %s", config.model, _made(prepared.checkpoint)
        )
    return prepared


def _made(checkpoint: str) -> str:
    trained = checkpoint.removeprefix("trained: ")
    return "left as initialised" if trained == checkpoint else f"trained on the spot ({trained})"


def _check_layers(config: CompareConfig) -> None:
    """Refuses unknown layers of a built-in model before it is trained."""
    from fisherlab import models
    from fisherlab.layers import find_layers
    from fisherlab.models.seeding import seeded

    if ":" not in config.model:
        model = seeded(models.spec(config.model).build, config.seed)
        find_layers(model, config.layers, bias=config.bias)


@contextmanager
def _training(progress: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar that appears with the first training step."""
    from fisherlab.progress import bar

    reports: list[Callable[[int], None]] = []
    with ExitStack() as stack:

        def step(done: int, steps: int) -> None:
            if not reports:
                reports.append(stack.enter_context(bar(progress, "training steps", steps)))
            reports[0](done)

        yield step


def _compare(config: CompareConfig, prepared: "Prepared", progress: bool) -> "Comparison":
    import torch

    from fisherlab.comparison import compare
    from fisherlab.layers import find_layers
    from fisherlab.plans import Plan
    from fisherlab.result import About

    def on_plan(plan: Plan) -> None:
        accept()
        log.debug("plan: layer %s", plan)

    dataset = prepared.dataset
    about = About(
        model=prepared.name,
        dataset=dataset.label,
        checkpoint=_shown(prepared.checkpoint, config),
        step=prepared.step,
        seed=config.seed,
        checksum=dataset.checksum,
        stand_in=bool(dataset.stand_in),
        checkpoint_hash=prepared.checkpoint_hash or None,
    )
    common: dict[str, Any] = {
        "likelihood": config.likelihood or prepared.likelihood,
        "kind": config.kind,
        "layers": find_layers(prepared.model, config.layers, bias=config.bias, masks=prepared.masks),
        "memory": config.memory,
        "max_columns": config.max_columns,
        "draws": config.draws,
        "generator": torch.Generator().manual_seed(config.seed),
        "progress": progress,
    }
    return compare(
        prepared.model,
        prepared.data,
        config.approximations,
        **common,
        spectra=config.spectra,
        statistics=_statistics(config, prepared, common),
        about=about,
        on_plan=on_plan,
    )


def _statistics(config: CompareConfig, prepared: "Prepared", common: dict[str, Any]) -> "Statistics | None":
    """The statistics of the file that the configuration names, collected now if there is none yet."""
    from fisherlab.approximations import collect_statistics, load_statistics
    from fisherlab.experiment import WATERFALL

    if config.statistics is None:
        return None
    path = Path(config.statistics)
    if path.exists():
        log.info("approximations are built from the statistics in %s", path)
        return load_statistics(path)
    names = dict.fromkeys([*config.approximations, *WATERFALL])
    generator = common["generator"].get_state()
    statistics = collect_statistics(
        prepared.model, prepared.data, approximations=list(names), path=path, **common
    )
    common["generator"].set_state(generator)
    return statistics


def _shown(checkpoint: str, config: CompareConfig) -> str:
    """The path of a checkpoint below the working directory is shown from there."""
    path = Path(checkpoint)
    inside = config.checkpoint is not None and path.is_relative_to(Path.cwd())
    return str(path.relative_to(Path.cwd())) if inside else checkpoint


def _as_used(config: CompareConfig, prepared: "Prepared", comparison: "Comparison") -> CompareConfig:
    """The configuration with what the model and its data decided."""
    own_data = prepared.dataset.name == config.model
    likelihood = prepared.likelihood if isinstance(prepared.likelihood, str) else None
    return replace(
        config,
        data=None if own_data else prepared.dataset.name,
        samples=len(prepared.dataset),
        likelihood=config.likelihood or likelihood,
        dtype=comparison.dtype if comparison.dtype in DTYPES else None,
    )


def _write(
    config: CompareConfig, comparison: "Comparison", out: Path, output: Output, started: float
) -> dict[str, Any]:
    """Writes the run's directory; returns what `summary.json` holds."""
    from fisherlab.files import write_comparison
    from fisherlab.progress import bar
    from fisherlab.rundir import run_directory

    summary = {
        "command": "compare",
        "inputs": config.to_dict(),
        "directory": str(out),
        **comparison.summary(),
    }
    with run_directory(out, force=output.force) as part, bar(output.progress, "pictures", None) as report:
        (part / "config.toml").write_text(config.to_toml(), encoding="utf-8")
        write_comparison(
            comparison,
            part,
            matrices=config.save_matrices,
            summary=summary,
            started=started,
            report=report,
        )
    return summary
