"""A module seen as s = W a: adapters, discovery, coverage and the activation that follows."""

from fisherlab.layers.activation import (
    ACTIVATIONS,
    NETWORK_OUTPUT,
    Activation,
    find_activations,
    slope_of,
)
from fisherlab.layers.discovery import Layers, find_layers, select_layers
from fisherlab.layers.view import BlockShape, LayerView

__all__ = [
    "ACTIVATIONS",
    "NETWORK_OUTPUT",
    "Activation",
    "BlockShape",
    "LayerView",
    "Layers",
    "find_activations",
    "find_layers",
    "select_layers",
    "slope_of",
]
