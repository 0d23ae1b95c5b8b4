"""Figure 4: training of translation with SGD, Adam, KFAC and LNGD."""

from typing import Any

from .printed import TABLES
from .trainings import curves
from .work import Work


def make(work: Work) -> dict[str, Any]:
    """Writes `figure-4`; the printed values alone where the scale trains no translation."""
    return curves(work, "figure-4", work.scale.translation, TABLES[3], "translation")
