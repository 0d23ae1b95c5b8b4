"""Gradients clipped between the backward pass and the step."""

import pytest
import torch
from optim.cases import METHODS, assert_close, assert_same, backward, batches, network, train, weights
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from fisherlab.errors import InputError
from fisherlab.optim import KFAC, LNGD

RULES = [{}, {"momentum_on": "gradient"}, {"weight_decay_mode": "coupled"}]
LARGEST = 0.05


def clipped(model: nn.Module, optimizer, data, clip) -> dict[str, torch.Tensor]:
    for batch in data:
        optimizer.zero_grad()
        backward(model, batch)
        clip(model.parameters())
        optimizer.step()
    return weights(model)


@pytest.mark.parametrize("name", ["mlp", "transformer"])
def test_the_layerwise_step_of_a_clipped_gradient(name):
    """∇h and D have the factor c, ∇ℓ_n do not: α_l = c²⟨D, ∇h⟩/(c² E⟨D, ∇ℓ_n⟩² + μ).

    That is the step of the gradient as it was at the rate c·lr with μ/c².
    """
    data = batches(name, 3)
    model, reference = network(name), network(name)
    found = clipped(model, LNGD(model, weight_decay=0.1), data, lambda ps: clip_grad_norm_(ps, LARGEST))
    optimizer = LNGD(reference)
    for batch in data:
        optimizer.zero_grad()
        backward(reference, batch)
        c = LARGEST / (float(torch.stack([p.grad.norm() for p in reference.parameters()]).norm()) + 1e-6)
        assert c < 1
        for group in optimizer.param_groups:
            group.update(lr=0.1 * c, rate_damping=1e-3 / c**2, weight_decay=0.1 / c)
        optimizer.step()
    assert_close(found, weights(reference), 1e-9)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_clipping_by_norm_by_hand(rule, reduction):
    """One layer, two steps: D = F̂⁻¹ G of the clipped gradient, ∇ℓ_n those of the loss."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3, bias=False).double()
    W, (x, y) = model.weight.detach().clone(), (torch.randn(8, 4, dtype=torch.float64), torch.arange(8) % 3)
    optimizer = LNGD(model, momentum=0.7, weight_decay=0.1, loss_reduction=reduction, **rule)
    inverse = torch.linalg.inv(3 * x.T @ x / 8 + 1e-2 * torch.eye(4, dtype=x.dtype)) / (1 / 3 + 1e-2)
    m = torch.zeros_like(W)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y, reduction=reduction).backward()
        c = float(LARGEST / (clip_grad_norm_(model.parameters(), LARGEST) + 1e-6))
        assert c < 1
        optimizer.step()
        g = torch.softmax(x @ W.T, -1) - nn.functional.one_hot(y, 3)
        gradient = c * g.T @ x / 8
        G = gradient + (0.1 * W if "weight_decay_mode" in rule else 0.0)
        if "momentum_on" in rule:
            m = G = 0.7 * m + G
        D = G @ inverse
        rate = (D * gradient).sum() / (torch.einsum("nm,md,nd->n", g, D, x).square().mean() + 1e-3)
        if "momentum_on" not in rule:
            m = 0.7 * m - 0.1 * rate * D
        update = -0.1 * rate * D if "momentum_on" in rule else m
        W = W * (1.0 if "weight_decay_mode" in rule else 1 - 0.1 * 0.1) + update
        torch.testing.assert_close(model.weight.detach(), W)


@pytest.mark.parametrize("method", ["lngd-sample", "kfac", "ekfac", "tkfac", "ngplus"])
@pytest.mark.parametrize(
    "clip", [lambda ps: clip_grad_norm_(ps, LARGEST), lambda ps: clip_grad_value_(ps, 0.01)]
)
def test_a_fixed_rate_takes_the_gradient_as_it_is(method, clip):
    """D is linear in it: the step equals D of the clipped gradient, from the statistics of the loss."""
    [batch] = batches("mlp")
    plain = {"momentum": 0.0, "weight_decay": 0.0, "kl_clip": None}
    model, other = network("mlp"), network("mlp")
    before = weights(model)
    optimizer, preconditioned = METHODS[method](model, **plain), METHODS[method](other, **plain)
    clipped(model, optimizer, [batch], clip)
    backward(other, batch)
    clip(other.parameters())
    preconditioned.precondition()
    lr = optimizer.defaults["lr"]
    directions = {name: p.grad for name, p in other.named_parameters()}
    assert_close(weights(model), {name: w - lr * directions[name] for name, w in before.items()})


@pytest.mark.parametrize("rule", RULES)
def test_clipping_by_value_is_refused_with_a_layerwise_rate(rule):
    """It is no factor; the weights stay."""
    model, [batch] = network("mlp"), batches("mlp")
    optimizer = LNGD(model, **rule)
    before = weights(model)
    with pytest.raises(
        InputError, match=r"changed after its backward pass by more than a factor.*rate='fixed'"
    ):
        clipped(model, optimizer, [batch], lambda ps: clip_grad_value_(ps, 0.01))
    assert_same(weights(model), before)


def test_a_clip_that_changes_nothing_is_none():
    data = batches("mlp", 2)
    for rule in RULES:
        model, usual = network("mlp"), network("mlp")
        found = clipped(model, LNGD(model, **rule), data, lambda ps: clip_grad_value_(ps, 1e3))
        assert_close(found, train(usual, LNGD(usual, **rule), data))


@pytest.mark.parametrize("rule", RULES)
def test_a_gradient_put_in_its_place_is_seen(rule):
    """`p.grad = c * p.grad`, another tensor, is as `p.grad *= c`."""
    data = batches("mlp", 2)

    def replace(parameters) -> None:
        for p in parameters:
            p.grad = p.grad * 0.5

    def change(parameters) -> None:
        for p in parameters:
            p.grad *= 0.5

    model, other, usual = network("mlp"), network("mlp"), network("mlp")
    found = clipped(model, LNGD(model, **rule), data, replace)
    assert_close(found, clipped(other, LNGD(other, **rule), data, change))
    assert not torch.allclose(found["0.weight"], train(usual, LNGD(usual, **rule), data)["0.weight"])


def test_a_gradient_set_to_zero_moves_nothing():
    model, [batch] = network("mlp"), batches("mlp")
    before = weights(model)
    clipped(model, LNGD(model, weight_decay=0.0), [batch], lambda ps: [p.grad.zero_() for p in ps])
    assert_same(weights(model), before)


def test_clipping_with_accumulation():
    """The factor is that of the whole gradient."""
    [batch] = batches("mlp", 1, 12)
    model, whole = network("mlp"), network("mlp")
    optimizer, one = KFAC(model, source="empirical"), KFAC(whole, source="empirical")
    for x, y in zip(*(value.split(4) for value in batch), strict=True):
        backward(model, (x, y), 1 / 3)
    clip_grad_norm_(model.parameters(), LARGEST)
    optimizer.step()
    assert_close(weights(model), clipped(whole, one, [batch], lambda ps: clip_grad_norm_(ps, LARGEST)))
