"""Groups of layers with settings of their own, other parameters at another rate, and schedulers."""

from functools import partial

import pytest
import torch
from optim.cases import METHODS, assert_close, assert_same, backward, batches, network, train, weights
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, StepLR

from fisherlab.errors import InputError
from fisherlab.optim import KFAC, LNGD


def changes(model: nn.Module, optimizer: torch.optim.Optimizer, batch) -> dict[str, torch.Tensor]:
    """What one step adds to each parameter."""
    before = weights(model)
    after = train(model, optimizer, [batch])
    return {name: after[name] - before[name] for name in before}


@pytest.mark.parametrize("method", METHODS)
def test_a_group_steps_as_an_optimizer_of_its_own_would(method):
    """One step of layers with settings of their own is that of an optimizer with these settings for all."""
    own = {"lr": 0.007, "weight_decay": 0.3, "damping": (0.1, 0.2) if "lngd" in method else 0.4}
    [batch] = batches("mlp")
    grouped, plain, special = (network("mlp") for _ in range(3))
    make = partial(METHODS[method], kl_clip=None)  # which is of all layers together
    found = changes(grouped, make(grouped, groups=[{"layers": ["2"], **own}]), batch)
    usual = changes(plain, make(plain), batch)
    other = changes(special, make(special, **own), batch)
    assert not torch.allclose(usual["2.weight"], other["2.weight"])
    assert_close(found, {**usual, "2.weight": other["2.weight"]})


@pytest.mark.parametrize("setting", [{"momentum": 0.5}, {"rate_damping": 3.0}, {"max_rate": 1e-3}])
def test_a_group_has_its_own(setting):
    data = batches("mlp", 3)
    found, one_group, usual = (network("mlp") for _ in range(3))
    train(found, LNGD(found, groups=[{"layers": ["*"], **setting}]), data)
    train(one_group, LNGD(one_group, **setting), data)
    train(usual, LNGD(usual), data)
    assert_close(weights(found), weights(one_group))
    assert not torch.allclose(found[0].weight, usual[0].weight)


def test_a_group_names_layers_by_one_glob_or_several():
    model = network("transformer")
    optimizer = LNGD(model, groups=[{"layers": "0.*", "lr": 0.01}, {"layers": ["2"], "lr": 0.02}])
    first, second, others = optimizer.param_groups
    assert first["layers"] == [
        "0.attention.q",
        "0.attention.k",
        "0.attention.v",
        "0.attention.out_proj",
        "0.up",
        "0.down",
    ]
    assert (second["layers"], second["lr"]) == (["2"], 0.02)
    assert others["layers"] == []
    assert {id(p) for p in others["params"]} == {
        id(p) for p in (*model[0].first.parameters(), *model[0].second.parameters())
    }


def test_other_parameters_take_sgds_step_at_their_own_rate_without_decay():
    data = batches("cnn", 4)
    model, reference = network("cnn"), network("cnn")
    optimizer = LNGD(model, other_lr=0.05, momentum=0.8, weight_decay=0.5)
    scale, shift = reference[1].weight, reference[1].bias
    sgd = torch.optim.SGD([scale, shift], lr=0.05, momentum=0.8)
    for batch in data:
        reference.load_state_dict(model.state_dict())
        reference.zero_grad()
        backward(reference, batch)
        sgd.step()
        train(model, optimizer, [batch])
        assert_close(weights(model[1]), weights(reference[1]))


def test_excluded_layers_are_other_parameters():
    [batch] = batches("mlp")
    model, reference = network("mlp"), network("mlp")
    found = changes(model, KFAC(model, exclude=["0", "4"], other_lr=0.2), batch)
    expected = changes(reference, torch.optim.SGD(reference.parameters(), lr=0.2), batch)
    for name in ("0.weight", "0.bias", "4.weight", "4.bias"):
        torch.testing.assert_close(found[name], expected[name])
    assert not torch.allclose(found["2.weight"], expected["2.weight"])


def test_the_other_rate_is_the_main_one_where_none_is_given():
    model = network("cnn")
    assert [group["lr"] for group in LNGD(model, lr=0.3).param_groups] == [0.3, 0.3]


