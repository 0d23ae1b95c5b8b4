"""LNGD and its rivals: an approximation and a damping each; and any approximation as a preconditioner."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn

from fisherlab import approximations
from fisherlab.arguments import checked
from fisherlab.damping import Clip, Constant, Damping, Pi, Shift
from fisherlab.errors import InputError, InputTypeError, unknown
from fisherlab.layers import LayerView
from fisherlab.optim.optimizer import NaturalGradient
from fisherlab.optim.settings import LNGDOptions, LossOptions, approximation_of, made_with, trainable

_OF_THE_LOOP = (
    *("model", "params", "scaler", "likelihood", "loss_reduction", "seed", "groups", "batch_dim", "output"),
)


class LNGD(NaturalGradient):
    """The layer-wise natural gradient optimizer: D = (Ψ + λ_Ψ I)⁻¹ ∇h (Φ + λ_Φ I)⁻¹ and a rate a layer.

    Φ = E[Σ_t ‖φ'(s_t)‖² a_t a_tᵀ] and Ψ_jj = E[Σ_t ‖a_t‖² φ'(s_tj)²]/tr Φ come from the forward pass alone;
    λ = clip(tr/size, ν₁, ν₂) for each. Liu et al. 2024 (NeurIPS), algorithm 1.

        optimizer = fisherlab.optim.LNGD(model)
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    Networks without norm layers need a wider damping and a slow start: damping=(1e-5, 1.0), lr=0.3 with a
    warm-up of 100 steps or more, or a cap max_rate=1. A decaying learning rate is part of the method.
    Layers with many positions (convolutions, sequences) may need a smaller rate_damping, such as 1e-7.

    Args:
        model: the network, not its parameters; called as usual, in training mode.
        lr: α.
        momentum: τ.
        weight_decay: w; a bias in a layer's matrix decays with it, other parameters do not.
        weight_decay_mode: `decoupled` (W ← W − lr·w·W) or `coupled` (w·W added to the gradient that D is
            made of).
        decay: the weight of the old value in the moving averages.
        statistics_every: steps between refreshes of the statistics.
        inverse_every: steps between inverses.
        damping: (ν₁, ν₂) of both factors, or {"input": (ν₁, ν₂), "output": (ν₁, ν₂)}.
        root: 1: D is made with F̂⁻¹; 2: with F̂^{-1/2}, as Adam, Shampoo and SOAP do; without `kl_clip` then.
        rate: `layerwise` (α_l by eqs. 12 and 13) or `fixed` (α_l = 1).
        rate_damping: μ in the denominator of α_l.
        max_rate: the largest α_l; None: no cap.
        kl_clip: κ: every step's lr α D is scaled by min(1, √(κ / Σ_l lr² α_l ⟨D_l, ∇h⟩)), so that the model
            made of all F̂_l says it changes the outputs by a divergence of κ/2 at most; momentum comes after.
            None or inf: no bound.
        rate_samples: the samples of a batch that α_l is made of; None: all of the last (micro-)batch.
        scaler: the `GradScaler` in use, if any.
        source: `layerwise`; `predictive` takes g from the loss for one drawn label a sample (the ablation
            lngd-lr), `empirical` from the loss itself.
        sampling: `expected`, or the number of draws of layer-wise sampling.
        momentum_on: `update`, or `gradient`: D is made of the moving gradient.
        loss_reduction: whether the loss is the `mean` or the `sum` over the batch; both give the same steps.
        likelihood: what the outputs mean, for drawn labels and for the checks of the first step.
        other_lr: of parameters in no block (norms, embeddings); None: lr. Schedulers change both.
        include: names or globs of layers with a block.
        exclude: names or globs of layers left to the step of other parameters.
        activations: the activation that follows a layer, by layer name; else the graph's.
        last: slope at the network's output: `identity`, or `categorical` (√(p(1 − p))).
        groups: settings of some layers: {"layers": "encoder.*", "lr": 0.01, "damping": (1e-5, 1.0)}.
        batch_dim: the dimension that counts samples in the model's inputs. Layers for which another one does
            (sequence-first code) are found in the first step, from two samples. {"encoder.*": 1} declares it
            for layers, untested; the key "" is that of the model's inputs.
        output: the name or place of the outputs in what the model returns, or a function of it, for drawn
            labels; None: `logits`, or the only tensor.
        seed: of drawn labels.

    Raises:
        InputError: for a value out of its range, an unknown layer, or a model that cannot be followed.
        InputTypeError: for parameters in the place of the model.
    """

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "approximation" in vars(cls):
            raise InputError(
                f"{cls.__name__}.approximation: LNGD has its own; for another derive from NaturalGradient"
            )

    @made_with(LNGDOptions)
    def __init__(self, options: LNGDOptions) -> None:
        method: approximations.Approximation = approximations.create("lngd-lr")
        if options.source == "layerwise":
            method = approximations.LNGD(options.sampling, options.activations, options.last)
        self._start(options, method, options.activations)

    def damping_of(self, group: Mapping[str, Any], view: LayerView) -> Damping:
        """The mean eigenvalue of each factor, clipped."""
        bounds = group["damping"]
        if not isinstance(bounds, Mapping):
            bounds = {"input": bounds, "output": bounds}
        try:
            (low, high), output = bounds["input"], bounds["output"]
            return Clip(low, high, tuple(output))
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputTypeError(
                "the damping of LNGD is a pair (lowest, highest), or {'input': pair, 'output': pair}, not "
                f"{group['damping']!r}"
            ) from error


class _Loss(NaturalGradient):
    """A method with the labels of the loss and one λ."""

    _sources: ClassVar[tuple[str, ...]] = ("predictive", "empirical")

    @made_with(LossOptions)
    def __init__(self, options: LossOptions) -> None:
        source = self._sources[0] if options.source is None else options.source
        if source not in self._sources:
            known = " or ".join(self._sources)
            raise InputError(f"source is {source!r}; {type(self).__name__} takes {known}")
        self._start(replace(options, source=source), approximation_of(self.approximation))

    def damping_of(self, group: Mapping[str, Any], view: LayerView) -> Damping:
        """λ shared between the factors by their traces."""
        return Pi(_number(group["damping"]))


class KFAC(_Loss):
    """D = (B + (√λ/π) I)⁻¹ ∇h (A + π√λ I)⁻¹, π² = (tr A/d)/(tr B/m). Martens and Grosse 2015 (1503.05671).

    Args: as for `LNGD`; `damping` is λ, `source` is `predictive` (one drawn label a sample) or `empirical`.
    """

    approximation = "kfac"


class EKFAC(_Loss):
    """D = U_B [(U_Bᵀ ∇h U_A)/(S + λ)] U_Aᵀ in KFAC's eigenbasis. George et al. 2018 (1806.03884).

    A new basis is made at steps of `inverse_every`; S then is the current batch's, and moves on from there.

    Args: as for `KFAC`.
    """

    approximation = "ekfac"

    def damping_of(self, group: Mapping[str, Any], view: LayerView) -> Damping:
        """λ added to S."""
        return Constant(_number(group["damping"]))


class TKFAC(_Loss):
    """KFAC's step with the factors δP and Q, positions independent. Gao et al. 2021 (2011.10741).

    Args: as for `KFAC`.
    """

    approximation = approximations.TKFAC("independent")


class NGPlus(_Loss):
    """D = (E[V Vᵀ] + λI)⁻¹ ∇h where m ≤ d, else ∇h (E[VᵀV] + λI)⁻¹. Yang et al. 2021 (2106.07454).

    Args: as for `KFAC`; the labels are always the data's.
    """

    approximation = "ngplus"
    kl_clip = 0.1  # its F̂ is d or m times as large as F
    _sources: ClassVar[tuple[str, ...]] = ("empirical",)

    def damping_of(self, group: Mapping[str, Any], view: LayerView) -> Damping:
        """λ on the side of the second moment."""
        value = _number(group["damping"])
        return Shift(0.0, value) if view.group.outputs <= view.group.inputs else Shift(value, 0.0)


class _Root(_Loss):
    """A method whose step is a root of F̂, with the data's labels and one λ added to F̂."""

    root = 2
    kl_clip = None
    lr = 1e-3
    damping = 1e-8
    decay = 0.95
    statistics_every = 1
    _sources: ClassVar[tuple[str, ...]] = ("empirical", "predictive")

    def damping_of(self, group: Mapping[str, Any], view: LayerView) -> Damping:
        """λ added to F̂."""
        return Constant(_number(group["damping"]))


