"""Layers' representation vectors: moments, normality, histograms, and the test of layer-wise sampling."""

import importlib
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "RepresentConfig": "fisherlab.representations.config",
    "Representations": "fisherlab.representations.result",
    "represent": "fisherlab.representations.measure",
}

__all__ = sorted(_PUBLIC)

if TYPE_CHECKING:
    from fisherlab.representations.config import RepresentConfig as RepresentConfig
    from fisherlab.representations.measure import represent as represent
    from fisherlab.representations.result import Representations as Representations


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that the command line starts quickly."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'fisherlab.representations' has no attribute {name!r}")
