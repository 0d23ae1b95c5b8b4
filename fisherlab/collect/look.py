"""The first look: how each layer is to be read so that its block is that of its parameters, or why it cannot.

A layer is taken as it is declared where that agrees with autograd (`fisherlab.collect.agreement`); else with
another dimension that counts samples; else, where its calls do not depend on the samples, with their outputs
expanded over them; else by its parameters' gradients, sample by sample; and else it is left out.
"""

import math
import random
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fisherlab.collect.agreement import (
    MIXED,
    NOT_FINITE,
    came_back,
    close,
    is_mixed,
    random_column,
    silent_samples,
    why_not,
)
from fisherlab.collect.batches import ModelInputs, each, outputs_of_model
from fisherlab.collect.hooks import Seen, backward, capture
from fisherlab.collect.refusals import (
    node_names,
    not_finite,
    require_finite,
    require_no_reentrant_checkpoint,
    require_own_outputs,
    require_same_outputs,
)
from fisherlab.collect.sample_gradients import SampleGradients
from fisherlab.errors import FisherlabError, InputError, InputTypeError
from fisherlab.layers import LayerView

_FEW = 2
_CHANCES = 64  # calls of a model that draws random numbers
_ALL = 2  # patterns of silent samples that together leave out none

_MOVING = re.compile("^(Index|Gather|Scatter|Masked(Scatter|Select)|Sort|Take|Flip|Roll|PackPadded)")
_PLAIN = re.compile(r"(Backward\d+|^torch::autograd::\w+|AccumulateGrad|CppFunction)$")

UNCHECKED = (
    "no gradient came back to it in the first {samples} samples, so its inputs and gradients could not be "
    "checked against the parameters"
)
UNEVEN = "it sees other numbers of rows of some samples than of others"


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
    seen: Mapping[str, list[Seen]]
    other: Mapping[str, list[Seen]] | None
    gradients: Mapping[str, list[Tensor | None]]
    by_parameter: Mapping[str, Tensor | None]
    more: "Sequence[tuple[Tensor, Mapping[str, list[Tensor | None]]]]"

    def why_not(self, view: LayerView, batch_dim: int) -> str:
        """Why a view of a layer is not right here, or an empty text."""
        own = {name: self.by_parameter[name] for name in view.parameters}
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


