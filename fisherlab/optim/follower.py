"""From backward passes to each layer's direction D and what its rate is made of."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fisherlab.base import distributed
from fisherlab.collect.layer_batch import LayerBatch
from fisherlab.damping import Damping
from fisherlab.errors import InputError, NumericalError
from fisherlab.layers import Layers
from fisherlab.likelihoods import Likelihood
from fisherlab.likelihoods.labels import LabelKind
from fisherlab.optim.block import LayerPreconditioner, Observation, Step
from fisherlab.optim.changes import GradientEdits
from fisherlab.optim.checks import check_contributions, check_reduction
from fisherlab.optim.contributions import SampleProducts
from fisherlab.optim.gradients import ParameterMatrices
from fisherlab.optim.hooks import Hook, removed_with, sweep, weakly
from fisherlab.optim.passes import ForwardPass, current_backward, graph_is_kept
from fisherlab.optim.recorder import TrainingTap

_ADD = (
    "a second backward pass comes from the same samples before the step, and gradients of samples are "
    "those of both together: add the losses and call backward() once"
)


@dataclass(frozen=True)
class Options:
    """What all groups of an optimizer share; see `LNGD`."""

    weight_decay_mode: str
    decay: float
    statistics_every: int
    inverse_every: int
    rate: str
    rate_samples: int | None
    momentum_on: str
    loss_reduction: str

    @property
    def layerwise(self) -> bool:
        """Whether every layer has a rate of its own."""
        return self.rate == "layerwise"

    @property
    def of_mean(self) -> bool:
        """Whether the user's loss is a mean over the batch."""
        return self.loss_reduction == "mean"

    @property
    def eager(self) -> bool:
        """Whether D depends on the gradient and the inverse alone, so that it can be made as they come."""
        return self.weight_decay_mode == "decoupled" and self.momentum_on == "update"


