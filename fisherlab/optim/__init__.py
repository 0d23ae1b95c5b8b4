"""Optimizers: LNGD, KFAC, EKFAC, TKFAC, NG+ on one base, and a preconditioner for any other."""

from fisherlab.optim.methods import EKFAC, KFAC, LNGD, SOAP, TKFAC, Adafactor, NGPlus, Preconditioner, Shampoo
from fisherlab.optim.optimizer import NaturalGradient

__all__ = [
    "EKFAC",
    "KFAC",
    "LNGD",
    "SOAP",
    "TKFAC",
    "Adafactor",
    "NGPlus",
    "NaturalGradient",
    "Preconditioner",
    "Shampoo",
]
