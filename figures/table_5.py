"""Table 5: the ablation, LNGD, LNGD-lr and LNGD-sample."""

from typing import Any

from .printed import TABLES
from .trainings import rows_of
from .work import Work, ablation


def make(work: Work) -> dict[str, Any]:
    """Writes `table-5`."""
    return rows_of(
        work, "table-5", ablation(work.scale), TABLES[5], "the ablation, LNGD, LNGD-lr and LNGD-sample"
    )
