"""Optimizers: LNGD, KFAC, EKFAC, TKFAC, NG+ on one base, and a preconditioner for any other."""

from fisherlab.optim.methods import EKFAC, KFAC, LNGD, TKFAC, NGPlus, Preconditioner
from fisherlab.optim.optimizer import NaturalGradient

__all__ = ["EKFAC", "KFAC", "LNGD", "TKFAC", "NGPlus", "NaturalGradient", "Preconditioner"]