class Shampoo(_Root):
    """D = L^{-1/4} ∇h R^{-1/4} with R and L of the samples' gradients. Gupta et al. 2018 (1802.09568).

    Args: as for `KFAC`; `source` is `empirical` or `predictive`; `damping` is λ, of
        (R^{1/2} ⊗ L^{1/2} + λI)^{-1/2}.
    """

    approximation = "shampoo"


class SOAP(_Root):
    """D = U_L [(U_Lᵀ ∇h U_R)/√(S + λ)] U_Rᵀ in Shampoo's eigenbasis. Vyas et al. 2024 (2409.11321).

    Args: as for `Shampoo`; S is of the samples' gradients.
    """

    approximation = "soap"


class Adafactor(_Root):
    """D = ∇h/√(r cᵀ/Σ + λ), r and c the row and column sums of E[V∘V]. Shazeer and Stern 2018 (1804.04235).

    Args: as for `Shampoo`.
    """

    approximation = "adafactor"


def _number(damping: Any) -> float:
    if isinstance(damping, bool) or not isinstance(damping, (int, float)):
        raise InputTypeError(f"damping is a number λ, not {damping!r}")
    return float(damping)


@dataclass(frozen=True)
class NamedOptimizer:
    """An optimizer that training knows by name.

    Attributes:
        name: as given to `--optimizer`.
        make: the class.
        fixed: arguments that belong to the name.
        description: one line for listings.
        source: a paper, or where it comes from.
    """

    name: str
    make: Callable[..., Any]
    fixed: Mapping[str, Any]
    description: str
    source: str

    @property
    def own(self) -> bool:
        """Whether it is one of fisherlab, which takes the model and its likelihood."""
        return isinstance(self.make, type) and issubclass(self.make, NaturalGradient)

    @property
    def layerwise(self) -> bool:
        """Whether it has a rate a layer by default."""
        return self.options().get("rate") == "layerwise" and "rate" not in self.fixed

    def options(self) -> dict[str, Any]:
        """Its options with their defaults."""
        found = inspect.signature(self.make).parameters
        return {
            name: parameter.default
            for name, parameter in found.items()
            if name not in (*_OF_THE_LOOP, *self.fixed) and parameter.kind != parameter.VAR_KEYWORD
        }


