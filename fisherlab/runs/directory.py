"""A run's directory: written beside its name and renamed at the end, so one that exists is complete."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fisherlab.errors import FisherlabError, InputError


@contextmanager
def run_directory(out: Path, *, force: bool = False) -> Iterator[Path]:
    """Yields `OUT.part` to write into, and renames it to `OUT` at the end.

    Where the work fails or is interrupted, `OUT.part` is removed and an `OUT` that was there stays as it was.

    Args:
        out: the directory that the run is to have.
        force: whether an `OUT` that exists may be replaced.

    Raises:
        InputError: where `OUT` exists and holds something.
    """
    check_free(out, force=force)
    part = out.with_name(out.name + ".part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    except OSError as error:
        raise InputError(
            f"cannot write {str(out)!r} ({error.strerror or error}); choose another directory"
        ) from error
    try:
        yield part
        if out.exists():
            shutil.rmtree(out)
        part.rename(out)
    except OSError as error:
        raise FisherlabError(f"cannot write {str(out)!r}: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_free(out: Path, *, force: bool = False) -> None:
    """Raises `InputError` where a run may not be written to `out`."""
    if out.is_file():
        raise InputError(f"{str(out)!r} is a file; choose another directory")
    if Path.cwd().resolve().is_relative_to(out.resolve()):
        raise InputError(f"{str(out)!r} holds the working directory; choose a directory of its own")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not force:
        raise InputError(
            f"the directory {str(out)!r} exists already; choose another, or delete it "
            "(a command takes --force)"
        )
    if not (out / "provenance.json").is_file():
        raise InputError(f"the directory {str(out)!r} holds no finished run to replace; choose another")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON that any reader accepts: NaN and infinity are an error, not a word."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
