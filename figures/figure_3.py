"""Figure 3: training on ImageNet with SGD, Adam, KFAC and LNGD."""

from typing import Any

from .printed import TABLES
from .trainings import curves
from .work import Work


def make(work: Work) -> dict[str, Any]:
    """Writes `figure-3`; the printed values alone where the scale has no ImageNet."""
    return curves(work, "figure-3", work.scale.imagenet, TABLES[2], "ResNet-50 on ImageNet")
