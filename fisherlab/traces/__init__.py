"""Trace diagnostics: tr F, tr F̂ and what belongs to them at every checkpoint of a training."""

from typing import TYPE_CHECKING

from fisherlab.base.lazy import lazy

if TYPE_CHECKING:
    from fisherlab.traces.config import TraceConfig as TraceConfig
    from fisherlab.traces.measure import Checkpoint as Checkpoint
    from fisherlab.traces.measure import trace as trace
    from fisherlab.traces.recorder import Recorder as Recorder
    from fisherlab.traces.result import Traces as Traces

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Checkpoint": "fisherlab.traces.measure",
        "Recorder": "fisherlab.traces.recorder",
        "TraceConfig": "fisherlab.traces.config",
        "Traces": "fisherlab.traces.result",
        "trace": "fisherlab.traces.measure",
    },
)
