"""The directory that a run asks for."""

import itertools
import os
import re
import time
from pathlib import Path

from fisherlab.errors import InputError
from fisherlab.rundir import check_free


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


def _new(name: str) -> Path:
    names = itertools.chain([name], (f"{name}-{count}" for count in itertools.count(2)))
    out = next(path for path in (Path("runs", name) for name in names) if not path.exists())
    _check_writable(out)
    return out


def _check_writable(out: Path) -> None:
    parents = out.absolute().parents
    above = next((path for path in parents if path.exists()), None)
    if above is None or not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"cannot make the directory {str(out)!r} in {str(above)!r}; choose another --out")
