"""A comparison, from its configuration to its directory and what is printed."""

import sys
import time
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fisherlab.comparison.config import CompareConfig

from . import preparing, rundirs
from .messages import accept, log
from .options import Output
from .printing import print_result

if TYPE_CHECKING:
    from fisherlab.approximations import Statistics
    from fisherlab.comparison.result import Comparison
    from fisherlab.models import Prepared


def perform(config: CompareConfig, output: Output, columns: str = "chosen") -> None:
    """Runs a comparison, writes its directory and prints its result; of several processes the first does.

    Raises:
        FisherlabError: for a configuration that cannot be run; nothing has been written then.
    """
    from fisherlab.base import distributed

    with distributed.launched():
        _perform(config, output, columns, first=distributed.rank() == 0)


def _perform(config: CompareConfig, output: Output, columns: str, first: bool) -> None:
    started = time.perf_counter()
    with (
        rundirs.claimed(output, "compare", config.model) as part,
        redirect_stdout(sys.stderr),  # a model of the user's own may print
    ):
        config = config.resolved()
        prepared = preparing.prepare(
            config, samples=config.samples, bias=config.bias, progress=output.progress and first
        )
        comparison = _compare(config, prepared, output.progress and first)
        if not first:
            return
        config = preparing.as_used(config, prepared, comparison.dtype)
        from fisherlab.comparison.pictures import write_matrices

        more = partial(write_matrices, comparison) if config.save_matrices else None
        summary = rundirs.write(config, comparison, part, output, started, more)
    print_result(comparison, summary, part.out, as_json=output.as_json, columns=columns)


def _compare(config: CompareConfig, prepared: "Prepared", progress: bool) -> "Comparison":
    import torch

    from fisherlab.comparison.run import compare
    from fisherlab.exact.plans import BlockPlan
    from fisherlab.layers import find_layers

    def on_plan(plan: BlockPlan) -> None:
        accept()
        log.debug("plan: layer %s", plan)

    common: dict[str, Any] = {
        "likelihood": config.likelihood or prepared.likelihood,
        "kind": config.kind,
        "layers": find_layers(
            prepared.model, config.layers, config.exclude, bias=config.bias, masks=prepared.masks
        ),
        "output": config.model_output,
        "strict": config.strict,
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
        about=preparing.about(config, prepared),
        on_plan=on_plan,
    )


def _statistics(config: CompareConfig, prepared: "Prepared", common: dict[str, Any]) -> "Statistics | None":
    """The statistics of the file that the configuration names, collected now if there is none yet."""
    from fisherlab.approximations import collect_statistics, load_statistics
    from fisherlab.comparison.layer import WATERFALL

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
