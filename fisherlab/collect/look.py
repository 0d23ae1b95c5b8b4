"""A look at a model with a few samples: what its layers see, and what comes back to calls and parameters."""

import math
import random
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fisherlab.collect.agreement import (
    MIXED,
    NOT_FINITE,
    all_finite,
    came_back,
    close,
    is_mixed,
    random_column,
    silent_samples,
    why_not,
)
from fisherlab.collect.batches import each
from fisherlab.collect.forms import ModelInputs
from fisherlab.collect.hooks import SMALL_PASS, backward, capture, together
from fisherlab.collect.outputs import Outputs
from fisherlab.collect.own_forwards import NOT_OWN, why_not_own
from fisherlab.collect.refusals import (
    node_names,
    not_finite,
    require_finite,
    require_no_reentrant_checkpoint,
    require_own_outputs,
    require_same_outputs,
)
from fisherlab.errors import FisherlabError, InputError, InputTypeError
from fisherlab.layers import LayerCall, LayerView

FEW = 2  # samples of the first look: the fewest of which one can stand in another's place
# Calls of a model that draws random numbers: one that half of its draws lead astray passes once in 2^64.
_CHANCES = 64
_ALL = 2  # patterns of silent samples that together leave out none: a set and its complement

_MOVING = re.compile("^(Index|Gather|Scatter|Masked(Scatter|Select)|Sort|Take|Flip|Roll|PackPadded)")
_PLAIN = re.compile(r"(Backward\d+|^torch::autograd::\w+|AccumulateGrad|CppFunction)$")


@dataclass
class Look:
    """A forward pass of a few samples, and the backward of one column that is zero for some of them.

    Attributes:
        inputs: of the samples.
        samples: how many.
        silent: the samples for which the column is zero, a bool [samples].
        column: at the model's outputs.
        outputs: the model's.
        seen: the layers' calls.
        other: those with sample 0 replaced by sample 1; None: not looked at.
        gradients: for each layer what came back to its calls.
        by_parameter: what came back to the parameters, by full name.
        more: of a model that moves rows about, other silent samples and what came back to the calls.
    """

    inputs: ModelInputs
    samples: int
    silent: Tensor
    column: Tensor
    outputs: Tensor
    seen: Mapping[str, list[LayerCall]]
    other: Mapping[str, list[LayerCall]] | None
    gradients: Mapping[str, list[Tensor | None]]
    by_parameter: Mapping[str, Tensor | None]
    more: "Sequence[tuple[Tensor, Mapping[str, list[Tensor | None]]]]"

    def why_not(self, view: LayerView, batch_dim: int) -> str:
        """Why a view of a layer is not right here, or an empty text."""
        own = {name: self.by_parameter[name] for name in view.parameters}
        if view.why_by_gradients:  # no calls are looked at
            return view.why_by_gradients if all_finite(own.values()) else NOT_FINITE
        other = None if self.other is None else self.other[view.name]
        calls, gradients = self.seen[view.name], self.gradients[view.name]
        given = view, calls, other, gradients, own, self.samples, batch_dim
        reason = why_not(*given, silent=self.silent)
        if reason:
            return reason
        mixed = any(
            is_mixed(view, calls, found[view.name], silent, self.samples, batch_dim)
            for silent, found in self.more
        )
        return MIXED if mixed else ""

    def tells(self, view: LayerView) -> bool:
        """Whether anything came back to a layer."""
        own = {name: self.by_parameter[name] for name in view.parameters}
        return came_back(self.gradients[view.name], own)

    def reaches(self, view: LayerView) -> bool:
        """Whether a path leads from the outputs to any of a layer's parameters."""
        return any(self.by_parameter[name] is not None for name in view.parameters)


