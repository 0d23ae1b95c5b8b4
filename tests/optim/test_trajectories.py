"""Optimizers against `optim.reference.trajectory`: the same weights after every step, in float64."""

from dataclasses import dataclass, fields
from functools import cache

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as with_settings
from model_cases import Net
from optim.networks import Array, from_torch
from optim.reference import Options, trajectory
from torch import Tensor, nn

from fisherlab import optim
from fisherlab.likelihoods import Likelihood, as_likelihood

SIZES = (10, 10, 6, 10, 10, 7)  # samples a step
SCHEDULE = (0.2, 0.6, 1.0, 0.8, 0.4, 0.1, 0.1)  # one more than steps: the scheduler looks ahead
TOLERANCE = 1e-10  # of the largest weight of a layer

CLASSES = {
    "lngd": optim.LNGD,
    "lngd-sample": optim.LNGD,
    "lngd-lr": optim.LNGD,
    "kfac": optim.KFAC,
    "ekfac": optim.EKFAC,
    "tkfac": optim.TKFAC,
    "ngplus": optim.NGPlus,
}
FIXED = {"lngd-sample": {"rate": "fixed"}}
LNGD_FAMILY = ("lngd", "lngd-sample", "lngd-lr")
DRAWS = ("lngd-lr", "kfac", "ekfac", "tkfac")


def scale_shift(channels: int) -> Net:
    """A layer with parameters and no block, as a norm's are."""
    return Net(
        lambda net, x: x * net.weight[:, None, None] + net.bias[:, None, None],
        weight=nn.Parameter(torch.linspace(0.5, 1.5, channels)),
        bias=nn.Parameter(torch.linspace(-0.2, 0.3, channels)),
    )


@dataclass(frozen=True)
class Case:
    """A network by its kind, with the batches of a training."""

    kind: str

    @property
    def likelihood(self) -> str:
        return "gaussian" if self.kind == "mlp-gaussian" else "categorical"

    def model(self) -> nn.Sequential:
        torch.manual_seed(0)
        if self.kind.startswith("mlp"):
            layers = [nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4, bias=False), nn.ReLU(), nn.Linear(4, 3)]
        else:
            layers = [
                nn.Conv2d(2, 3, 3, padding=1, stride=2),
                *([scale_shift(3)] if self.kind == "cnn-affine" else []),
                nn.ReLU(),
                nn.Conv2d(3, 4, 2, bias=False, padding=0),
                nn.Tanh(),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(4, 3),
            ]
        return nn.Sequential(*layers).double()

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """Some of them are smaller than others, the last one too."""
        draw = torch.Generator().manual_seed(1)
        shape = (4,) if self.kind.startswith("mlp") else (2, 5, 5)
        found = []
        for n in SIZES:
            x = torch.randn(n, *shape, generator=draw, dtype=torch.float64)
            real = torch.randn(n, 3, generator=draw, dtype=torch.float64)
            found.append((x, real if self.kind == "mlp-gaussian" else real.argmax(1)))
        return found

    def loss(self, outputs: Tensor, y: Tensor, reduction: str) -> Tensor:
        if self.likelihood == "categorical":
            return nn.functional.cross_entropy(outputs, y, reduction=reduction)
        losses = 0.5 * (outputs - y).square().sum(1)
        return losses.mean() if reduction == "mean" else losses.sum()


def remembering(name: str) -> tuple[Likelihood, list[Array]]:
    """A likelihood, and the list of the labels that are drawn from it."""
    likelihood, drawn = as_likelihood(name), []
    draw = likelihood.draw

    def remember(*args: object) -> Tensor:
        labels = draw(*args)
        drawn.append(labels[0].numpy())
        return labels

    likelihood.draw = remember
    return likelihood, drawn


