"""A finished run read back: what was done, what came out, and where it comes from."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fisherlab.errors import InputError
from fisherlab.runs.directory import CONFIG, PART, part_of

_FILES = ("summary.json", "provenance.json")


@dataclass(frozen=True)
class FinishedRun:
    """The directory of a run that has ended.

    Attributes:
        folder: the directory.
        command: what made it, for example "train".
        summary: what `summary.json` holds.
        provenance: what `provenance.json` holds.
        config: what `config.toml` holds; empty where there is none.
    """

    folder: Path
    command: str
    summary: Mapping[str, Any]
    provenance: Mapping[str, Any]
    config: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The last part of the directory's path."""
        return self.folder.resolve().name


def read_run(folder: Path) -> FinishedRun:
    """The finished run in a directory.

    Raises:
        InputError: where there is no such directory, its run has not ended, another program made it, or one
            of its files is damaged; the message names the directory or the file.
    """
    part = part_of(folder)
    if folder.name.endswith(PART):
        raise InputError(f"the run {str(folder)!r} has not ended; wait for it, or continue it")
    if not folder.exists() and part.is_dir():
        raise InputError(f"the run {str(folder)!r} has not ended (it is {str(part)!r} still); wait for it")
    if not folder.is_dir():
        raise InputError(f"{str(folder)!r} is not a directory; give that of a finished run")
    summary, provenance = (_read_json(folder, name) for name in _FILES)
    command = summary.get("command")
    if not isinstance(command, str):
        raise InputError(f"{str(folder / _FILES[0])!r} does not name a command: this is no run of fisherlab")
    return FinishedRun(folder, command, summary, provenance, _read_toml(folder / CONFIG))


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    if not path.is_file():
        raise InputError(f"{str(folder)!r} is no finished run of fisherlab: it has no {name}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from error
    if not isinstance(content, dict):
        raise InputError(f"{str(path)!r} is damaged: it does not hold a JSON object")
    return content


def _read_toml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{str(path)!r} is damaged ({type(error).__name__}); make the run again")
