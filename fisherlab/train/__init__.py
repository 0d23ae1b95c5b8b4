"""Training to checkpoints: loop, schedules, augmentation, log, and runs that go on after an interruption."""

import importlib
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "DivergedError": "fisherlab.train.loop",
    "TrainConfig": "fisherlab.train.config",
    "resume": "fisherlab.train.runs",
    "train": "fisherlab.train.runs",
}

__all__ = sorted(_PUBLIC)

if TYPE_CHECKING:
    from fisherlab.train.config import TrainConfig as TrainConfig
    from fisherlab.train.loop import DivergedError as DivergedError
    from fisherlab.train.runs import resume as resume
    from fisherlab.train.runs import train as train


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that the command line starts quickly."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'fisherlab.train' has no attribute {name!r}")
