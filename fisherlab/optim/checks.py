"""What an optimizer refuses: one sentence each, with the way out."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fisherlab.errors import InputError, InputTypeError, unknown
from fisherlab.layers import Layers, find_layers, match_names
from fisherlab.layers.discovery import check_not_compiled
from fisherlab.likelihoods import Categorical, Likelihood

_CHOICES = {
    "rate": ("layerwise", "fixed"),
    "source": ("layerwise", "predictive", "empirical"),
    "momentum_on": ("update", "gradient"),
    "loss_reduction": ("mean", "sum"),
    "weight_decay_mode": ("decoupled", "coupled"),
}
_COUNTS = ("statistics_every", "inverse_every", "rate_samples")
_POSITIVE = ("lr", "other_lr", "max_rate")
_WHOLE = "a layer's weight must be whole in every process: use DistributedDataParallel"
_NOT_NEGATIVE = ("weight_decay", "rate_damping")


def check_model(model: Any) -> nn.Module:
    """The model itself, taken out of DistributedDataParallel.

    Raises:
        InputTypeError: for parameters, or anything else that is no module.
        InputError: for a compiled or sharded model, or complex parameters or ones with sparse gradients.
    """
    if not isinstance(model, nn.Module):
        raise InputTypeError(
            "a fisherlab optimizer takes the model itself, not its parameters: LNGD(model, lr=0.1)"
        )
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    check_not_compiled(model)
    for name, module in model.named_modules():
        if hasattr(module, "_fsdp_wrapped_module"):
            raise InputError(f"the model is sharded by FullyShardedDataParallel; {_WHOLE}")
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse:
            raise InputError(f"embedding {name!r} has sparse gradients; set sparse=False")
    for name, parameter in model.named_parameters():
        if parameter.is_complex():
            raise InputError(f"parameter {name!r} is complex; split it into real and imaginary parts")
        if hasattr(parameter, "full_tensor"):
            raise InputError(f"parameter {name!r} is a DTensor; {_WHOLE}")
        if parameter.dtype == torch.float16:
            raise InputError(
                f"parameter {name!r} is in float16, which has too few digits for statistics and steps; use "
                "bfloat16, or float32 weights under torch.autocast"
            )
        if parameter.layout != torch.strided:
            raise InputError(f"parameter {name!r} is sparse; make it dense")
    return model


def layers_of(
    model: nn.Module, include: Iterable[str], exclude: Iterable[str], activations: Mapping[str, str] | None
) -> Layers:
    """The layers with a weight matrix; norms and embeddings are left to the step of other parameters."""
    exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)
    match_names([*find_layers(model), *dict(model.named_modules())], exclude)
    found = find_layers(model, include, exclude, activations=activations)
    names = [name for name, view in found.items() if not (view.vector or view.one_hot)]
    if not names:
        raise InputError("no layer of the model has a weight matrix; use an optimizer of torch.optim")
    return found.select(names)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raises `InputError` for a value out of its range."""
    for name, known in _CHOICES.items():
        if name in settings and settings[name] not in known:
            raise unknown(name, str(settings[name]), known)
    for name in _COUNTS:
        value = settings.get(name)
        if value is not None and not (type(value) is int and value > 0):
            raise InputError(f"{name} is {value!r}; give a whole number from 1 on")
    for name in _POSITIVE:
        _check(settings, name, 0, math.inf, "above 0", lambda value: value > 0)
    for name in _NOT_NEGATIVE:
        _check(settings, name, 0, math.inf, "0 or above", lambda value: value >= 0)
    for name in ("momentum", "decay"):
        _check(settings, name, 0, 1, "from 0 to below 1", lambda value: 0 <= value < 1)


def check_batch_dim(batch_dim: Any, layers: Layers) -> int | dict[str, int]:
    """The dimension that counts samples, or those of layers by name and glob, the model's under "".

    Raises:
        InputError: for anything but whole numbers from 0 on, or an unknown layer.
    """
    given = dict(batch_dim) if isinstance(batch_dim, Mapping) else {"": batch_dim}
    for name, dim in given.items():
        if type(dim) is not int or dim < 0 or not isinstance(name, str):
            raise InputError(
                f"batch_dim is {batch_dim!r}; give a whole number from 0 on, or one by layer, as "
                "{'encoder.*': 1}"
            )
    match_names(layers, [name for name in given if name])
    return given if isinstance(batch_dim, Mapping) else batch_dim


def _check(settings: Mapping[str, Any], name: str, low: float, high: float, words: str, fits: Any) -> None:
    value = settings.get(name)
    if value is None:
        return
    number = isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)
    if not number or isinstance(value, bool) or not math.isfinite(value) or not fits(value):
        raise InputError(f"{name} is {value!r}; give a finite number {words}")


def check_reduction(likelihood: Likelihood, outputs: Tensor, gradient: Tensor, reduction: str) -> None:
    """Finds a softmax cross-entropy whose reduction is the other one.

    Its gradient at the outputs of sample n is p_n − e_{y_n}, over N for a mean: with the right factor, what
    is left without p is −1 in one place.

    Raises:
        InputError: where the gradient fits the other reduction and not the one named.
    """
    if not isinstance(likelihood, Categorical) or outputs.dim() != 2 or outputs.shape[0] < 2:
        return
    p = torch.softmax(outputs.double(), -1)
    factors = {"mean": float(len(outputs)), "sum": 1.0}
    other = "sum" if reduction == "mean" else "mean"
    if _is_label(p - factors[other] * gradient.double()) and not _is_label(
        p - factors[reduction] * gradient.double()
    ):
        raise InputError(
            f"the loss is the {other} over the batch; give loss_reduction={other!r}, or take its {reduction}"
        )


def _is_label(rows: Tensor) -> bool:
    ones = torch.nn.functional.one_hot(rows.argmax(-1), rows.shape[-1])
    return bool(((rows - ones).abs() < 1e-2).all())


def check_contributions(
    layer: str, total: Any, whole: Any, size: Any, tolerance: float, least: float
) -> None:
    """Whether Σ_n ⟨D, contribution of sample n⟩ is ⟨D, ∇h⟩, to a tolerance in units of Σ_n |…| + |⟨D, ∇h⟩|.

    Sums below `least` are not looked at.

    Raises:
        InputError: names the layer.
    """
    total, whole, size = float(total), float(whole), float(size)
    if size + abs(whole) < least:  # products that lost their digits, of gradients that are next to nothing
        return
    if abs(total - whole) > tolerance * (size + abs(whole)):
        raise InputError(
            f"the gradient of layer {layer!r} is not made of what came back to its output ({total:.3g} of "
            f"{whole:.3g}): it was kept from an earlier backward pass (call zero_grad() in every step) or "
            "changed since; the loss has a penalty on weights (use weight_decay=) or derivatives of the "
            "model (use rate='fixed' with drawn labels); the weight is used outside its module "
            f"(exclude=({layer!r},)); or a GradScaler was not given as scaler="
        )


def check_factor(factor: float) -> None:
    """Whether gradients were divided by a large power of two since they came, as a `GradScaler` does.

    Raises:
        InputError: with the way out.
    """
    power = -math.log2(factor) if factor > 0 else 0.0
    if power > 6 and abs(power - round(power)) < 1e-4:
        raise InputError(
            f"the gradients were divided by {2 ** round(power)} after their backward pass; give the "
            "GradScaler in use as scaler="
        )
