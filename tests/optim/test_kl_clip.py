"""The KL-clip: how far a step goes in the metric that it is the natural gradient of; and what it leaves."""

from functools import partial

import pytest
import torch
from optim.cases import METHODS, assert_close, assert_same, backward, batches, network, train, weights
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fisherlab.errors import InputError
from fisherlab.optim import EKFAC, KFAC, LNGD, TKFAC, NaturalGradient, NGPlus, Preconditioner

SMALL, PLAIN = 1e-6, {"momentum": 0.0, "weight_decay": 0.0}
FIXED = [name for name in METHODS if name.startswith(("kfac", "ekfac", "tkfac", "ngplus", "lngd-sample"))]
FIXED.remove("kfac-layerwise")


def moved(optimizer: NaturalGradient, before: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """W' − W [m, d] of every layer."""
    change = {name: p - before[name] for name, p in weights(model).items()}
    return {name: view.to_matrix(change) for name, view in optimizer._layers.items()}


@pytest.mark.parametrize("name", ["mlp", "grouped", "transformer"])
@pytest.mark.parametrize("method", FIXED)
def test_a_step_has_the_length_of_the_clip_in_the_damped_approximation(method, name):
    """Σ_l ⟨Δ_l, F̂_l Δ_l⟩ = κ where it was clipped, with F̂_l the inverse of what D is made by."""
    model, [batch] = network(name), batches(name)
    optimizer = METHODS[method](model, kl_clip=SMALL, **PLAIN)
    before = weights(model)
    train(model, optimizer, [batch])
    length = 0.0
    for layer, change in moved(optimizer, before, model).items():
        entries = torch.eye(change.numel(), dtype=change.dtype).unflatten(1, change.shape)
        inverse = torch.stack([optimizer._blocks[layer].inverse.apply(one).flatten() for one in entries])
        length += float(change.flatten() @ torch.linalg.solve(inverse, change.flatten()))
    assert length == pytest.approx(SMALL, rel=1e-6)


@pytest.mark.parametrize("method", ["lngd", "lngd-lr", "lngd-empirical", "kfac-layerwise"])
@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_a_layerwise_step_is_no_longer_in_the_samples_fisher(method, damping):
    """Σ_l (1/N) Σ_n ⟨Δ_l, ∇ℓ_n⟩² ≤ κ, with equality where μ = 0."""
    model, [(x, y)] = network("mlp"), batches("mlp")
    before = weights(model)

    def loss(parameters: dict[str, Tensor], one: Tensor, label: Tensor) -> Tensor:
        return cross_entropy(torch.func.functional_call(model, parameters, one), label)

    samples = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(before, x, y)
    optimizer = METHODS[method](model, kl_clip=SMALL, rate_damping=damping, **PLAIN)
    train(model, optimizer, [(x, y)])
    after = weights(model)
    length = 0.0
    for layer in optimizer._layers:
        own = [name for name in before if name.split(".")[0] == layer]
        along = sum(((after[p] - before[p]) * samples[p]).flatten(1).sum(1) for p in own)
        length += float(along.square().mean())
    assert length <= SMALL * (1 + 1e-9)
    assert damping > 0 or length == pytest.approx(SMALL, rel=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_a_clip_that_is_not_reached_changes_no_bit(method):
    data, ends = batches("cnn", 3, dtype=torch.float32), []
    for clip in (None, float("inf"), 1e9):
        model = network("cnn", dtype=torch.float32)
        ends.append(train(model, METHODS[method](model, kl_clip=clip), data))
    assert_same(ends[1], ends[0])
    assert_same(ends[2], ends[0])


@pytest.mark.parametrize("method", ["lngd-sample", "kfac", "ekfac", "tkfac"])
def test_under_the_clip_the_scale_of_the_loss_is_nothing(method):
    """D goes with the loss where F̂ does not, and the clip takes that out."""
    data, ends = batches("mlp", 3), []
    for scale in (1.0, 1e3):
        model = network("mlp")
        optimizer = METHODS[method](model, kl_clip=SMALL, weight_decay=0.0)
        with pytest.warns(UserWarning, match="the loss is 1e\\+03") if scale > 1 else torch.enable_grad():
            for batch in data:
                optimizer.zero_grad()
                backward(model, batch, scale)
                optimizer.step()
        ends.append(weights(model))
    assert_close(ends[1], ends[0])


def test_every_group_counts_with_its_own_rate():
    """A layer that does not move as fast leaves more of the length to the others."""
    model, [batch] = network("mlp"), batches("mlp")
    groups = [{"layers": "2", "lr": 0.003}]
    optimizer = KFAC(model, lr=0.3, kl_clip=SMALL, groups=groups, source="empirical", **PLAIN)
    free = network("mlp")
    other = KFAC(free, lr=0.3, kl_clip=None, groups=groups, source="empirical", **PLAIN)
    start = weights(model)
    train(model, optimizer, [batch])
    train(free, other, [batch])
    clipped, whole = moved(optimizer, start, model), moved(other, start, free)
    ratios = {name: clipped[name] / whole[name] for name in whole}
    gradients = {name: p.grad for name, p in free.named_parameters()}
    length = sum(
        (0.003 if name == "2" else 0.3) * -(whole[name] * view.to_matrix(gradients)).sum()
        for name, view in other._layers.items()
    )
    for ratio in ratios.values():
        torch.testing.assert_close(ratio, (SMALL / length).sqrt().expand_as(ratio))


@pytest.mark.parametrize("method", ["lngd", "kfac", "ekfac"])
def test_a_run_that_is_resumed_goes_on_to_the_bit(method):
    data = batches("mlp", 4)
    make = partial(METHODS[method], kl_clip=1e-4)
    model, other = network("mlp"), network("mlp")
    optimizer, resumed = make(model), make(other)
    train(model, optimizer, data[:2])
    resumed.load_state_dict(optimizer.state_dict())
    other.load_state_dict(model.state_dict())
    assert_same(train(other, resumed, data[2:]), train(model, optimizer, data[2:]))


def test_micro_batches_are_clipped_as_the_whole():
    [batch] = batches("mlp", 1, 12)
    model, whole = network("mlp"), network("mlp")
    make = partial(KFAC, source="empirical", kl_clip=SMALL)
    optimizer = make(model)
    for part in zip(*(value.split(4) for value in batch), strict=True):
        backward(model, part, 1 / 3)
    optimizer.step()
    assert_close(weights(model), train(whole, make(whole), [batch]))


def test_a_preconditioner_clips_with_the_rate_of_what_follows():
    data = batches("mlp", 3)
    model, usual = network("mlp"), network("mlp")
    preconditioner = Preconditioner(model, "kfac", kl_clip=SMALL)
    sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for batch in data:
        sgd.zero_grad()
        backward(model, batch)
        with pytest.raises(InputError, match=r"kl_clip bounds lr·D: give step\(lr=…\)"):
            preconditioner.step()
        with pytest.raises(InputError, match="lr must be finite and above 0, not 0"):
            preconditioner.step(lr=0)
        preconditioner.step(lr=0.05)
        sgd.step()
    assert_close(weights(model), train(usual, KFAC(usual, 0.05, kl_clip=SMALL, weight_decay=0.0), data))


@pytest.mark.parametrize("method", [KFAC, EKFAC, TKFAC])
def test_a_batch_of_one_is_survived_with_the_defaults(method):
    """Each sample alone, in float32: without a bound the loss leaves the numbers."""
    torch.manual_seed(0)
    x, model = torch.rand(64, 20), nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 4))
    y = (x @ torch.randn(20, 4)).argmax(1)
    optimizer, losses = method(model), []
    for _ in range(3):
        for one in range(len(x)):
            optimizer.zero_grad()
            losses.append(float(backward(model, (x[one : one + 1], y[one : one + 1])).detach()))
            optimizer.step()
    assert max(losses) < 100


def test_the_defaults_of_methods():
    """As large as costs nothing on the scale of each F̂."""
    for method, clip in ((KFAC, 1e-3), (EKFAC, 1e-3), (TKFAC, 1e-3), (LNGD, 1e-2), (NGPlus, 0.1)):
        assert method(network("mlp"))._options.clip == clip
