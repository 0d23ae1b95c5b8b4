"""Sums over samples that the approximations are made of: mergeable, and without a model in them."""

from typing import TYPE_CHECKING

from fisherlab.base.lazy import lazy
from fisherlab.statistics import moments
from fisherlab.statistics.batches import BatchGradients, check_size
from fisherlab.statistics.gather import Keeper, PassRequest, SplitSums, gather
from fisherlab.statistics.sums import Basis, KeptSums, LayerSums, Statistic, SumsWithout

if TYPE_CHECKING:
    from fisherlab.approximations.saved import Statistics as Statistics

__all__ = [
    "Basis",
    "BatchGradients",
    "Keeper",
    "KeptSums",
    "LayerSums",
    "PassRequest",
    "SplitSums",
    "Statistic",
    "Statistics",
    "SumsWithout",
    "check_size",
    "gather",
    "moments",
]

# it builds approximations, which stand above, and is imported when it is asked for
__getattr__, __dir__, _ = lazy(__name__, {"Statistics": "fisherlab.approximations.saved"})
