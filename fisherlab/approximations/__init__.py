"""Structured approximations of a layer's Fisher block, one short file a method, and their registry."""

from fisherlab.approximations.adam import Adafactor, Adam
from fisherlab.approximations.base import (
    Approximation,
    build_from_block,
    build_operator,
    create,
    create_all,
    register_approximation,
    registered,
    why_not_built,
    without_matrix,
)
from fisherlab.approximations.collected import (
    DEFAULT_APPROXIMATIONS,
    approximate,
    basis_of,
    check_batches,
    collect_statistics,
    layer_work,
    layers_for,
)
from fisherlab.approximations.directions import SGD, Muon, Sign
from fisherlab.approximations.ekfac import EKFAC, TEKFAC
from fisherlab.approximations.kfac import KFAC
from fisherlab.approximations.kl import KLKronecker, flip_flop
from fisherlab.approximations.lngd import LNGD, LNGDRealGradients
from fisherlab.approximations.nearest import NearestKronecker
from fisherlab.approximations.saved import Statistics, check_statistics, load_statistics
from fisherlab.approximations.shampoo import SOAP, Shampoo
from fisherlab.approximations.simple import FOOF, Diagonal, NGPlus
from fisherlab.approximations.tkfac import TKFAC

__all__ = [
    "DEFAULT_APPROXIMATIONS",
    "EKFAC",
    "FOOF",
    "KFAC",
    "LNGD",
    "SGD",
    "SOAP",
    "TEKFAC",
    "TKFAC",
    "Adafactor",
    "Adam",
    "Approximation",
    "Diagonal",
    "KLKronecker",
    "LNGDRealGradients",
    "Muon",
    "NGPlus",
    "NearestKronecker",
    "Shampoo",
    "Sign",
    "Statistics",
    "approximate",
    "basis_of",
    "build_from_block",
    "build_operator",
    "check_batches",
    "check_statistics",
    "collect_statistics",
    "create",
    "create_all",
    "flip_flop",
    "layer_work",
    "layers_for",
    "load_statistics",
    "register_approximation",
    "registered",
    "why_not_built",
    "without_matrix",
]
