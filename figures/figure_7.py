"""Figure 7: the ablation, LNGD beside LNGD-lr and LNGD-sample."""

from typing import Any

from .printed import TABLES
from .trainings import curves
from .work import Work, ablation


def make(work: Work) -> dict[str, Any]:
    """Writes `figure-7`."""
    return curves(work, "figure-7", ablation(work.scale), TABLES[5], "the ablation")
