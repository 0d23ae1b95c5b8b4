"""Training to checkpoints: loop, schedules, augmentation, log, and runs that go on after an interruption."""

from typing import TYPE_CHECKING

from fisherlab.base.lazy import lazy

if TYPE_CHECKING:
    from fisherlab.loop.steps import DivergedError as DivergedError
    from fisherlab.train.config import TrainConfig as TrainConfig
    from fisherlab.train.run.training import resume as resume
    from fisherlab.train.run.training import train as train

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "DivergedError": "fisherlab.loop.steps",
        "TrainConfig": "fisherlab.train.config",
        "resume": "fisherlab.train.run.training",
        "train": "fisherlab.train.run.training",
    },
)
