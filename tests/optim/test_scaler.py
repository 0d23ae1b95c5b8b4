"""Mixed precision: scaled losses, skipped steps, bfloat16 and float16."""

import pytest
import torch
from optim.cases import METHODS, Batch, assert_close, assert_same, batches, network, train, weights
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from fisherlab.errors import InputError, NumericalError
from fisherlab.optim import KFAC, LNGD, NaturalGradient

DUE = {"statistics_every": 2, "inverse_every": 2}


def scaler_of(scale: float = 2.0**10) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)


def scaled(
    model: nn.Module,
    optimizer: NaturalGradient,
    scaler: torch.amp.GradScaler,
    data: list[Batch],
    largest: float | None = None,
) -> dict[str, Tensor]:
    """The loop of `torch.amp`."""
    for x, y in data:
        optimizer.zero_grad()
        scaler.scale(cross_entropy(model(x), y)).backward()
        if largest is not None:
            scaler.unscale_(optimizer)
            clip_grad_norm_(model.parameters(), largest)
        scaler.step(optimizer)
        scaler.update()
    return weights(model)


@pytest.mark.parametrize("method", METHODS)
def test_scaled_losses_give_the_same_steps(method):
    data = batches("mlp", 4)
    model, usual = network("mlp"), network("mlp")
    scaler = scaler_of()
    found = scaled(model, METHODS[method](model, scaler=scaler, **DUE), scaler, data)
    assert_close(found, train(usual, METHODS[method](usual, **DUE), data))


@pytest.mark.parametrize(
    "rule", [{}, {"momentum_on": "gradient"}, {"weight_decay_mode": "coupled"}, {"loss_reduction": "mean"}]
)
def test_scaled_losses_with_every_step_rule_and_clipping(rule):
    data = batches("cnn", 3)
    model, usual = network("cnn"), network("cnn")
    scaler = scaler_of()
    found = scaled(model, LNGD(model, scaler=scaler, **rule), scaler, data, largest=0.1)
    optimizer = LNGD(usual, **rule)
    for x, y in data:
        optimizer.zero_grad()
        cross_entropy(usual(x), y).backward()
        clip_grad_norm_(usual.parameters(), 0.1)
        optimizer.step()
    assert_close(found, weights(usual))


def test_a_scaler_that_is_off_changes_nothing():
    data = batches("mlp", 3)
    model, usual = network("mlp"), network("mlp")
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    found = scaled(model, LNGD(model, scaler=scaler), scaler, data)
    assert_same(found, train(usual, LNGD(usual), data))


def test_micro_batches_with_a_scaler():
    [(x, y)] = batches("mlp", 1, 12)
    model, usual = network("mlp"), network("mlp")
    scaler = scaler_of()
    for one, optimizer, scale in (
        (model, LNGD(model, source="empirical", scaler=scaler), scaler.scale),
        (usual, LNGD(usual, source="empirical"), lambda loss: loss),
    ):
        for part in (slice(5), slice(5, 12)):
            scale(cross_entropy(one(x[part]), y[part], reduction="sum") / 12).backward()
        scaler.step(optimizer) if one is model else optimizer.step()
    assert_close(weights(model), weights(usual))


@pytest.mark.parametrize("where", ["the loss", "the inputs"])
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_a_skipped_step_leaves_no_trace(method, place, where):
    """Its batch counts no more: all further steps are as without it, but for draws."""
    data = batches("mlp", 4)
    model, usual = network("mlp"), network("mlp")
    scaler = scaler_of()
    optimizer = METHODS[method](model, scaler=scaler, **DUE)
    scaled(model, optimizer, scaler, data[:place])
    before = weights(model)
    x, y = batches("mlp", 1, seed=9)[0]
    optimizer.zero_grad()
    x = torch.full_like(x, torch.inf) if where == "the inputs" else x
    scaler.scale(cross_entropy(model(x), y) * (torch.inf if where == "the loss" else 1)).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**9
    assert_same(weights(model), before)
    found = scaled(model, optimizer, scaler, data[place:])
    assert all(bool(value.isfinite().all()) for value in found.values())
    if not (
        method.startswith(("kfac", "ekfac", "tkfac", "lngd-lr", "lngd-draws")) and "empirical" not in method
    ):
        assert_close(found, train(usual, METHODS[method](usual, **DUE), data))


@pytest.mark.parametrize("rule", [{}, {"momentum_on": "gradient"}])
def test_a_scaler_that_was_not_given_is_seen(rule):
    """Already in the first step: α_l would be made of gradients that are too large."""
    model, [batch] = network("mlp"), batches("mlp")
    scaler = scaler_of()
    before = weights(model)
    with pytest.raises(InputError, match=r"divided by 1024 .* scaler="):
        scaled(model, LNGD(model, **rule), scaler, [batch])
    assert_same(weights(model), before)


