"""The base of all optimizers here: an approximation, a damping, a step rule and momentum."""

import gc
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fisherlab.approximations import Approximation
from fisherlab.damping import Damping
from fisherlab.errors import InputError
from fisherlab.layers import LayerView
from fisherlab.likelihoods import Likelihood, as_likelihood
from fisherlab.likelihoods.labels import DRAWN, EMPIRICAL, LabelKind
from fisherlab.optim.block import NUMBERS, LayerPreconditioner, Step
from fisherlab.optim.checks import check_batch_dim, check_model, check_settings, layers_of
from fisherlab.optim.follower import Options, StepMaker
from fisherlab.optim.groups import grouped
from fisherlab.optim.hooks import weakly

if TYPE_CHECKING:
    import pandas

_OWN = "fisherlab"
_NOT_COPIED = (
    "_follower",
    "_group_of",
    "_generator",
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
    "_zero_grad_profile_name",
)
_NUMBERS = ("rate", *NUMBERS, "direction_norm", "gradient_norm")


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
        batch_dim: int | Mapping[str, int] = 0,
        seed: int = 0,
    ) -> None:
        if method.from_exact:
            raise InputError(
                f"{method.name} is made from the exact Fisher block, which no training keeps; use another "
                "approximation"
            )
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
        options = {
            "weight_decay_mode": weight_decay_mode,
            "decay": decay,
            "statistics_every": statistics_every,
            "inverse_every": inverse_every,
            "rate": rate,
            "rate_samples": rate_samples,
            "momentum_on": momentum_on,
            "loss_reduction": loss_reduction,
        }
        check_settings({**settings, **options, "source": source, "other_lr": other_lr})
        self._options = Options(**options)  # type: ignore[arg-type]
        self._layers = layers
        kind = LabelKind(method.label_kind(DRAWN if source == "predictive" else EMPIRICAL))
        self._method = f"{method.name}/{kind}"
        self._blocks = {name: LayerPreconditioner(view, method, kind) for name, view in layers.items()}
        other_lr = lr if other_lr is None else other_lr
        _ready_torch()
        super().__init__(grouped(model, layers, groups, settings, other_lr), settings)
        self._find_groups()
        for name in layers:
            self._damping(name)
        self._shown: dict[str, dict[str, Any]] = {}
        self._generator = torch.Generator().manual_seed(seed)
        self._frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
        self._followed = {
            "model": model,
            "likelihood": as_likelihood(likelihood),
            "kind": kind,
            "batch_dim": check_batch_dim(batch_dim, layers),
            "scaler": scaler,
        }
        self._follow()
        for p in dict.fromkeys(p for group in self.param_groups for p in group["params"]):
            self.state[p] = {}
        for name in layers:
            self._momentum(name)

    def _follow(self) -> None:
        """Hooks on the model that tell what happens in training."""
        self._follower = StepMaker(
            layers=self._layers,
            blocks=self._blocks,
            options=self._options,
            generator=self._generator,
            settings=weakly(self._settings),
            damping=weakly(self._damping),
            momentum=weakly(self._momentum),
            **self._followed,
        )

    def _settings(self, name: str) -> Mapping[str, Any]:
        return self._group_of[name]

    def _damping(self, name: str) -> Damping:
        return self.damping_of(self._group_of[name], self._layers[name])

    def _find_groups(self) -> None:
        self._group_of = {name: group for group in self.param_groups for name in group["layers"]}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """A group of parameters that are in no layer's block; they take the step of SGD with momentum.

        Raises:
            InputError: for a value out of its range.
        """
        check_settings(param_group)
        param_group.setdefault("layers", [])
        super().add_param_group(param_group)
        if hasattr(self, "_follower"):
            self._follower.add(self.param_groups[-1]["params"])

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
        self._apply(self._follower.steps())
        self._step_others()
        self._follower.go_on()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Resets the gradients; backward passes before it count no more."""
        super().zero_grad(set_to_none)
        self._follower.abandon()

    @torch.no_grad()
    def precondition(self) -> None:
        """Puts α_l D in the place of every layer's gradient, and counts a step."""
        for name, step in self._follower.steps().items():
            scaled = step.direction * self._rate(name, step)
            for parameter, rows, part in self._layers[name].to_parameters(scaled):
                grad = self._follower.parameters[parameter].grad
                if grad is not None:
                    (grad if rows is None else grad[rows]).copy_(part)
        self._follower.go_on()

    def _rate(self, name: str, step: Step) -> Tensor | float:
        """α_l."""
        if not self._options.layerwise:
            return 1.0
        group = self._group_of[name]
        if step.squares is None and not bool(step.gradient):
            return 0.0  # a layer that took no part, with a gradient that was set to zero
        if step.squares is None:
            raise InputError(
                f"layer {name!r} has a gradient, but no samples to make its rate of: "
                f"{self._follower.why_unseen(name)}; or leave it out with exclude=({name!r},)"
            )
        rate = (step.gradient / (step.squares + group["rate_damping"])).nan_to_num(
            nan=0.0
        )  # 0/0: no gradient
        return rate if group["max_rate"] is None else rate.clamp(max=group["max_rate"])

    def _apply(self, steps: Mapping[str, Step]) -> None:
        """Every layer's m ← τ m − lr α D and W ← W + m; or W ← W − lr α D with the momentum in D."""
        targets, updates = [], []
        shrunk: dict[float, list[Tensor]] = {}
        for name, step in steps.items():
            group, rate = self._group_of[name], self._rate(name, step)
            self._shown[name] = {
                "rate": rate,
                "direction_norm": step.norms[0],
                "gradient_norm": step.norms[1],
            }
            update = step.direction.mul_(-group["lr"] * rate)
            momentum = self._momentum(name)
            if step.driven is None:
                update = momentum.mul_(group["momentum"]).add_(update)
            else:
                momentum.copy_(step.driven)
            for parameter, rows, part in self._layers[name].to_parameters(update):
                p = self._follower.parameters[parameter]
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

    def _step_others(self) -> None:
        """SGD with momentum for the parameters in no block."""
        self._name_thawed()
        for group in self.param_groups:
            if group["layers"]:
                continue
            some = [p for p in group["params"] if p.grad is not None and p.requires_grad]
            if not some:
                continue
            grads: list[Any] = [p.grad for p in some]
            if not self._options.of_mean:
                grads = list(torch._foreach_div(grads, float(max(1, self._follower.samples))))
            buffers = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in some]
            torch._foreach_mul_(buffers, group["momentum"])
            if self._options.momentum_on == "gradient":
                torch._foreach_add_(buffers, grads)
                torch._foreach_add_(some, buffers, alpha=-group["lr"])
            else:
                torch._foreach_add_(buffers, grads, alpha=-group["lr"])
                torch._foreach_add_(some, buffers)

    def _name_thawed(self) -> None:
        """Says once that a parameter was frozen when the optimizer was made, and has a gradient now."""
        parameters = self._follower.parameters
        thawed = [name for name in self._frozen if parameters[name].grad is not None]
        if thawed:
            self._frozen.difference_update(thawed)
            names = ", ".join(sorted(thawed))
            warnings.warn(
                f"{names} had requires_grad=False when the optimizer was made: they take SGD steps with "
                "momentum; make the optimizer after they are thawed to give them a block",
                stacklevel=3,
            )

    def _momentum(self, name: str) -> Tensor:
        """A layer's m [m, d]."""
        first = self._follower.parameters[self._layers[name].parameters[0]]
        layers = self.state[first].setdefault("layers", {})
        if name not in layers:
            view = self._layers[name]
            dtype = self._follower.dtype_of(name)
            layers[name] = {"momentum": first.new_zeros(view.outputs, view.inputs, dtype=dtype)}
        return layers[name]["momentum"]

    # --- state ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Momentum, statistics, inverses, the number of steps and the random state, with the groups."""
        found = super().state_dict()
        found["state"] = {place: self._with_blocks(kept) for place, kept in found["state"].items()}
        own = {
            "method": self._method,
            "steps": self._follower.count,
            "generator": self._generator.get_state(),
        }
        found[_OWN] = own
        found["param_groups"][0][_OWN] = dict(own)  # what torch.distributed.checkpoint leaves of a state
        return found

    def _with_blocks(self, kept: Mapping[str, Any]) -> dict[str, Any]:
        """A parameter's state with the statistics and inverses of its layers; the optimizer keeps no copy."""
        if "layers" not in kept:
            return dict(kept)
        layers = {name: values | self._blocks[name].state() for name, values in kept["layers"].items()}
        return {**kept, "layers": layers}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over a state of the same kind of optimizer for the same model, on any device.

        Raises:
            InputError: for the state of another optimizer or model.
        """
        saved_own = self._own_of(state_dict)
        own = [group["layers"] for group in self.param_groups]
        if [group.get("layers", []) for group in state_dict["param_groups"]] != own:
            raise InputError("this is the state of a model with other layers, or of other groups")
        places = [place for group in state_dict["param_groups"] for place in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        if len(places) != len(parameters):
            raise InputError("this is the state of a model with other parameters")
        saved = {p: state_dict["state"].get(place, {}) for place, p in zip(places, parameters, strict=True)}
        self._check_shapes(saved, saved_own["steps"])
        super().load_state_dict(state_dict)
        self.param_groups[0].pop(_OWN, None)
        for group in self.param_groups:
            group.setdefault("layers", [])  # an empty list does not survive every way
        self._find_groups()
        self._shown.clear()
        for block in self._blocks.values():
            block.forget()
        for p, values in saved.items():
            for name, kept in values.get("layers", {}).items():
                # in their own dtype, which torch does not keep
                own_values = _moved_to(kept, p.device)
                self.state[p]["layers"][name] = {"momentum": own_values["momentum"]}
                self._blocks[name].load(own_values)
        self._follower.resume(saved_own["steps"])
        self._generator.set_state(saved_own["generator"].cpu())

    def __getstate__(self) -> dict[str, Any]:
        """All but the hooks on the model; the model itself is part of a copy."""
        kept = {name: value for name, value in vars(self).items() if name not in _NOT_COPIED}
        return kept | {"_generator": self._generator.get_state(), "_steps": self._follower.count}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Follows the copy of the model, and goes on to the same bits."""
        if "_steps" not in state:  # torch's own way to take over groups and state
            super().__setstate__(state)
            return
        steps, random_state = state.pop("_steps"), state.pop("_generator")
        super().__setstate__(state)
        self._generator = torch.Generator().set_state(random_state)
        self._find_groups()
        self._follow()
        for group in self.param_groups:
            names = self._follower.parameters.values()
            self._follower.add([p for p in group["params"] if all(p is not known for known in names)])
        self._follower.resume(steps)

    def _own_of(self, state_dict: Any) -> Mapping[str, Any]:
        """What a state says of the optimizer itself.

        Raises:
            InputError: where it is no whole state of such an optimizer.
        """
        found = state_dict if isinstance(state_dict, Mapping) else {}
        groups = found.get("param_groups") or [{}]
        own = found.get(_OWN) or (groups[0].get(_OWN, {}) if isinstance(groups[0], Mapping) else {})
        if own.get("method") != self._method:
            raise InputError(f"this is the state of another optimizer; one of {self._method} is needed")
        whole = isinstance(own.get("steps"), int) and isinstance(own.get("generator"), Tensor)
        if not whole or not isinstance(found.get("state"), Mapping):
            raise InputError("this state is damaged: its steps, random state or statistics are missing")
        return own

    def _check_shapes(self, saved: Mapping[Tensor, Mapping[str, Any]], steps: int) -> None:
        """Whether a state after so many steps is that of this model's parameters."""
        seen = set()
        for p, values in saved.items():
            for name, kept in values.get("layers", {}).items():
                view = self._layers.get(name)
                momentum = kept.get("momentum")
                if view is None or momentum is None or momentum.shape != (view.outputs, view.inputs):
                    raise InputError(
                        f"layer {name!r} has another shape in this state; load that of this model"
                    )
                reason = self._blocks[name].why_not(kept)
                if reason:
                    raise InputError(f"the state of layer {name!r} is damaged: {reason}")
                seen.add(name)
            if "momentum" in values and values["momentum"].shape != p.shape:
                raise InputError("a parameter has another shape in this state; load that of this model")
        missing = set(self._layers) - seen
        if missing and (seen or steps):
            raise InputError(f"the state has nothing of layer {min(missing)!r}; load a whole one")

    # --- what can be looked at --------------------------------------------------------------------

    def rates(self) -> "pandas.DataFrame":
        """A row a layer, of numbers that its last step left: no linear algebra, one transfer from the device.

        Columns: `layer, rate, trace_input, trace_output, damping_input, damping_output, direction_norm,
        gradient_norm`. The rate is α_l (1 where fixed), traces and damping are those of the two factors of
        the F̂ in use (EKFAC's: tr F̂ and λ, as those of the input); direction_norm and gradient_norm are ‖D‖
        and ‖∇h‖. What is not known is NaN: all before the first step, the rate and the norms between
        `load_state_dict` and a step.
        """
        import pandas

        missing = dict.fromkeys(_NUMBERS, math.nan)
        rows = [missing | self._shown.get(name, {}) | block.numbers for name, block in self._blocks.items()]
        read = iter(_read([row[column] for column in _NUMBERS for row in rows]))
        columns = {column: [next(read) for _ in rows] for column in _NUMBERS}
        return pandas.DataFrame({"layer": list(self._blocks), **columns})

    def diagnostics(self) -> "pandas.DataFrame":
        """The columns of `rates`, and `condition`: the condition number of the damped F̂ in use.

        It takes the eigenvalues of every factor: with wide layers longer than a step.
        """
        table = self.rates()
        conditions = [block.condition for block in self._blocks.values()]
        table.insert(list(table).index("direction_norm"), "condition", conditions)
        return table


@cache
def _ready_torch() -> None:
    """Makes an optimizer for nothing, once, and clears up behind it.

    The first optimizer of a process imports torch's compiler, which leaves the frames of that call, and what
    they hold, in a reference cycle.
    """
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    gc.collect()


def _read(values: Sequence[Tensor | float]) -> list[float]:
    """The numbers, those of all tensors with one transfer."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    read = iter(torch.stack([t.to(tensors[0].device) for t in tensors]).tolist() if tensors else ())
    return [next(read) if isinstance(value, Tensor) else value for value in values]


def _moved_to(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, copy=True)
    if isinstance(value, dict):
        return {key: _moved_to(one, device) for key, one in value.items()}
    return [_moved_to(one, device) for one in value] if isinstance(value, list) else value
