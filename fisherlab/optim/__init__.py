"""Optimizers: LNGD, KFAC, EKFAC, TKFAC, NG+ on one base, and a preconditioner for any other."""

from fisherlab.optim.methods import EKFAC, KFAC, LNGD, TKFAC, NGPlus
from fisherlab.optim.optimizer import NaturalGradient
from fisherlab.optim.preconditioner import Preconditioner

__all__ = ["EKFAC", "KFAC", "LNGD", "TKFAC", "NGPlus", "NaturalGradient", "Preconditioner"]
