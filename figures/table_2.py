"""Table 2: ImageNet with SGD, Adam, KFAC and LNGD."""

from typing import Any

from .printed import TABLES
from .trainings import rows_of
from .work import Work


def make(work: Work) -> dict[str, Any]:
    """Writes `table-2`."""
    return rows_of(work, "table-2", work.scale.imagenet, TABLES[2], "ImageNet with SGD, Adam, KFAC and LNGD")
