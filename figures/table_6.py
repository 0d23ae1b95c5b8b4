"""Table 6: CIFAR-10 with all methods."""

from typing import Any

from .printed import TABLES
from .trainings import rows_of
from .work import Work


def make(work: Work) -> dict[str, Any]:
    """Writes `table-6`."""
    return rows_of(work, "table-6", work.scale.images, TABLES[6], "CIFAR-10 with all methods")
