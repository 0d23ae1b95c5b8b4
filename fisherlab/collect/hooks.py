"""The one seam to autograd: hooks that keep a forward pass, the batched backward, and leaving no trace."""

import logging
import random
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from copy import copy
from functools import partial
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fisherlab.base.precision import full_precision
from fisherlab.base.switch import Switch
from fisherlab.errors import InputError
from fisherlab.gradients.inputs import Inputs, OneHot
from fisherlab.gradients.patches import Patches
from fisherlab.layers import (
    NETWORK_OUTPUT,
    Activation,
    LayerCall,
    LayerView,
    evaluated_with_gradients,
    slope_of,
    spelled_out,
)
from fisherlab.likelihoods import categorical_slope
from fisherlab.likelihoods.draws import Generators, normal
from fisherlab.likelihoods.labels import LabelKind

# Measured on a small network: the calls of a pass take 0.1 ms, most of its time below 2^15 numbers and a
# tenth of it here.
SMALL_PASS = 2**17
"""Numbers that a pass computes, below which columns go backwards together."""

log = logging.getLogger("fisherlab")

_depth: ContextVar[int] = ContextVar("depth", default=0)


def is_looked_at() -> bool:
    """Whether a pass is one of fisherlab's own, of which nobody else is to take notice."""
    return _depth.get() > 0


