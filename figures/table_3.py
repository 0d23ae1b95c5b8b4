"""Table 3: translation with SGD, Adam, KFAC and LNGD."""

from typing import Any

from .printed import TABLES
from .trainings import rows_of
from .work import Work


def make(work: Work) -> dict[str, Any]:
    """Writes `table-3`."""
    return rows_of(
        work, "table-3", work.scale.translation, TABLES[3], "translation with SGD, Adam, KFAC and LNGD"
    )