def trained(
    case: Case, method: str, source: str | None, options: dict[str, object]
) -> tuple[list[dict[str, Array]], list[Array]]:
    """Weights after each step of fisherlab's optimizer, and the labels of each step's statistics."""
    plain = {"statistics_every": 1, "inverse_every": 1, "kl_clip": None}
    settings = plain | FIXED.get(method, {}) | options
    if source is not None:
        settings["source"] = source
    schedule = settings.pop("schedule", None)
    model = case.model()
    likelihood, drawn = remembering(case.likelihood)
    optimizer = CLASSES[method](model, settings.pop("lr", 0.1), likelihood=likelihood, **settings)
    scheduler = schedule and torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule[step])
    weights, labels = [], []
    for x, y in case.batches():
        optimizer.zero_grad()
        case.loss(model(x), y, settings.get("loss_reduction", "mean")).backward()
        optimizer.step()
        if scheduler:
            scheduler.step()
        weights.append(from_torch(model, case.likelihood).weights)
        labels.append(drawn.pop() if drawn else y.numpy())
    return weights, labels


def expected(
    case: Case, method: str, options: dict[str, object], drawn: list[Array]
) -> list[dict[str, Array]]:
    batches = [(x.numpy(), y.numpy()) for x, y in case.batches()]
    return trajectory(
        from_torch(case.model(), case.likelihood), batches, method, Options(**options, drawn=drawn)
    )


def check(case: Case, method: str, source: str | None = None, **options: object) -> list[dict[str, Array]]:
    """Compares all steps; returns the weights."""
    own, drawn = trained(case, method, source, options)
    for step, (ours, theirs) in enumerate(zip(own, expected(case, method, options, drawn), strict=True)):
        assert ours.keys() == theirs.keys()
        for name, W in theirs.items():
            apart = np.abs(ours[name] - W).max() / np.abs(W).max()
            assert apart < TOLERANCE, f"step {step}, layer {name}: {apart:.1e}"
    return own


def default_source(method: str) -> str | None:
    return "empirical" if method in DRAWS else None


@cache
def plain(kind: str, method: str) -> list[dict[str, Array]]:
    """The weights without any option."""
    return trained(Case(kind), method, default_source(method), {})[0]


SOURCES = [(method, default_source(method)) for method in CLASSES] + [(m, "predictive") for m in DRAWS]


@pytest.mark.parametrize("kind", ["mlp", "mlp-gaussian", "cnn", "cnn-affine"])
@pytest.mark.parametrize(("method", "source"), SOURCES)
def test_every_method_on_every_network(kind: str, method: str, source: str | None) -> None:
    check(Case(kind), method, source)


COMMON = {
    "lr": {"lr": 0.03},
    "no momentum": {"momentum": 0.0},
    "momentum on the gradient": {"momentum_on": "gradient"},
    "strong decay": {"weight_decay": 0.2},
    "coupled decay": {"weight_decay": 0.2, "weight_decay_mode": "coupled"},
    "coupled, on the gradient": {
        "weight_decay": 0.2,
        "weight_decay_mode": "coupled",
        "momentum_on": "gradient",
    },
    "short memory": {"decay": 0.5},
    "statistics oftener": {"statistics_every": 2, "inverse_every": 4},
    "inverses oftener": {"statistics_every": 4, "inverse_every": 2},
    "neither a multiple": {"statistics_every": 2, "inverse_every": 3},
    "schedule": {"schedule": SCHEDULE},
    "layer-wise rate": {"rate": "layerwise"},
    "capped rate": {"rate": "layerwise", "max_rate": 0.1},
    "negative rates under a cap": {
        "weight_decay": 0.3,
        "weight_decay_mode": "coupled",
        "rate": "layerwise",
        "max_rate": 0.5,
    },
    "rate's damping": {"rate": "layerwise", "rate_damping": 0.5},
    "KL-clip": {"kl_clip": 1e-4},
    "KL-clip, coupled, on the gradient": {
        "kl_clip": 1e-4,
        "weight_decay": 0.2,
        "weight_decay_mode": "coupled",
        "momentum_on": "gradient",
    },
    "KL-clip of layer-wise rates": {"rate": "layerwise", "kl_clip": 1e-4},
}
DAMPINGS = {
    "pair": {"damping": (0.3, 1.0)},
    "pairs": {"damping": {"input": (1e-4, 3.0), "output": (0.5, 0.7)}},
}
CATEGORICAL = {"last": {"last": "categorical"}}


