"""The names that a run's directory has, and whether it may have them."""

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fisherlab.errors import InputError

CONFIG = "config.toml"
PART = ".part"


class TakenError(InputError):
    """There is something at a directory's name already."""


def part_of(out: Path) -> Path:
    """`OUT.part`, where a run is written until it ends."""
    return out.with_name(out.name + PART)


def numbered(out: Path) -> Iterator[Path]:
    """The path, then the same with -2, -3 and so on."""
    return itertools.chain([out], (out.with_name(f"{out.name}-{count}") for count in itertools.count(2)))


def check_free(out: Path, *, force: bool = False) -> None:
    """Raises `InputError` where a run may not be written to `out`."""
    if out.is_symlink():
        raise TakenError(f"{str(out)!r} is a link; give the directory that it leads to, or another one")
    if out.exists() and not out.is_dir():  # a device such as /dev/null would be replaced
        raise TakenError(f"{str(out)!r} is no directory but a file; choose another name")
    if Path.cwd().resolve().is_relative_to(out.resolve()):
        raise InputError(f"{str(out)!r} holds the working directory; choose a directory of its own")
    if out.name in ("", ".."):
        raise InputError(f"{str(out)!r} does not end in a name; give the directory by its own name")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not force:
        raise TakenError(
            f"the directory {str(out)!r} exists already; choose another, or delete it "
            "(a command takes --force)"
        )
    if not (out / "provenance.json").is_file():
        raise TakenError(f"the directory {str(out)!r} holds no finished run to replace; choose another")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON that any reader accepts: NaN and infinity are an error, not a word."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
