"""Modules that compute several projections in one forward: spelled out, so that each can be seen."""

import sys
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType
from typing import Any, ClassVar, Protocol

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from fisherlab.errors import InputError
from fisherlab.layers.adapter import Adapter, ModuleAdapter, adapter_of, kin_adapter
from fisherlab.layers.linear import LINEAR

Rows = slice | int | None
"""Those of a parameter that belong to a part: a slice of its rows, one of stacked matrices, or all."""


@dataclass(frozen=True)
class Part:
    """One projection s = W a of a fused module; it is the layer `<module>.<name>`.

    Attributes:
        name: of the part; empty where the module has no other, for the layer `<module>`.
        weight: the name of the module's parameter that holds W.
        bias: that of its bias; None: it has none.
        rows: the rows of the weight that are W; of stacked matrices [E, m, d] the place of one.
        bias_rows: the entries of the bias that are this part's; of stacked ones [E, m] the place of one.
        adapter: how inputs, outputs and weight are seen; it is given the fused module.
    """

    name: str
    weight: str
    bias: str | None = None
    rows: Rows = None
    bias_rows: Rows = None
    adapter: Adapter = LINEAR

    def shape(self, module: nn.Module) -> tuple[int, int]:
        """(m, d) of W.

        Raises:
            InputError: where its rows of the weight are no matrix.
        """
        weight = getattr(module, self.weight)
        try:
            m, d = self.adapter.matrix(module, of_rows(weight, self.rows, 1)).shape
        except (IndexError, ValueError):
            m = d = 0
        if not m * d:
            raise InputError(
                f"part {self.name!r} of a {type(module).__name__}: rows={self.rows!r} of {self.weight!r}, of "
                f"shape {list(weight.shape)}, are no matrix; mend the adapter's parts"
            )
        return m, d


def of_rows(tensor: Tensor, rows: Rows, after: int) -> Tensor:
    """A part's own of tensors [..., rows, …], which have so many dimensions after the rows of one part."""
    if rows is None:
        return tensor
    return tensor[(..., rows, *[slice(None)] * (after + isinstance(rows, int)))]


class Record(Protocol):
    """Is told of a projection while a fused module runs."""

    def __call__(
        self, part: str, x: Tensor, output: Tensor, *, at: Tensor | None = None, valid: Tensor | None = None
    ) -> None:
        """One call of a part; each is one call of a layer.

        Args:
            part: its name.
            x: its input.
            output: W x + b, what follows is made of; its numbers may be a copy where `at` is given.
            at: shaped as the output, the tensor whose gradient is that of the output; None: the output.
            valid: bool, shaped as the output without its last dimension: which rows count. Others have
                to be without an effect on the module's output. Samples come first then.
        """


ModuleRecord = Callable[[nn.Module, str, Tensor, Tensor, Tensor, Tensor | None], None]
"""As `Record`, told of the module first, and always of `at` and `valid`."""


class FusedAdapter(ModuleAdapter):
    """Modules that use several weights in one forward, each a block of its own.

    While calls are looked at, the module's forward is replaced by the adapter's, which is to give the same
    result and to say of every projection what went in and came out; afterwards it is as it was. Where its
    outputs or gradients are others, an analysis and an optimizer's first step refuse it. One for a module of
    your own is registered once, and every function of fisherlab then sees its parts:

        from fisherlab import FusedAdapter, Part

        class Gate(nn.Module):  # y = (W_1 x) ∘ σ(W_2 x), W = [W_1; W_2] one parameter [2 m, d]
            ...

        class GateAdapter(FusedAdapter):
            modules = (Gate,)

            def parts(self, module):
                m = len(module.weight) // 2
                rows = {"value": slice(0, m), "gate": slice(m, 2 * m)}
                return [Part(name, "weight", rows=own) for name, own in rows.items()]

            def forward(self, module, record, x):
                value, gate = (x @ w.mT for w in module.weight.chunk(2))
                record("value", x, value)
                record("gate", x, gate)
                return value * gate.sigmoid()

        fisherlab.register_layer(GateAdapter())

    Attributes:
        modules: the types; a subclass with a forward of its own is not taken for one of them.
        children: names of modules inside whose own calls are seen only while this one is spelled out.
    """

    children: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def parts(self, module: nn.Module) -> Sequence[Part]:
        """The module's projections, in the order in which layers are listed."""

    @abstractmethod
    def forward(self, module: Any, record: Record, *args: Any, **kwargs: Any) -> Any:
        """What the module's forward gives, `record` called for every projection.

        A call that cannot be seen as rows of samples is left to `type(module).forward`, unseen.
        """

    def batch_dim(self, module: Any) -> int | None:
        """The dimension that counts samples in what is recorded, and in the children; None: the model's."""
        return None

    def while_open(self) -> AbstractContextManager[Any]:
        """Open while any such module is spelled out."""
        return nullcontext()


def fused_adapter(module: nn.Module) -> FusedAdapter | None:
    """The adapter that a module's parts are seen by, also while it is spelled out; None of another module."""
    now = vars(module).get("forward")
    found = now.adapter if isinstance(now, _SpelledOut) else adapter_of(module)
    return found if isinstance(found, FusedAdapter) else None


def is_fused(module: nn.Module) -> bool:
    """Whether a module's type is, or derives from, one with a fused adapter, whatever its forward is now."""
    return isinstance(kin_adapter(module), FusedAdapter)


def _is_made_again() -> bool:
    """Whether the backward pass makes what is saved now again, as activation checkpointing does.

    It would then find what the module's own forward saves, in the place of what was saved here.
    """
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)  # from torch 2.8 on
    if top is not None:
        hooks = top(False)
        return hooks is not None and hooks[0].__module__ == torch.utils.checkpoint.__name__
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_globals.get("__name__") != torch.utils.checkpoint.__name__:
        frame = frame.f_back
    return frame is not None


class _SpelledOut:
    """The forward of a fused module while it is looked at, by one or several at a time."""

    def __init__(self, module: nn.Module, adapter: FusedAdapter) -> None:
        self.module, self.adapter = module, adapter
        self.records: list[ModuleRecord] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if _is_made_again():
            return type(self.module).forward(self.module, *args, **kwargs)
        return self.adapter.forward(self.module, self._tell, *args, **kwargs)

    def _tell(
        self, part: str, x: Tensor, output: Tensor, *, at: Tensor | None = None, valid: Tensor | None = None
    ) -> None:
        for record in self.records:
            record(self.module, part, x, output, output if at is None else at, valid)


@contextmanager
def spelled_out(modules: Iterable[nn.Module], record: ModuleRecord) -> Iterator[None]:
    """While it is open these fused modules tell of their projections; a forward of the user's own stays."""
    forwards: list[_SpelledOut] = []
    with ExitStack() as stack:
        try:
            for module in modules:
                adapter = fused_adapter(module)
                if adapter is None:
                    continue
                stack.enter_context(adapter.while_open())
                forward = vars(module).setdefault("forward", _SpelledOut(module, adapter))
                forward.records.append(record)
                forwards.append(forward)
            yield
        finally:
            for forward in forwards:
                forward.records.remove(record)
                if not forward.records:
                    vars(forward.module).pop("forward", None)
