"""A forward pass as an optimizer remembers it, and where autograd says that something belongs to it."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fisherlab.layers import LayerCall
from fisherlab.optim.block import KeptCall, Observation


@dataclass(eq=False)
class ForwardPass:
    """One forward pass of the model; it lives as long as its graph.

    Attributes:
        samples: N; None where nothing counts them.
        group: a number that passes of the same samples have in common.
        names: the layers that took part.
        layers: their calls, until they were used.
        refresh: whether statistics are due.
        end: the name of the module whose output is the pass's.
        observed: by layer what calls of it say of the statistics, until the pass counts.
        before: the state of the generator before the pass drew from it.
        after: the state after it; None where nothing was drawn.
        outputs: the model's output, detached, while first steps are checked.
        output_gradient: what came back to it.
        backward: the latest backward pass that reached it; −1: none.
        counted: the step that it counts in; None: none yet.
        spent: whether its statistics are gone, so that it cannot count again.
        into: the pass that it became a part of.
        marks: on the nodes of the calls, while statistics of them may still be made.
    """

    samples: int | None
    names: frozenset[str]
    layers: dict[str, list[KeptCall]]
    refresh: bool
    end: str
    group: int
    observed: dict[str, list[tuple[frozenset[int], Observation]]] = field(default_factory=dict)
    before: Tensor | None = None
    after: Tensor | None = None
    outputs: Tensor | None = None
    output_gradient: Tensor | None = None
    backward: int = -1
    counted: int | None = None
    spent: bool = False
    into: "ForwardPass | None" = None
    marks: "list[Mark]" = field(default_factory=list)

    @property
    def whole(self) -> "ForwardPass":
        """The pass that it is a part of."""
        return self if self.into is None else self.into.whole

    def let_go(self) -> None:
        """Forgets the calls on the nodes."""
        for mark in self.marks:
            mark.call = None
        self.marks.clear()


@dataclass(eq=False)
class Mark:
    """A call, left on its node; it lets go of the call once its pass counts."""

    order: int
    name: str
    place: int
    call: tuple[LayerCall, KeptCall] | None


def identity(tensor: Tensor) -> tuple[int, ...]:
    """What a tensor and its aliases have in common until they are written."""
    return tensor.data_ptr(), len(tensor), 0 if tensor.is_inference() else tensor._version


def current_backward() -> int:
    """The number of the backward pass that is running in this thread; −1: none."""
    return torch._C._current_graph_task_id()


def graph_is_kept() -> bool:
    """Whether the running backward pass leaves its graph for another one; true where torch does not say."""
    kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return kept is None or kept()


def listen(edge: Any, slot: list[tuple[Tensor, int]]) -> None:
    """Puts what comes back to an edge into a slot, with the backward pass that it came in."""
    place = edge.output_nr  # not the edge: its node would hold itself

    def arrived(gradients: tuple[Tensor, ...]) -> None:
        if gradients[place] is not None:
            slot[:] = [(gradients[place].detach(), current_backward())]

    edge.node.register_prehook(arrived)


def metadata(node: Any) -> dict[str, Any]:
    """What may be left on a node of the graph; it lives as long as the node."""
    return node.metadata


def situation() -> str:
    """Where a call happens: seen, or in a place from which nothing can be taken."""
    if current_backward() != -1:
        return "backward"
    return "seen" if torch.is_grad_enabled() else "no_grad"


def is_compiled() -> bool:
    """Whether torch's compiler watches the calls that are made."""
    callback = getattr(torch._C._dynamo.eval_frame, "get_eval_frame_callback", None)  # not in every torch
    return callback is not None and callback() is not None


def is_transformed() -> bool:
    """Whether a transform of torch.func is at work."""
    return torch._C._functorch.peek_interpreter_stack() is not None
