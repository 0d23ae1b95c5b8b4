"""Samples: which dimension of a layer's inputs counts them, and what single ones add to its gradient."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fisherlab.collect.own_forwards import fused_modules
from fisherlab.errors import InputError
from fisherlab.layers import LayerCall, LayerView, match_names
from fisherlab.optim.passes import ForwardPass, KeptCall, tensors_in
from fisherlab.optim.rows import SampleLook, look_at, require_own_forwards

_LOOKS = 3  # at other samples each, before a layer that none of them reached is left out
_SOME_ONLY = "some samples only reach it, so that it cannot be said which rows are of which sample"


class SampleDims:
    """Looks at layers until it is sure of them.

    Args:
        layers: the layers with a block.
        parameters: of the model by name.
        batch_dim: the dimension that counts samples, of the model's inputs and of layers'; or by layer (names
            and globs), which is taken as it is, the model's own under the empty name.

    Attributes:
        by_layer: the dimension of each layer's inputs.
    """

    def __init__(
        self,
        layers: Mapping[str, LayerView],
        parameters: Mapping[str, nn.Parameter],
        batch_dim: int | Mapping[str, int],
    ) -> None:
        self._layers, self._parameters = layers, parameters
        self._root, self.by_layer, self._declared = _dims_of(layers, batch_dim)
        self._unsure = dict.fromkeys(layers, 0)
        self._reached: set[str] = set()
        self._alone: set[str] = set()
        self._own: set[tuple[nn.Module, bool]] = set()  # fused modules that are as their adapters, by mode

    def count(self, given: Sequence[Tensor], outputs: Sequence[Tensor]) -> int | None:
        """N: how many samples these arguments have; None where no tensor says so.

        Arguments may be of other lengths (a time, a mask, a table): the outputs decide between them, or the
        number of those that agree does.
        """
        lengths = [t.shape[self._root] for t in given if t.dim() > self._root]
        if len(set(lengths)) > 1:
            known = [t.shape[dim] for t in outputs for dim in (self._root, 0) if t.dim() > dim]
            agreed = [length for length in lengths if length in known]
            several = [length for length in lengths if length > 1]
            lengths = agreed or sorted(several, key=several.count, reverse=True)
        return lengths[0] if lengths else None

    def look(
        self, module: nn.Module, names: Iterable[str], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> SampleLook | None:
        """A look at a few samples before the pass, whose traces are the last; None: nothing is unsure."""
        unsure = [name for name in names if self._unsure.get(name, _LOOKS) < _LOOKS]
        samples = self.count(tensors_in((args, kwargs)), ())
        if not unsure or samples is None or samples < 2:
            return None
        return self._look_at(module, args, kwargs, samples, unsure)

    def require_own_forwards(
        self,
        root: nn.Module,
        module: nn.Module,
        layers: Mapping[str, LayerView],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        """Refuses adapters of fused modules that are not as their modules, once a module and mode."""
        seen = {(one, module.training) for view in layers.values() for one in fused_modules(view)}
        if not seen <= self._own:
            require_own_forwards(root, module, args, kwargs, layers)
            self._own |= seen

    def _look_at(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        samples: int,
        names: Sequence[str],
    ) -> SampleLook:
        start = max(self._unsure[name] for name in names)
        layers = {name: self._layers[name] for name in names}
        return look_at(module, args, kwargs, samples, start, self._root, layers, self._parameters)

    def settle(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        samples: int,
        taken: Mapping[str, list[LayerCall]],
        look: SampleLook | None,
    ) -> dict[str, str]:
        """Which dimension of each layer counts samples, from the look; layers of which it says nothing wait.

        A layer stays unsure where its rows are not simply the samples and the model moves rows by what is in
        them: another batch may have other ones.

        Returns:
            By layer why its rows are not those of samples, or not all that its weight does.

        Raises:
            InputError: where the model cannot be looked at.
        """
        reasons = self._judged(module, args, kwargs, samples, taken, look)
        for name, calls in taken.items():
            if name not in reasons:
                reasons |= self._unread(name, calls, samples)
        return reasons

    def _unread(self, name: str, calls: Iterable[LayerCall], samples: int) -> dict[str, str]:
        """The reason, where a call's rows cannot be those of so many samples."""
        for call in calls:
            try:
                self._layers[name].leading(call, samples, self.by_layer[name])
            except InputError:
                shape = list(call.output.shape)
                return {
                    name: f"an output of shape {shape} does not count {samples} samples (batch_dim= says how)"
                }
        return {}

    def _judged(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        samples: int,
        taken: Mapping[str, list[LayerCall]],
        look: SampleLook | None,
    ) -> dict[str, str]:
        """What `settle` says of layers that it is not sure of."""
        for name, calls in taken.items():
            alone = all(self._is_alone(name, call, samples) for call in calls)
            if name in self._alone and not alone:  # another layout than before
                self._unsure.setdefault(name, 0)
            self._alone.update({name} if alone else ())
        unsure = [name for name in taken if name in self._unsure]
        if not unsure or samples < 2:
            return {}
        if look is None or look.samples != samples:
            look = self._look_at(module, args, kwargs, samples, unsure)
        if look.error and not self._declared.issuperset(unsure):
            raise InputError(
                "which rows of the layers belong to one sample could not be found: called with "
                f"{look.few} of {samples} samples, the model raises {look.error}; "
                f"batch_dim={{'*': 0}} takes the first dimension of every layer as it is, a "
                "layer's name in the place of * that of one"
            )
        judged = {
            name: look.judge(
                self._layers[name],
                self.by_layer[name],
                [call.output.shape for call in taken[name]],
                trusted=name in self._declared,
            )
            for name in unsure
        }
        reasons = {name: found.reason for name, found in judged.items() if found is not None and found.reason}
        for name, found in judged.items():
            if name in reasons:
                continue
            self._unsure[name] += 1
            if name in self._declared:
                del self._unsure[name]
                continue
            if found is None and self._unsure[name] >= _LOOKS and name not in self._reached:
                reasons[name] = _SOME_ONLY
            if found is None:
                continue
            self._reached.add(name)
            self.by_layer[name] = found.dim
            risky = look.moves and not all(self._is_alone(name, call, samples) for call in taken[name])
            if risky:
                self._unsure[name] = 0
            elif found.sure:
                del self._unsure[name]
        return reasons

    def _is_alone(self, name: str, call: LayerCall, samples: int) -> bool:
        """Whether the dimension of samples is as long as there are samples."""
        dim = self._layers[name].sample_dim(self.by_layer[name])
        return call.output.dim() > dim and call.output.shape[dim] == samples