def test_parameters_added_later_take_sgds_step():
    """Also with momentum, at the rate of their group; they count as other parameters."""
    model, data = network("mlp"), batches("mlp", 3)
    optimizer = LNGD(model)
    extra = nn.Parameter(torch.ones(2, dtype=torch.float64))
    twin = nn.Parameter(extra.detach().clone())
    optimizer.add_param_group({"params": [extra], "lr": 0.4, "momentum": 0.6})
    sgd = torch.optim.SGD([twin], lr=0.4, momentum=0.6)
    for x, y in data:
        optimizer.zero_grad()
        twin.grad = None
        (nn.functional.cross_entropy(model(x), y) + extra.pow(4).sum()).backward()
        twin.pow(4).sum().backward()
        optimizer.step()
        sgd.step()
        torch.testing.assert_close(extra, twin)
    alone = network("mlp")
    assert_same(weights(model), train(alone, LNGD(alone), data))


def test_a_step_of_added_parameters_alone():
    model = network("mlp")
    optimizer = LNGD(model)
    extra = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer.add_param_group({"params": [extra], "lr": 0.5})
    before = weights(model)
    extra.sum().backward()
    optimizer.step()
    torch.testing.assert_close(extra.detach(), torch.full_like(extra, 0.5))
    assert_same(weights(model), before)


def test_an_added_group_is_checked():
    optimizer = LNGD(network("mlp"))
    extra = nn.Parameter(torch.ones(2))
    with pytest.raises(InputError, match=r"lr must be finite and above 0, not -1"):
        optimizer.add_param_group({"params": [extra], "lr": -1})


SCHEDULERS = {
    "step": (lambda optimizer: StepLR(optimizer, 2, 0.1), [1.0, 1.0, 0.1, 0.1, 0.01]),
    "lambda": (lambda optimizer: LambdaLR(optimizer, lambda k: (k + 1) / 4), [0.25, 0.5, 0.75, 1.0, 1.25]),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_change_both_rates(name):
    """A step is that of an optimizer made with the scheduled rates, other parameters too."""
    make, factors = SCHEDULERS[name]
    model, data = network("cnn"), batches("cnn", len(factors))
    options = {"momentum": 0.0, "statistics_every": 1, "inverse_every": 1, "decay": 0.0, "weight_decay": 0.1}
    optimizer = LNGD(model, lr=0.2, other_lr=0.04, **options)
    scheduler = make(optimizer)
    for batch, factor in zip(data, factors, strict=True):
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(
            [0.2 * factor, 0.04 * factor]
        )
        fresh = network("cnn")
        fresh.load_state_dict(model.state_dict())
        train(fresh, LNGD(fresh, lr=0.2 * factor, other_lr=0.04 * factor, **options), [batch])
        train(model, optimizer, [batch])
        scheduler.step()
        assert_close(weights(model), weights(fresh))


def test_one_cycle_moves_rates_and_momentum_of_all_groups():
    model, data = network("cnn"), batches("cnn", 6)
    optimizer = LNGD(model, lr=0.1, other_lr=0.01)
    scheduler = OneCycleLR(optimizer, max_lr=[0.2, 0.02], total_steps=7, base_momentum=0.8, max_momentum=0.95)
    seen = []
    for batch in data:
        train(model, optimizer, [batch])
        scheduler.step()
        seen.append([(group["lr"], group["momentum"]) for group in optimizer.param_groups])
    assert 0.19 < max(main[0] for main, _ in seen) < 0.2001
    for main, other in seen:
        assert other == pytest.approx((main[0] / 10, main[1]))
        assert 0.8 <= main[1] <= 0.95


BAD = {
    "a group names its layers": [{"lr": 0.1}],
    "unknown group option 'rate'": [{"layers": "0", "rate": "fixed"}],
    "unknown layer 'none'": [{"layers": ["none"]}],
    "layer '0' is in two groups": [{"layers": ["0"]}, {"layers": ["0", "2"]}],
    r"lr must be finite and above 0, not 0": [{"layers": ["0"], "lr": 0}],
    "reversed": [{"layers": ["0"], "damping": (1.0, 0.1)}],
}


@pytest.mark.parametrize("message", BAD)
def test_bad_groups_are_refused(message):
    with pytest.raises(InputError, match=message):
        LNGD(network("mlp"), groups=BAD[message])


def test_layers_of_one_parameter_stay_in_one_group():
    """Q, k and v of an attention module are rows of one parameter."""
    with pytest.raises(InputError, match=r"share the parameter '0.attention.in_proj_weight'"):
        LNGD(network("transformer"), groups=[{"layers": ["0.attention.q"], "lr": 0.1}])


def test_a_parameter_is_left_out_as_a_whole():
    """Otherwise its other rows would take no step at all."""
    with pytest.raises(InputError, match=r"share the parameter '0.attention.in_proj_weight'"):
        LNGD(network("transformer"), exclude=["0.attention.q"])
