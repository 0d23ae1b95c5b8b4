"""Whether fused modules, spelled out by their adapters, compute what their own forwards do."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fisherlab.collect.agreement import random_column
from fisherlab.collect.batches import is_finite
from fisherlab.collect.hooks import capture
from fisherlab.layers import LayerView, fused_adapter, without_fast_path

Call = Callable[[], AbstractContextManager[Sequence[Tensor]]]
"""Runs the model on always the same inputs, from one random state; gives what it returns, with the graph."""


NOT_OWN = "what would be seen is another network; mend it, or leave the module out with exclude="


_NONE_SILENT = torch.zeros(0, dtype=torch.bool, device="cpu")


def why_not_own(model: nn.Module, layers: Mapping[str, LayerView], call: Call) -> str:
    """Which fused modules' adapters give other outputs or gradients than the modules, or an empty text.

    Layers are seen while an adapter's forward stands in the place of the module's: where it differs, all that
    is seen is of another network. Outputs that are alike do not tell of a bias that is zero, or of a path
    that was cut; the gradients of parameters do.

    Args:
        model: the network, which names the modules.
        layers: those of a fused module are spelled out.
        call: see `Call`.
    """
    inside: dict[nn.Module, dict[str, LayerView]] = {}
    for name, view in layers.items():
        for module in fused_modules(view):
            inside.setdefault(module, {})[name] = view
    if not inside:
        return ""
    own = dict(model.named_parameters())
    names = dict.fromkeys(name for view in layers.values() for name in view.parameters)
    trained = [own[name] for name in names if own[name].requires_grad]
    expected = _Pass.of({}, call, trained)
    views = {name: view for found in inside.values() for name, view in found.items()}
    if not expected.is_finite or expected.agrees(_Pass.of(views, call, trained)):
        return ""
    wrong = [m for m, found in inside.items() if not expected.agrees(_Pass.of(found, call, trained))]
    paths = {module: path for path, module in model.named_modules()}
    return " and ".join(
        f"the forward of {type(fused_adapter(module)).__name__} does not give what "
        f"{f'module {paths[module]!r}' if paths[module] else 'the model'} ({type(module).__name__}) gives"
        for module in wrong or inside
    )


def fused_modules(view: LayerView) -> Sequence[nn.Module]:
    """Those that are spelled out for a layer to be seen."""
    if view.fused is not None:
        return (view.fused,)
    return () if view.part is None else view.modules


@dataclass(frozen=True)
class _Pass:
    """What a model gives, and what random columns at its outputs give the parameters; eps: of its digits."""

    outputs: list[Tensor]
    gradients: list[Tensor | None]
    eps: float

    @classmethod
    def of(cls, layers: Mapping[str, LayerView], call: Call, parameters: Sequence[Tensor]) -> "_Pass":
        """With these layers looked at."""
        with without_fast_path(), capture(layers, outputs=False), call() as outputs:
            ends = [t for t in outputs if t.requires_grad]
            gradients: Sequence[Tensor | None] = [None] * len(parameters)
            if ends and parameters:
                columns = [random_column(t, _NONE_SILENT, dim=None) for t in ends]
                # the graph may reach beyond this call, into one that the user still needs
                gradients = torch.autograd.grad(
                    ends, list(parameters), columns, allow_unused=True, retain_graph=True
                )
            dtypes = {t.dtype for t in (*outputs, *parameters)}
            for device in {t.device.type for t in outputs}:
                if torch.is_autocast_enabled(device):
                    dtypes.add(torch.get_autocast_dtype(device))
            eps = max((torch.finfo(dtype).eps for dtype in dtypes), default=0.0)
            return cls([t.detach() for t in outputs], list(gradients), eps)

    @property
    def is_finite(self) -> bool:
        """Whether there is anything to be compared with."""
        return all(map(is_finite, self.outputs))

    def agrees(self, other: "_Pass") -> bool:
        """Whether both are one but for rounding."""
        if len(self.outputs) != len(other.outputs):
            return False
        pairs = [*zip(self.outputs, other.outputs, strict=True)]
        if any(a.shape != b.shape for a, b in pairs):
            return False
        if not all(_norm(a - b) <= self.eps**0.5 * _norm(a) for a, b in pairs):
            return False
        found = [
            (a, b) for a, b in zip(self.gradients, other.gradients, strict=True) if a is None or is_finite(a)
        ]
        largest = max((_norm(a) for a, _ in found if a is not None), default=0.0)
        return all(_alike(a, b, largest, self.eps) for a, b in found)


def _alike(own: Tensor | None, other: Tensor | None, largest: float, eps: float) -> bool:
    """Whether two gradients are one; no path is a gradient of zero.

    A slope that jumps (ReLU) makes more of a difference in rounding: fewer digits are asked for. What is zero
    but for rounding is a sum of many terms of the largest gradient's size.
    """
    given = [g.to_dense() if g.is_sparse else g for g in (own, other) if g is not None]
    if not given:
        return True
    difference = given[0] - given[1] if len(given) > 1 else given[0]
    norm = 0.0 if own is None else _norm(own)
    return _norm(difference) <= max(eps**0.25 * norm, 100 * eps * largest)


def _norm(x: Tensor) -> float:
    return float(torch.linalg.vector_norm((x.to_dense() if x.is_sparse else x).double()))
