"""The element-wise activation φ that follows a layer, and its slope φ'(s).

φ is found from the autograd graph of a forward pass: the only consumer of the layer's output, if it is
one of a fixed list of element-wise functions, in place or not, module or function. Its slope is
what that node gives for a gradient of ones, so parameters of φ (a leak, an α) are right by themselves,
and so is an activation in place. A name given by the user is evaluated on s instead.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fisherlab.errors import known_name
from fisherlab.layers.view import LayerCall

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda s: s * 1,
    "relu": functional.relu,
    "leaky-relu": functional.leaky_relu,
    "elu": functional.elu,
    "selu": functional.selu,
    "celu": functional.celu,
    "gelu": functional.gelu,
    "gelu-tanh": lambda s: functional.gelu(s, approximate="tanh"),
    "silu": functional.silu,
    "mish": functional.mish,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "logsigmoid": functional.logsigmoid,
    "softplus": functional.softplus,
    "relu6": functional.relu6,
    "hardtanh": functional.hardtanh,
    "hardswish": functional.hardswish,
    "hardsigmoid": functional.hardsigmoid,
    "sin": torch.sin,
    "cos": torch.cos,
}

NETWORK_OUTPUT = "the network's output"

Call = tuple[str, int]

_NODES = {
    "Relu": "relu",
    "LeakyRelu": "leaky-relu",
    "PreluKernel": "prelu",
    "Elu": "elu",
    "Celu": "celu",
    "Gelu": "gelu",
    "Silu": "silu",
    "Mish": "mish",
    "Tanh": "tanh",
    "Sigmoid": "sigmoid",
    "LogSigmoid": "logsigmoid",
    "Softplus": "softplus",
    "Hardtanh": "hardtanh",
    "Hardswish": "hardswish",
    "Hardsigmoid": "hardsigmoid",
    "Sin": "sin",
    "Cos": "cos",
}


@dataclass(frozen=True)
class Activation:
    """The activation found after a layer.

    Attributes:
        name: its name; `identity` where none follows directly.
        reason: why it is the identity, or empty.
        node: the autograd node of φ and the place of s among its inputs; None for the identity.
    """

    name: str
    reason: str = ""
    node: tuple[Any, int] | None = None

    def slope(self, output: Tensor) -> Tensor:
        """φ'(s), shaped as the layer's output (only its shape is read: it may be overwritten)."""
        if self.node is None:
            return torch.ones((), dtype=output.dtype, device=output.device).expand(output.shape)
        node, place = self.node
        gradients = node(torch.ones_like(output))
        return (gradients if isinstance(gradients, Tensor) else gradients[place]).detach()


def slope_of(name: str, s: Tensor) -> Tensor:
    """φ'(s) of a named activation, for a pre-activation s of any shape.

    Raises:
        InputError: for an unknown name.
    """
    known_name("activation", name, ACTIVATIONS)
    with torch.enable_grad():
        s = s.detach().requires_grad_()
        return torch.autograd.grad(ACTIVATIONS[name](s).sum(), s)[0]


def find_activations(output: Tensor, seen: Mapping[str, Sequence[LayerCall]]) -> dict[str, list[Activation]]:
    """The activation after each call of the layers, from the graph of the network's output.

    Args:
        output: the network's output, with its graph.
        seen: the layers' calls, with their edges.

    Returns:
        For each layer that of every call; a layer of which no call reaches the output is missing.
    """
    edges = {(name, place): call.edge for name, calls in seen.items() for place, call in enumerate(calls)}
    found = activations_from([output], edges)
    by_layer = {name: [found[name, place] for place in range(len(calls))] for name, calls in seen.items()}
    return {
        name: [one or _activation_of([]) for one in after]
        for name, after in by_layer.items()
        if any(after) or not after
    }


def unreached(name: str) -> str:
    """Why a layer is missing there."""
    return f"layer {name!r} does not reach the model's output"


def activations_from(outputs: Sequence[Tensor], edges: Mapping[Call, Any]) -> dict[Call, Activation | None]:
    """The activation after each call, from several outputs; None for a call that reaches none of them.

    Args:
        outputs: of the network, with their graphs.
        edges: for each call (layer, place) the `GradientEdge` of its output.
    """
    places = {name: (edge.node, edge.output_nr) for name, edge in edges.items()}
    roots = [(output.grad_fn, output.output_nr) for output in outputs if output.grad_fn is not None]
    consumers: dict[tuple[Any, int], list[Any]] = {place: [] for place in places.values()}
    for node in nodes_behind(node for node, _ in roots):
        for place, edge in enumerate(node.next_functions):
            if edge in consumers:
                consumers[edge].append((node, place))
    return {
        call: _activation_of(consumers[place]) if consumers[place] or place in roots else None
        for call, place in places.items()
    }


def nodes_behind(roots: Iterable[Any], stop: Callable[[Any], bool] | None = None) -> Iterator[Any]:
    """The nodes of an autograd graph from these on, each once; roots that are None are left out.

    Args:
        roots: nodes, such as `grad_fn`s.
        stop: whether to go no further than a node.
    """
    stack = [node for node in dict.fromkeys(roots) if node is not None]
    seen = set(stack)
    while stack:
        node = stack.pop()
        yield node
        if stop is not None and stop(node):
            continue
        for child, _ in node.next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                stack.append(child)


def _activation_of(consumers: list[tuple[Any, int]]) -> Activation:
    if not consumers:
        return Activation("identity", NETWORK_OUTPUT)
    if len(consumers) > 1:
        return Activation("identity", f"used in {len(consumers)} places")
    node, place = consumers[0]
    kind = re.sub(r"Backward\d*$", "", node.name())
    name = _NODES.get(kind)
    if name is None:
        return Activation("identity", f"followed by {kind}")
    return Activation(name, node=(node, place))
