"""Layers' representation vectors: moments, normality, histograms, and the test of layer-wise sampling."""

from typing import TYPE_CHECKING

from fisherlab.base.lazy import lazy

if TYPE_CHECKING:
    from fisherlab.representations.config import RepresentConfig as RepresentConfig
    from fisherlab.representations.measure import represent as represent
    from fisherlab.representations.result import Representations as Representations

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "RepresentConfig": "fisherlab.representations.config",
        "Representations": "fisherlab.representations.result",
        "represent": "fisherlab.representations.measure",
    },
)