@contextmanager
def unchanged(model: nn.Module, *, full: bool = True) -> Iterator[None]:
    """Evaluation mode with gradients; on exit everything is as it was before.

    Args:
        model: whose traces are put back.
        full: whether products are in full precision, without autocast.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers, attributes, bounded = _Buffers(model), _Attributes(model), _bounded_weights(model)
    devices = {p.device for p in model.parameters()}
    with ExitStack() as stack:
        stack.callback(_depth.reset, _depth.set(_depth.get() + 1))
        stack.enter_context(torch.random.fork_rng(sorted(d.index for d in devices if d.type == "cuda")))
        if full:
            stack.enter_context(full_precision({d.type for d in devices}))
        stack.enter_context(_plain_group_norms())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        try:
            model.eval()
            evaluated_with_gradients(model)
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            buffers.put_back()
            attributes.put_back()
            with torch.no_grad():
                for weight, before in bounded:
                    if not torch.equal(weight, before):
                        weight.copy_(before)


def _bounded_weights(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """The weights that a forward pass writes, of embeddings with `max_norm`, and their numbers."""
    modules = [m for m in model.modules() if getattr(m, "max_norm", None) is not None]
    weights = [m.weight for m in modules if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
    return [(weight, weight.detach().clone()) for weight in weights]


def _of_plain_inputs(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def group_norm(input: Tensor, *args: Any, **keywords: Any) -> Tensor:
        return norm(input.contiguous(), *args, **keywords)

    return group_norm


# Torch's group norm of channels-last tensors has no batched backward, and its backward ends the process where
# the gradient of its input is not asked for, only that of its weight (torch 2.13). All ways lead through this
# function, also those of a pass that checkpointing makes again.
_plain_group_norms = Switch(
    lambda: torch.group_norm, lambda norm: setattr(torch, "group_norm", norm), _of_plain_inputs
)


class _Attributes:
    """What modules keep beside parameters and buffers (a loss, a counter, a state), and random states.

    Of lists, dictionaries and sets that they keep, the content is put back too.
    """

    def __init__(self, model: nn.Module) -> None:
        own = set(vars(nn.Module()))
        self._kept = [
            (
                module,
                {name: (value, _content(value)) for name, value in vars(module).items() if name not in own},
            )
            for module in model.modules()
        ]
        self._own = own
        self._python = random.getstate()
        self._numpy = np.random.get_state()  # noqa: NPY002 (the state that models draw from)

    def put_back(self) -> None:
        """Everything as it was."""
        for module, kept in self._kept:
            held = vars(module)
            for name in [name for name in held if name not in kept and name not in self._own]:
                del held[name]
            for name, (value, content) in kept.items():
                held[name] = value
                if content is not None:
                    _refill(value, content)
        random.setstate(self._python)
        np.random.set_state(self._numpy)  # noqa: NPY002


def _content(value: Any) -> Any:
    """A copy of what a plain container holds; None of anything else."""
    return copy(value) if type(value) in (list, dict, set, deque, Counter, defaultdict, OrderedDict) else None


def _refill(value: Any, content: Any) -> None:
    value.clear()
    (value.extend if isinstance(value, (list, deque)) else value.update)(content)


class _Buffers:
    """The buffers of a model as they are: which modules have which under which names, and their numbers.

    A forward pass may write into a buffer, put another tensor in its place, add buffers, or take them away.
    """

    def __init__(self, model: nn.Module) -> None:
        self._names = [
            (module, dict(module._buffers), set(module._non_persistent_buffers_set))
            for module in model.modules()
        ]
        self._values = [(b, b.detach().clone(), b.requires_grad) for b in model.buffers()]

    @torch.no_grad()
    def put_back(self) -> None:
        """Everything as it was; a buffer whose numbers are unchanged is not written."""
        for module, buffers, passing in self._names:
            for name in buffers.keys() - module._buffers.keys():  # what may have its name now
                vars(module).pop(name, None)
                module._parameters.pop(name, None)
            module._buffers.clear()
            module._buffers.update(buffers)
            module._non_persistent_buffers_set.clear()
            module._non_persistent_buffers_set.update(passing)
        for buffer, before, free in self._values:
            if buffer.requires_grad and not free:  # it took part in the pass
                (buffer if buffer._base is None else buffer._base).detach_()
            plain = buffer.layout == torch.strided  # others cannot be compared
            if not plain or buffer.shape != before.shape or buffer.dtype != before.dtype:
                buffer.data = before
            elif not torch.equal(buffer, before):
                buffer.copy_(before)


@contextmanager
def capture(
    layers: Mapping[str, LayerView], *, outputs: bool = True, samples: int | None = None
) -> Iterator[dict[str, list[LayerCall]]]:
    """While it is open, every call of every layer is kept, in the order of the calls.

    Args:
        layers: whose calls.
        outputs: whether the numbers of outputs are kept; else their shapes, which take no memory.
        samples: how many the pass has. The output of a layer whose calls do not depend on the samples is
            then expanded over them, as its view says, and goes on so.
    """
    seen: dict[str, list[LayerCall]] = {name: [] for name in layers}
    depth = _depth.get()
    parts: dict[tuple[int, str], list[LayerView]] = {}
    modules: dict[int, tuple[nn.Module, list[LayerView]]] = {}
    fused: dict[int, nn.Module] = {}

    def record(
        module: nn.Module, part: str, x: Tensor, output: Tensor, at: Tensor, valid: Tensor | None
    ) -> None:
        for view in parts.get((id(module), part), []) if _depth.get() == depth else ():
            _keep(view, seen, outputs, x, output, at, valid)

    handles = []
    with ExitStack() as stack:
        for view in layers.values():
            for use in view.uses if view.of_uses else ():
                module = use.modules[0]
                modules.setdefault(id(module), (module, []))[1].append(use)
            for module in () if view.why_by_gradients or view.of_uses else view.modules:
                if view.part is None:
                    modules.setdefault(id(module), (module, []))[1].append(view)
                else:
                    parts.setdefault((id(module), view.part), []).append(view)
                    fused[id(module)] = module
                if view.fused is not None:
                    fused[id(view.fused)] = view.fused
        for module, views in modules.values():
            keeper = _keeper(views, seen, outputs, samples)
            handles.append(module.register_forward_hook(keeper, with_kwargs=True))
        stack.enter_context(spelled_out(fused.values(), record))
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()


def _keeper(
    views: list[LayerView], seen: dict[str, list[LayerCall]], outputs: bool, samples: int | None
) -> Callable[..., Tensor | None]:
    """A forward hook of a module, for all views of it."""
    spread = None if samples is None else next((v for v in views if v.expanded is not None), None)
    depth = _depth.get()
    adapter = views[0].adapter  # one for a module

    def keep(
        module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor
    ) -> Tensor | None:
        if _depth.get() != depth:  # a look in the middle of the pass that is captured
            return None
        x = adapter.argument(module, *args, **kwargs)
        if not isinstance(x, Tensor) or not isinstance(output, Tensor):  # a hook of the user's changed it
            return None
        if samples is not None and not torch.is_grad_enabled():
            _require_no_reentrant_checkpoint()
        for view in views:
            if spread is None or view.expanded is None:
                _keep(view, seen, outputs, x, output, output)
        if spread is None or samples is None:
            return None
        x, output = spread.over_samples(x, samples), spread.over_samples(output, samples)
        for view in views:
            if view.expanded is not None:
                _keep(view, seen, outputs, x, output, output)
        return output

    return keep


REENTRANT = (
    "the model uses reentrant activation checkpointing, which hides its layers; call "
    "torch.utils.checkpoint.checkpoint with use_reentrant=False"
)


def _require_no_reentrant_checkpoint() -> None:
    """Refuses a call inside one, which leaves no node in the graph where its inputs need no gradient."""
    from torch.utils.checkpoint import CheckpointFunction

    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code is CheckpointFunction.forward.__code__:
            raise InputError(REENTRANT)
        frame = frame.f_back


def _keep(
    view: LayerView,
    seen: dict[str, list[LayerCall]],
    outputs: bool,
    x: Tensor,
    output: Tensor,
    at: Tensor,
    valid: Tensor | None = None,
) -> None:
    if not at.requires_grad:  # a call without gradients
        return
    slope = None if view.activation is None else slope_of(view.activation, output)
    edge = torch.autograd.graph.get_gradient_edge(at)
    kept = output.detach() if outputs else output.new_empty(()).expand(output.shape)
    use = None if view.transposed is None else view
    seen[view.name].append(LayerCall(x.detach(), kept, edge, slope, valid, use))


def layerwise_slope(call: LayerCall, activation: Activation, kind: LabelKind) -> Tensor:
    """φ'(s) of a call; with `layerwise+categorical` √(p(1 − p)) where its output is the network's."""
    if activation.reason == NETWORK_OUTPUT and kind.categorical:
        return categorical_slope(call.output)
    return activation.slope(call.output) if call.slope is None else call.slope


def drawn_layerwise(slope: Tensor, noise: Tensor) -> Tensor:
    """−φ'(s)∘ε/√k for k draws of ε [k, n, t, m], which are overwritten, and the slope [1, n, t, m]."""
    return noise.mul_(slope).mul_(-(len(noise) ** -0.5))


