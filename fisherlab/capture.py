"""The one seam to autograd: hooks that keep a forward pass, the batched backward, and leaving no trace."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fisherlab.errors import InputError
from fisherlab.layers import Layers, LayerView, slope_of


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Evaluation mode with gradients and without TF32; on exit everything is as it was before."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(sorted(devices)))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        try:
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
            model.eval()
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
            for module, mode in modes:
                module.training = mode
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


@dataclass
class Seen:
    """A layer's input, and its output's place in the autograd graph."""

    input: Tensor
    output: Tensor
    edge: Any
    slope: Tensor | None


@contextmanager
def capture(layers: Layers) -> Iterator[dict[str, Seen]]:
    """While it is open, every layer's forward pass is kept."""
    seen: dict[str, Seen] = {}
    handles = [
        view.module.register_forward_hook(_keeper(view, seen), with_kwargs=True) for view in layers.values()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _keeper(view: LayerView, seen: dict[str, Seen]) -> Callable[..., None]:
    def keep(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> None:
        if view.name in seen:
            raise InputError(
                f"layer {view.name!r} is called more than once in a forward pass, which is not "
                "supported yet; leave it out with layers= or exclude="
            )
        slope = None if view.activation is None else slope_of(view.activation, output)
        edge = torch.autograd.graph.get_gradient_edge(output)
        a = args[0] if args else next(iter(kwargs.values()))
        seen[view.name] = Seen(a.detach(), output, edge, slope)

    return keep


def backward(outputs: Tensor, edges: list[Any], columns: Tensor, keep: bool) -> tuple[Tensor, ...]:
    """Sends columns [c, n, K] back from the outputs: for each edge a gradient [c, …].

    Args:
        outputs: the network's outputs [n, K], with their graph.
        edges: `GradientEdge`s of the layers' outputs.
        columns: all of them go in one batched call.
        keep: whether the graph is needed again.
    """
    if len(columns) == 1:
        gradients = torch.autograd.grad(outputs, edges, columns[0], retain_graph=keep)
        return tuple(g.unsqueeze(0) for g in gradients)
    return torch.autograd.grad(outputs, edges, columns, retain_graph=keep, is_grads_batched=True)
