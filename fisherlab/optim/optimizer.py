"""The base of all optimizers here: an approximation, a damping, a step rule and momentum."""

import gc
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from fisherlab.approximations import Approximation
from fisherlab.damping import Damping, as_damping
from fisherlab.errors import InputError
from fisherlab.layers import LayerView
from fisherlab.likelihoods import as_likelihood
from fisherlab.likelihoods.labels import DRAWN, EMPIRICAL, LabelKind
from fisherlab.optim.cadence import Cadence
from fisherlab.optim.cautions import Cautions
from fisherlab.optim.gradients import numbers_in
from fisherlab.optim.passes import Hook, removed_with
from fisherlab.optim.preconditioner import NUMBERS, LayerPreconditioner
from fisherlab.optim.settings import (
    AnyOptions,
    Options,
    approximation_of,
    check_attributes,
    check_batch_dim,
    check_model,
    check_settings,
    grouped,
    layers_of,
    made_with,
    signature_of,
)
from fisherlab.optim.states import OWN, check_shapes, left_in, moved_to, own_of
from fisherlab.optim.steps import StepMaker
from fisherlab.optim.tap import TrainingTap
from fisherlab.optim.turn import Step

if TYPE_CHECKING:
    import pandas

_NOT_COPIED = (
    "_tap",
    "_maker",
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
        m ← τ m − lr α_l D,   W ← W + m; with root=2 D = F̂^{-1/2} ∇h.

    Liu et al. 2024 (NeurIPS), algorithm 1, eqs. 12 and 13. Parameters in no block take the step of SGD with
    momentum. The training loop is the usual one. A class derived from this one names its approximation and
    the defaults of its options:

        class Mine(fisherlab.optim.NaturalGradient):
            approximation = "mine"
            damping = 1e-3

    Args: as for `LNGD`, and
        approximation: a registered name, or an instance.
        damping: λ, of F̂ + λI, or an object of `fisherlab.damping`; `damping_of` may give a layer another.
        source: `predictive` (one drawn label a sample) or `empirical`, for a method that uses labels.

    Raises:
        InputError: for an approximation that is made from the exact block; and as `LNGD`.
    """

    approximation: ClassVar[str | Approximation | None] = None

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        options = getattr(cls.__init__, "options", None)
        if options is not None:
            check_attributes(cls, options)
        shown = None if options is None else signature_of(cls, options)  # None: an `__init__` of its own
        cls.__signature__ = shown  # type: ignore[attr-defined]

    def damping_of(self, group: Mapping[str, Any], view: LayerView) -> Damping:
        """The damping of a layer's F̂ from the settings of its group."""
        return as_damping(group["damping"])

    @made_with(AnyOptions)
    def __init__(self, options: AnyOptions) -> None:
        if options.source == "layerwise":
            raise InputError(
                f"source is 'layerwise'; {type(self).__name__} takes predictive or empirical (layer-wise "
                "sampling is a matter of the approximation)"
            )
        self._start(options, approximation_of(options.approximation), options.activations)

    def _start(
        self, options: Options, method: Approximation, activations: Mapping[str, str] | None = None
    ) -> None:
        """What every `__init__` does."""
        model = check_model(options.model)
        layers = layers_of(model, options.include, options.exclude, activations)
        self._layers = layers
        self._kind = LabelKind(method.label_kind(DRAWN if options.source == "predictive" else EMPIRICAL))
        self._method = f"{method.name}/{self._kind}"
        self._blocks = {
            name: LayerPreconditioner(view, method, self._kind, options.root) for name, view in layers.items()
        }
        _ready_torch()
        super().__init__(grouped(model, layers, options), options.settings)
        other_lr = options.lr if options.other_lr is None else options.other_lr
        self._other_rates = {
            name: other_lr / group["lr"] for group in self.param_groups for name in group["layers"]
        }
        self._left: dict[str, str] = {}
        self._group_of: dict[str, dict[str, Any]] = {}
        self._find_groups()
        for name in layers:
            self._damping(name)
        self._shown: dict[str, dict[str, Any]] = {}
        self._generator = torch.Generator().manual_seed(options.seed)
        self._frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
        self._likelihood = as_likelihood(options.likelihood)
        # without what may not be read twice, nor copied
        self._options = replace(
            options,
            model=model,
            batch_dim=check_batch_dim(options.batch_dim, layers),
            include=tuple(layers),
            exclude=(),
            groups=(),
        )
        self._cadence = Cadence(self._options, self._blocks, self._kind)
        free = options.layerwise or method.own_scale or math.isinf(options.clip)
        self._cautions = Cautions(bounded=not free)
        self._follow()
        for p in dict.fromkeys(p for group in self.param_groups for p in group["params"]):
            self.state[p] = {}
        for name in layers:
            self._maker.momentum(name)

    def _follow(self) -> None:
        """Hooks on the model that tell what happens in training."""
        parts = self._options, self._blocks, self._kind, self._cadence, self._likelihood, self._generator
        self._tap = TrainingTap(*parts, self._left)
        self._maker = StepMaker(self._tap, self._group_of, self.state, self._cautions)
        self._watch({name: p for name, p in self._parameters.items() if p.requires_grad})

    def _watch(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Hooks that tell when gradients arrive."""
        layers_of: dict[str, list[str]] = {}
        for name, view in self._layers.items():
            for parameter in view.parameters:
                layers_of.setdefault(parameter, []).append(name)
        handles = [
            p.register_post_accumulate_grad_hook(Hook(self._arrive, name, layers_of.get(name, [])))
            for name, p in parameters.items()
        ]
        removed_with(self, handles)

    def _arrive(self, parameter: str, layers: Sequence[str], p: nn.Parameter) -> None:
        for name in self._tap.arrivals(parameter, layers, p):
            self._maker.complete(name, self._damping)

    @property
    def _parameters(self) -> dict[str, nn.Parameter]:
        """Those of the model by name, and those that were added."""
        return self._tap.gradients.parameters

    def _damping(self, name: str) -> Damping:
        return as_damping(self.damping_of(self._group_of[name], self._layers[name]))

    def _find_groups(self) -> None:
        self._group_of.clear()
        self._group_of.update({name: group for group in self.param_groups for name in group["layers"]})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """A group of parameters that are in no layer's block; they take the step of SGD with momentum.

        Raises:
            InputError: for a value out of its range.
        """
        check_settings(param_group)
        param_group.setdefault("layers", [])
        super().add_param_group(param_group)
        if hasattr(self, "_tap"):
            self._add(self.param_groups[-1]["params"])

    def _add(self, parameters: Sequence[nn.Parameter]) -> None:
        """Follows parameters that are not the model's."""
        known = len(self._parameters)
        named = {f"added parameter {known + place}": p for place, p in enumerate(parameters)}
        self._parameters.update(named)
        self._watch(named)

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
        self._shown |= self._maker.apply(self._steps())
        self._name_thawed()
        self._maker.apply_to_others(self._others())
        self._maker.go_on()
        return loss

    def _others(self) -> list[Mapping[str, Any]]:
        """The groups without a block, and of the others what is left out, whose rate follows the group's."""
        found: list[Mapping[str, Any]] = [group for group in self.param_groups if not group["layers"]]
        for group in self.param_groups if self._left else ():
            names = [name for name in group["layers"] if name in self._left]
            if names:
                own = dict.fromkeys(p for name in names for p in self._layers[name].parameters)
                params = [self._parameters[p] for p in own]
                found.append({**group, "params": params, "lr": group["lr"] * self._other_rates[names[0]]})
        return found

    def _steps(self) -> dict[str, Step]:
        """What each layer's step is made of."""
        return self._maker.steps(self._damping)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Resets the gradients; backward passes before it count no more."""
        super().zero_grad(set_to_none)
        self._tap.abandon()

    @torch.no_grad()
    def precondition(self, lr: float | None = None) -> None:
        """Puts α_l D in the place of every layer's gradient, and counts a step.

        Args:
            lr: of the optimizer that takes the gradients, for the KL-clip; None: without the clip.

        Raises:
            InputError: for an lr that is not above 0; and as `step`.
        """
        if lr is not None:
            check_settings({"lr": lr})
            for group in self.param_groups:
                group["lr"] = lr
        steps = self._steps()
        for name, (rate, clipped) in self._maker.clipped(steps).items():
            scaled = steps[name].direction * (rate if lr is None else clipped)
            for parameter, rows, part in self._layers[name].to_parameters(scaled):
                grad = self._parameters[parameter].grad
                if grad is not None:
                    (grad if rows is None else grad[rows]).copy_(part)
        self._maker.go_on()

    def _name_thawed(self) -> None:
        """Says once that a parameter was frozen when the optimizer was made, and has a gradient now."""
        thawed = [name for name in self._frozen if self._parameters[name].grad is not None]
        if thawed:
            self._frozen.difference_update(thawed)
            names = ", ".join(sorted(thawed))
            warnings.warn(
                f"{names} had requires_grad=False when the optimizer was made: they take SGD steps with "
                "momentum; make the optimizer after they are thawed to give them a block",
                stacklevel=2,
            )

    # --- state ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Momentum, statistics, inverses, the number of steps and the random state, with the groups."""
        found = super().state_dict()
        found["state"] = {place: self._with_blocks(kept) for place, kept in found["state"].items()}
        own: dict[str, Any] = {
            "method": self._method,
            "steps": self._cadence.count,
            "generator": self._generator.get_state(),
        }
        if self._left:
            own["left_out"] = dict(self._left)
        found[OWN] = own
        found["param_groups"][0][OWN] = dict(own)  # what torch.distributed.checkpoint leaves of a state
        return found

    def _with_blocks(self, kept: Mapping[str, Any]) -> dict[str, Any]:
        """A parameter's state with the statistics and inverses of its layers; the optimizer keeps no copy."""
        if "layers" not in kept:
            return dict(kept)
        layers = {
            name: values | self._blocks[name].state()
            for name, values in kept["layers"].items()
            if name not in self._left
        }
        return {**kept, "layers": layers}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over a state of the same kind of optimizer for the same model, on any device.

        Raises:
            InputError: for the state of another optimizer or model.
        """
        saved_own = own_of(state_dict, self._method)
        own = [group["layers"] for group in self.param_groups]
        if [group.get("layers", []) for group in state_dict["param_groups"]] != own:
            raise InputError("this is the state of a model with other layers, or of other groups")
        places = [place for group in state_dict["param_groups"] for place in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        if len(places) != len(parameters):
            raise InputError("this is the state of a model with other parameters")
        saved = {p: state_dict["state"].get(place, {}) for place, p in zip(places, parameters, strict=True)}
        left = left_in(saved_own, self._blocks)
        taken = {name: block for name, block in self._blocks.items() if name not in left}
        check_shapes(saved, taken, saved_own["steps"])
        super().load_state_dict(state_dict)
        self._left.clear()
        self._left.update(left)
        self.param_groups[0].pop(OWN, None)
        for group in self.param_groups:
            group.setdefault("layers", [])  # an empty list does not survive every way
        self._find_groups()
        self._shown.clear()
        for block in self._blocks.values():
            block.forget()
        for p, values in saved.items():
            for name, kept in values.get("layers", {}).items():
                # in their own dtype, which torch does not keep
                own_values = moved_to(kept, p.device)
                self.state[p]["layers"][name] = {"momentum": own_values["momentum"]}
                self._blocks[name].load(own_values)
        self._maker.resume(saved_own["steps"], self.state)
        self._generator.set_state(saved_own["generator"].cpu())

    def __getstate__(self) -> dict[str, Any]:
        """All but the hooks on the model; the model itself is part of a copy."""
        kept = {name: value for name, value in vars(self).items() if name not in _NOT_COPIED}
        return kept | {"_generator": self._generator.get_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Follows the copy of the model, and goes on to the same bits."""
        if "_generator" not in state:  # torch's own way to take over groups and state
            super().__setstate__(state)
            return
        random_state = state.pop("_generator")
        super().__setstate__(state)
        self._generator = torch.Generator().set_state(random_state)
        self._follow()
        known = {id(p) for p in self._parameters.values()}
        for group in self.param_groups:
            self._add([p for p in group["params"] if id(p) not in known])
        self._maker.resume(self._cadence.count, self.state)

    # --- what can be looked at --------------------------------------------------------------------

    def _taken(self) -> dict[str, LayerPreconditioner]:
        """The blocks of the layers that are not left out."""
        return {name: block for name, block in self._blocks.items() if name not in self._left}

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
        taken = self._taken()
        rows = [missing | self._shown.get(name, {}) | block.numbers for name, block in taken.items()]
        read = iter(numbers_in([row[column] for column in _NUMBERS for row in rows]))
        columns = {column: [next(read) for _ in rows] for column in _NUMBERS}
        return pandas.DataFrame({"layer": list(taken), **columns})

    def diagnostics(self) -> "pandas.DataFrame":
        """The columns of `rates`, and `condition`: the condition number of the damped F̂ in use.

        It takes the eigenvalues of every factor: with wide layers longer than a step.
        """
        table = self.rates()
        conditions = [block.condition for block in self._taken().values()]
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
