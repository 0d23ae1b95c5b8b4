"""A forward pass as an optimizer remembers it, where autograd leaves what belongs to it, and hooks that end.

Hooks on a user's model end with the optimizer, and stay behind when the model is copied.
"""

import sys
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.utils.hooks import RemovableHandle

from fisherlab.errors import InputError
from fisherlab.layers import LayerCall, nodes_behind
from fisherlab.optim.preconditioner import Observation


class Hook:
    """Calls a method for as long as its object lives; a copy, or one that was pickled, does nothing.

    Args:
        method: bound; its object is not kept alive.
        *first: arguments before those of the call.
    """

    def __init__(self, method: Callable[..., Any] | None = None, *first: Any) -> None:
        self._method = None if method is None else weakref.WeakMethod(method)
        self._first = first

    @property
    def dead(self) -> bool:
        """Whether nothing is called any more."""
        return self._method is None or self._method() is None

    def __call__(self, *args: Any) -> None:
        """What torch calls."""
        method = None if self._method is None else self._method()
        if method is not None:
            method(*self._first, *args)

    def __reduce__(self) -> tuple[Any, ...]:
        return Hook, ()


def removed_with(owner: Any, handles: Iterable[RemovableHandle]) -> None:
    """Removes hooks from the model when their owner ends."""
    for handle in handles:
        weakref.finalize(owner, handle.remove).atexit = False


def sweep(model: nn.Module) -> None:
    """Removes the dead hooks that a copy of a model brought along."""
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if isinstance(hook, Hook) and hook.dead]:
                del hooks[key]
                for kept in (
                    module._forward_pre_hooks_with_kwargs,
                    module._forward_hooks_with_kwargs,
                    module._forward_hooks_always_called,
                ):
                    kept.pop(key, None)


@dataclass
class KeptCall:
    """One call of a layer in a forward pass, and the gradient that came back to its output.

    Attributes:
        use: the call's input, and a stand-in for its output without numbers.
        slot: the gradient of the latest backward pass that reached it, and that pass; the graph holds this
            list and nothing else of the call.
    """

    use: LayerCall
    slot: list[tuple[Tensor, int]] = field(default_factory=list)

    @property
    def g(self) -> Tensor | None:
        """The gradient, shaped as the output; None until a backward pass reaches it."""
        return self.slot[0][0] if self.slot else None

    def came_in(self, backward: int) -> bool:
        """Whether the gradient came in this backward pass."""
        return bool(self.slot) and self.slot[0][1] == backward


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