_LNGD = "Liu et al. 2024 (NeurIPS)"

OPTIMIZERS: Mapping[str, NamedOptimizer] = {
    one.name: one
    for one in (
        NamedOptimizer("lngd", LNGD, {}, "layer-wise sampling and rates", f"{_LNGD}, algorithm 1"),
        NamedOptimizer(
            "lngd-lr", LNGD, {"source": "predictive"}, "rates, gradients of the loss", f"{_LNGD}, t. 5"
        ),
        NamedOptimizer(
            "lngd-sample", LNGD, {"rate": "fixed"}, "layer-wise sampling, one rate", f"{_LNGD}, t. 5"
        ),
        NamedOptimizer("kfac", KFAC, {}, "A ⊗ B", "Martens and Grosse 2015 (1503.05671)"),
        NamedOptimizer(
            "ekfac", EKFAC, {}, "rescaled in KFAC's eigenbasis", "George et al. 2018 (1806.03884)"
        ),
        NamedOptimizer("tkfac", TKFAC, {}, "factors that keep the trace", "Gao et al. 2021 (2011.10741)"),
        NamedOptimizer("ngplus", NGPlus, {}, "second moments of gradients", "Yang et al. 2021 (2106.07454)"),
        NamedOptimizer("shampoo", Shampoo, {}, "roots of partial traces", "Gupta et al. 2018 (1802.09568)"),
        NamedOptimizer("soap", SOAP, {}, "a root in Shampoo's eigenbasis", "Vyas et al. 2024 (2409.11321)"),
        NamedOptimizer(
            "adafactor", Adafactor, {}, "a root of rank one", "Shazeer and Stern 2018 (1804.04235)"
        ),
    )
}
"""Those of fisherlab, for `train` and `Preconditioner`."""


class Preconditioner:
    """Puts D = F̂⁻¹ ∇h in the place of every layer's gradient.

        preconditioner = fisherlab.optim.Preconditioner(model, "kfac", damping=0.1)
        loss.backward()
        preconditioner.step()
        optimizer.step()

    Args:
        model: the network.
        method: a registered approximation that is made of statistics: `lngd`, `lngd-lr`, `kfac`, `ekfac`,
            `tkfac`, `ngplus`, `shampoo`, `soap` and `adafactor` with the settings of their optimizers (the
            last three with root=2), any other with λ added to F̂.
        **options: those of the optimizer of that name, or of `NaturalGradient`; learning rates, momentum and
            weight decay are left to the optimizer that follows. `kl_clip` is off unless it is given, and
            needs that optimizer's rate in every `step`.

    Raises:
        InputError: for an unknown method, one that is made from the exact block, and as the optimizer.
    """

    @checked
    def __init__(self, model: nn.Module, method: str = "kfac", **options: Any) -> None:
        if method not in approximations.registered():
            raise unknown("method", method, trainable())
        named = OPTIMIZERS.get(method)
        make = partial(named.make, **named.fixed) if named else partial(NaturalGradient, approximation=method)
        self._optimizer = make(model, **{"rate": "fixed", "kl_clip": None, **options})
        self._clip = self._optimizer._options.clip

    @torch.no_grad()
    def step(self, lr: float | None = None) -> None:
        """Changes the gradients in place; errors as the optimizer's `step`.

        Args:
            lr: of the optimizer that follows, for `kl_clip`.

        Raises:
            InputError: with `kl_clip` and without `lr`, or for one that is not above 0.
        """
        if lr is None and not math.isinf(self._clip):
            raise InputError(
                "kl_clip bounds lr·D: give step(lr=…) the learning rate of the optimizer that follows"
            )
        self._optimizer.precondition(lr)

    def state_dict(self) -> dict[str, Any]:
        """Statistics, inverses and the random state."""
        return self._optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over a state of the same kind."""
        self._optimizer.load_state_dict(state_dict)
