"""One pass over data: for every layer its inputs a and output gradients g, without side effects."""

from fisherlab.collect.collector import Collector

__all__ = ["Collector"]