def error(
    found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], start: dict[str, torch.Tensor]
) -> float:
    """The difference of two trainings, relative to how far the second went."""
    apart = sum(float((found[n].double() - expected[n].double()).square().sum()) for n in expected)
    way = sum(float((start[n].double() - expected[n].double()).square().sum()) for n in expected)
    return (apart / way) ** 0.5


def train_in_bfloat16(model, optimizer, data) -> None:
    for x, y in data:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer"])
@pytest.mark.parametrize("method", ["lngd", "lngd-empirical", "kfac-empirical", "ngplus"])
def test_bfloat16_autocast_is_near_float32(method, name):
    data = batches(name, 3, 16, dtype=torch.float32)
    model, usual = network(name, dtype=torch.float32), network(name, dtype=torch.float32)
    start = weights(model)
    optimizer = METHODS[method](model, **DUE)
    train_in_bfloat16(model, optimizer, data)
    assert error(weights(model), train(usual, METHODS[method](usual, **DUE), data), start) < 0.1


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_autocast_runs_with_every_method(method):
    data = batches("transformer", 2, dtype=torch.float32)
    model = network("transformer", dtype=torch.float32)
    optimizer = METHODS[method](model)
    train_in_bfloat16(model, optimizer, data)
    assert all(bool(value.isfinite().all()) for value in weights(model).values())


def test_statistics_under_autocast_are_made_in_float32():
    """Inputs that bfloat16 holds give Φ = m E[a aᵀ] to the digits of float32."""
    torch.manual_seed(0)
    model = nn.Linear(5, 3, bias=False)
    x, y = torch.randn(64, 5).bfloat16().float(), torch.arange(64) % 3
    optimizer = LNGD(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    [found] = [v for k, v in optimizer._blocks[""].average.items() if k.startswith("input-trace")]
    torch.testing.assert_close(found, 3 * x.T @ x / 64, rtol=1e-6, atol=1e-6)


def test_float16_without_the_scaler_is_refused():
    model, [(x, _)] = network("mlp", dtype=torch.float32), batches("mlp", dtype=torch.float32)
    optimizer = KFAC(model)
    with torch.autocast("cpu", torch.float16), pytest.raises(InputError, match=r"float16.*scaler=.*bfloat16"):
        model(x)
    assert optimizer.param_groups


def test_float16_with_the_scaler_runs():
    model, data = network("mlp", dtype=torch.float32), batches("mlp", 3, 16, dtype=torch.float32)
    start = weights(model)
    scaler = scaler_of()
    optimizer = LNGD(model, scaler=scaler, **DUE)
    for x, y in data:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    usual = network("mlp", dtype=torch.float32)
    assert error(weights(model), train(usual, LNGD(usual, **DUE), data), start) < 0.05


@pytest.mark.parametrize("method", METHODS)
def test_training_goes_on_after_a_gradient_that_is_not_finite(method):
    """Without a scaler `step()` says so; the batch counts no more."""
    data = batches("mlp", 3)
    model, usual = network("mlp"), network("mlp")
    optimizer = METHODS[method](model, **DUE)
    train(model, optimizer, data[:1])
    before = weights(model)
    with pytest.raises(NumericalError):
        train(model, optimizer, [(data[0][0] * torch.inf, data[0][1])])
    assert_same(weights(model), before)
    found = train(model, optimizer, data[1:])
    if method in ("lngd", "lngd-sample", "lngd-empirical", "kfac-empirical", "ngplus"):
        assert_close(found, train(usual, METHODS[method](usual, **DUE), data))


def only_biases() -> nn.Module:
    """Frozen weights, as BitFit has them: blocks whose a are ones."""
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    for layer in (model[0], model[2]):
        layer.weight.requires_grad_(False)
    return model


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("autocast", [False, True])
def test_statistics_have_the_digits_of_float32_whatever_the_model_has(method, autocast):
    torch.manual_seed(0)
    dtype = torch.float32 if autocast else torch.bfloat16
    model, x = only_biases().to(dtype), torch.randn(8, 6, dtype=dtype)
    optimizer = METHODS[method](model)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = nn.functional.cross_entropy(model(x).float(), torch.arange(8) % 3)
    loss.backward()
    optimizer.step()
    kept = [value for value in nested(optimizer.state_dict()) if isinstance(value, Tensor)]
    assert kept
    assert all(value.dtype in (torch.float32, torch.float64) for value in kept if value.is_floating_point())


def nested(value):
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else None
    return [value] if parts is None else [own for part in parts for own in nested(part)]
