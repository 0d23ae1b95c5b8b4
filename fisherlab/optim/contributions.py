"""What single samples contribute to a layer's gradient, from the calls of its last (micro-)batch."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fisherlab.layers import LayerCall, Layers
from fisherlab.optim.block import KeptCall
from fisherlab.optim.passes import ForwardPass
from fisherlab.optim.rows import sample_dim


@dataclass
class _Kept:
    """Calls of one batch of samples; see `ForwardPass` for the group."""

    samples: int
    group: int
    calls: list[KeptCall]


class SampleProducts:
    """Keeps the calls of layers, with the gradients of their outputs, until the step is made.

    Args:
        layers: the layers with a block.
        dims: the dimension of each layer's inputs that counts samples.
        most: the samples of a pass that are looked at; None: all.
    """

    def __init__(self, layers: Layers, dims: Mapping[str, int], most: int | None) -> None:
        self._layers, self._dims, self._most = layers, dims, most
        self._kept: dict[str, list[_Kept]] = {}

    @property
    def names(self) -> list[str]:
        """The layers with kept calls."""
        return list(self._kept)

    def keep(self, name: str, passes: Iterable[ForwardPass], backward: int) -> None:
        """Takes the calls of a layer out of these passes, those to which this backward pass came.

        Passes of the same samples are one.
        """
        kept: list[_Kept] = []
        for one in passes:
            calls = [call for call in one.layers.pop(name) if call.came_in(backward)]
            same = next((known for known in kept if known.group == one.group), None)
            if same is None:
                kept.append(_Kept(one.samples or 0, one.group, calls))
            else:
                same.calls += calls
        self._kept[name] = kept

    def samples(self, name: str) -> int:
        """How many samples the kept passes of a layer have."""
        return sum(one.samples for one in self._kept[name])

    def let_go(self, name: str) -> None:
        """Drops what was kept of a layer."""
        for one in self._kept.pop(name):
            for call in one.calls:
                call.slot.clear()

    def let_all_go(self) -> None:
        """Drops everything."""
        for name in self.names:
            self.let_go(name)

    def along(self, name: str, direction: Tensor, *, every: bool = False) -> tuple[Tensor, bool]:
        """⟨D, contribution of sample n to ∇h⟩ for samples of the kept passes [n], and whether for all.

        Args:
            name: the layer.
            direction: D [m, d].
            every: whether all samples are looked at, whatever the bound.
        """
        found, whole = [], True
        view, dim = self._layers[name], self._dims[name]
        for one in self._kept[name]:
            samples = one.samples
            seen = [(call.use, call.g) for call in one.calls if call.g is not None]
            most = samples if every else min(samples, self._most or samples)
            if sample_dim(view, dim) or any(
                not use.input.shape[0] == samples == g.shape[0] for use, g in seen
            ):
                most = samples  # samples do not come first, or a call has several rows a sample
            whole = whole and most == samples
            products = torch.zeros((), dtype=direction.dtype, device=direction.device)
            for use, g in seen:
                if most < samples:
                    use, g = LayerCall(use.input[:most], use.output[:most]), g[:most]
                products = products + view.products(use, g, direction, most, dim)
            found.append(products)
        return torch.cat(found), whole

    def tolerance(self, name: str, gradient: Tensor) -> float:
        """How far Σ_n ⟨D, contribution of sample n⟩ may be from ⟨D, ∇h⟩, relative to what enters it.

        Rounding leaves far less; products with fewer digits (TF32, bfloat16 on the way) have their say.
        """
        gradients = [call.g for one in self._kept[name] for call in one.calls]
        least = min(g.dtype.itemsize for g in [*gradients, gradient] if g is not None)
        return {8: 1e-8, 4: 1e-3}.get(least, 5e-2)
