"""A trace, from its configuration to its directory and what is printed."""

import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from fisherlab.traces.config import TraceConfig

from . import rundirs
from .messages import accept, log
from .options import Output
from .printing import print_result

if TYPE_CHECKING:
    from fisherlab.exact.plans import BlockPlan
    from fisherlab.traces.source import Subject


def perform(config: TraceConfig, output: Output) -> None:
    """Traces a run or a model; of several processes the first writes the directory and prints.

    Raises:
        FisherlabError: for a configuration that cannot be run; nothing has been written then.
    """
    from fisherlab.base import distributed

    with distributed.launched():
        _perform(config, output, first=distributed.rank() == 0)


def _perform(config: TraceConfig, output: Output, first: bool) -> None:
    started = time.perf_counter()
    subject = Path(config.run).resolve().name if config.run else str(config.model)
    with (
        rundirs.claimed(output, "trace", subject) as part,
        redirect_stdout(sys.stderr),  # a model of the user's own may print
    ):
        progress = output.progress and first
        source = _source(config.resolved(), progress)
        traces = source.trace(progress=progress, on_plan=_accepted)
        if not first:
            return
        summary = rundirs.write(source.config, traces, part, output, started)
    print_result(traces, summary, part.out, as_json=output.as_json)


def _source(config: TraceConfig, progress: bool) -> "Subject":
    from fisherlab.base.progress import bar
    from fisherlab.traces.source import source_of

    training = progress and config.model is not None and config.checkpoint is None
    with bar(training, "preparing the model", None) as report:
        return source_of(config, lambda done, steps: report(done))


def _accepted(plan: "BlockPlan") -> None:
    accept()
    log.debug("plan: layer %s", plan)
