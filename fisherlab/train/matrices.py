"""An optimizer that takes matrices only, and AdamW beside it for everything else."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fisherlab.collect.batches import called
from fisherlab.errors import InputError

OTHER_LR = "other_lr"
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_CONVOLUTIONS = nn.modules.conv._ConvNd


class MatricesBesideAdamW(torch.optim.Optimizer):
    """Two optimizers in one: of the matrices, and AdamW of all other parameters.

    The groups are those of both, so that schedules and clipping reach them. While the first one is at work
    the weight of a convolution is the matrix [m, d·k·k] of its filters.

    Args:
        make: the optimizer of the matrices.
        options: its own; AdamW has the same lr and weight decay, and its own defaults for all else.
        matrices: what it takes.
        others: what AdamW takes.
        other_lr: the learning rate of AdamW; None: the same.

    Attributes:
        parts: both.
    """

    def __init__(
        self,
        make: Callable[..., torch.optim.Optimizer],
        options: Mapping[str, Any],
        matrices: Sequence[nn.Parameter],
        others: Sequence[nn.Parameter],
        other_lr: float | None = None,
    ) -> None:
        self._filters = [p for p in matrices if p.dim() > 2]
        with _flat(self._filters):
            first = make(list(matrices), **options)
        group = first.param_groups[0]
        shared: dict[str, Any] = {name: group[name] for name in ("lr", "weight_decay") if name in group}
        if other_lr is not None:
            shared["lr"] = other_lr
        self.parts = first, torch.optim.AdamW(list(others), **shared)
        super().__init__([*matrices, *others], {})
        self._join()

    def _join(self) -> None:
        self.param_groups[:] = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """A step of both.

        Args:
            closure: called once before, with gradients.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        first, other = self.parts
        with _flat(self._filters):
            first.step()
        other.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The states of both."""
        return {"matrices": self.parts[0].state_dict(), "others": self.parts[1].state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # type: ignore[override]
        """Takes over a state of the same kind."""
        for part, name in zip(self.parts, ("matrices", "others"), strict=True):
            part.load_state_dict(state_dict[name])
        self._join()


@contextmanager
def _flat(filters: Sequence[nn.Parameter]) -> Iterator[None]:
    """For the time of the block the filters are matrices, in their own memory where that is possible."""
    before = [(p, p.data, p.grad) for p in filters]
    for p, data, grad in before:
        p.grad = None
        p.data = data.flatten(1)
        p.grad = None if grad is None else grad.flatten(1)
    try:
        yield
    finally:
        for p, data, grad in before:
            moved, p.grad = p.data, None
            p.data = data
            if moved.data_ptr() != data.data_ptr():  # the memory had another order, or the optimizer made new
                data.copy_(moved.view_as(data))
            p.grad = grad


def split(model: nn.Module, inputs: Any, name: str) -> tuple[list[str], list[str]]:
    """The names of the parameters that are matrices of hidden layers, and those of all others.

    As Jordan 2024 (kellerjordan.github.io/posts/muon) says, embeddings, the first and the last layer are no
    hidden ones: the first and the last that a forward pass calls. Matrices are parameters with two
    dimensions and the filters of convolutions, but not a table of a module that has layers in it, such as
    one of positions.

    Args:
        model: on the device of the inputs.
        inputs: of a few samples, for a pass in evaluation mode.
        name: of the optimizer, for the error.

    Raises:
        InputError: where no matrix is left.
    """
    order = _called(model, inputs)
    inner = set(order)
    layers = [one for one in order if not inner & set(one.modules()) - {one}]
    embeddings = [module for module in model.modules() if isinstance(module, _EMBEDDINGS)]
    hidden = {id(p) for module in model.modules() for p in _matrices(module)}
    for module in (*embeddings, *layers[:1], *layers[-1:]):
        hidden -= {id(p) for p in module.parameters()}
    for module in inner - set(layers):
        hidden -= {id(p) for p in module.parameters(recurse=False)}
    found: tuple[list[str], list[str]] = [], []
    for key, p in model.named_parameters():
        if p.requires_grad:
            found[id(p) not in hidden].append(key)
    if not found[0]:
        raise InputError(
            f"{name} takes the matrices of hidden layers, and the model has none that is trained beside its "
            "embeddings and its first and last layers; use another optimizer, such as adamw"
        )
    return found


def _matrices(module: nn.Module) -> list[nn.Parameter]:
    """Those of its own."""
    filters = isinstance(module, _CONVOLUTIONS)
    return [p for p in module.parameters(recurse=False) if p.dim() == 2 or (filters and p.dim() > 2)]


def _called(model: nn.Module, inputs: Any) -> list[nn.Module]:
    """The modules with matrices of their own, in the order in which their first calls end."""
    order: list[nn.Module] = []

    def note(module: nn.Module, *_: Any) -> None:
        if module not in order:
            order.append(module)

    handles = [module.register_forward_hook(note) for module in model.modules() if _matrices(module)]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.enable_grad():  # without it a TransformerEncoderLayer calls none of its layers
            called(model, inputs)
    finally:
        for module, mode in modes:
            module.training = mode
        for handle in handles:
            handle.remove()
    return order
