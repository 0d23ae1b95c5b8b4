"""The numbers of a run's log for TensorBoard, where it is installed."""

import importlib.util
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fisherlab.errors import InputError

FOLDER = "tensorboard"
_WHERE = ("kind", "step", "epoch", "seconds", "layers")
_FLUSH_SECONDS = 10  # a choice: what a crash may lose, against a write a step


class Board:
    """Event files in `tensorboard/`, written beside `log.jsonl`.

    Args:
        folder: the run's directory.
        step: events of later steps, from before an interruption, are hidden; at step 0 all are.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(
            str(folder / FOLDER), purge_step=step + 1 if step else 0, flush_secs=_FLUSH_SECONDS
        )

    def write(self, line: Mapping[str, Any]) -> None:
        """The numbers of a line of the log, at its step."""
        for tag, value in scalars(line):
            self._writer.add_scalar(tag, value, line["step"])

    def close(self) -> None:
        """Closes the files."""
        self._writer.close()


def scalars(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Names and finite numbers of a line of the log: `step/loss`, `evaluation/accuracy`, `layers/rate/4`."""
    for name, value in line.items():
        if name not in _WHERE and _is_number(value):
            yield f"{line['kind']}/{name}", value
    for row in line.get("layers", ()):
        for name, value in row.items():
            if _is_number(value):
                yield f"layers/{name}/{row['layer']}", value


def check_installed() -> None:
    """Raises `InputError` where TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise InputError(
            "tensorboard needs the package of that name, which is not installed: pip install tensorboard"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
