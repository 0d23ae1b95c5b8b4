"""A module seen as s = W a: adapters, discovery, coverage and the activation that follows."""

from fisherlab.layers import attention as _attention  # noqa: F401
from fisherlab.layers import bag as _bag  # noqa: F401
from fisherlab.layers import convolution as _convolution  # noqa: F401
from fisherlab.layers import experts as _experts  # noqa: F401
from fisherlab.layers import recognised as _recognised  # noqa: F401
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
from fisherlab.layers.attention import without_fast_path
from fisherlab.layers.coverage import Layers
from fisherlab.layers.discovery import find_layers, match_names, select_layers
from fisherlab.layers.fused import FusedAdapter, Part, Record, fused_adapter, is_fused, spelled_out
from fisherlab.layers.norm import NormAdapter
from fisherlab.layers.recurrent import evaluated_with_gradients
from fisherlab.layers.view import BlockShape, LayerCall, LayerView, Mask, as_long, longer

__all__ = [
    "ACTIVATIONS",
    "NETWORK_OUTPUT",
    "Activation",
    "Adapter",
    "BlockShape",
    "FusedAdapter",
    "LayerCall",
    "LayerView",
    "Layers",
    "Mask",
    "NormAdapter",
    "Part",
    "Record",
    "activations_from",
    "as_long",
    "evaluated_with_gradients",
    "find_activations",
    "find_layers",
    "fused_adapter",
    "is_fused",
    "longer",
    "match_names",
    "nodes_behind",
    "register_layer",
    "select_layers",
    "slope_of",
    "spelled_out",
    "unreached",
    "without_fast_path",
]
