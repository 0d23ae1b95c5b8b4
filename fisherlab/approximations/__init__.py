"""Structured approximations of a layer's Fisher block, one short file a method, and their registry."""

from fisherlab.approximations.base import (
    Approximation,
    build_from_block,
    build_operator,
    create,
    create_all,
    register_approximation,
    registered,
    why_not_built,
)
from fisherlab.approximations.collected import (
    DEFAULT_APPROXIMATIONS,
    approximate,
    basis_of,
    collect_statistics,
    layer_work,
    layers_for,
)
from fisherlab.approximations.ekfac import EKFAC, TEKFAC
from fisherlab.approximations.kfac import KFAC
from fisherlab.approximations.lngd import LNGD, LNGDRealGradients
from fisherlab.approximations.nearest import NearestKronecker
from fisherlab.approximations.saved import Statistics, check_statistics, load_statistics
from fisherlab.approximations.simple import FOOF, Diagonal, NGPlus
from fisherlab.approximations.tkfac import TKFAC

__all__ = [
    "DEFAULT_APPROXIMATIONS",
    "EKFAC",
    "FOOF",
    "KFAC",
    "LNGD",
    "TEKFAC",
    "TKFAC",
    "Approximation",
    "Diagonal",
    "LNGDRealGradients",
    "NGPlus",
    "NearestKronecker",
    "Statistics",
    "approximate",
    "basis_of",
    "build_from_block",
    "build_operator",
    "check_statistics",
    "collect_statistics",
    "create",
    "create_all",
    "layer_work",
    "layers_for",
    "load_statistics",
    "register_approximation",
    "registered",
    "why_not_built",
]
