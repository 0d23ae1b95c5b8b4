"""The directory that a run asks for."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fisherlab.errors import InputError
from fisherlab.runs.config import Config
from fisherlab.runs.directory import check_free
from fisherlab.runs.part import numbered

from .options import Output

if TYPE_CHECKING:
    from fisherlab.runs.save import Result


def choose(out: Path | None, command: str, model: str, *, force: bool) -> Path:
    """The run's directory, checked before any work.

    Args:
        out: as asked for; None: `runs/<command>-<model>-<time>`, which does not exist yet.
        command: the name of the command.
        model: the name of the model.
        force: whether a finished run in `out` may be replaced.

    Raises:
        InputError: where `out` cannot be made, or holds something that may not be replaced.
    """
    if out is None:
        return _new(f"{command}-{re.sub(r'[^A-Za-z0-9_.-]+', '-', model)}-{time.strftime('%Y%m%d-%H%M%S')}")
    check_free(out, force=force)
    _check_writable(out)
    return out


def write(
    config: Config,
    result: "Result",
    out: Path,
    output: Output,
    started: float,
    more: Callable[[Path], None] | None = None,
) -> dict[str, Any]:
    """Writes a finished run's directory, complete or not at all; returns what its `summary.json` holds.

    Args:
        config: what was done, as `config.toml` says it.
        result: what came out; its `summary()` goes into the summary.
        out: the directory.
        output: see `Output`.
        started: `time.perf_counter()` at the start of the run.
        more: writes further files into the directory.
    """
    from fisherlab.base.progress import bar
    from fisherlab.runs.save import save_result

    options: dict[str, Any] = {"config": config, "force": output.force, "started": started, "more": more}
    with bar(output.progress, "pictures", None) as report:
        return save_result(result, out, **options, report=report)


def _new(name: str) -> Path:
    out = next(path for path in numbered(Path("runs", name)) if not path.exists())
    _check_writable(out)
    return out


def _check_writable(out: Path) -> None:
    parents = out.absolute().parents
    above = next((path for path in parents if path.exists()), None)
    if above is None or not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"cannot make the directory {str(out)!r} in {str(above)!r}; choose another --out")