@dataclass
class Settled:
    """What a look decided.

    Attributes:
        views: how each layer is to be read.
        left_out: the layers that are not, with the reason.
        remarks: for layers that are made of samples' gradients, or could not be checked, the reason.
    """

    views: dict[str, LayerView] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Looker:
    """Looks at a model.

    Attributes:
        model: the network, in evaluation mode.
        batch_dim: the dimension that counts samples in its inputs and, unless a view says otherwise, in the
            layers' tensors.
    """

    model: nn.Module
    batch_dim: int

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
        if samples > _FEW and moves_rows(outputs):
            for quiet in _every_pair(samples):
                column = random_column(outputs, quiet)
                more.append((quiet, self._backward(layers, seen, outputs, column, keep=True)[0]))
        column = random_column(outputs, silent)
        at_calls, by_parameter = self._backward(layers, seen, outputs, column, keep=False)
        return Look(inputs, samples, silent, column, outputs, seen, other, at_calls, by_parameter, more)

    def require_right(
        self,
        layers: Mapping[str, LayerView],
        seen: Mapping[str, list[Seen]],
        outputs: Tensor,
        index: int,
        *,
        pairs: bool,
    ) -> None:
        """Looks at a whole batch; its graph is kept.

        Two random columns, each zero for every other sample, show parameters that are used elsewhere, and
        rows that go to a neighbour; with `pairs` more columns show rows that go to any other sample.

        Args:
            layers: how they are read.
            seen: their calls.
            outputs: of the batch.
            index: of the batch.
            pairs: whether any two samples are told apart.

        Raises:
            InputError: where a layer's view is not right for this batch; names it.
            NumericalError: where what comes back to a layer is not finite; names it.
        """
        samples = len(outputs)
        patterns = list(_every_pair(samples)) or [silent_samples(samples)]
        for place, quiet in enumerate(patterns if pairs else patterns[:_ALL]):
            found = self._backward(layers, seen, outputs, random_column(outputs, quiet), keep=True)
            for name, view in layers.items():
                reason = self._why_wrong(view, seen[name], *found, quiet, sums=place < _ALL)
                if reason:
                    raise _not_right(name, index, reason)

    def _why_wrong(
        self,
        view: LayerView,
        calls: Sequence[Seen],
        at_calls: Mapping[str, list[Tensor | None]],
        by_parameter: Mapping[str, Tensor | None],
        silent: Tensor,
        *,
        sums: bool,
    ) -> str:
        """Why a column shows that a view is not right, or an empty text; with `sums` its sums too."""
        gradients, samples = at_calls[view.name], len(silent)
        if not sums:
            return MIXED if is_mixed(view, calls, gradients, silent, samples, self.batch_dim) else ""
        own = {name: by_parameter[name] for name in view.parameters}
        return why_not(view, calls, None, gradients, own, samples, self.batch_dim, silent)

    def require_own(self, layers: Mapping[str, LayerView], look: Look) -> None:
        """Calls the model with the samples of a look again, and in parts, which must give the same outputs.

        What a look tells may be the same by chance: samples that are equal, or numbers drawn that lead the
        same way. Where a model draws numbers it is called more often.

        Raises:
            InputError: where the outputs are others.
        """
        outputs, states = look.outputs.detach(), _random_states(look.outputs.device)
        if look.samples <= _FEW:  # more samples are called in parts, which tells as much
            require_same_outputs(outputs, self._outputs(layers, look.inputs))
            drawn = states != _random_states(outputs.device)
            for _ in range(_CHANCES if drawn else 0):
                require_same_outputs(outputs, self._outputs(layers, look.inputs))
        middle = look.samples // 2
        for start, stop in ((0, middle), (middle, look.samples)) if middle else ():
            take = partial(torch.narrow, dim=self.batch_dim, start=start, length=stop - start)
            try:
                found = self._outputs(layers, each(look.inputs, take))
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
            inputs: of a few samples.
            numbers: how many numbers a pass of one sample computes.
        """
        with capture(layers) as seen:
            outputs = outputs_of_model(self.model, inputs)
        edges: list[Any] = [call.edge for calls in seen.values() for call in calls]
        if not edges:
            return True
        column = random_column(outputs, torch.zeros(len(outputs), dtype=torch.bool))
        columns = torch.stack([column, column.flip(-1) + column.square()])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of slow ways of torch's: the pass itself says so
            try:
                count, together = next(backward(outputs, edges, columns, True, numbers))
            except Exception:  # a function, or a hook, that takes one column only
                return False
        if count == 1:  # a network of this size is given one column after the other
            return True
        apart = [found for _, found in backward(outputs, edges, columns, False, sys.maxsize)]
        expected = [None if own[0] is None else torch.cat(own) for own in zip(*apart, strict=True)]
        norms = [0.0 if g is None else float(torch.linalg.vector_norm(g.double())) for g in expected]
        scale = 100 * math.sqrt(torch.finfo(outputs.dtype).eps) * max(norms)
        return all(
            g is own if g is None or own is None else close(g.double(), own, scale)
            for g, own in zip(together, expected, strict=True)
        )

    def _outputs(self, layers: Mapping[str, LayerView], inputs: ModelInputs) -> Tensor:
        """The model's outputs, along the ways of a look but with no layer expanded."""
        with capture(layers, outputs=False):
            return outputs_of_model(self.model, inputs).detach()

    def _backward(
        self,
        layers: Mapping[str, LayerView],
        seen: Mapping[str, list[Seen]],
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
            found = torch.autograd.grad(outputs, places, column, retain_graph=keep, allow_unused=True)
        gradients = iter(found)
        at_calls = {name: [next(gradients) for _ in seen[name]] for name in layers}
        return at_calls, dict(zip(names, gradients, strict=True))

    def settle(self, layers: Mapping[str, LayerView], looks: Sequence[Look]) -> Settled:
        """How each layer is to be read, from looks at few and at more samples with the layers as declared."""
        settled, reasons = Settled(dict(layers)), {}
        for name in _in_order(layers, looks[0]):
            view = layers[name]
            if not any(look.reaches(view) for look in looks):
                settled.left_out[name] = _why_unreached(name, looks)
                del settled.views[name]
                continue
            told = any(look.tells(view) for look in looks)
            reason = self.why_not(view, looks)
            if reason == NOT_FINITE:
                settled.left_out[name] = reason
                del settled.views[name]
                continue
            if reason and told:
                found, again = self._otherwise(view, settled.views, looks)
                if found is not None:
                    settled.views[name], looks, reason = found, again, ""
            if reason:
                reasons[name] = reason
            elif not told:
                settled.remarks[name] = UNCHECKED.format(samples=looks[-1].samples)
        self._check_expanded(settled, looks, reasons)
        self._by_gradients(settled, looks, reasons)
        settled.views = {name: settled.views[name] for name in layers if name in settled.views}
        settled.left_out = {name: settled.left_out[name] for name in layers if name in settled.left_out}
        return settled

    def why_not(self, view: LayerView, looks: Sequence[Look]) -> str:
        """Why a view is not right in one of the looks, or an empty text."""
        reason = next(filter(None, (look.why_not(view, self.batch_dim) for look in looks)), "")
        return reason or ("" if self._even(view, looks) else UNEVEN)

    def rows(self, view: LayerView, calls: Sequence[Seen], samples: int) -> list[int]:
        """How many rows of each call one sample has."""
        return [view.leading(call.use, samples, self.batch_dim) for call in calls]

    def _even(self, view: LayerView, looks: Sequence[Look]) -> bool:
        """Whether a sample has the same rows in every look."""
        found = [self.rows(view, look.seen[view.name], look.samples) for look in looks]
        return all(rows == found[0] for rows in found)

    def _otherwise(
        self, view: LayerView, views: Mapping[str, LayerView], looks: Sequence[Look]
    ) -> tuple[LayerView | None, Sequence[Look]]:
        """The layer with another dimension that counts samples, or expanded over them, and looks at it so."""
        calls = looks[0].seen[view.name]
        dimensions = range(max((call.output.dim() for call in calls), default=0))
        for dim in dimensions:
            candidate = replace(view, batch_dim=dim)
            if candidate != view and not self.why_not(candidate, looks):
                return candidate, looks
        if calls and view.part is None and _is_constant(view.name, looks):
            places = [dim for dim in dimensions if all(call.output.shape[dim] == 1 for call in calls)]
            for dim in (*places, -1):
                candidate = replace(view, expanded=dim, batch_dim=max(dim, 0))
                again = self._again({**views, view.name: candidate}, looks)
                if again and not self.why_not(candidate, again):
                    return candidate, again
        return None, looks

    def _again(self, views: Mapping[str, LayerView], looks: Sequence[Look]) -> list[Look]:
        """The same looks with other views; none where the model fails, or gives other outputs."""
        found = []
        for look in looks:
            try:
                new = self.look(views, look.inputs, look.samples, swap=look.other is not None)
            except (RuntimeError, ValueError, IndexError, TypeError):
                return []
            outputs, before = new.outputs.detach(), look.outputs.detach()
            tolerance = torch.finfo(outputs.dtype).eps ** 0.5 * float(before.abs().max())
            if outputs.shape != before.shape or not torch.allclose(outputs, before, 0.0, tolerance):
                return []
            found.append(new)
        return found

    def _check_expanded(self, settled: Settled, looks: Sequence[Look], reasons: dict[str, str]) -> None:
        """Where layers are expanded, all must be right together; else those and what is wrong are not."""
        expanded = [name for name, view in settled.views.items() if view.expanded is not None]
        if not expanded:
            return
        wrong = {
            name: reason
            for name, view in settled.views.items()
            if name not in reasons and (reason := self.why_not(view, looks))
        }
        if wrong:
            reasons |= dict.fromkeys(expanded, NOT_OF_SAMPLES) | wrong

    def _by_gradients(self, settled: Settled, looks: Sequence[Look], reasons: Mapping[str, str]) -> None:
        """The layers that no view is right for: by their samples' gradients where those are."""
        views = [settled.views[name].made_of_gradients() for name in reasons]
        if not views:
            return
        rows = SampleGradients(self.model, views, self.batch_dim)
        for look in looks:
            wrong = rows.why_not(look.inputs, look.column)
            settled.left_out |= {n: f"{reasons[n]}, and {why}" for n, why in wrong.items() if why}
        for view in views:
            del settled.views[view.name]
            if view.name not in settled.left_out:
                settled.views[view.name] = view
                settled.remarks[view.name] = f"made of the samples' gradients: {reasons[view.name]}"

    def _forward(
        self, layers: Mapping[str, LayerView], inputs: ModelInputs, samples: int
    ) -> tuple[Tensor, dict[str, list[Seen]]]:
        with capture(layers, samples=samples) as seen:
            return outputs_of_model(self.model, inputs), seen

    def _second_twice(self, x: Tensor) -> Tensor:
        second = x.narrow(self.batch_dim, 1, 1)
        return torch.cat([second, x.narrow(self.batch_dim, 1, x.shape[self.batch_dim] - 1)], self.batch_dim)


def _not_right(name: str, index: int, reason: str) -> FisherlabError:
    """What a batch is refused with."""
    if reason == NOT_FINITE:
        return not_finite(name, index)
    return InputError(
        f"layer {name!r} was right for the first samples and is not in batch {index}: {reason}; use "
        "method='per-sample', or leave it out with layers="
    )


NOT_OF_SAMPLES = "its calls do not depend on the samples"


def _in_order(layers: Mapping[str, LayerView], look: Look) -> list[str]:
    """The layers in the order of their first calls: what expands one may reach those after it."""

    def place(name: str) -> int:
        return min((call.edge.node._sequence_nr() for call in look.seen[name]), default=0)

    return sorted(layers, key=place)


def _random_states(device: torch.device) -> list[Any]:
    """The random states of torch, numpy and Python."""
    states = [torch.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate()]  # noqa: NPY002
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device).tolist())
    return states


def _every_pair(samples: int) -> Iterator[Tensor]:
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


def _is_constant(name: str, looks: Sequence[Look]) -> bool:
    """Whether a layer's calls do not depend on the samples, nor on how many they are."""
    first = looks[0].seen[name]
    others = [look.seen[name] for look in looks[1:]]
    others += [look.other[name] for look in looks if look.other is not None]
    return all(
        len(calls) == len(first)
        and all(torch.equal(call.input, own.input) for call, own in zip(calls, first, strict=True))
        for calls in others
    )


def _why_unreached(name: str, looks: Sequence[Look]) -> str:
    samples = looks[-1].samples
    if any(look.seen[name] for look in looks):
        return "it does not reach the model's output"
    return (
        f"it takes no part in the forward pass of the first {samples} samples, or only where no gradients "
        "are kept"
    )