class StepMaker:
    """Keeps the blocks' statistics, and makes a `Step` of each layer as its gradient comes back.

    Args:
        model: the root module.
        layers: the layers with a block.
        blocks: by layer.
        options: see `Options`.
        likelihood: what the output means.
        kind: the labels of the statistics.
        batch_dim: the dimension that counts samples, see `TrainingTap`.
        generator: source of drawn labels.
        scaler: the `GradScaler` in use, or None.
        settings: from a layer to its group.
        damping: from a layer to its damping.
        momentum: from a layer to its m [m, d].
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers,
        blocks: Mapping[str, LayerPreconditioner],
        options: Options,
        *,
        likelihood: Likelihood,
        kind: LabelKind,
        batch_dim: int | Mapping[str, int],
        generator: torch.Generator,
        scaler: Any,
        settings: Callable[[str], Mapping[str, Any]],
        damping: Callable[[str], Damping],
        momentum: Callable[[str], Tensor],
    ) -> None:
        self.parameters = dict(model.named_parameters())
        self.count, self._turn = 0, 0
        self._gradients = ParameterMatrices(self.parameters, layers, weakly(self.dtype_of))
        self._changes = GradientEdits(self._gradients)
        self._layers, self._blocks, self._options = layers, blocks, options
        self._likelihood, self._kind = likelihood, kind
        self._scaler, self._settings, self._damping, self._momentum = scaler, settings, damping, momentum
        two_pass = any(block.method.two_pass for block in blocks.values())
        self._meets = two_pass or kind == "drawn" or kind.draws > 0  # with others in a pass
        sweep(model)
        self._recorder = TrainingTap(
            model,
            layers,
            likelihood,
            batch_dim,
            kind,
            generator,
            scaler is not None,
            due=weakly(self._due),
            listens=lambda refresh: options.layerwise or (refresh and kind == "empirical"),
            opened=weakly(self._abandon_cleared),
            observe=weakly(self._observe),
            began=weakly(self._begin),
        )
        self._contributions = SampleProducts(layers, self._recorder.dims, options.rate_samples)
        self._watch()

    def dtype_of(self, name: str) -> torch.dtype:
        """That of a layer's statistics, direction and momentum."""
        return self._recorder.dtype_of(name)

    @property
    def samples(self) -> int:
        """How many samples came back since the last step."""
        return self._samples

    def why_unseen(self, name: str) -> str:
        """Why a layer's gradient came without a call that was seen."""
        return self._recorder.why_unseen(name)

    # --- the whole step ---------------------------------------------------------------------------

    def steps(self) -> dict[str, Step]:
        """D of every layer with a gradient, and what its rate is made of.

        Raises:
            InputError: without a fresh backward pass, or where a gradient has changed since.
            NumericalError: where a gradient or a layer's statistics are not finite; names the layer.
        """
        if not self._fresh or self._gradients.are_cleared():
            raise InputError(
                "step() without a backward pass since the last one; call loss.backward() first, through the "
                "very model that this optimizer was made for (deepcopy a model and its optimizer together)"
            )
        if self._refusal is not None:
            raise self._refusal
        try:
            self._gradients.check_finite()
            self._settle()
            names = [name for name in self._blocks if self._gradients.has_come(name, self._came)]
            self._require_seen(names)
            self._synchronise(names)
            steps = {name: self._step_of(name) for name in names}
        except NumericalError:
            self.abandon()
            raise
        self._check_changes()
        self._check_gaps()
        return steps

    def _require_seen(self, names: Sequence[str]) -> None:
        """Refuses a layer whose gradient came, whose statistics are due, and from which nothing was seen."""
        for name in names:
            block, parameters = self._blocks[name], self._gradients.trained(name)
            seen = block.observed or not self._due_sums(block)
            if not seen and any(p in self._came for p in parameters) and self._gradients.is_any(name):
                raise InputError(
                    f"layer {name!r} has a gradient, but nothing to make its statistics of: "
                    f"{self._recorder.why_unseen(name)}; or leave it out with exclude=({name!r},)"
                )

    def go_on(self) -> None:
        """Counts a step, and forgets what it was made of."""
        for block in self._blocks.values():
            if distributed.size() == 1:
                block.total = self._samples
            block.average_in(self._options.decay)
        self._recorder.checks = False
        self.start_at(self.count + 1)

    def resume(self, count: int) -> None:
        """Goes on after so many steps of another time, and checks the next one as a first step."""
        self._recorder.checks = True
        self.start_at(count)

    def start_at(self, count: int) -> None:
        """Goes on after so many steps; what was made for another is forgotten."""
        self.count = count
        self._recorder.forget()
        self._prepared.clear()
        self._forget()

    def abandon(self) -> None:
        """The backward passes since the last step belong to no step, nor what was observed in them."""
        if not self._fresh:
            return
        for block in self._blocks.values():
            block.drop()
        self._recorder.take_back()
        self._prepared.clear()
        self._forget()

    def _settle(self) -> None:
        """Layers whose last gradient came before the last backward pass: N was smaller then."""
        for name, count in self._counts.items():
            if count == self._samples or not self._options.of_mean:
                continue
            ready = self._ready.get(name)
            if ready is not None and ready.squares is not None:
                ready.squares *= (self._samples / count) ** 2
                ready.squares *= count / self._samples  # the others have a part of zero
            if self._kind == "empirical":
                self._blocks[name].rescale(self._samples / count)
                if name in self._prepared:  # the inverse of later steps; D of this one stays
                    self._prepared.remove(name)
                    self._prepare(name)

    def _synchronise(self, names: Sequence[str]) -> None:
        """With several processes: statistics over all of them, each inverting a share of the layers."""
        if distributed.size() == 1:
            return
        for block in self._blocks.values():
            block.total = self._samples
        observed = [name for name, block in self._blocks.items() if block.observed]
        _require_alike(observed, self._contributions.names)
        LayerPreconditioner.add_up(self._blocks.values())
        due = [name for name in names if self._due_for(name)]
        for name in due[distributed.rank() :: distributed.size()]:
            self._prepare(name)
        mine = {name: self._blocks[name].on_cpu() for name in self._prepared}
        for share in distributed.gather_all(mine) if due else ():
            for name, (tensors, numbers) in share.items():
                device = self._gradients.device(name)
                self._blocks[name].load_inverse(tensors, numbers, device)
                self._prepared.add(name)

    def _step_of(self, name: str) -> Step:
        """The step as it was made when the gradient came, or made anew where that has changed since.

        ∇ℓ_n stay as they came: clipping changes ∇h and D.
        """
        ready = self._ready.get(name)
        if ready is not None and self._changes.is_unchanged(name):
            if self._recorder.checks:  # unscaling does not count as a change
                along = (ready.direction * self._gradient(name)).sum()
                self._changes.note(name, along / ready.gradient)
            return ready
        if not self._options.layerwise and self._recorder.checks:
            self._changes.note_factor(name, self._gradient(name))
        step = self._make_step(name, self._gradient(name))
        if ready is not None and ready.squares is not None:
            ratio = self._changes.ratio(name, ready.direction, step.direction)
            step.squares = ratio.square().nan_to_num() * ready.squares
        return step

    def _check_changes(self) -> None:
        self._changes.check(unscaled=self._recorder.checks and self._scaler is None)

    # --- what happens during the user's passes ------------------------------------------------------

    def _due(self, names: Iterable[str]) -> bool:
        """Whether a forward pass with these layers is to give statistics."""
        wanting = {name for name, block in self._blocks.items() if self._wants(block)}
        if wanting and self._meets and distributed.size() > 1:  # as in all processes, before they wait
            _require_alike(list(names))
        return not wanting.isdisjoint(names)

    def _wants(self, block: LayerPreconditioner) -> bool:
        """Whether statistics of a layer, or second moments in a new eigenbasis, are due."""
        return self._due_sums(block) or (self._due_inverse() and block.wants_basis)

    def _due_sums(self, block: LayerPreconditioner) -> bool:
        return self.count % self._options.statistics_every == 0 or not block.known

    def _due_inverse(self) -> bool:
        return self.count % self._options.inverse_every == 0

    def _observe(self, name: str, batch: LayerBatch, waiting: Iterable[Observation]) -> Observation:
        block = self._blocks[name]
        basis = self._due_inverse() or not block.bases
        return block.observe(
            batch, self._options.decay, sums=self._due_sums(block), basis=basis, waiting=waiting
        )

    def _watch(self) -> None:
        """Hooks that tell when all gradients of a block are there."""
        blocks_of: dict[str, list[str]] = {}
        for name, view in self._layers.items():
            for parameter in view.parameters:
                blocks_of.setdefault(parameter, []).append(name)
        handles = [
            p.register_post_accumulate_grad_hook(Hook(self._arrive, parameter, blocks_of.get(parameter, [])))
            for parameter, p in self.parameters.items()
            if p.requires_grad
        ]
        removed_with(self, handles)
        self._prepared: set[str] = set()
        self._forget()

    def add(self, parameters: Sequence[nn.Parameter]) -> None:
        """Follows parameters that are not the model's."""
        for p in parameters:
            name = f"added parameter {len(self.parameters)}"
            self.parameters[name] = p
            hook = Hook(self._arrive, name, [])
            removed_with(self, [p.register_post_accumulate_grad_hook(hook)])

    def _forget(self) -> None:
        """What was made for one step."""
        self._ready: dict[str, Step] = {}
        self._changes.forget()
        self._contributions.let_all_go()
        self._counts: dict[str, int] = {}
        self._through: dict[str, int] = {}  # the samples that came through a layer
        self._came: set[str] = set()
        self._arrived: dict[str, set[str]] = {}
        self._gaps: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self._tolerances: dict[str, float] = {}
        self._before: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}
        self._backwards: set[int] = set()
        self._groups: list[tuple[int, int, frozenset[str]]] = []  # of samples that count, their N and layers
        self._groups_of: dict[str, set[int]] = {}  # those whose gradient came to a layer
        self._refusal: InputError | None = None
        self._samples, self._scale, self._fresh = 0, 1.0, False
        self._turn += 1

    def _begin(self) -> None:
        """A backward pass through a forward pass begins; whether it counts is not known yet."""
        self._abandon_cleared()
        if not self._options.layerwise and self._looks_closely and not self._fresh:
            self._before = {name: self._gradients.matrix(name) for name in self._gradients.with_any()}

    def _abandon_cleared(self) -> None:
        """Where gradients were cleared by others than `zero_grad`, they belong to no step either."""
        if self._fresh and (self._gradients.are_cleared() or self._gradients.were_zeroed(self._versions)):
            self.abandon()

    def _count(self, one: ForwardPass, backward: int) -> None:
        """Gradients of parameters arrive through a forward pass: it counts, once a step.

        Raises:
            InputError: where a second backward pass goes through it.
        """
        again = one.counted == self._turn
        if again and (self._options.layerwise or (one.refresh and self._kind == "empirical")):
            raise InputError(_ADD)
        if again:
            return
        if one.spent:
            raise InputError(
                "a backward pass goes through a forward pass whose statistics went with zero_grad() or an "
                "earlier step; run the forward pass again"
            )
        observed, keep = self._recorder.count(one), graph_is_kept()
        for name, observations in observed.items():
            for observation in observations:
                self._blocks[name].count(observation, keep=keep)
            self._prepared.discard(name)
        if not keep:
            one.spent, one.observed = bool(observed), {}
        one.counted = self._turn
        self._backwards.add(backward)
        for other in self._groups:  # parts of a network that are cut apart have the same samples
            if other[1] == one.samples and not other[2] & one.names:
                one.group = other[0]
        if all(group != one.group for group, _, _ in self._groups):  # else of samples that count already
            self._samples += one.samples or 0
        self._groups.append((one.group, one.samples or 0, one.names))
        if self._scaler is not None:
            self._scale = float(self._scaler.get_scale())
        with torch.no_grad():
            self._check_loss(one)

    def _arrive(self, parameter: str, names: Sequence[str], p: Tensor) -> None:
        backward = current_backward()
        for one in self._recorder.begun(backward):
            self._count(one, backward)
        self._fresh = True
        self._came.add(parameter)
        self._versions[parameter] = -1 if p.grad is None else p.grad._version
        for name in names:
            come = self._arrived.setdefault(name, set())
            come.add(parameter)
            if all(p in come for p in self._gradients.trained(name)):
                del self._arrived[name]
                self._complete(name, backward)

    @torch.no_grad()
    def _complete(self, name: str, backward: int) -> None:
        """All gradients of a layer are there: its statistics, and its step where no process adds to it."""
        came = self._recorder.came_back(name, backward)
        if not came:
            return
        with torch.autocast(self._gradients.device(name).type, enabled=False):
            if self._kind == "empirical":
                self._observe_loss(name, [one for one in came if one.refresh])
            self._require_new(name, {one.group for one in came})
            self._counts[name] = self._samples
            self._contributions.keep(name, came, backward)
            self._through[name] = self._through.get(name, 0) + self._contributions.samples(name)
            for one in came:
                one.spent = True
            if self._looks_closely and distributed.size() == 1:
                self._check_arrived(name)
            if not self._options.layerwise:
                if self._kind == "empirical" and self._recorder.checks and distributed.size() == 1:
                    self._changes.keep_norms(name, self._gradient(name) / self._scale)
                self._contributions.let_go(name)
            elif distributed.size() == 1:
                self._keep_step(name)

    @property
    def _looks_closely(self) -> bool:
        """Whether gradients are compared with samples' parts: in first steps, and for statistics of them."""
        due = self._kind == "empirical" and self.count % self._options.statistics_every == 0
        return self._recorder.checks or due

    def _require_new(self, name: str, groups: set[int]) -> None:
        """Refuses samples whose gradient came to a layer in an earlier backward pass of the step."""
        known = self._groups_of.setdefault(name, set())
        if known & groups:
            raise InputError(_ADD)
        known |= groups

    def _observe_loss(self, name: str, passes: Sequence[ForwardPass]) -> None:
        """Statistics of the loss: g_n is N times the derivative of a mean, with N of all passes so far."""
        block = self._blocks[name]
        if self._options.of_mean and name in self._counts:
            block.rescale(self._samples / self._counts[name])
        scale = (self._samples if self._options.of_mean else 1) / self._scale
        for one in passes:
            assert one.samples is not None
            g = self._recorder.gradients(name, one.layers[name], one.samples, scale)
            batch = self._recorder.batch(name, one.layers[name], one.samples, {self._kind: g})
            block.count(self._observe(name, batch, ()))
            self._prepared.discard(name)

    def _check_arrived(self, name: str) -> None:
        """Whether what a backward pass added to a gradient is made of what came back; the step refuses it."""
        gradient = self._gradients.matrix(name)
        added = gradient - self._before[name] if name in self._before else gradient
        self._before[name] = gradient.clone()
        along, _ = self._contributions.along(name, added, every=True)
        tolerance = self._contributions.tolerance(name, added)
        try:
            sums = along.sum(), added.square().sum(), along.abs().sum()
            check_contributions(name, *sums, tolerance, _least(added.dtype))
        except InputError as error:  # the step says so, unless the gradients are thrown away before it
            self._refusal = self._refusal or error.with_traceback(None)

    def _keep_step(self, name: str) -> None:
        """The step, where it depends on nothing else to come; else the norms of the gradient."""
        gradient = self._gradient(name) / self._scale
        if not self._options.eager:
            self._changes.keep_norms(name, gradient)
            return
        try:
            self._ready[name] = self._make_step(name, gradient)
        except NumericalError:  # `step()` says so, unless a GradScaler leaves it out
            return
        self._changes.keep_version(name)
        self._contributions.let_go(name)

    def _check_loss(self, one: ForwardPass) -> None:
        if self._recorder.checks and one.outputs is not None and one.output_gradient is not None:
            check_reduction(
                self._likelihood,
                one.outputs,
                one.output_gradient / self._scale,
                self._options.loss_reduction,
            )
            one.outputs = None

    # --- directions -------------------------------------------------------------------------------

    def _gradient(self, name: str) -> Tensor:
        """∇h [m, d]."""
        gradient = self._gradients.matrix(name)
        return gradient if self._options.of_mean else gradient / max(1, self._samples)

    def _prepare(self, name: str) -> None:
        """The inverse of this step."""
        block = self._blocks[name]
        block.total = block.total if distributed.size() > 1 else self._samples
        if self._due_for(name) and name not in self._prepared:
            block.invert(self._damping(name), self._options.decay)
            self._prepared.add(name)

    def _due_for(self, name: str) -> bool:
        """Whether this step has an inverse of its own."""
        block = self._blocks[name]
        return block.known and (self._due_inverse() or block.inverse is None or block.rescaled)

    def _make_step(self, name: str, gradient: Tensor) -> Step:
        """D, ⟨D, ∇h⟩ and the mean of ⟨D, ∇ℓ_n⟩² from a layer's gradient and its last samples."""
        self._prepare(name)
        block, group = self._blocks[name], self._settings(name)
        driven = gradient
        if self._options.weight_decay_mode == "coupled":
            driven = gradient + group["weight_decay"] * self._gradients.weights(name)
        if self._options.momentum_on == "gradient":
            driven = self._momentum(name).mul(group["momentum"]).add_(driven)
        direction = driven if block.inverse is None else block.inverse.apply(driven)
        direction = self._gradients.of_trained(name, direction)
        along = (direction * gradient).sum()
        known = name in self._contributions.names
        squares = self._squares(name, direction, gradient, along) if known else None
        kept = driven if self._options.momentum_on == "gradient" else None
        return Step(direction, along, squares, kept, torch._foreach_norm([direction, gradient]))

    def _squares(self, name: str, direction: Tensor, gradient: Tensor, projection: Tensor) -> Tensor:
        """(1/N) Σ_n ⟨D, ∇ℓ_n⟩² with ∇ℓ_n := N times the contribution of sample n to ∇h as it came."""
        along, every = self._contributions.along(name, direction)
        along = along / self._scale
        factor = self._changes.factor(name, gradient)
        if self._recorder.checks:
            self._check_changes()
        total, size = along.sum(), along.abs().sum()
        if not every and self._due_sums(self._blocks[name]):  # all samples now and then
            whole_batch = self._contributions.along(name, direction, every=True)[0] / self._scale
            total, size, every = whole_batch.sum(), whole_batch.abs().sum(), True
        squares = (along * self._samples if self._options.of_mean else along).square()
        share = self._through[name] / max(1, self._samples)  # other samples of the step have a part of zero
        if distributed.size() > 1:  # the gradient may be clipped by now: nothing to compare it with
            totals = torch.stack([squares.sum(), squares.new_tensor(len(squares) / share)])
            distributed.add_up([totals])
            return totals[0] / totals[1]
        if every and len(self._backwards) == 1:
            whole = projection if factor is None else projection / factor
            whole = whole if self._options.of_mean else whole * self._samples
            self._gaps[name] = total, whole, size
            self._tolerances[name] = self._contributions.tolerance(name, gradient)
        return squares.mean() * share if share != 1 else squares.mean()

    def _check_gaps(self) -> None:
        """Whether the samples' parts of every gradient add up to it: one transfer for all layers."""
        if not self._gaps:
            return
        values = [value for gap in self._gaps.values() for value in gap]
        read = iter(torch.stack([value.to(values[0].device) for value in values]).tolist())
        for name in self._gaps:
            sums = next(read), next(read), next(read)
            check_contributions(name, *sums, self._tolerances[name], _least(self.dtype_of(name)))


def _least(dtype: torch.dtype) -> float:
    """Where products of small numbers begin to lose digits, with room for the sums that they are in."""
    return torch.finfo(dtype).tiny * 1e9


def _require_alike(*own: Sequence[str]) -> None:
    """Raises `InputError` in all processes where a layer took part in some of them only."""
    for found in zip(*distributed.gather_all(own), strict=True):
        some = set().union(*found).difference(set(found[0]).intersection(*found))
        if some:
            raise InputError(
                f"layer {min(some)!r} took part in this step in some processes only; use it in all of "
                "them, or leave it out with exclude="
            )
