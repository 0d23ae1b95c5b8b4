"""A model and its data from a configuration, for the commands that look at one model."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fisherlab.comparison.config import CompareConfig
from fisherlab.representations.config import RepresentConfig
from fisherlab.runs.config import DTYPES

from .messages import log

if TYPE_CHECKING:
    from fisherlab.models import Prepared
    from fisherlab.runs.origin import Origin

OneModel = TypeVar("OneModel", CompareConfig, RepresentConfig)


def prepare(config: OneModel, *, samples: int | None, bias: str, progress: bool) -> "Prepared":
    """The model in evaluation mode with its samples; a built-in one is trained where it has no weights yet.

    Args:
        config: resolved.
        samples: how many; None: the model's default.
        bias: see `find_layers`.
        progress: whether to show a bar while the model is trained.

    Raises:
        FisherlabError: where the layers, the weights or the data cannot be had.
    """
    import torch

    from fisherlab import models

    models.check_layers(config.model, config.layers, config.exclude, bias=bias, seed=config.seed)
    with _training(progress) as step:
        prepared = models.prepare(
            config.model,
            seed=config.seed,
            checkpoint=config.checkpoint,
            data=config.data,
            data_dir=config.data_dir,
            samples=samples,
            dtype=None if config.dtype is None else getattr(torch, config.dtype),
            device=config.device,
            output=config.model_output,
            progress=step,
        )
    if config.checkpoint is None and ":" not in config.model:
        log.info(
            "no checkpoint was given: the weights of %s were %s", config.model, _made(prepared.checkpoint)
        )
    return prepared


def about(config: OneModel, prepared: "Prepared") -> "Origin":
    """What records and captions call them."""
    from fisherlab.runs.origin import Origin

    return Origin.of(
        prepared.name,
        prepared.dataset,
        checkpoint=_shown(prepared.checkpoint, config.checkpoint),
        step=prepared.step,
        seed=config.seed,
        checkpoint_hash=prepared.checkpoint_hash or None,
    )


def as_used(config: OneModel, prepared: "Prepared", dtype: str) -> OneModel:
    """The configuration with what the model and its data decided."""
    own_data = prepared.dataset.name == config.model
    likelihood = prepared.likelihood if isinstance(prepared.likelihood, str) else None
    return replace(
        config,
        data=None if own_data else prepared.dataset.name,
        samples=len(prepared.dataset),
        likelihood=config.likelihood or likelihood,
        dtype=dtype if dtype in DTYPES else None,
    )


@contextmanager
def _training(progress: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar that appears with the first training step."""
    from fisherlab.base.progress import bar

    reports: list[Callable[[int], None]] = []
    with ExitStack() as stack:

        def step(done: int, steps: int) -> None:
            if not reports:
                reports.append(stack.enter_context(bar(progress, "training steps", steps)))
            reports[0](done)

        yield step


def _made(checkpoint: str) -> str:
    trained = checkpoint.removeprefix("trained: ")
    return "left as initialised" if trained == checkpoint else f"trained on the spot ({trained})"


def _shown(checkpoint: str, given: str | None) -> str:
    """The path of a checkpoint below the working directory is shown from there."""
    path = Path(checkpoint)
    inside = given is not None and path.is_relative_to(Path.cwd())
    return str(path.relative_to(Path.cwd())) if inside else checkpoint
