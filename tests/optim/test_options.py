"""The options of the optimizers: every one in the signature, with its default, whatever class it is of."""

import inspect
import pydoc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from optim.cases import batches, network, train

from fisherlab.errors import InputError
from fisherlab.optim import EKFAC, KFAC, LNGD, TKFAC, NaturalGradient, NGPlus

COMMON = {
    "momentum": 0.9,
    "weight_decay": 0.004,
    "weight_decay_mode": "decoupled",
    "decay": 0.95,
    "statistics_every": 10,
    "inverse_every": 10,
    "rate_damping": 1e-3,
    "max_rate": None,
    "rate_samples": None,
    "scaler": None,
    "momentum_on": "update",
    "loss_reduction": "mean",
    "likelihood": "categorical",
    "other_lr": None,
    "include": ("*",),
    "exclude": (),
    "groups": (),
    "batch_dim": 0,
    "output": None,
    "root": 1,
    "seed": 0,
}
LOSS = COMMON | {"lr": 0.03, "damping": 0.03, "rate": "fixed", "source": None, "kl_clip": 1e-3}
OPTIONS: dict[type, dict[str, Any]] = {
    LNGD: COMMON
    | {"lr": 0.1, "damping": (1e-5, 1e-2), "rate": "layerwise", "source": "layerwise"}
    | {"sampling": "expected", "activations": None, "last": "identity", "kl_clip": 1e-2},
    **dict.fromkeys((KFAC, EKFAC, TKFAC), LOSS),
    NGPlus: LOSS | {"kl_clip": 0.1},
    NaturalGradient: LOSS
    | {"approximation": None, "source": "predictive", "activations": None, "kl_clip": None},
}


@pytest.mark.parametrize("method", OPTIONS)
def test_every_option_is_in_the_signature_with_its_default(method):
    model, *others = inspect.signature(method).parameters.values()
    assert (model.name, model.default) == ("model", model.empty)
    assert {one.name: one.default for one in others} == OPTIONS[method]
    second = "approximation" if method is NaturalGradient else "lr"
    by_place = [one.name for one in others if one.kind == one.POSITIONAL_OR_KEYWORD]
    assert by_place == [second]
    assert all(one.kind == one.KEYWORD_ONLY for one in others if one.name != second)
    assert all(one.annotation is not one.empty for one in others)


@pytest.mark.parametrize("method", OPTIONS)
def test_help_shows_them(method):
    text = pydoc.plain(pydoc.render_doc(method))
    for name, default in OPTIONS[method].items():
        assert f"{name}: " in text
        assert f"= {default!r}" in text


@pytest.mark.parametrize("method", [LNGD, KFAC, EKFAC, TKFAC, NGPlus])
@pytest.mark.parametrize("option", ["momentun", "approximation"])
def test_what_is_no_option_is_named_with_the_class(method, option):
    words = rf"^{method.__name__}.__init__\(\) got an unexpected keyword argument '{option}'"
    with pytest.raises(TypeError, match=words):
        method(network("mlp"), **{option: 0.9})


@pytest.mark.parametrize("option", ["activations", "sampling", "last"])
def test_the_options_of_layerwise_sampling_are_lngds_own(option):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{option}'"):
        KFAC(network("mlp"), **{option: "identity"})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda model: KFAC(), "KFAC.__init__.* missing a required argument: 'model'"),
        (lambda model: LNGD(model, 0.1, 0.9), "LNGD.__init__.* too many positional arguments"),
        (lambda model: LNGD(model, 0.1, lr=0.1), "LNGD.__init__.* multiple values for argument 'lr'"),
    ],
)
def test_arguments_that_do_not_fit(make: Callable[[torch.nn.Module], Any], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        make(network("mlp"))


def test_arguments_by_place_and_by_name_are_the_same():
    model = network("mlp")
    [*found, others] = [LNGD(model, 0.2), LNGD(model=model, lr=0.2), LNGD(model, lr=0.2, other_lr=0.1)]
    for optimizer in (*found, others):
        assert optimizer.param_groups[0]["lr"] == 0.2
        assert optimizer.defaults["lr"] == 0.2


def test_options_that_are_read_once_are_read_once():
    """An iterator of names, in an optimizer that is copied later."""
    model = network("mlp")
    optimizer = KFAC(model, include=iter(["0", "2"]), exclude=iter(["2"]))
    assert list(optimizer._layers) == ["0"]
    assert inspect.isgenerator(optimizer.__getstate__()["_options"].include) is False
    train(model, optimizer, batches("mlp"))


# --- a class of one's own ---------------------------------------------------------------------------------


class Steady(KFAC):
    """KFAC with other defaults."""

    lr = 0.5
    damping = 0.1


class Steadier(Steady):
    """And with others again."""

    damping = 0.2


def test_a_class_attribute_is_the_default_of_its_option():
    for method, lr, damping in ((Steady, 0.5, 0.1), (Steadier, 0.5, 0.2), (KFAC, 0.03, 0.03)):
        found = inspect.signature(method).parameters
        assert (found["lr"].default, found["damping"].default) == (lr, damping)
        [group] = method(network("mlp")).param_groups
        assert (group["lr"], group["damping"]) == (lr, damping)
    [group] = Steady(network("mlp"), 0.7, damping=0.3).param_groups
    assert (group["lr"], group["damping"]) == (0.7, 0.3)


def test_a_class_with_an_init_of_its_own_shows_that():
    class Own(Steady):
        def __init__(self, model: torch.nn.Module, factor: float = 2.0) -> None:
            super().__init__(model, damping=factor * self.damping)

    assert list(inspect.signature(Own).parameters) == ["model", "factor"]
    [group] = Own(network("mlp")).param_groups
    assert (group["lr"], group["damping"]) == (0.5, 0.2)


def test_a_default_of_a_class_is_checked_as_an_argument_is():
    class Wrong(KFAC):
        momentum = 1.5

    with pytest.raises(InputError, match=r"momentum must be at least 0 and below 1, not 1\.5"):
        Wrong(network("mlp"))