class Passes:
    """The forward passes whose graphs are alive, and the random state, which goes on from those that count.

    Args:
        generator: source of drawn labels.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self._known: list[weakref.ref[ForwardPass]] = []
        self._begun: list[weakref.ref[ForwardPass]] = []
        self._kin: dict[int, dict[tuple[int, ...], weakref.ref[Tensor]]] = {}
        self._groups = 0
        self._drawn_from: Tensor | None = None
        self._key = f"fisherlab {id(self)}"

    def add(self, one: ForwardPass, outputs: Iterable[Tensor]) -> None:
        """Remembers a pass, for as long as the graph of its outputs lives."""
        for tensor in outputs:
            tensor.grad_fn.metadata.setdefault(self._key, {})[tensor.output_nr] = one  # type: ignore[union-attr]
        self._known = [ref for ref in self._known if ref() is not None and ref() is not one]
        self._known.append(weakref.ref(one))

    def alive(self) -> list[ForwardPass]:
        """Those whose graphs are alive, in order."""
        return [one for one in (ref() for ref in self._known) if one is not None]

    def waiting(self) -> list[ForwardPass]:
        """Those that may still count in this step."""
        return [one for one in self.alive() if one.counted is None]

    def begins(self, one: ForwardPass, backward: int) -> bool:
        """Notes that a backward pass has reached a pass; whether that is new."""
        if one.backward == backward:
            return False
        one.backward = backward
        if all(ref() is not one for ref in self._begun):
            self._begun.append(weakref.ref(one))
        return True

    def begun(self, backward: int) -> list[ForwardPass]:
        """The passes that a backward pass has reached and that were not asked for yet."""
        if not self._begun:
            return []
        alive = [one for one in (ref() for ref in self._begun) if one is not None]
        self._begun = [weakref.ref(one) for one in alive if one.backward != backward]
        return [one for one in alive if one.backward == backward]

    def came_back(self, name: str, backward: int) -> list[ForwardPass]:
        """The passes whose gradients came to a layer in this backward pass and were not used yet."""
        return [
            one
            for one in self.alive()
            if one.counted is not None and any(call.came_in(backward) for call in one.layers.get(name, ()))
        ]

    def forget(self) -> None:
        """Every pass so far; one that comes back later has no statistics any more."""
        for one in self.alive():
            one.spent = one.spent or bool(one.observed)
            one.observed, one.counted = {}, None
            one.layers.clear()
            one.let_go()
        self._known.clear()
        self._begun.clear()
        self._kin.clear()
        self._drawn_from = None

    # --- of the same samples ----------------------------------------------------------------------

    def group_of(self, kin: Sequence[Tensor]) -> int:
        """That of a pass that came in, or gave, one of these tensors or an alias of it; else a new one."""
        own = {identity(t): weakref.ref(t) for t in kin if t.dim() and t.numel()}
        alive = {
            group: {key: ref for key, ref in known.items() if ref() is not None}
            for group, known in self._kin.items()
        }
        self._kin = {group: known for group, known in alive.items() if known}
        found = next((group for group, known in self._kin.items() if known.keys() & own.keys()), None)
        if found is None:
            self._groups += 1
            found = self._groups
        self._kin.setdefault(found, {}).update(own)
        return found

    def earlier(self, given: Iterable[Tensor]) -> list[tuple[ForwardPass, GradientEdge]]:
        """The passes that have not come back whose outputs these arguments were made of, with the places."""
        waiting = {id(one) for one in self.waiting()}
        if not waiting:
            return []
        found: list[tuple[ForwardPass, GradientEdge]] = []

        def ends(node: Any) -> list[tuple[ForwardPass, GradientEdge]]:
            known = node.metadata.get(self._key, {}).items()
            return [
                (one.whole, GradientEdge(node, place)) for place, one in known if id(one.whole) in waiting
            ]

        for node in nodes_behind((t.grad_fn for t in given), lambda node: bool(ends(node))):
            found += ends(node)
        return found

    def joined(self, record: ForwardPass, earlier: Iterable[ForwardPass]) -> ForwardPass:
        """One pass of a record and those before it, of the same samples.

        Raises:
            InputError: where their numbers of samples differ.
        """
        first, *others = sorted(earlier, key=lambda one: [ref() for ref in self._known].index(one))
        for one in (record, *others):
            if one.samples != first.samples:
                raise InputError(
                    f"modules {first.end!r} and {one.end!r} are called one after the other with "
                    f"{first.samples} and {one.samples} samples, so that it cannot be said which rows are of "
                    "which sample; call them inside one module's forward"
                )
            for name, calls in one.layers.items():
                first.layers.setdefault(name, []).extend(calls)
            for name, kept in one.observed.items():
                first.observed.setdefault(name, []).extend(kept)
            first.marks += one.marks
            first.names |= one.names
            one.into = first
        first.end, first.refresh, first.spent = record.end, record.refresh, False
        return first

    # --- the random state -------------------------------------------------------------------------

    def random_state(self) -> Tensor:
        """The generator's state after the passes that may still count, or that did."""
        states = [one.after for one in self.waiting() if one.after is not None]
        return states[-1] if states else self.generator.get_state()

    def take(self, one: ForwardPass) -> None:
        """A pass counts: the random state goes on from it."""
        if one.after is not None:
            self._drawn_from = self.generator.get_state() if self._drawn_from is None else self._drawn_from
            self.generator.set_state(one.after)
        one.let_go()

    def take_back(self) -> None:
        """The random state as it was before the passes that counted since the last step."""
        if self._drawn_from is not None:
            self.generator.set_state(self._drawn_from)
        self._drawn_from = None


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


def situation() -> str:
    """Where a call happens: seen, or in a place from which nothing can be taken."""
    if current_backward() != -1:
        return "backward"
    return "seen" if torch.is_grad_enabled() else "no_grad"


def is_inside_itself(module: nn.Module) -> bool:
    """Whether a module is called within a call of itself."""
    calls, frame = 0, sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        own = frame.f_code is nn.Module._call_impl.__code__
        calls += own and frame.f_locals.get("self") is module
    return calls > 1


def is_compiled() -> bool:
    """Whether torch's compiler watches the calls that are made."""
    callback = getattr(torch._C._dynamo.eval_frame, "get_eval_frame_callback", None)  # not in every torch
    return callback is not None and callback() is not None


def is_transformed() -> bool:
    """Whether a transform of torch.func is at work."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def tensors_in(value: Any, depth: int = 3) -> list[Tensor]:
    """The tensors in a model's argument or result, however nested; of plain objects those that they hold."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        parts: Iterable[Any] = value.values()
    elif isinstance(value, (tuple, list, set, frozenset)):
        parts = value
    elif depth and hasattr(value, "__dict__") and not isinstance(value, (type, nn.Module)):
        parts, depth = vars(value).values(), depth - 1
    else:
        return []
    return [tensor for part in parts for tensor in tensors_in(part, depth)]