@dataclass(frozen=True)
class Looker:
    """Looks at a model.

    Attributes:
        model: the network, in evaluation mode.
        batch_dim: the dimension that counts samples in its inputs and, unless a view says otherwise, in the
            layers' tensors.
        outputs: calls it.
    """

    model: nn.Module
    batch_dim: int
    outputs: Outputs

    def look(
        self,
        layers: Mapping[str, LayerView],
        inputs: ModelInputs,
        samples: int,
        *,
        swap: bool = True,
        check: Callable[[Tensor], None] | None = None,
    ) -> Look:
        """One look at a few samples.

        Args:
            layers: how they are read.
            inputs: of the samples.
            samples: how many.
            swap: whether to look also at those with sample 0 replaced by sample 1.
            check: called with the model's outputs.

        Raises:
            InputError: where the model mixes samples, or uses reentrant checkpointing.
            NumericalError: where it gives values that are not finite.
        """
        outputs, seen = self._forward(layers, inputs, samples)
        require_finite(outputs, seen, 0)
        if check is not None:
            check(outputs)
        require_no_reentrant_checkpoint(outputs)
        other = None
        if swap and samples > 1:
            swapped, other = self._forward(layers, each(inputs, self._second_twice), samples)
            require_own_outputs(layers, (outputs, seen), (swapped, other), samples, self.batch_dim)
        silent = silent_samples(samples)
        more = []
        if samples > FEW and moves_rows(outputs):
            for quiet in _separating_sets(samples):
                column = random_column(outputs, quiet)
                more.append((quiet, self._backward(layers, seen, outputs, column, keep=True)[0]))
        column = random_column(outputs, silent)
        at_calls, by_parameter = self._backward(layers, seen, outputs, column, keep=False)
        return Look(inputs, samples, silent, column, outputs, seen, other, at_calls, by_parameter, more)

    def not_right(
        self,
        layers: Mapping[str, LayerView],
        seen: Mapping[str, list[LayerCall]],
        outputs: Tensor,
        index: int,
        *,
        pairs: bool,
    ) -> dict[str, FisherlabError]:
        """Looks at a whole batch; its graph is kept.

        Two random columns, each zero for every other sample, show parameters that are used elsewhere, and
        rows that go to a neighbour; with `pairs` more columns show rows that go to any other sample.

        Args:
            layers: how they are read.
            seen: their calls.
            outputs: of the batch.
            index: of the batch.
            pairs: whether any two samples are told apart.

        Returns:
            For the layers whose views are not right for this batch why.
        """
        wrong: dict[str, FisherlabError] = {}
        samples = len(outputs)
        patterns = list(_separating_sets(samples)) or [silent_samples(samples)]
        for place, quiet in enumerate(patterns if pairs else patterns[:_ALL]):
            column = random_column(outputs, quiet)
            at_calls, by_parameter = self._backward(layers, seen, outputs, column, keep=True)
            for name in layers.keys() - wrong.keys():
                view, calls, found = layers[name], seen[name], at_calls[name]
                if place < _ALL:  # sums too
                    own = {parameter: by_parameter[parameter] for parameter in view.parameters}
                    reason = why_not(view, calls, None, found, own, samples, self.batch_dim, quiet)
                else:
                    mixed = is_mixed(view, calls, found, quiet, samples, self.batch_dim)
                    reason = MIXED if mixed else ""
                if reason:
                    wrong[name] = _not_right(name, index, reason)
        return {name: wrong[name] for name in layers if name in wrong}

    def require_own(self, layers: Mapping[str, LayerView], look: Look) -> None:
        """Calls the model with the samples of a look again, and in parts, which must give the same outputs.

        What a look tells may be the same by chance: samples that are equal, or numbers drawn that lead the
        same way. Where a model draws numbers it is called more often.

        Raises:
            InputError: where the outputs are others, or the adapter of a fused module gives others than it.
        """
        outputs, states = look.outputs.detach(), random_states(look.outputs.device)
        if look.samples <= FEW:  # more samples are called in parts, which tells as much
            require_same_outputs(outputs, self._outputs(layers, look.inputs))
            drawn = states != random_states(outputs.device)
            for _ in range(_CHANCES if drawn else 0):
                require_same_outputs(outputs, self._outputs(layers, look.inputs))
        self.require_apart(layers, look.inputs, outputs)
        wrong = why_not_own(self.model, layers, lambda: nullcontext([self.outputs(look.inputs)]))
        if wrong:
            raise InputError(f"{wrong}: {NOT_OWN}")

    def require_apart(self, layers: Mapping[str, LayerView], inputs: ModelInputs, outputs: Tensor) -> None:
        """Calls the model with either half of some samples, which must give the same outputs.

        It shows what gradients do not: samples that act on each other where nothing comes back, as by a
        choice or a norm of the batch that is detached.

        Raises:
            InputError: where the outputs are others.
        """
        samples, outputs = len(outputs), outputs.detach()
        middle = samples // 2
        for start, stop in ((0, middle), (middle, samples)) if middle else ():
            take = partial(torch.narrow, dim=self.batch_dim, start=start, length=stop - start)
            try:
                found = self._outputs(layers, each(inputs, take))
            except (InputError, InputTypeError):  # it cannot be called with so few
                continue
            if found.numel() == outputs[start:stop].numel():  # one sample may lose its dimension
                require_same_outputs(outputs[start:stop], found.reshape(outputs[start:stop].shape))

    def goes_together(self, layers: Mapping[str, LayerView], inputs: ModelInputs, numbers: int) -> bool:
        """Whether columns that go backwards together come back as they do one by one.

        Torch cannot send some functions' columns back together, and does it wrongly for a few; a hook of the
        user's may need the numbers of one.

        Args:
            layers: to whose calls.
            inputs: of samples.
            numbers: how many numbers a pass computes.
        """
        if numbers >= SMALL_PASS:  # a network of this size is given one column after the other
            return True
        with capture(layers) as seen:
            outputs = self.outputs(inputs)
        edges: list[Any] = [call.edge for calls in seen.values() for call in calls]
        if not edges:
            return True
        column = random_column(outputs, torch.zeros(len(outputs), dtype=torch.bool))
        columns = torch.stack([column, column.flip(-1) + column.square()])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of slow ways of torch's: the pass itself says so
            in_one = together(outputs, edges, columns)
        if in_one is None:
            return False
        apart = [found for _, found in backward(outputs, edges, columns, False, sys.maxsize)]
        expected = [None if own[0] is None else torch.cat(own) for own in zip(*apart, strict=True)]
        norms = [0.0 if g is None else float(torch.linalg.vector_norm(g.double())) for g in expected]
        # what is zero but for rounding is a sum of terms of another gradient's size, and of many
        scale = 100 * math.sqrt(torch.finfo(outputs.dtype).eps) * max(norms)
        return all(
            g is own if g is None or own is None else close(g.double(), own, scale)
            for g, own in zip(in_one, expected, strict=True)
        )

    def saved(self, inputs: ModelInputs) -> int:
        """How many numbers the graph of a forward pass keeps, without those of the model itself."""
        own = {x.untyped_storage().data_ptr() for x in (*self.model.parameters(), *self.model.buffers())}
        kept: dict[int, int] = {}

        def pack(x: Tensor) -> Tensor:
            if x.layout == torch.strided:
                storage = x.untyped_storage()
                kept[storage.data_ptr()] = storage.nbytes() // x.element_size()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            outputs = self.outputs(inputs)
        del outputs
        return sum(numbers for place, numbers in kept.items() if place not in own)

    def _outputs(self, layers: Mapping[str, LayerView], inputs: ModelInputs) -> Tensor:
        """The model's outputs, along the ways of a look but with no layer expanded."""
        with capture(layers, outputs=False):
            return self.outputs(inputs).detach()

    def _backward(
        self,
        layers: Mapping[str, LayerView],
        seen: Mapping[str, list[LayerCall]],
        outputs: Tensor,
        column: Tensor,
        *,
        keep: bool,
    ) -> tuple[dict[str, list[Tensor | None]], dict[str, Tensor | None]]:
        """What a column gives at each layer's calls, and at the parameters, by full name."""
        names = dict.fromkeys(name for view in layers.values() for name in view.parameters)
        own = dict(self.model.named_parameters())
        places: list[Any] = [call.edge for name in layers for call in seen[name]]
        places += [own[name] for name in names]
        found: Sequence[Tensor | None] = [None] * len(places)
        if outputs.requires_grad and places:
            try:
                found = torch.autograd.grad(outputs, places, column, retain_graph=keep, allow_unused=True)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                why = (str(error).strip().splitlines() or [""])[0]
                raise InputError(
                    f"the model's own backward pass fails ({why}); mend it until loss.backward() works"
                ) from error
        gradients = iter(found)
        at_calls = {name: [next(gradients) for _ in seen[name]] for name in layers}
        return at_calls, dict(zip(names, gradients, strict=True))

    def _forward(
        self, layers: Mapping[str, LayerView], inputs: ModelInputs, samples: int
    ) -> tuple[Tensor, dict[str, list[LayerCall]]]:
        with capture(layers, samples=samples) as seen:
            return self.outputs(inputs), seen

    def _second_twice(self, x: Tensor) -> Tensor:
        second = x.narrow(self.batch_dim, 1, 1)
        return torch.cat([second, x.narrow(self.batch_dim, 1, x.shape[self.batch_dim] - 1)], self.batch_dim)


def _not_right(name: str, index: int, reason: str) -> FisherlabError:
    """What a batch is refused with."""
    if reason == NOT_FINITE:
        return not_finite(name, index)
    return InputError(
        f"layer {name!r} was right for the first samples and is not in batch {index}: {reason}; use "
        "method='per-sample'"
    )


def random_states(device: torch.device) -> list[Any]:
    """The random states of torch, numpy and Python."""
    states = [torch.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate()]  # noqa: NPY002
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device).tolist())
    return states


def _separating_sets(samples: int) -> Iterator[Tensor]:
    """Sets of samples such that of any two, either is in one of them without the other; bools [samples]."""
    places = torch.arange(samples, device="cpu")
    for bit in range((samples - 1).bit_length()):
        own = (places >> bit) % 2 == 0
        yield from (own, ~own)


def moves_rows(outputs: Tensor) -> bool:
    """Whether the model picks rows by index, sorts, flips or scatters them, or hides what it does.

    Which rows belong to which sample may then depend on the data.
    """
    return any(_MOVING.search(name) or not _PLAIN.search(name) for name in node_names(outputs))
