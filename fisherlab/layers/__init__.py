"""A module seen as s = W a: adapters, discovery, coverage and the activation that follows."""

from fisherlab.layers import convolution as _convolution  # noqa: F401
from fisherlab.layers.activation import (
    ACTIVATIONS,
    NETWORK_OUTPUT,
    Activation,
    activations_from,
    find_activations,
    nodes_behind,
    slope_of,
    unreached,
)
from fisherlab.layers.adapter import Adapter, register_layer
from fisherlab.layers.attention import spelled_out
from fisherlab.layers.coverage import Layers
from fisherlab.layers.discovery import find_layers, match_names, select_layers
from fisherlab.layers.view import BlockShape, LayerCall, LayerView, Mask

__all__ = [
    "ACTIVATIONS",
    "NETWORK_OUTPUT",
    "Activation",
    "Adapter",
    "BlockShape",
    "LayerCall",
    "LayerView",
    "Layers",
    "Mask",
    "activations_from",
    "find_activations",
    "find_layers",
    "match_names",
    "nodes_behind",
    "register_layer",
    "select_layers",
    "slope_of",
    "spelled_out",
    "unreached",
]
