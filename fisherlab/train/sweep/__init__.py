"""Many trainings: a study over settings, its trials, and what came out."""

from typing import TYPE_CHECKING

from fisherlab.base.lazy import lazy

if TYPE_CHECKING:
    from fisherlab.train.sweep.config import SweepConfig as SweepConfig
    from fisherlab.train.sweep.sweeping import resume as resume
    from fisherlab.train.sweep.sweeping import run as run

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "SweepConfig": "fisherlab.train.sweep.config",
        "resume": "fisherlab.train.sweep.sweeping",
        "run": "fisherlab.train.sweep.sweeping",
    },
)