def draw_layerwise(roots: Tensor, draws: int, generators: Generators, use: str) -> Tensor:
    """−Σ_r root_r∘ε_r/√k with ε from the generator of a use, one sample after the other: [k, n, t, m].

    ε_r has a number for each of the m/r entries of a norm's scale, which is that of its shift too.
    """
    numbers = tuple(roots.shape[2:])

    def draw(samples: int, generator: torch.Generator) -> Tensor:
        return normal(roots[0, :1].expand(samples, *numbers), draws, numbers, generator)

    noise = normal(roots[0], draws, numbers, generators.ready(use, draw))
    if len(roots) == 1:
        return drawn_layerwise(roots, noise)
    pairs = zip(roots, noise.chunk(len(roots), -1), strict=True)
    return sum(drawn_layerwise(root, own.repeat(1, 1, 1, len(roots))) for root, own in pairs)  # type: ignore


def unit_columns(roots: Tensor) -> Tensor:
    """root_r(tj) e_tj for every unit j, position t and r: [t·m, n, t, m] from [r, n, t, m]; see `to_roots`.

    The unit of a norm's scale is that of its shift: both are in one column.
    """
    r, _, t, m = roots.shape
    entries = roots.unflatten(-1, (r, m // r)).transpose(2, 3).flatten(3)
    columns = torch.diag_embed(entries).permute(0, 4, 1, 2, 3).flatten(0, 1)
    return columns.unflatten(-1, (t, m // r)).transpose(2, 3).flatten(3)


def backward(
    outputs: Tensor, edges: list[Any], columns: Tensor, keep: bool, numbers: int
) -> Iterator[tuple[int, tuple[Tensor | None, ...]]]:
    """Sends columns [c, n, …] back from the outputs: for each edge gradients [c', …], or None without a path.

    Columns go one by one where a pass has enough to do; torch's batched backward cuts convolutions, norms and
    softmax into columns itself, and copies. Small passes go together, for the calls would take the time,
    where torch and the hooks of the model can do that.

    Args:
        outputs: the network's outputs [n, …], with their graph.
        edges: `GradientEdge`s of the layers' outputs.
        columns: [c, n, …].
        keep: whether the graph is needed again.
        numbers: how many numbers a pass computes.

    Yields:
        c' and the gradients [c', …] of the first c' columns, then of the next, and so on.
    """
    gradients = together(outputs, edges, columns) if len(columns) > 1 and numbers < SMALL_PASS else None
    if gradients is not None:
        yield len(columns), gradients
        return
    for place, column in enumerate(columns):
        again = keep or place + 1 < len(columns)
        gradients = torch.autograd.grad(outputs, edges, column, retain_graph=again, allow_unused=True)
        yield 1, tuple(None if g is None else g.unsqueeze(0) for g in gradients)


def together(outputs: Tensor, edges: Sequence[Any], columns: Tensor) -> tuple[Tensor | None, ...] | None:
    """All columns at once through a graph that is kept; None where torch, or a hook of the model, cannot."""
    try:
        return torch.autograd.grad(
            outputs, edges, columns, retain_graph=True, is_grads_batched=True, allow_unused=True
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a function or a hook that takes one column only raises
        log.debug("label columns go back one by one: %s", error)
        return None


def backward_one_by_one(
    output: Tensor, edges: Sequence[Any], column: Tensor, take: Callable[[int, Tensor | None], None]
) -> None:
    """Sends a column back through a graph that is needed again, and gives gradients as they come.

    They are not all alive at once: `take` is called with the place of an edge and its gradient, or None
    without a path. Only edges with no other below them are asked for; the pass goes through the rest.
    """
    passed = _above_others(edges)
    waiting = set(range(len(edges)))

    def give(place: int, g: Tensor | None) -> None:
        waiting.discard(place)
        take(place, g)

    def arrived(place: int, gradients: tuple[Tensor | None, ...]) -> None:
        g = gradients[edges[place].output_nr]
        if g is not None:
            give(place, g)

    with ExitStack() as stack:
        for place in passed:
            handle = edges[place].node.register_prehook(partial(arrived, place))
            stack.callback(handle.remove)
        last = sorted(waiting.difference(passed))
        ends = [edges[place] for place in last]
        gradients = torch.autograd.grad(output, ends, column, retain_graph=True, allow_unused=True)
    for place, g in zip(last, gradients, strict=True):
        give(place, g)
    for place in sorted(waiting):
        take(place, None)


def _above_others(edges: Sequence[Any]) -> list[int]:
    """Places of the edges from which another edge's node can be reached."""
    nodes = {edge.node for edge in edges}
    above: dict[Any, bool] = {}
    stack = list(nodes)
    while stack:
        node = stack[-1]
        children = [child for child, _ in node.next_functions if child is not None]
        unknown = [child for child in children if child not in above]
        if node in above or not unknown:
            stack.pop()
            above[node] = any(child in nodes or above[child] for child in children)
        else:
            stack += unknown
    return [place for place, edge in enumerate(edges) if above[edge.node]]


def inputs_of(view: LayerView, calls: Sequence[LayerCall], samples: int, batch_dim: int) -> Inputs | Patches:
    """The inputs of a layer's calls, the positions of one after those of another: a [n, t, G·d]."""
    found = [view.to_inputs(call, samples, batch_dim) for call in calls]
    first = found[0]
    if len(found) == 1:
        return first
    dense = [a.unfolded() if isinstance(a, Patches) else a for a in found]
    if isinstance(first, OneHot):
        indices = [a.indices for a in dense if isinstance(a, OneHot)]
        return OneHot(torch.cat(indices, dim=1), first.size, first.dtype)
    return torch.cat([a for a in dense if isinstance(a, Tensor)], dim=1)


def outputs_of(
    view: LayerView, calls: Sequence[tuple[LayerCall, Tensor]], samples: int, batch_dim: int
) -> Tensor:
    """Tensors [c, …] shaped as the outputs of a layer's calls, likewise: g [c, n, t, m]."""
    pieces = [view.to_outputs(g, call, samples, batch_dim) for call, g in calls]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)


def roots_of(
    view: LayerView, calls: Sequence[tuple[LayerCall, Tensor]], samples: int, batch_dim: int
) -> Tensor:
    """The slopes [1, …] at the outputs of a layer's calls, as `LayerView.to_roots`: [r, n, t, m]."""
    pieces = [view.to_roots(slope, call, samples, batch_dim) for call, slope in calls]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)


def valid_of(view: LayerView, calls: Sequence[LayerCall], samples: int, batch_dim: int) -> Tensor | None:
    """Which rows of a layer's calls count, likewise a bool [n, t]; None: all."""
    found = [view.valid_rows(call, samples, batch_dim) for call in calls]
    if all(valid is None for valid in found):
        return None
    shapes = [inputs_of(view, [call], samples, batch_dim).shape[:2] for call in calls]
    every = [
        torch.ones(shape, dtype=torch.bool, device=call.input.device) if valid is None else valid
        for valid, shape, call in zip(found, shapes, calls, strict=True)
    ]
    return torch.cat(every, 1)
