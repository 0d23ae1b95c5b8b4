"""The exact Fisher of every layer, by the way that costs least."""

from fisherlab.exact.fisher import exact_fisher

__all__ = ["exact_fisher"]
