"""log.jsonl: a line a step or an evaluation, and nothing of steps that an interruption undid."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fisherlab.base.writing import write
from fisherlab.errors import FisherlabError
from fisherlab.train.run.board import Board

NAME = "log.jsonl"


class Log:
    """Appends lines to `log.jsonl`; each is on its way to the disk when `write` returns.

    Args:
        folder: the run's directory.
        step: lines of later steps are dropped, as is a line that was cut off; at step 0 all are.
        tensorboard: whether the numbers are written for TensorBoard too.

    Raises:
        FisherlabError: where the file cannot be written.
    """

    def __init__(self, folder: Path, step: int, *, tensorboard: bool = False) -> None:
        self._path = folder / NAME
        self._board = Board(folder, step) if tensorboard else None
        begun = step > 0 and self._path.exists()
        kept = [line for line in read(folder) if line["step"] <= step] if begun else []
        try:
            write(self._path, "".join(map(_text, kept)).encode())
            self._file = self._path.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise self._failed(error) from error

    def write(self, line: Mapping[str, Any]) -> None:
        """Appends a line.

        Raises:
            FisherlabError: where this cannot be done.
        """
        try:
            self._file.write(_text(line))
        except OSError as error:
            raise self._failed(error) from error
        if self._board:
            self._board.write(line)

    def close(self) -> None:
        """Closes the file."""
        if self._board:
            self._board.close()
        try:
            self._file.close()
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> FisherlabError:
        return FisherlabError(
            f"cannot write {str(self._path)!r}: {error.strerror or error}; mend this and continue with "
            "--resume"
        )


def read(folder: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a run's log."""
    with (folder / NAME).open(encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue
            if isinstance(line, dict) and "step" in line:
                yield line


def finite(value: Any) -> Any:
    """The value with None in the place of numbers that JSON does not know."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(one) for key, one in value.items()}
    return [finite(one) for one in value] if isinstance(value, list | tuple) else value


def _text(line: Mapping[str, Any]) -> str:
    return json.dumps(finite(line), ensure_ascii=False, allow_nan=False) + "\n"
