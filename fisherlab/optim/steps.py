"""From backward passes to each layer's direction D, its rate α, and the step of the weights."""

import math
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fisherlab.base import distributed
from fisherlab.damping import Damping
from fisherlab.errors import InputError, NumericalError
from fisherlab.likelihoods.labels import EMPIRICAL
from fisherlab.optim.cadence import require_alike
from fisherlab.optim.cautions import Cautions
from fisherlab.optim.gradients import check_contributions, numbers_in
from fisherlab.optim.passes import ForwardPass, current_backward
from fisherlab.optim.preconditioner import LayerPreconditioner
from fisherlab.optim.tap import ADD_LOSSES, TrainingTap
from fisherlab.optim.turn import Step

DampingOf = Callable[[str], Damping]


class StepMaker:
    """Makes a `Step` of each layer as its gradient comes back, or at the step where it cannot be made before.

    Args:
        tap: has what came, and keeps what is made of it.
        settings: by layer those of its group.
        state: the optimizer's, which keeps momentum.
        cautions: what it has to say.
    """

    def __init__(
        self,
        tap: TrainingTap,
        settings: Mapping[str, Mapping[str, Any]],
        state: MutableMapping[Tensor, Any],
        cautions: Cautions,
    ) -> None:
        self._tap, self._options, self._cadence = tap, tap.options, tap.cadence
        self._blocks, self._kind = tap.blocks, tap.kind
        self._gradients, self._edits, self._products = tap.gradients, tap.edits, tap.products
        self._settings, self._state, self._cautions = settings, state, cautions

    # --- the whole step ---------------------------------------------------------------------------

    def steps(self, damping_of: DampingOf) -> dict[str, Step]:
        """D of every layer with a gradient, and what its rate is made of.

        A layer whose gradient came another way than what was seen of it is left out from now on.

        Raises:
            InputError: without a fresh backward pass, where a gradient has changed since, or where no layer
                is left.
            NumericalError: where a gradient or a layer's statistics are not finite; names the layer.
        """
        turn = self._tap.turn
        if not turn.fresh or self._gradients.are_cleared():
            raise InputError(
                "step() without a backward pass since the last one; call loss.backward() first, through the "
                "very model that this optimizer was made for (deepcopy a model and its optimizer together)"
            )
        if turn.refusal is not None:
            raise turn.refusal
        try:
            self._gradients.check_finite()
            if distributed.size() > 1:
                self._meet()
            self._settle(damping_of)
            names = self._with_gradients()
            unseen = self._unseen(names)
            if unseen:
                self._tap.leave_out(unseen)
                names = self._with_gradients()
            if distributed.size() > 1:
                self._synchronise(names, damping_of)
            steps = {name: self._step_of(name, damping_of) for name in names}
        except NumericalError:
            self._tap.abandon()
            raise
        self._check_edits()
        self._check_gaps()
        if self._cadence.count == 0:
            squares = {name: step.squares for name, step in steps.items() if step.squares is not None}
            self._cautions.first_step(turn, self._options, self._total, squares, self._settings)
        for name in turn.prepared:
            if self._blocks[name].lost:
                self._cautions.damping(name, self._settings[name]["damping"])
        return steps

    def go_on(self) -> None:
        """Counts a step, and forgets what it was made of."""
        for name, block in self._blocks.items():
            block.average_in(self._options.decay, self._total)
            if name in self._tap.left:
                self._forget_momentum(name)
        self._cadence.checks = False
        self._tap.start_at(self._cadence.count + 1)

    def resume(self, count: int, state: MutableMapping[Tensor, Any]) -> None:
        """Goes on after so many steps of another time, and checks the next one as a first step."""
        self._state = state
        self._cadence.checks = True
        self._tap.start_at(count)

    def momentum(self, name: str) -> Tensor:
        """A layer's m [m, d], in the state of its first parameter; zero where that has none."""
        view = self._blocks[name].view
        first = self._gradients.parameters[view.parameters[0]]
        layers = self._state[first].setdefault("layers", {})
        if name not in layers:
            dtype = self._gradients.dtype_of(name)
            layers[name] = {"momentum": first.new_zeros(view.outputs, view.inputs, dtype=dtype)}
        return layers[name]["momentum"]

    def _forget_momentum(self, name: str) -> None:
        """A layer that is left out has that of its parameters."""
        kept = self._state[self._gradients.parameters[self._blocks[name].view.parameters[0]]]
        kept.get("layers", {}).pop(name, None)
        if not kept.get("layers", True):
            del kept["layers"]

    @property
    def _total(self) -> int:
        """N of all processes, once they have met; until then of those samples that came."""
        turn = self._tap.turn
        return turn.samples if turn.total is None else turn.total

    @property
    def _each(self) -> float:
        """N over the processes: a gradient is the mean of theirs, and ∇ℓ_n so many times a sample's part."""
        turn = self._tap.turn
        return turn.samples if turn.total is None else turn.total / distributed.size()

    def _with_gradients(self) -> list[str]:
        """The layers that take a step of their own."""
        came, left = self._tap.turn.came, self._tap.left
        return [name for name in self._blocks if name not in left and self._gradients.has_come(name, came)]

    def _unseen(self, names: Iterable[str]) -> dict[str, str]:
        """Layers whose gradient came, and of which nothing was seen that their step needs, with the cause."""
        turn, found = self._tap.turn, {}
        for name in names:
            block = self._blocks[name]
            seen = block.observed or not self._cadence.sums_due(block)
            if self._options.layerwise:
                seen = seen and (name in turn.ready or name in self._products.names)
            came = not turn.came.isdisjoint(self._gradients.trained(name))
            if not seen and came and self._gradients.is_any(name):
                why = self._tap.why_unseen(name)
                found[name] = f"it has a gradient, but nothing to make its statistics of: {why}"
        return found

    def _settle(self, damping_of: DampingOf) -> None:
        """Layers whose gradient came with another N: before the last backward pass, or of an uneven share."""
        turn, each = self._tap.turn, self._each
        for name, count in turn.counts.items():
            if count == each or not self._options.of_mean:
                continue
            ready = turn.ready.get(name)
            if ready is not None and ready.squares is not None:
                ready.squares *= (each / count) ** 2
                ready.squares *= count / each  # the others have a part of zero
            if self._kind == EMPIRICAL:
                self._blocks[name].rescale(each / count)
                if name in turn.prepared:  # the inverse of later steps; D of this one stays
                    turn.prepared.remove(name)
                    self._prepare(name, damping_of)

    def _meet(self) -> None:
        """With several processes: whether they saw the same layers, and the samples of all."""
        turn = self._tap.turn
        observed = [name for name, block in self._blocks.items() if block.observed]
        left = list(self._tap.left.reasons)
        turn.total = sum(require_alike(observed, self._products.names, left, own=turn.samples))

    def _synchronise(self, names: Iterable[str], damping_of: DampingOf) -> None:
        """Statistics over all processes, each inverting a share of the layers."""
        turn, blocks = self._tap.turn, self._blocks
        LayerPreconditioner.add_up(blocks.values())
        due = [name for name in names if self._cadence.inverse_due(blocks[name])]
        for name in due[distributed.rank() :: distributed.size()]:
            self._prepare(name, damping_of)
        mine = {name: blocks[name].on_cpu() for name in turn.prepared}
        for share in distributed.gather_all(mine) if due else ():
            for name, (tensors, numbers) in share.items():
                blocks[name].load_inverse(tensors, numbers, self._gradients.device(name))
                turn.prepared.add(name)

    def _step_of(self, name: str, damping_of: DampingOf) -> Step:
        """The step as it was made when the gradient came, or made anew where that has changed since.

        ∇ℓ_n stay as they came: clipping changes ∇h and D.
        """
        ready, checks = self._tap.turn.ready.get(name), self._cadence.checks
        if ready is not None and self._edits.is_unchanged(name):
            if checks:  # unscaling does not count as a change
                along = (ready.direction * self._gradient(name)).sum()
                self._edits.note(name, along / ready.gradient)
            return ready
        if not self._options.layerwise and checks:
            self._edits.note_factor(name, self._gradient(name))
        step = self._make_step(name, self._gradient(name), damping_of)
        if ready is not None and ready.squares is not None:
            ratio = self._edits.ratio(name, ready.direction, step.direction)
            step.squares = ratio.square().nan_to_num() * ready.squares
        return step

    def _check_edits(self) -> None:
        self._edits.check(unscaled=self._cadence.checks and self._options.scaler is None)

    # --- the weights ------------------------------------------------------------------------------

    def rate(self, name: str, step: Step) -> Tensor | float:
        """α_l."""
        if not self._options.layerwise:
            return 1.0
        group = self._settings[name]
        if step.squares is None and not bool(step.gradient):
            return 0.0  # a layer that took no part, with a gradient that was set to zero
        if step.squares is None:
            raise InputError(
                f"layer {name!r} has a gradient that did not come since the last step, so that no samples "
                "make its rate: call zero_grad() in every step"
            )
        ratio = step.gradient / (step.squares + group["rate_damping"])
        rate = ratio.nan_to_num(nan=0.0)  # 0/0: no gradient
        return rate if group["max_rate"] is None else rate.clamp(max=group["max_rate"])

    def clipped(self, steps: Mapping[str, Step]) -> dict[str, tuple[Tensor | float, Tensor | float]]:
        """By layer α_l, and α_l times the factor of the KL-clip, which all layers have in common.

        The factor is min(1, √(κ / Σ_l lr_l² |α_l| ⟨D_l, F̂_l D_l⟩)): α_l D_l is the natural gradient in the
        metric F̂_l/α_l. An inverse without digits may give a negative product; its size bounds the step too.
        """
        rates = {name: self.rate(name, step) for name, step in steps.items()}
        if math.isinf(self._options.clip) or not steps:
            return {name: (rate, rate) for name, rate in rates.items()}
        lengths = {n: self._settings[n]["lr"] ** 2 * abs(rates[n] * step.length) for n, step in steps.items()}
        first = next(iter(lengths.values()))
        total = torch.stack([length.to(first) for length in lengths.values()]).sum()
        factor = (self._options.clip / total).sqrt().clamp(max=1.0)
        return {name: (rate, rate * factor.to(lengths[name])) for name, rate in rates.items()}

    def apply(self, steps: Mapping[str, Step]) -> dict[str, dict[str, Tensor | float]]:
        """Every layer's m ← τ m − lr α D and W ← W + m; or W ← W − lr α D with the momentum in D.

        Returns:
            By layer α, ‖D‖ and ‖∇h‖, as they are shown.
        """
        shown, targets, updates = {}, [], []
        shrunk: dict[float, list[Tensor]] = {}
        scaled = self.clipped(steps)
        for name, step in steps.items():
            group, (rate, clipped) = self._settings[name], scaled[name]
            shown[name] = {"rate": rate, "direction_norm": step.norms[0], "gradient_norm": step.norms[1]}
            update = step.direction.mul_(-group["lr"] * clipped)
            momentum = self.momentum(name)
            if step.driven is None:
                update = momentum.mul_(group["momentum"]).add_(update)
            else:
                momentum.copy_(step.driven)
            for parameter, rows, part in self._blocks[name].view.to_parameters(update):
                p = self._gradients.parameters[parameter]
                if p.grad is None or not p.requires_grad:
                    continue
                target = p if rows is None else p[rows]
                targets.append(target)
                updates.append(part.to(p.dtype))
                if self._options.weight_decay_mode == "decoupled":
                    shrunk.setdefault(1 - float(group["lr"]) * group["weight_decay"], []).append(target)
        for factor, some in shrunk.items():
            if factor != 1:
                torch._foreach_mul_(some, factor)
        if targets:
            torch._foreach_add_(targets, updates)
        return shown

    def apply_to_others(self, groups: Iterable[Mapping[str, Any]]) -> None:
        """SGD with momentum for groups of parameters in no block."""
        for group in groups:
            some = [p for p in group["params"] if p.grad is not None and p.requires_grad]
            if not some:
                continue
            grads: list[Any] = [p.grad for p in some]
            if not self._options.of_mean:
                grads = list(torch._foreach_div(grads, float(max(1, self._each))))
            buffers = [self._state[p].setdefault("momentum", torch.zeros_like(p)) for p in some]
            torch._foreach_mul_(buffers, group["momentum"])
            if self._options.momentum_on == "gradient":
                torch._foreach_add_(buffers, grads)
                torch._foreach_add_(some, buffers, alpha=-group["lr"])
            else:
                torch._foreach_add_(buffers, grads, alpha=-group["lr"])
                torch._foreach_add_(some, buffers)

    # --- as gradients come ------------------------------------------------------------------------

    @torch.no_grad()
    def complete(self, name: str, damping_of: DampingOf) -> None:
        """All gradients of a layer are there: its statistics, and its step where no process adds to it."""
        backward, turn = current_backward(), self._tap.turn
        came = self._tap.passes.came_back(name, backward)
        if not came or name in self._tap.left:
            return
        with torch.autocast(self._gradients.device(name).type, enabled=False):
            count: float = turn.samples
            if self._kind == EMPIRICAL:
                count = self._observe_loss(name, [one for one in came if one.refresh])
            known, groups = turn.groups_of.setdefault(name, set()), {one.group for one in came}
            if known & groups:  # the samples' gradient came in an earlier backward pass of the step
                raise InputError(ADD_LOSSES)
            known |= groups
            turn.counts[name] = count
            self._products.keep(name, came, backward)
            turn.through[name] = turn.through.get(name, 0) + self._products.samples(name)
            for one in came:
                one.spent = True
            alone = distributed.size() == 1
            if self._cadence.looks_closely and alone:
                self._check_arrived(name)
            if self._options.layerwise:
                if alone:
                    self._keep_step(name, damping_of)
                return
            if self._kind == EMPIRICAL and self._cadence.checks and alone:
                self._edits.keep_norms(name, self._gradient(name) / turn.scale)
            self._products.let_go(name)

    def _observe_loss(self, name: str, passes: Sequence[ForwardPass]) -> float:
        """Statistics of the loss: g_n is N times the derivative of a mean, with N of all passes so far.

        Returns:
            N; where an eigenbasis is made of all processes' sums at once, over the processes.
        """
        turn, block = self._tap.turn, self._blocks[name]
        count: float = turn.samples
        if passes and block.method.two_pass:
            count = sum(distributed.gather_all(turn.samples)) / distributed.size()
        if self._options.of_mean and name in turn.counts:
            block.rescale(count / turn.counts[name])
        if passes:
            scale = (count if self._options.of_mean else 1) / turn.scale
            self._tap.observer.of_loss(name, passes, scale)
            turn.prepared.discard(name)
        return count

    def _check_arrived(self, name: str) -> None:
        """Whether what a backward pass added to a gradient is made of what came back; the step refuses it."""
        turn, gradient = self._tap.turn, self._gradients.matrix(name)
        added = gradient - turn.before[name] if name in turn.before else gradient
        turn.before[name] = gradient.clone()
        along, _ = self._products.along(name, added, every=True)
        tolerance = self._products.tolerance(name, added)
        try:
            sums = along.sum(), added.square().sum(), along.abs().sum()
            check_contributions(name, *sums, tolerance, _least(added.dtype))
        except InputError as error:  # the step says so, unless the gradients are thrown away before it
            turn.refusal = turn.refusal or error.with_traceback(None)

    def _keep_step(self, name: str, damping_of: DampingOf) -> None:
        """The step, where it depends on nothing else to come; else the norms of the gradient."""
        gradient = self._gradient(name) / self._tap.turn.scale
        if not self._options.eager:
            self._edits.keep_norms(name, gradient)
            return
        try:
            self._tap.turn.ready[name] = self._make_step(name, gradient, damping_of)
        except NumericalError:  # `step()` says so, unless a GradScaler leaves it out
            return
        self._edits.keep_version(name)
        self._products.let_go(name)

    # --- directions -------------------------------------------------------------------------------

    def _gradient(self, name: str) -> Tensor:
        """∇h [m, d]."""
        gradient = self._gradients.matrix(name)
        return gradient if self._options.of_mean else gradient / max(1, self._each)

    def _prepare(self, name: str, damping_of: DampingOf) -> None:
        """The inverse of this step."""
        block, prepared = self._blocks[name], self._tap.turn.prepared
        if name not in prepared and self._cadence.inverse_due(block):
            block.invert(damping_of(name), self._options.decay, self._total)
            prepared.add(name)

    def _make_step(self, name: str, gradient: Tensor, damping_of: DampingOf) -> Step:
        """D, ⟨D, ∇h⟩ and the mean of ⟨D, ∇ℓ_n⟩² from a layer's gradient and its last samples."""
        self._prepare(name, damping_of)
        block, group = self._blocks[name], self._settings[name]
        driven = gradient
        if self._options.weight_decay_mode == "coupled":
            driven = gradient + group["weight_decay"] * self._gradients.weights(name)
        if self._options.momentum_on == "gradient":
            driven = self.momentum(name).mul(group["momentum"]).add_(driven)
        direction = driven if block.inverse is None else block.inverse.apply(driven)
        direction = self._gradients.of_trained(name, direction)
        along = (direction * gradient).sum()
        known = name in self._products.names
        squares = self._squares(name, direction, gradient, along) if known else None
        kept = driven if self._options.momentum_on == "gradient" else None
        length = along if driven is gradient else (direction * driven).sum()
        return Step(direction, along, length, squares, kept, torch._foreach_norm([direction, gradient]))

    def _squares(self, name: str, direction: Tensor, gradient: Tensor, projection: Tensor) -> Tensor:
        """(1/N) Σ_n ⟨D, ∇ℓ_n⟩² with ∇ℓ_n := N times the contribution of sample n to ∇h as it came."""
        turn = self._tap.turn
        along, every = self._products.along(name, direction)
        along = along / turn.scale
        factor = self._edits.factor(name, gradient)
        if self._cadence.checks:
            self._check_edits()
        total, size = along.sum(), along.abs().sum()
        if not every and self._cadence.sums_due(self._blocks[name]):  # all samples now and then
            whole_batch = self._products.along(name, direction, every=True)[0] / turn.scale
            total, size, every = whole_batch.sum(), whole_batch.abs().sum(), True
        squares = (along * self._each if self._options.of_mean else along).square()
        share = turn.through[name] / max(1, turn.samples)  # other samples of the step have a part of zero
        if distributed.size() > 1:  # the gradient may be clipped by now: nothing to compare it with
            totals = torch.stack([squares.sum(), squares.new_tensor(len(squares) / share)])
            distributed.add_up([totals])
            return totals[0] / totals[1]
        if every and len(turn.backwards) == 1:
            whole = projection if factor is None else projection / factor
            whole = whole if self._options.of_mean else whole * turn.samples
            turn.gaps[name] = (total, whole, size), self._products.tolerance(name, gradient)
        return squares.mean() * share if share != 1 else squares.mean()

    def _check_gaps(self) -> None:
        """Whether the samples' parts of every gradient add up to it: one transfer for all layers."""
        gaps = self._tap.turn.gaps
        read = iter(numbers_in([value for sums, _ in gaps.values() for value in sums]))
        for name, (_, tolerance) in gaps.items():
            sums = next(read), next(read), next(read)
            check_contributions(name, *sums, tolerance, _least(self._gradients.dtype_of(name)))


def _least(dtype: torch.dtype) -> float:
    """Where products of small numbers begin to lose digits, with room for the sums that they are in."""
    return torch.finfo(dtype).tiny * 1e9
