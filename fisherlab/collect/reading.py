"""How each layer is to be read so that its block is that of its parameters: settled once, then made sure of.

A layer is taken as it is declared where that agrees with autograd (`fisherlab.collect.agreement`); else with
another dimension that counts samples; else, where its calls do not depend on the samples, with their outputs
expanded over them; else by its parameters' gradients, sample by sample; and else it is left out. A large
matrix that modules of several kinds share is read as the sum of their calls (`fisherlab.collect.uses`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor, nn

from fisherlab.base.memory import at_most, limit
from fisherlab.base.precision import reference
from fisherlab.collect.agreement import NOT_FINITE
from fisherlab.collect.batches import Batches, Form, each
from fisherlab.collect.forms import ModelInputs, tensors_of
from fisherlab.collect.hooks import capture, inputs_of
from fisherlab.collect.look import FEW, Look, Looker, moves_rows
from fisherlab.collect.outputs import Outputs
from fisherlab.collect.refusals import require_finite
from fisherlab.collect.sample_gradients import SampleGradients, look_bytes
from fisherlab.collect.uses import own_rows_of
from fisherlab.errors import FisherlabError, InputError, bytes_text
from fisherlab.layers import LayerCall, LayerView

# Samples of the second look, which may see what two do not (rows that are sorted, an expert that is seldom
# asked), and of one where nothing came back to a layer from the first; a choice: small beside a data set.
_MORE, MOST = 32, 64
_LOOK_BYTES = 2**28  # of the second look, with eight numbers for one of an output: a choice

# Of one sample's V: a choice, `sizes._TENSOR_BYTES`. A matrix that several kinds of modules share is made of
# its uses where V is larger, and of the samples' gradients else, which serve for any number of columns.
_LARGE_BYTES = 2**24

UNCHECKED = (
    "no gradient came back to it in the first {samples} samples, so its inputs and gradients could not be "
    "checked against the parameters"
)
UNEVEN = "it sees other numbers of rows of some samples than of others"
NOT_OF_SAMPLES = "its calls do not depend on the samples"


class Reading:
    """How each layer of a model is read.

    Args:
        model: the network.
        batches: what tells samples and shapes of its inputs.
        batch_dim: the dimension that counts samples, unless a view says otherwise.
        outputs: calls the model.

    Attributes:
        views: the layers that can be read, as they are.
        left_out: the others, with the reason.
        remarks: for layers that are made of samples' gradients, or could not be checked, the reason.
        captured: the views whose calls are kept: all but those made of samples' gradients.
        looked_at: the inputs of the first look, and its column at their outputs.
        numbers: in the outputs of the layers' calls, for one sample.
        apart: whether columns must go backwards one by one.
        positions: T by layer, over all calls: the most that were looked at.
    """

    def __init__(self, model: nn.Module, batches: Batches, batch_dim: int, outputs: Outputs) -> None:
        self._model, self._batches, self._batch_dim, self._outputs = model, batches, batch_dim, outputs
        self._looker = Looker(model, batch_dim, outputs)
        self.views: dict[str, LayerView] = {}
        self.left_out: dict[str, str] = {}
        self.remarks: dict[str, str] = {}
        self.captured: dict[str, LayerView] = {}
        self._counts: dict[Form, int] = {}
        self._rows: dict[Form, dict[str, list[int]]] = {}
        self._together: set[tuple[torch.Size, ...]] = set()
        self._shared: dict[str, str] = {}  # layers read as sums of their uses, and why they are shared
        self._right_to = 0  # the samples before have been looked at

    def settle(
        self, layers: Mapping[str, LayerView], inputs: ModelInputs, check: Callable[[Tensor], None]
    ) -> Look:
        """Looks at the first samples, and settles how the layers are read.

        Args:
            layers: as they are declared.
            inputs: of the first samples, at most `MOST`.
            check: called with the model's outputs.

        Returns:
            The first look, with the calls and the outputs as they are with the layers read so.
        """
        size = reference(self._model).element_size()
        large = (view for view in layers.values() if view.uses and size * view.size > _LARGE_BYTES)
        self._shared = {view.name: view.why_by_gradients for view in large}
        layers = {n: view.made_of_uses() if n in self._shared else view for n, view in layers.items()}
        looks = self._looks(layers, inputs, check)
        first = looks[0]
        self._decide(layers, looks)
        self._moving = any(moves_rows(look.outputs) for look in looks)
        self.looked_at = first.inputs, first.column
        self.captured = {name: view for name, view in self.views.items() if view.called}
        seen, outputs = {name: first.seen[name] for name in self.captured}, first.outputs
        if any(view.expanded is not None for view in self.captured.values()):
            seen, outputs = self.forward(first.inputs, 0)
        calls = [call for own in {**first.seen, **seen}.values() for call in own]
        self.numbers = sum(call.output.numel() for call in calls) // first.samples
        self.apart = not self._looker.goes_together(self.captured, first.inputs, self.numbers)
        self.positions = {name: view.inputs for name, view in self.views.items() if not view.called}
        self._note(first.inputs, first.samples, seen)
        for look in looks[1:]:  # of sequences that end sooner or later, more samples have longer ones
            ragged = [n for n in self.captured if any(call.valid is not None for call in look.seen[n])]
            self._count({name: look.seen[name] for name in ragged}, look.samples)
        return replace(first, seen=seen, outputs=outputs)

    @cached_property
    def saved(self) -> int:
        """How many numbers a graph keeps for one sample, of all that it computes."""
        return self._looker.saved(self.looked_at[0]) // len(self.looked_at[1])

    def leave_out(self, names: Iterable[str]) -> None:
        """Looks no more at these layers; one that is expanded goes on so, for the sake of those after it."""
        for name in names:
            if name in self.captured and self.captured[name].expanded is None:
                del self.captured[name]

    def not_right_for(self, inputs: ModelInputs, index: int) -> dict[str, FisherlabError]:
        """Looks anew at inputs of shapes not seen before, and at two samples where one alone was seen.

        How the rows of samples lie in a layer's tensors may depend on the shapes.

        Returns:
            For the layers that are not right for them why, with the batch.
        """
        count = min(FEW, self._batches.size(inputs))
        known = self._counts.get(self._batches.form(inputs), 0)
        if known >= count:
            return {}
        look = self._looker.look(self.captured, self._unlike(inputs), count)
        self._looker.require_own(self.captured, look)
        wrong: dict[str, FisherlabError] = {}
        for name, view in self.captured.items():
            reason = self._why_not(view, [look])
            if reason and known:
                wrong[name] = InputError(
                    f"the first batch has one sample only, and of a later one layer {name!r} is not right: "
                    f"{reason}; give a first batch of two samples or more"
                )
            elif reason:
                wrong[name] = InputError(
                    f"layer {name!r} was right for the first samples and is not in batch {index}, whose "
                    f"inputs have another shape: {reason}; use method='per-sample'"
                )
        self.leave_out(wrong)
        self._note(inputs, count, look.seen)
        return wrong

    def forward(self, inputs: ModelInputs, index: int) -> tuple[dict[str, list[LayerCall]], Tensor]:
        """A forward pass: the calls of the captured layers, and the model's outputs with their graph.

        Raises:
            NumericalError: where the network gives values that are not finite.
        """
        samples = self._batches.size(inputs)
        with capture(self.captured, samples=samples) as seen:
            outputs = self._outputs(inputs)
        require_finite(outputs, seen, index)
        return seen, outputs

    def columns_apart(self, inputs: ModelInputs) -> bool:
        """Whether a batch's columns must go backwards one by one; found once for all batches of a shape.

        How torch sends columns back together may depend on the shapes.
        """
        shapes = tuple(x.shape for x in tensors_of(inputs))
        if not self.apart and shapes not in self._together:
            self._together.add(shapes)
            numbers = self.numbers * self._batches.size(inputs)
            self.apart = not self._looker.goes_together(self.captured, inputs, numbers)
        return self.apart

    def others_than_known(
        self, inputs: ModelInputs, seen: Mapping[str, list[LayerCall]], index: int
    ) -> dict[str, FisherlabError]:
        """The layers of whose calls a sample has other rows than at the look at inputs of the same shape."""
        samples = self._batches.size(inputs)
        wrong: dict[str, FisherlabError] = {}
        for name, known in self._rows.get(self._batches.form(inputs), {}).items():
            if name not in self.captured:
                continue
            try:
                rows = self._rows_of(self.captured[name], seen[name], samples)
            except InputError:
                rows = []
            if rows != known:
                wrong[name] = InputError(
                    f"layer {name!r} sees other rows in batch {index} than it did of the first samples, so "
                    "they cannot be told apart by sample; use method='per-sample'"
                )
        self.leave_out(wrong)
        return wrong

    def not_right(
        self,
        inputs: ModelInputs,
        seen: Mapping[str, list[LayerCall]],
        outputs: Tensor,
        start: int,
        index: int,
    ) -> dict[str, FisherlabError]:
        """Looks at batch 0, 1, 2, 4, 8 and so on, which takes ever less of the time; once at every sample.

        Of a model that moves rows about, whose batches may differ, all are looked at.

        Args:
            inputs: of the batch.
            seen: the calls of it.
            outputs: of the model.
            start: the batch's first sample.
            index: of the batch.

        Returns:
            For the layers whose views are not right in this batch why.

        Raises:
            InputError: where the batch's halves have other outputs.
        """
        wrong: dict[str, FisherlabError] = {}
        if start >= self._right_to and (self._moving or index & (index - 1) == 0):
            wrong = self._looker.not_right(self.captured, seen, outputs, index, pairs=self._moving)
            if not wrong:
                self._looker.require_apart(self.captured, inputs, outputs)
        self._right_to = max(self._right_to, start + self._batches.size(inputs))
        self.leave_out(wrong)
        return wrong

    def _looks(
        self, layers: Mapping[str, LayerView], inputs: ModelInputs, check: Callable[[Tensor], None]
    ) -> list[Look]:
        """Looks at two of these samples, and at more, as many as are needed for something to come back."""
        total = self._batches.size(inputs)
        count = min(FEW, total)
        first = self._looker.look(layers, self._unlike(inputs), count, check=check)
        self._looker.require_own(layers, first)
        numbers = sum(call.output.numel() for calls in first.seen.values() for call in calls) // count
        silent = not all(first.tells(view) for view in layers.values())
        size = reference(self._model).element_size()
        more = min(total, MOST if silent else _MORE, at_most(_LOOK_BYTES, 16) // (8 * size * max(1, numbers)))
        if more <= count:
            return [first]
        second = self._looker.look(layers, self._head(inputs, more), more, swap=False)
        self._looker.require_own(layers, second)
        return [first, second]

    def _unlike(self, inputs: ModelInputs) -> ModelInputs:
        """The first sample, and the next that is another; any two where all are alike."""
        samples = min(MOST, self._batches.size(inputs))
        tensors = tensors_of(inputs)

        def differs(n: int) -> bool:
            pairs = ((x.select(self._batch_dim, 0), x.select(self._batch_dim, n)) for x in tensors)
            return not all(torch.equal(*pair) for pair in pairs)

        place = next(filter(differs, range(1, samples)), 1)
        if place == 1:
            return self._head(inputs, min(FEW, samples))
        places = torch.tensor([0, place], device=tensors[0].device)
        return each(inputs, lambda x: x.index_select(self._batch_dim, places))

    def _head(self, inputs: ModelInputs, samples: int) -> ModelInputs:
        return each(inputs, lambda x: x.narrow(self._batch_dim, 0, samples))

    def _note(self, inputs: ModelInputs, samples: int, seen: Mapping[str, list[LayerCall]]) -> None:
        """Remembers inputs of these shapes as looked at, and a sample's rows of each call and positions."""
        form = self._batches.form(inputs)
        rows = {name: self._rows_of(view, seen[name], samples) for name, view in self.captured.items()}
        self._rows.setdefault(form, rows)
        self._counts[form] = samples
        self._count({name: seen[name] for name in self.captured}, samples)

    def _count(self, seen: Mapping[str, list[LayerCall]], samples: int) -> None:
        """The most positions so far."""
        for name, calls in seen.items():
            positions = self._positions(self.captured[name], calls, samples)
            self.positions[name] = max(positions, self.positions.get(name, 0))

    def _positions(self, view: LayerView, calls: Sequence[LayerCall], samples: int) -> int:
        """T over calls; of uses for one column."""
        if not view.of_uses:
            return inputs_of(view, calls, samples, self._batch_dim).shape[1]
        pairs = [(call, call.gradients(None)) for call in calls]
        return sum(g.shape[2] for _, _, g in own_rows_of(pairs, samples, self._batch_dim))

    def _decide(self, layers: Mapping[str, LayerView], looks: Sequence[Look]) -> None:
        """How each layer is to be read, from looks at few and at more samples with the layers as declared."""
        self.views = dict(layers)
        reasons: dict[str, str] = {}
        left_out: dict[str, str] = {}
        for name in _in_order(layers, looks[0]):
            view = layers[name]
            reached = any(look.reaches(view) for look in looks)
            told = any(look.tells(view) for look in looks)
            reason = self._why_not(view, looks) if reached else _why_unreached(name, looks)
            if not reached or reason == NOT_FINITE:
                left_out[name] = reason
                del self.views[name]
                continue
            if reason and told and not view.by_gradients:
                found, again = self._otherwise(view, looks)
                if found is not None:
                    self.views[name], looks, reason = found, again, ""
            if reason:
                reasons[name] = reason
            elif not told:
                self.remarks[name] = UNCHECKED.format(samples=looks[-1].samples)
            elif view.of_uses:
                self.remarks[name] = f"the sum of its uses by their calls: {self._shared[name]}"
        self._check_expanded(looks, reasons)
        left_out |= self._by_gradients(looks, reasons)
        self.views = {name: self.views[name] for name in layers if name in self.views}
        self.left_out = {name: left_out[name] for name in layers if name in left_out}

    def _why_not(self, view: LayerView, looks: Sequence[Look]) -> str:
        """Why a view is not right in one of the looks, or an empty text."""
        reason = next(filter(None, (look.why_not(view, self._batch_dim) for look in looks)), "")
        if reason:
            return reason
        rows = [self._rows_of(view, look.seen[view.name], look.samples) for look in looks]
        return "" if all(own == rows[0] for own in rows) else UNEVEN

    def _rows_of(self, view: LayerView, calls: Sequence[LayerCall], samples: int) -> list[int]:
        """How many rows of each call one sample has."""
        return [(call.use or view).leading(call, samples, self._batch_dim) for call in calls]

    def _otherwise(self, view: LayerView, looks: Sequence[Look]) -> tuple[LayerView | None, Sequence[Look]]:
        """The layer with another dimension that counts samples, or expanded over them, and looks at it so."""
        calls = looks[0].seen[view.name]
        dimensions = range(max((call.output.dim() for call in calls), default=0))
        for dim in dimensions:
            candidate = replace(view, batch_dim=dim)
            if candidate != view and not self._why_not(candidate, looks):
                return candidate, looks
        if calls and view.part is None and _is_constant(view.name, looks):
            places = [dim for dim in dimensions if all(call.output.shape[dim] == 1 for call in calls)]
            for dim in (*places, -1):
                candidate = replace(view, expanded=dim, batch_dim=max(dim, 0))
                again = self._again({**self.views, view.name: candidate}, looks)
                if again and not self._why_not(candidate, again):
                    return candidate, again
        return None, looks

    def _again(self, views: Mapping[str, LayerView], looks: Sequence[Look]) -> list[Look]:
        """The same looks with other views; none where the model fails, or gives other outputs."""
        found = []
        for look in looks:
            try:
                new = self._looker.look(views, look.inputs, look.samples, swap=look.other is not None)
            except (RuntimeError, ValueError, IndexError, TypeError):
                return []
            outputs, before = new.outputs.detach(), look.outputs.detach()
            tolerance = torch.finfo(outputs.dtype).eps ** 0.5 * float(before.abs().max())
            if outputs.shape != before.shape or not torch.allclose(outputs, before, 0.0, tolerance):
                return []
            found.append(new)
        return found

    def _check_expanded(self, looks: Sequence[Look], reasons: dict[str, str]) -> None:
        """Where layers are expanded, all must be right together; else those and what is wrong are not."""
        expanded = [name for name, view in self.views.items() if view.expanded is not None]
        if not expanded:
            return
        wrong = {
            name: reason
            for name, view in self.views.items()
            if name not in reasons and (reason := self._why_not(view, looks))
        }
        if wrong:
            reasons |= dict.fromkeys(expanded, NOT_OF_SAMPLES) | wrong

    def _by_gradients(self, looks: Sequence[Look], reasons: Mapping[str, str]) -> dict[str, str]:
        """Reads the layers that no view is right for by their samples' gradients; those without, and why."""
        views = [self.views.pop(name).made_of_gradients() for name in reasons]
        without: dict[str, str] = {}
        fitting: list[LayerView] = []
        left = limit()
        for view in sorted(views, key=lambda view: view.size):
            needed = look_bytes(view.size, reference(self._model).element_size())
            if needed > left:
                without[view.name] = (
                    f"{reasons[view.name]}, and a look at its samples' gradients would need "
                    f"{bytes_text(needed)}, more than the {bytes_text(left)} left of the memory limit; give "
                    "a larger limit"
                )
            else:
                fitting.append(view)
                left -= needed
        if not fitting:
            return without
        for look in looks:  # whose gradients are as large as the model
            look.by_parameter = {}
        rows = SampleGradients(self._model, fitting, self._batch_dim, self._outputs)
        for look in looks:
            wrong = rows.why_not(look.inputs, look.column)
            without |= {n: f"{reasons[n]}, and {why}" for n, why in wrong.items() if why}
        for view in views:
            if view.name not in without:
                self.views[view.name] = view
                self.remarks[view.name] = f"made of the samples' gradients: {reasons[view.name]}"
        return without


def _in_order(layers: Mapping[str, LayerView], look: Look) -> list[str]:
    """The layers in the order of their first calls: what expands one may reach those after it."""

    def place(name: str) -> int:
        return min((call.edge.node._sequence_nr() for call in look.seen[name]), default=0)

    return sorted(layers, key=place)


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
