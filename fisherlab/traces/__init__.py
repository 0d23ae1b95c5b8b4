"""Trace diagnostics: tr F, tr F̂ and what belongs to them at every checkpoint of a training."""

import importlib
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "Checkpoint": "fisherlab.traces.measure",
    "Recorder": "fisherlab.traces.recorder",
    "TraceConfig": "fisherlab.traces.config",
    "Traces": "fisherlab.traces.result",
    "trace": "fisherlab.traces.measure",
}

__all__ = sorted(_PUBLIC)

if TYPE_CHECKING:
    from fisherlab.traces.config import TraceConfig as TraceConfig
    from fisherlab.traces.measure import Checkpoint as Checkpoint
    from fisherlab.traces.measure import trace as trace
    from fisherlab.traces.recorder import Recorder as Recorder
    from fisherlab.traces.result import Traces as Traces


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that the command line starts quickly."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'fisherlab.traces' has no attribute {name!r}")
