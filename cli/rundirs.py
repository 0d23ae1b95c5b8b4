"""The directory that a run asks for."""

import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fisherlab.runs.config import Config
from fisherlab.runs.directory import numbered

from .options import Output

if TYPE_CHECKING:
    from fisherlab.runs.part import RunPart
    from fisherlab.runs.save import Result


def names(out: Path | None, command: str, model: str) -> Path | Iterable[Path]:
    """The directory as asked for; else `runs/<command>-<model>-<time>`, or the same with a number.

    Args:
        out: as asked for, or None.
        command: the name of the command.
        model: the name of the model.
    """
    if out is not None:
        return out
    name = f"{command}-{re.sub(r'[^A-Za-z0-9_.-]+', '-', model)}-{time.strftime('%Y%m%d-%H%M%S')}"
    return numbered(Path("runs", name))


def claimed(output: Output, command: str, model: str) -> "RunPart":
    """The run's directory, claimed before any work; of several processes the first writes it.

    Raises:
        InputError: where it cannot be made, holds something that may not be replaced, or is being written.
    """
    from fisherlab.runs.part import RunPart, together

    out = names(output.out, command, model)
    return together(lambda: RunPart.claim(out, force=output.force))


def write(
    config: Config,
    result: "Result",
    part: "RunPart",
    output: Output,
    started: float,
    more: Callable[[Path], None] | None = None,
) -> dict[str, Any]:
    """Writes a finished run's directory, complete or not at all; returns what its `summary.json` holds.

    Args:
        config: what was done, as `config.toml` says it.
        result: what came out; its `summary()` goes into the summary.
        part: the directory.
        output: see `Output`.
        started: `time.perf_counter()` at the start of the run.
        more: writes further files into the directory.
    """
    from fisherlab.base.progress import bar
    from fisherlab.runs.save import save_result

    with bar(output.progress, "pictures", None) as report:
        return save_result(result, part, config=config, started=started, more=more, report=report)
