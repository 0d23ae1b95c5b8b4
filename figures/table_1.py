"""Table 1: CIFAR-10 with SGD, Adam, KFAC and LNGD."""

from typing import Any

from .printed import TABLES
from .trainings import rows_of
from .work import Work


def make(work: Work) -> dict[str, Any]:
    """Writes `table-1`."""
    return rows_of(work, "table-1", work.scale.images, TABLES[1], "CIFAR-10 with SGD, Adam, KFAC and LNGD")
