"""Sums over samples that the approximations are made of: mergeable, and without a model in them."""

from fisherlab.statistics import moments
from fisherlab.statistics.gather import Gathered, LayerWork, gather
from fisherlab.statistics.sums import LayerSums, Statistic

__all__ = ["Gathered", "LayerSums", "LayerWork", "Statistic", "gather", "moments"]
