"""What an optimizer says once of settings that change its steps from the method's, and when it is silent."""

import warnings
from collections.abc import Callable
from contextlib import contextmanager

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from optim.cases import METHODS, backward, batches, network, train
from torch import Tensor, nn
from torch.nn import functional

from fisherlab.errors import NumericalError
from fisherlab.likelihoods import Bernoulli, Categorical, Gaussian, TokenCategorical
from fisherlab.optim import EKFAC, KFAC, LNGD, TKFAC
from fisherlab.optim.cautions import loss_factor

BOUNDED = ["kfac", "kfac-empirical", "ekfac", "tkfac"]
Loss = Callable[[Tensor], Tensor]


@contextmanager
def said():
    """The texts of all warnings inside."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield texts
    texts += [str(one.message) for one in found]


def steps(model: nn.Module, optimizer, x: Tensor, loss: Loss, count: int = 3) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        loss(model(x)).backward()
        optimizer.step()


# --- a scaled loss ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e6, 1e3, 10.0, 0.1, 1e-6])
@pytest.mark.parametrize("method", METHODS)
def test_a_scaled_loss_is_named_once(method, scale):
    model, [(x, y)] = network("mlp"), batches("mlp")
    with said() as texts:
        steps(
            model,
            METHODS[method](model),
            x,
            lambda f: scale * functional.cross_entropy(f, y),
        )
    [text] = texts
    assert f"the loss is {scale:.3g} times the mean" in text


@pytest.mark.parametrize("name", ["mlp", "cnn", "sequences"])
@pytest.mark.parametrize("method", METHODS)
def test_of_a_usual_training_nothing_is_said(method, name):
    model = network(name, dtype=torch.float32)
    with said() as texts:
        train(model, METHODS[method](model), batches(name, 3, dtype=torch.float32))
    assert texts == []


def test_micro_batches_that_are_divided_are_the_mean():
    model, [batch] = network("mlp"), batches("mlp", 1, 24)
    parts = list(zip(*(value.split(2) for value in batch), strict=True))
    for scale, count in ((1 / 12, 0), (1.0, 1)):
        optimizer = KFAC(model)
        with said() as texts:
            for part in parts:
                backward(model, part, scale)
            optimizer.step()
        assert len(texts) == count


def test_a_sum_is_compared_with_the_sum():
    model, [(x, y)] = network("mlp"), batches("mlp")
    for scale, count in ((1.0, 0), (100.0, 1)):
        with said() as texts:
            steps(
                model,
                KFAC(model, loss_reduction="sum"),
                x,
                lambda f, s=scale: s * functional.cross_entropy(f, y, reduction="sum"),
            )
        assert len(texts) == count


@pytest.mark.parametrize("over", ["samples", "entries"])
@pytest.mark.parametrize(("scale", "count"), [(1.0, 0), (1e4, 1), (1e-4, 1)])
def test_a_mean_may_be_over_samples_or_over_labels(over, scale, count):
    x = torch.randn(8, 30, 6)
    y = torch.randint(5, (8, 30))
    y[:, 20:] = -100

    def of_tokens(f: Tensor) -> Tensor:
        total = functional.cross_entropy(f.flatten(0, 1), y.flatten(), reduction="sum")
        return scale * total / (8 if over == "samples" else 160)

    def of_entries(f: Tensor) -> Tensor:
        total = functional.binary_cross_entropy_with_logits(f, (y.clamp(min=0) > 2).float(), reduction="sum")
        return scale * total / (8 if over == "samples" else 240)

    for model, likelihood, loss in (
        (nn.Linear(6, 5), "token-categorical", of_tokens),
        (nn.Sequential(nn.Linear(6, 1), nn.Flatten(1)), "bernoulli", of_entries),
    ):
        with said() as texts:
            steps(model, KFAC(model, likelihood=likelihood), x, loss)
        assert len(texts) == count


def test_after_a_state_was_loaded_nothing_is_said_again():
    model, [(x, y)] = network("mlp"), batches("mlp")
    optimizer = KFAC(model)

    def loss(f: Tensor) -> Tensor:
        return 1e4 * functional.cross_entropy(f, y)

    with said() as first:
        steps(model, optimizer, x, loss)
    other = KFAC(model)
    other.load_state_dict(optimizer.state_dict())
    with said() as again:
        steps(model, other, x, loss)
    assert (len(first), len(again)) == (1, 0)


@settings(deadline=None, max_examples=50)
@given(
    scale=st.floats(1e-8, 1e8),
    spread=st.floats(0.01, 5),
    seed=st.integers(0, 2**16),
    kind=st.sampled_from([Categorical(), TokenCategorical(), Bernoulli()]),
)
def test_the_factor_is_found_without_the_labels(scale, spread, seed, kind):
    draw = torch.Generator().manual_seed(seed)
    shape = (5, 4) if kind.name != "token-categorical" else (5, 3, 4)
    f = spread * torch.randn(shape, generator=draw, dtype=torch.float64)
    labels = kind.draw(f, 1, draw)[0]
    gradient = scale * kind.residual(f, labels)
    assert loss_factor(kind, f, gradient) == pytest.approx(scale, rel=1e-9)
    assert loss_factor(Gaussian(), f, gradient) is None


def test_labels_that_are_not_sharp_have_no_factor():
    f = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    y, ones = torch.arange(6) % 4, torch.ones(4)
    for loss in (
        functional.cross_entropy(f, y, label_smoothing=0.2),
        functional.cross_entropy(f, y, weight=torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)),
        functional.cross_entropy(f, (ones / 4).double().expand(6, 4)),
    ):
        [gradient] = torch.autograd.grad(loss, f)
        assert loss_factor(Categorical(), f.detach(), gradient) is None
    assert loss_factor(Categorical(), f.detach(), torch.zeros_like(f)) is None


# --- few samples, and rates ------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [1, 4, 5])
@pytest.mark.parametrize("method", METHODS)
def test_few_samples_are_named_where_the_clip_is_not_on_the_scale_of_the_fisher(method, samples):
    model, [(x, y)] = network("mlp"), batches("mlp", samples=samples)
    with said() as texts:
        steps(model, METHODS[method](model), x, lambda f: functional.cross_entropy(f, y))
    assert len(texts) == (samples <= (2 if method in BOUNDED else 4))
    assert all(f"made of {samples} sample" in text and "lower lr and kl_clip" in text for text in texts)


def test_few_samples_are_named_without_a_clip():
    model, [(x, y)] = network("mlp"), batches("mlp", samples=2)
    with said() as texts:
        steps(model, KFAC(model, kl_clip=None), x, lambda f: functional.cross_entropy(f, y))
    assert len(texts) == 1


def test_one_sample_a_micro_batch_is_not_one():
    model, [batch] = network("mlp"), batches("mlp", samples=8)
    optimizer = LNGD(model)
    with said() as texts:
        for part in zip(*(value.split(1) for value in batch), strict=True):
            backward(model, part, 1 / 8)
        optimizer.step()
    assert texts == []


@pytest.mark.parametrize(("scale", "count"), [(1.0, 0), (1e-4, 1)])
def test_rates_that_are_of_their_damping_alone_are_named(scale, count):
    """Squared errors do not tell their scale, but ⟨D, ∇ℓ_n⟩² far below μ does."""
    model, [(x, _)] = network("mlp"), batches("mlp")
    with said() as texts:
        steps(
            model,
            LNGD(model, likelihood="gaussian"),
            x,
            lambda f: scale * 0.5 * (f - 1).square().sum(1).mean(),
        )
    assert len(texts) == count
    assert all("rate_damping is 0.001" in text for text in texts)


# --- damping ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("damping", "count"), [(0.03, 0), (1e-15, 1)])
@pytest.mark.parametrize("method", [KFAC, EKFAC, TKFAC])
def test_a_damping_below_rounding_is_named(method, damping, count):
    """An input that is always zero makes F̂ singular, and the inverse of what is left is 1/λ."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    x, y = torch.randn(8, 6), torch.arange(8) % 3
    x[:, 2] = 0
    with said() as texts:
        steps(model, method(model, damping=damping), x, lambda f: functional.cross_entropy(f, y), 12)
    assert len(texts) == count
    assert all(f"damping is {damping}" in text and "larger damping" in text for text in texts)


@pytest.mark.parametrize("method", [KFAC, TKFAC])
def test_without_damping_a_singular_approximation_is_refused(method):
    model, x, y = nn.Linear(6, 3), torch.randn(8, 6), torch.arange(8) % 3
    x[:, 2] = 0
    with pytest.raises(NumericalError, match="larger damping"):
        steps(model, method(model, damping=0.0), x, lambda f: functional.cross_entropy(f, y))
