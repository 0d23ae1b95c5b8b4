"""Figure 2: training on CIFAR-10 with SGD, Adam, KFAC and LNGD."""

from typing import Any

from .printed import TABLES
from .trainings import curves
from .work import Work


def make(work: Work) -> dict[str, Any]:
    """Writes `figure-2`."""
    return curves(work, "figure-2", work.scale.images, TABLES[1], "training")
