"""Sums over samples that the approximations are made of: mergeable, and without a model in them."""

from fisherlab.statistics import moments
from fisherlab.statistics.gather import Keeper, PassRequest, SplitSums, gather
from fisherlab.statistics.sums import Basis, KeptSums, LayerSums, Statistic

__all__ = [
    "Basis",
    "Keeper",
    "KeptSums",
    "LayerSums",
    "PassRequest",
    "SplitSums",
    "Statistic",
    "gather",
    "moments",
]
