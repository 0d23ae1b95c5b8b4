"""The base of all optimizers here: an approximation, a damping, a step rule and momentum."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fisherlab import distributed
from fisherlab.approximations import Approximation
from fisherlab.batch import LayerBatch
from fisherlab.damping import Damping
from fisherlab.errors import InputError, NumericalError, unknown
from fisherlab.layers import LayerView, Use, match_names
from fisherlab.likelihoods import Likelihood, as_likelihood
from fisherlab.optim.block import Block, Seen, Step
from fisherlab.optim.checks import (
    check_contributions,
    check_model,
    check_reduction,
    check_settings,
    layers_of,
)
from fisherlab.optim.recorder import ForwardPass, Recorder

if TYPE_CHECKING:
    import pandas

_OWN = "fisherlab"
_COLUMNS = (
    "layer",
    "rate",
    "trace_input",
    "trace_output",
    "damping_input",
    "damping_output",
    "condition",
    "direction_norm",
    "gradient_norm",
)


class NaturalGradient(torch.optim.Optimizer):
    """Steps along D = F̂⁻¹∇h, layer by layer, with F̂ an approximation of each layer's Fisher.

    Every `statistics_every` steps the moving averages of the statistics are refreshed, every `inverse_every`
    steps the damped F̂ is inverted; every step, for each layer l,

        D = F̂⁻¹ ∇h,   α_l = ⟨D, ∇h⟩ / ((1/N) Σ_n ⟨D, ∇ℓ_n⟩² + μ)  (rate="layerwise"; "fixed": α_l = 1),
        m ← τ m − lr α_l D,   W ← W + m.

    Liu et al. 2024 (NeurIPS), algorithm 1, eqs. 12 and 13. Parameters in no block take the step of SGD with
    momentum. The training loop is the usual one; subclasses choose the approximation and the damping.
    """

    def damping_of(self, group: Mapping[str, Any], view: LayerView) -> Damping:
        """The damping of a layer's F̂ from the settings of its group."""
        raise NotImplementedError

    def __init__(
        self,
        model: nn.Module,
        method: Approximation,
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        weight_decay_mode: str,
        decay: float,
        statistics_every: int,
        inverse_every: int,
        damping: Any,
        rate: str,
        rate_damping: float,
        max_rate: float | None,
        rate_samples: int | None,
        scaler: Any,
        source: str,
        momentum_on: str,
        loss_reduction: str,
        likelihood: str | Likelihood,
        other_lr: float | None,
        include: Iterable[str],
        exclude: Iterable[str],
        activations: Mapping[str, str] | None = None,
        groups: Sequence[Mapping[str, Any]] = (),
        batch_dim: int = 0,
        seed: int = 0,
    ) -> None:
        model = check_model(model)
        layers = layers_of(model, include, exclude, activations)
        settings = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "damping": damping,
            "rate_damping": rate_damping,
            "max_rate": max_rate,
        }
        common: dict[str, Any] = {
            "weight_decay_mode": weight_decay_mode,
            "decay": decay,
            "statistics_every": statistics_every,
            "inverse_every": inverse_every,
            "rate": rate,
            "rate_samples": rate_samples,
            "source": source,
            "momentum_on": momentum_on,
            "loss_reduction": loss_reduction,
        }
        check_settings({**settings, **common, "other_lr": other_lr})
        self._common, self._scaler = common, scaler
        kind = method.label_kind("drawn" if source == "predictive" else "empirical")
        self._blocks = {name: Block(view, method, kind) for name, view in layers.items()}
        self._kind, self._layers, self._model, self._batch_dim = kind, layers, model, batch_dim
        super().__init__(self._grouped(groups, settings, lr if other_lr is None else other_lr), settings)
        self._group_of = {name: group for group in self.param_groups for name in group["layers"]}
        self._shown: dict[str, dict[str, Any]] = {}
        for group in self.param_groups:
            check_settings(group)
        for name, view in layers.items():
            self.damping_of(self._group_of[name], view)
        self._steps = 0
        self._generator = torch.Generator().manual_seed(seed)
        self._likelihood = as_likelihood(likelihood)
        self._eager = weight_decay_mode == "decoupled" and momentum_on == "update"
        self._watch()
        self._recorder = Recorder(
            model,
            layers,
            self._likelihood,
            batch_dim,
            kind,
            self._generator,
            scaler is not None,
            due=self._due,
            listens=lambda refresh: self._layerwise or (refresh and kind == "empirical"),
            observe=self._observe,
            began=self._begin,
        )

    # --- groups -----------------------------------------------------------------------------------

    def _grouped(
        self, groups: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], other_lr: float
    ) -> list[dict[str, Any]]:
        """Layers with settings of their own, the other layers, and the parameters in no block."""
        parameters = dict(self._model.named_parameters())
        left = dict(self._layers)
        made: list[dict[str, Any]] = []
        for own in groups:
            if "layers" not in own:
                raise InputError("a group names its layers: {'layers': 'encoder.*', 'lr': 0.01}")
            names = match_names(self._layers, own["layers"])
            for option in own:
                if option not in (*settings, "layers"):
                    raise unknown("group option", option, settings)
            taken = [name for name in names if name not in left]
            if taken:
                raise InputError(f"layer {taken[0]!r} is in two groups")
            made.append({**own, "layers": names})
            left = {name: view for name, view in left.items() if name not in names}
        if left:
            made.append({"layers": list(left)})
        for group in made:
            names_of = dict.fromkeys(p for name in group["layers"] for p in self._layers[name].parameters)
            group["params"] = [parameters[name] for name in names_of]
        covered = {p for view in self._layers.values() for p in view.parameters}
        others = [p for n, p in parameters.items() if n not in covered and p.requires_grad]
        if others:
            made.append({"layers": [], "params": others, "lr": other_lr, "weight_decay": 0.0})
        return made

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """A group of parameters that are in no layer's block; they take the step of SGD with momentum."""
        param_group.setdefault("layers", [])
        super().add_param_group(param_group)

    # --- what happens during the user's passes ------------------------------------------------------

    @property
    def _layerwise(self) -> bool:
        return self._common["rate"] == "layerwise"

    def _due(self, names: Iterable[str]) -> bool:
        """Whether a forward pass with these layers is to give statistics."""
        if self._steps % self._common["statistics_every"] == 0:
            return True
        blocks = [self._blocks[name] for name in names]
        return any(not block.known for block in blocks) or (
            self._due_inverse() and any(block.wants_basis for block in blocks)
        )

    def _due_inverse(self) -> bool:
        return self._steps % self._common["inverse_every"] == 0

    def _observe(self, name: str, batch: LayerBatch) -> None:
        block = self._blocks[name]
        due = self._steps % self._common["statistics_every"] == 0 or not block.known
        basis = self._due_inverse() or not block.bases
        block.observe(batch, self._common["decay"], sums=due, basis=basis)
        self._prepared.discard(name)

    def _watch(self) -> None:
        """Hooks that tell when all gradients of a block are there."""
        self._parameters = dict(self._model.named_parameters())
        blocks_of: dict[str, list[str]] = {}
        for name, view in self._layers.items():
            for parameter in view.parameters:
                blocks_of.setdefault(parameter, []).append(name)
        for parameter, p in self._parameters.items():
            if p.requires_grad:
                p.register_post_accumulate_grad_hook(
                    partial(self._arrive, parameter, blocks_of.get(parameter, []))
                )
        self._prepared: set[str] = set()
        self._forget()

    def _forget(self) -> None:
        """What was made for one step."""
        self._ready: dict[str, Step] = {}
        self._versions: dict[str, list[int]] = {}
        self._arrived: dict[str, set[str]] = {}
        self._last: dict[str, list[tuple[int, list[Seen]]]] = {}
        self._samples, self._backwards, self._scale, self._fresh = 0, 0, 1.0, False

    def _begin(self, one: ForwardPass) -> None:
        """The backward pass of a forward pass begins."""
        self._samples += one.samples
        self._backwards += 1
        if self._scaler is not None:
            self._scale = float(self._scaler.get_scale())

    def _arrive(self, parameter: str, names: Sequence[str], _: Tensor) -> None:
        self._fresh = True
        for name in names:
            come = self._arrived.setdefault(name, set())
            come.add(parameter)
            if all(p in come for p in self._trained(name)):
                del self._arrived[name]
                self._complete(name)

    def _trained(self, name: str) -> list[str]:
        """The parameters of a block that are not frozen."""
        return [p for p in self._layers[name].parameters if self._parameters[p].requires_grad]

    @torch.no_grad()
    def _complete(self, name: str) -> None:
        """All gradients of a layer are there: its statistics, and its step where no process adds to it."""
        came = self._recorder.came_back(name)
        if not came:
            return
        with torch.autocast(self._parameters[self._layers[name].parameters[0]].device.type, enabled=False):
            for one in came:
                if one.refresh and self._kind == "empirical":
                    scale = self._own_scale(one.samples) / self._scale
                    g = self._recorder.gradients(name, one.layers[name], one.samples, scale)
                    batch = self._recorder.batch(name, one.layers[name], one.samples, {self._kind: g})
                    self._observe(name, batch)
            self._check_loss(came[-1])
            self._last[name] = [(one.samples, one.layers.pop(name)) for one in came]
            if not self._layerwise:
                self._let_go(name)
            elif self._eager and distributed.size() == 1:
                self._ready[name] = self._make_step(name, self._gradient(name) / self._scale)
                self._versions[name] = self._version(name)
                self._let_go(name)

    def _let_go(self, name: str) -> None:
        """Drops what was kept of a layer's calls."""
        for _, calls in self._last.pop(name):
            for call in calls:
                call.slot.clear()

    def _own_scale(self, samples: int) -> float:
        """From the gradient of the user's loss to that of a sample's own log-likelihood."""
        return float(samples) if self._common["loss_reduction"] == "mean" else 1.0

    def _check_loss(self, one: ForwardPass) -> None:
        if self._recorder.checks and one.outputs is not None and one.output_gradient is not None:
            check_reduction(
                self._likelihood,
                one.outputs,
                one.output_gradient / self._scale,
                self._common["loss_reduction"],
            )
            one.outputs = None

    # --- directions -------------------------------------------------------------------------------

    def _gradient(self, name: str) -> Tensor:
        """∇h [m, d] from the parameters' gradients."""
        view = self._layers[name]
        gradients = {}
        for parameter in view.parameters:
            p = self._parameters[parameter]
            gradients[parameter] = torch.zeros_like(p) if p.grad is None else p.grad
        gradient = view.to_matrix(gradients).to(self._recorder.dtype_of(name))
        return gradient / self._samples if self._common["loss_reduction"] == "sum" else gradient

    def _weights(self, name: str) -> Tensor:
        view = self._layers[name]
        weights = view.to_matrix({p: self._parameters[p].detach() for p in view.parameters})
        return weights.to(self._recorder.dtype_of(name))

    def _version(self, name: str) -> list[int]:
        grads = [self._parameters[p].grad for p in self._trained(name)]
        return [-1 if grad is None else grad._version for grad in grads]

    def _prepare(self, name: str) -> None:
        """The inverse of this step."""
        block = self._blocks[name]
        if self._due_for(name) and name not in self._prepared:
            block.invert(self.damping_of(self._group_of[name], self._layers[name]), self._common["decay"])
            self._prepared.add(name)

    def _due_for(self, name: str) -> bool:
        """Whether this step has an inverse of its own."""
        block = self._blocks[name]
        return block.known and (self._due_inverse() or block.inverse is None or block.rescaled)

    def _make_step(self, name: str, gradient: Tensor) -> Step:
        """D, ⟨D, ∇h⟩ and the mean of ⟨D, ∇ℓ_n⟩² from a layer's gradient and its last samples."""
        self._prepare(name)
        block, group = self._blocks[name], self._group_of[name]
        driven = gradient
        if self._common["weight_decay_mode"] == "coupled":
            driven = gradient + group["weight_decay"] * self._weights(name)
        if self._common["momentum_on"] == "gradient":
            driven = self._momentum(name).mul(group["momentum"]).add_(driven)
        direction = driven if block.inverse is None else block.inverse.apply(driven)
        along = (direction * gradient).sum()
        squares = self._squares(name, direction, along) if name in self._last else None
        return Step(direction, along, squares, driven if self._common["momentum_on"] == "gradient" else None)

    def _squares(self, name: str, direction: Tensor, along: Tensor) -> Tensor:
        """(1/N) Σ_n ⟨D, ∇ℓ_n⟩² with ∇ℓ_n := N times the contribution of sample n to ∇h."""
        view, found = self._layers[name], []
        for samples, calls in self._last[name]:
            most = min(samples, self._common["rate_samples"] or samples)
            products = torch.zeros((), dtype=direction.dtype, device=direction.device)
            for call in calls:
                if call.g is not None:
                    use, g, kept = _first(call, samples, most)
                    products = products + view.products(use, g, direction, kept, self._batch_dim)
            found.append(products)
        products = torch.cat(found) / self._scale
        mean = self._common["loss_reduction"] == "mean"
        if self._recorder.checks and self._backwards == 1 and most == samples and distributed.size() == 1:
            gradients = [call.g for _, calls in self._last[name] for call in calls if call.g is not None]
            precise = all(g.dtype.itemsize >= 4 for g in gradients)
            check_contributions(name, products, along if mean else along * self._samples, precise)
        squares = (products * self._samples if mean else products).square()
        if distributed.size() == 1:
            return squares.mean()
        totals = torch.stack([squares.sum(), squares.new_tensor(float(len(squares)))])
        distributed.add_up([totals])
        return totals[0] / totals[1]

    # --- the step ---------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step with the gradients of the backward passes since the last one.

        Args:
            closure: computes the loss and its gradients again; called once.

        Returns:
            What the closure returns, or None.

        Raises:
            InputError: without a fresh backward pass.
            NumericalError: where a gradient or a layer's statistics are not finite; names the layer, and
                leaves the weights as they are.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._apply(self._steps_of_layers())
        self._step_others()
        self._go_on()
        return loss

    @torch.no_grad()
    def precondition(self) -> None:
        """Puts α_l D in the place of every layer's gradient, and counts a step."""
        for name, step in self._steps_of_layers().items():
            for parameter, rows, part in self._layers[name].to_parameters(
                step.direction * self._rate(name, step)
            ):
                grad = self._parameters[parameter].grad
                if grad is not None:
                    (grad if rows is None else grad[rows]).copy_(part)
        self._go_on()

    def _steps_of_layers(self) -> dict[str, Step]:
        if not self._fresh:
            raise InputError("step() without a backward pass since the last one; call loss.backward() first")
        names = [name for name in self._blocks if self._has_gradient(name)]
        self._check_finite()
        self._synchronise(names)
        self._apart: dict[str, Tensor] = {}
        steps = {name: self._step_of(name) for name in names}
        self._check_rescaled()
        return steps

    def _go_on(self) -> None:
        for block in self._blocks.values():
            block.average_in(self._common["decay"])
        for name in list(self._last):
            self._let_go(name)
        self._steps += 1
        self._recorder.checks = False
        self._recorder.forget()
        self._prepared.clear()
        self._forget()

    def _has_gradient(self, name: str) -> bool:
        return any(self._parameters[p].grad is not None for p in self._trained(name))

    def _check_finite(self) -> None:
        named = {name: p.grad for name, p in self._parameters.items() if p.grad is not None}
        largest = torch._foreach_norm(list(named.values()), math.inf)
        by_device = torch.stack([value.float().to(largest[0].device) for value in largest])
        if bool(by_device.isfinite().all()):
            return
        bad = [name for name, fine in zip(named, by_device.isfinite().tolist(), strict=True) if not fine]
        layers = [name for name, view in self._layers.items() if set(view.parameters) & set(bad)]
        where = f"layer {layers[0]!r}" if layers else f"parameter {bad[0]!r}"
        raise NumericalError(
            f"the gradient of {where} is not finite; no weight was changed: lower the learning rate, clip "
            "the gradient, or look at the batch"
        )

    def _synchronise(self, names: Sequence[str]) -> None:
        """With several processes: statistics over all of them, each inverting a share of the layers."""
        if distributed.size() == 1:
            return
        Block.add_up(self._blocks.values())
        due = [name for name in names if self._due_for(name)]
        for name in due[distributed.rank() :: distributed.size()]:
            self._prepare(name)
        mine = {name: self._blocks[name].inverse_tensors() for name in self._prepared}
        for share in distributed.gather_all(mine) if due else ():
            for name, tensors in share.items():
                device = self._parameters[self._layers[name].parameters[0]].device
                self._blocks[name].load_inverse(tensors, device)
                self._prepared.add(name)

    def _step_of(self, name: str) -> Step:
        """The step as it was made when the gradient came, or made anew where that has changed since."""
        ready = self._ready.get(name)
        if ready is not None and self._versions[name] == self._version(name):
            return ready
        step = self._make_step(name, self._gradient(name))
        if self._layerwise and ready is not None:
            ratio = (step.direction * ready.direction).sum() / ready.direction.square().sum()
            apart = (step.direction - ratio * ready.direction).norm() / step.direction.norm()
            self._apart[name] = torch.where(step.direction.norm() > 0, apart, 0.0)
            assert ready.squares is not None
            step.squares = ratio.square().nan_to_num() * ready.squares
        return step

    def _check_rescaled(self) -> None:
        """A gradient that changed since its backward pass must have been multiplied by a number."""
        if not self._apart:
            return
        apart = torch.stack(list(self._apart.values()))
        if bool((apart > 1e-2).any()):
            layer = list(self._apart)[int(apart.argmax())]
            raise InputError(
                f"the gradient of layer {layer!r} was changed after its backward pass by more than a factor, "
                "so that the layer-wise rate no longer belongs to it; clip by norm, or use rate='fixed'"
            )

    def _rate(self, name: str, step: Step) -> Tensor | float:
        """α_l."""
        if not self._layerwise:
            return 1.0
        group = self._group_of[name]
        if step.squares is None:
            raise InputError(
                f"layer {name!r} has a gradient but was not seen in a forward pass in training mode; call "
                "model.train(), or leave it out with exclude="
            )
        rate = step.gradient / (step.squares + group["rate_damping"])
        return rate if group["max_rate"] is None else rate.clamp(max=group["max_rate"])

    def _apply(self, steps: Mapping[str, Step]) -> None:
        """M ← τ m − lr α D and W ← W + m for every layer; or W ← W − lr α D with the momentum in D."""
        targets, updates = [], []
        shrunk: dict[float, list[Tensor]] = {}
        for name, step in steps.items():
            group, rate = self._group_of[name], self._rate(name, step)
            self._shown[name] = {
                "rate": rate,
                "direction_norm": step.direction.norm(),
                "gradient_norm": self._gradient(name).norm(),
            }
            update = step.direction.mul_(-group["lr"] * rate)
            momentum = self._momentum(name)
            if step.driven is None:
                update = momentum.mul_(group["momentum"]).add_(update)
            else:
                momentum.copy_(step.driven)
            for parameter, rows, part in self._layers[name].to_parameters(update):
                p = self._parameters[parameter]
                if p.grad is None:
                    continue
                target = p if rows is None else p[rows]
                targets.append(target)
                updates.append(part.to(p.dtype))
                if self._common["weight_decay_mode"] == "decoupled":
                    shrunk.setdefault(1 - float(group["lr"]) * group["weight_decay"], []).append(target)
        for factor, some in shrunk.items():
            if factor != 1:
                torch._foreach_mul_(some, factor)
        torch._foreach_add_(targets, updates)

    def _step_others(self) -> None:
        """SGD with momentum for the parameters in no block."""
        for group in self.param_groups:
            if group["layers"]:
                continue
            some = [p for p in group["params"] if p.grad is not None]
            if not some:
                continue
            grads: Sequence[Any] = [p.grad for p in some]
            if self._common["loss_reduction"] == "sum":
                grads = torch._foreach_div(grads, float(max(1, self._samples)))
            buffers = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in some]
            torch._foreach_mul_(buffers, group["momentum"])
            if self._common["momentum_on"] == "gradient":
                torch._foreach_add_(buffers, grads)
                torch._foreach_add_(some, buffers, alpha=-group["lr"])
            else:
                torch._foreach_add_(buffers, grads, alpha=-group["lr"])
                torch._foreach_add_(some, buffers)

    def _momentum(self, name: str) -> Tensor:
        """A layer's m [m, d]."""
        first = self._parameters[self._layers[name].parameters[0]]
        layers = self.state[first].setdefault("layers", {})
        if name not in layers:
            view = self._layers[name]
            layers[name] = {"momentum": first.new_zeros(view.outputs, view.inputs, dtype=self._dtype(name))}
        return layers[name]["momentum"]

    def _dtype(self, name: str) -> torch.dtype:
        return self._recorder.dtype_of(name)

    # --- state ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Momentum, statistics, inverses, the number of steps and the random state, with the groups."""
        for name, block in self._blocks.items():
            if block.known:
                self._momentum(name)
                first = self._parameters[self._layers[name].parameters[0]]
                self.state[first]["layers"][name] |= block.state()
        found = super().state_dict()
        found[_OWN] = {"steps": self._steps, "generator": self._generator.get_state()}
        return found

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over a state of the same kind of optimizer for the same model, on any device.

        Raises:
            InputError: for the state of another optimizer or model.
        """
        if _OWN not in state_dict:
            raise InputError("this is the state of another optimizer; load one of fisherlab's own")
        own = [group["layers"] for group in self.param_groups]
        if [group.get("layers") for group in state_dict["param_groups"]] != own:
            raise InputError("this is the state of a model with other layers, or of other groups")
        super().load_state_dict(state_dict)
        places = [place for group in state_dict["param_groups"] for place in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        for place, p in zip(places, parameters, strict=True):
            saved = state_dict["state"].get(place, {}).get("layers", {})
            for name, values in saved.items():  # in their own dtype, which torch does not keep
                own_values = _moved_to(values, p.device)
                self.state[p]["layers"][name] = {"momentum": own_values["momentum"]}
                if "average" in own_values:
                    self._blocks[name].load(own_values)
        self._steps = state_dict[_OWN]["steps"]
        self._generator.set_state(state_dict[_OWN]["generator"].cpu())
        self._recorder.forget()
        self._prepared.clear()
        self._forget()

    # --- what can be looked at --------------------------------------------------------------------

    def diagnostics(self) -> "pandas.DataFrame":
        """A row a layer, from the last step.

        Columns: `layer, rate, trace_input, trace_output, damping_input, damping_output, condition,
        direction_norm, gradient_norm`. The rate is α_l (1 where fixed), traces are those of the two factors,
        the condition number is that of the damped F̂; direction_norm and gradient_norm are ‖D‖ and ‖∇h‖.
        """
        import pandas

        return pandas.DataFrame([self._row(name) for name in self._blocks], columns=list(_COLUMNS))

    def _row(self, name: str) -> dict[str, Any]:
        row: dict[str, Any] = dict.fromkeys(_COLUMNS)
        row["layer"] = name
        row |= self._blocks[name].numbers(self.damping_of(self._group_of[name], self._layers[name]))
        if name in self._shown:
            row |= {key: float(value) for key, value in self._shown[name].items()}
        return row


def _first(call: Seen, samples: int, most: int) -> tuple[Use, Tensor, int]:
    """The first samples of a call where each has one row, else all."""
    assert call.g is not None
    if most == samples or call.use.input.shape[0] != samples or call.g.shape[0] != samples:
        return call.use, call.g, samples
    return Use(call.use.input[:most], call.use.output[:most]), call.g[:most], most


def _moved_to(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, copy=True)
    if isinstance(value, dict):
        return {key: _moved_to(one, device) for key, one in value.items()}
    return [_moved_to(one, device) for one in value] if isinstance(value, list) else value