def cases() -> list[object]:
    """Each option with each method that it changes."""
    chosen = [(method, name, options) for method in CLASSES for name, options in COMMON.items()]
    chosen += [(method, name, options) for method in LNGD_FAMILY for name, options in DAMPINGS.items()]
    chosen += [(method, "scalar", {"damping": 0.5}) for method in CLASSES if method not in LNGD_FAMILY]
    chosen += [(method, *item) for method in ("lngd", "lngd-sample") for item in CATEGORICAL.items()]
    rate = {"lngd": "layerwise", "lngd-lr": "layerwise"}
    return [
        pytest.param(method, options, id=f"{method}-{name}")
        for method, name, options in chosen
        if not (name == "layer-wise rate" and method in rate) and not (method in FIXED and "rate" in options)
    ]


@pytest.mark.parametrize(("method", "options"), cases())
def test_every_option(method: str, options: dict[str, object]) -> None:
    """An option gives the reference's steps, and other ones than without it."""
    after = check(Case("mlp"), method, default_source(method), **options)[-1]
    assert any(not np.allclose(after[name], W, rtol=1e-6) for name, W in plain("mlp", method)[-1].items())


@pytest.mark.parametrize("kind", ["mlp", "cnn-affine"])
@pytest.mark.parametrize("method", CLASSES)
def test_a_sum_over_the_batch_gives_the_steps_of_the_mean(kind: str, method: str) -> None:
    check(Case(kind), method, default_source(method), loss_reduction="sum")


@pytest.mark.parametrize("momentum_on", ["update", "gradient"])
@pytest.mark.parametrize("method", ["lngd", "kfac"])
def test_parameters_outside_blocks_have_a_rate_of_their_own_in_the_same_schedule(
    method: str, momentum_on: str
) -> None:
    options = {"momentum_on": momentum_on, "other_lr": 0.02, "schedule": SCHEDULE}
    after = check(Case("cnn-affine"), method, default_source(method), **options)[-1]
    assert not np.allclose(after["1"], plain("cnn-affine", method)[-1]["1"], rtol=1e-6)


def values(**choices: list[object]) -> st.SearchStrategy[dict[str, object]]:
    return st.fixed_dictionaries({}, optional={name: st.sampled_from(of) for name, of in choices.items()})


@with_settings(max_examples=30)
@given(
    kind=st.sampled_from(["mlp", "cnn-affine"]),
    source=st.sampled_from(SOURCES),
    options=values(
        momentum=[0.0, 0.5],
        momentum_on=["gradient"],
        weight_decay=[0.0, 0.2],
        weight_decay_mode=["coupled"],
        decay=[0.0, 0.7],
        statistics_every=[2, 3],
        inverse_every=[2, 3],
        rate_damping=[0.0, 0.1],
        max_rate=[0.2],
        kl_clip=[1e-5, 1e-3],
        loss_reduction=["sum"],
        other_lr=[0.03],
        schedule=[SCHEDULE],
    ),
)
def test_options_together(kind: str, source: tuple[str, str | None], options: dict[str, object]) -> None:
    check(Case(kind), *source, **options)


def test_every_option_of_the_reference_is_tried() -> None:
    tried = {
        name for options in (*COMMON.values(), *DAMPINGS.values(), *CATEGORICAL.values()) for name in options
    }
    assert tried | {"loss_reduction", "other_lr", "drawn"} == {field.name for field in fields(Options)}
