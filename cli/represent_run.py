"""Representation vectors, from the configuration to the run's directory and what is printed."""

import sys
import time
from contextlib import redirect_stdout
from typing import TYPE_CHECKING

from fisherlab.representations.config import DEFAULT_SAMPLES, RepresentConfig

from . import preparing, rundirs
from .messages import accept
from .options import Output
from .printing import print_result

if TYPE_CHECKING:
    from fisherlab.models import Prepared
    from fisherlab.representations import Representations


def perform(config: RepresentConfig, output: Output) -> None:
    """Measures representation vectors; of several processes the first writes the directory and prints.

    Raises:
        FisherlabError: for a configuration that cannot be run; nothing has been written then.
    """
    from fisherlab.base import distributed

    with distributed.launched():
        _perform(config, output, first=distributed.rank() == 0)


def _perform(config: RepresentConfig, output: Output, first: bool) -> None:
    started = time.perf_counter()
    with (
        rundirs.claimed(output, config.command, config.model) as part,
        redirect_stdout(sys.stderr),  # a model of the user's own may print
    ):
        config = config.resolved()
        own_data = ":" in config.model and config.data is None
        samples = config.samples or (None if own_data else DEFAULT_SAMPLES)
        progress = output.progress and first
        prepared = preparing.prepare(config, samples=samples, bias="joint", progress=progress)
        result = _represent(config, prepared, progress)
        if not first:
            return
        dtype = str(next(prepared.model.parameters()).dtype).removeprefix("torch.")
        used = preparing.as_used(config, prepared, dtype)
        summary = rundirs.write(used, result, part, output, started)
    print_result(result, summary, part.out, as_json=output.as_json)


def _represent(config: RepresentConfig, prepared: "Prepared", progress: bool) -> "Representations":
    import torch

    from fisherlab.representations import represent

    return represent(
        prepared.model,
        prepared.data,
        config.likelihood or prepared.likelihood,
        config.layers,
        output=config.model_output,
        exclude=config.exclude,
        strict=config.strict,
        generator=torch.Generator().manual_seed(config.seed),
        progress=progress,
        about=preparing.about(config, prepared),
        on_start=accept,
    )