def _dims_of(
    layers: Iterable[str], batch_dim: int | Mapping[str, int]
) -> tuple[int, dict[str, int], set[str]]:
    """The dimension that counts samples of the model and of each layer, and the layers that were declared."""
    if not isinstance(batch_dim, Mapping):
        return batch_dim, dict.fromkeys(layers, batch_dim), set()
    root = batch_dim.get("", 0)
    dims = dict.fromkeys(layers, root)
    given = {name: dim for glob, dim in batch_dim.items() if glob for name in match_names(layers, [glob])}
    return root, dims | given, set(given)


@dataclass
class KeptSamples:
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

    def __init__(self, layers: Mapping[str, LayerView], dims: Mapping[str, int], most: int | None) -> None:
        self._layers, self._dims, self._most = layers, dims, most
        self._kept: dict[str, list[KeptSamples]] = {}

    @property
    def names(self) -> list[str]:
        """The layers with kept calls."""
        return list(self._kept)

    def keep(self, name: str, passes: Iterable[ForwardPass], backward: int) -> None:
        """Takes the calls of a layer out of these passes, those to which this backward pass came.

        Passes of the same samples are one.
        """
        kept: list[KeptSamples] = []
        for one in passes:
            calls = [call for call in one.layers.pop(name) if call.came_in(backward)]
            same = next((known for known in kept if known.group == one.group), None)
            if same is None:
                kept.append(KeptSamples(one.samples or 0, one.group, calls))
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
            if view.sample_dim(dim) or any(
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
