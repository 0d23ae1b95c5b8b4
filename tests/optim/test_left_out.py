"""Layers of which nothing can be made take the step of other parameters; the rest is as without them."""

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from model_cases import Net
from optim.cases import METHODS, assert_close, assert_same, backward, batches, network, train, weights
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from torch.utils.checkpoint import checkpoint

from fisherlab.errors import InputError
from fisherlab.optim import KFAC, LNGD, Preconditioner

SIZE, CLASSES = 6, 3
DUE = {"statistics_every": 3, "inverse_every": 2}


def called_by_hand(net: Net, x: Tensor) -> Tensor:
    """As Mamba's convolutions and projections: the weight is read, the module never called."""
    z = torch.tanh(linear(x, net.layer.weight, net.layer.bias))
    return net.last(torch.tanh(net.other(z)))


def of_a_table(net: Net, x: Tensor) -> Tensor:
    """As DeBERTa's positions: a table of its own length, the same for all samples."""
    table = net.layer(torch.linspace(-1, 1, 4 * SIZE, dtype=x.dtype).view(1, 4, SIZE))
    return net.last(torch.tanh(net.other(x) * table.mean((0, 1))))


def read_twice(net: Net, x: Tensor) -> Tensor:
    """The weight acts beside the calls too."""
    z = torch.tanh(net.layer(x))
    return net.last(torch.tanh(net.other(z @ net.layer.weight)))


def checkpointed(net: Net, x: Tensor) -> Tensor:
    """Fused attention whose second forward is not the first: its parts share parameters."""
    z = x.view(len(x), 2, 3)
    z = checkpoint(lambda z: net.attention(z, z, z)[0], z, use_reentrant=False)
    return net.last(torch.tanh(net.other(z.flatten(1))))


def model_of(forward: Callable[..., Tensor]) -> Net:
    torch.manual_seed(0)
    parts: dict[str, nn.Module] = {
        "other": nn.Linear(SIZE, SIZE),
        "norm": nn.LayerNorm(SIZE),
        "last": nn.Linear(SIZE, CLASSES),
    }
    if forward is checkpointed:
        parts["attention"] = nn.MultiheadAttention(3, 1, batch_first=True)
    else:
        parts["layer"] = nn.Linear(SIZE, SIZE)
    return Net(lambda net, x: forward(net, net.norm(x)), **parts).double()


LEFT = {
    called_by_hand: r"layer 'layer': .* its weight is used outside the module",
    of_a_table: r"layer 'layer': no dimension of its outputs counts samples",
    read_twice: r"layer 'layer': its module's calls do not give the gradient of its parameters",
    checkpointed: r"layers 'attention.*', 'attention.*its MultiheadAttention was called by itself, or inside",
}


def left_of(forward: Callable[..., Tensor]) -> list[str]:
    return ["attention*" if forward is checkpointed else "layer"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("forward", LEFT)
def test_a_layer_that_is_left_out_is_as_one_that_is_excluded(forward, method):
    """To the bit, from the first step on, with one warning."""
    data = batches("mlp", 4)
    model, usual = model_of(forward), model_of(forward)
    optimizer = METHODS[method](model, other_lr=0.05, **DUE)
    with pytest.warns(UserWarning, match=LEFT[forward]) as said:
        train(model, optimizer, data[:1])
    assert len(said) == 1
    assert "exclude=(" in str(said[0].message)
    with warnings.catch_warnings(action="error"):
        found = train(model, optimizer, data[1:])
        excluding = METHODS[method](usual, other_lr=0.05, exclude=left_of(forward), **DUE)
        expected = train(usual, excluding, data)
    assert_close(found, expected, 1e-13)  # the rate of what is left out follows its group's: one rounding
    assert list(optimizer.rates()["layer"]) == list(excluding.rates()["layer"]) == ["other", "last"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stop", [1, 3])
def test_a_run_with_a_layer_left_out_goes_on_to_the_bit(method, stop):
    """By a state, and by a copy; the new optimizer says nothing."""
    data, model, again = batches("mlp", 5), model_of(called_by_hand), model_of(called_by_hand)
    optimizer = METHODS[method](model, **DUE)
    with pytest.warns(UserWarning, match="layer 'layer'"):
        train(model, optimizer, data[:stop])
    with warnings.catch_warnings(action="error"):
        other = METHODS[method](again, **DUE)
        again.load_state_dict(copy.deepcopy(model.state_dict()))
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        copied, its = copy.deepcopy((model, optimizer))
        expected = train(model, optimizer, data[stop:])
        assert_same(train(again, other, data[stop:]), expected)
        assert_same(train(copied, its, data[stop:]), expected)


def test_a_state_decides_what_is_left_out():
    """A layer that the state has statistics of is no longer left out."""
    data, model, usual = batches("mlp", 3), model_of(read_twice), model_of(read_twice)
    usual.forward = lambda x: usual.last(usual.other(usual.layer(usual.norm(x))))
    whole = KFAC(usual)
    train(usual, whole, data[:1])
    optimizer = KFAC(model)
    with pytest.warns(UserWarning, match="layer 'layer'"):
        train(model, optimizer, data[:1])
    model.load_state_dict(usual.state_dict())
    model.forward = lambda x: model.last(model.other(model.layer(model.norm(x))))
    optimizer.load_state_dict(copy.deepcopy(whole.state_dict()))
    assert_same(train(model, optimizer, data[1:]), train(usual, whole, data[1:]))


def test_a_state_with_another_layer_left_out_is_refused():
    model, usual = model_of(called_by_hand), network("mlp")
    optimizer = KFAC(model)
    with pytest.warns(UserWarning, match="layer 'layer'"):
        train(model, optimizer, batches("mlp"))
    state = KFAC(usual).state_dict()
    state["fisherlab"]["left_out"] = optimizer.state_dict()["fisherlab"]["left_out"]
    with pytest.raises(InputError, match="a model with another layer, 'layer'"):
        KFAC(usual).load_state_dict(state)


@pytest.mark.parametrize("make", [KFAC, LNGD])
def test_a_layer_that_is_left_out_later_takes_plain_steps(make):
    """From the step on in which its gradient came another way: W ← W − lr ∇h, without decay."""
    data, model = batches("mlp", 3), network("mlp")
    optimizer = make(model, statistics_every=1, momentum=0.5, other_lr=0.01)
    train(model, optimizer, data[:1])
    first = model[0]
    model[0] = nn.Identity()
    model.forward = lambda x: model[1:](linear(x, first.weight, first.bias))
    before = first.weight.detach().clone()
    with pytest.warns(UserWarning, match="'0': it has a gradient, but nothing to make its statistics of"):
        train(model, optimizer, data[1:2])
    step = -0.01 * first.weight.grad
    torch.testing.assert_close(first.weight.detach() - before, step, rtol=1e-10, atol=1e-15)
    before = first.weight.detach().clone()
    train(model, optimizer, data[2:])
    step = 0.5 * step - 0.01 * first.weight.grad
    torch.testing.assert_close(first.weight.detach() - before, step, rtol=1e-10, atol=1e-15)


def test_the_rate_of_what_is_left_out_follows_a_schedule():
    data, model, usual = batches("mlp", 4), model_of(called_by_hand), model_of(called_by_hand)
    found = []
    for net, exclude in ((model, ()), (usual, ("layer",))):
        optimizer = KFAC(
            net, exclude=exclude, groups=[{"layers": "l*" if not exclude else "last", "lr": 0.2}]
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for batch in data:
                train(net, optimizer, [batch])
                schedule.step()
        found.append(weights(net))
    assert_close(*found, 1e-13)


def test_layers_found_together_are_named_in_one_warning():
    def both(net: Net, x: Tensor) -> Tensor:
        z = torch.tanh(linear(x, net.layer.weight, net.layer.bias))
        return net.last(torch.tanh(z @ net.other.weight))

    model = model_of(both)
    with pytest.warns(UserWarning, match=r"layers 'other', 'layer': .* exclude=\('other', 'layer'\)") as said:
        train(model, KFAC(model), batches("mlp", 2))
    assert len(said) == 1


@pytest.mark.parametrize("method", METHODS)
def test_no_layer_left_is_refused_with_the_reasons(method):
    """No weight changes."""
    model = model_of(lambda net, x: linear(torch.tanh(linear(x, net.other.weight)), net.last.weight))
    optimizer, before = METHODS[method](model, exclude=["layer"]), weights(model)
    with pytest.raises(InputError, match=r"no layer is left .*layers 'other', 'last': .*torch\.optim"):
        train(model, optimizer, batches("mlp"))
    assert_same(weights(model), before)


def test_a_preconditioner_leaves_the_gradient_of_what_is_left_out():
    model, [batch] = model_of(of_a_table), batches("mlp")
    preconditioner = Preconditioner(model, "kfac", damping=0.1)
    with pytest.warns(UserWarning, match="layer 'layer'"):
        backward(model, batch)
    plain = {name: p.grad.clone() for name, p in model.named_parameters()}
    preconditioner.step()
    same = [name for name, p in model.named_parameters() if torch.equal(p.grad, plain[name])]
    assert same == ["norm.weight", "norm.bias", "layer.weight", "layer.bias"]


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_without_a_part_in_a_step_waits(method):
    """Layer drop, an expert without tokens: without a gradient it is not stepped, and is not left out."""

    def dropping(net: Net, x: Tensor) -> Tensor:
        z = torch.tanh(net.other(x))
        return net.last(z if net.dropped else z + torch.tanh(net.layer(z)))

    data, model = batches("mlp", 4), model_of(dropping)
    optimizer = METHODS[method](model, statistics_every=1)
    with warnings.catch_warnings(action="error"):
        for place, batch in enumerate(data):
            model.dropped = place % 2 == 1
            before = weights(model)
            train(model, optimizer, [batch])
            moved = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
            assert ("layer.weight" in moved) == (not model.dropped)
            assert "last.weight" in moved
    assert "layer" in list(optimizer.rates()["layer"])


@pytest.mark.parametrize("method", [name for name in METHODS if name != "lngd-draws"])
def test_what_was_made_of_a_layer_in_the_step_goes_with_it(method):
    """It is fine in the first micro-batch, and sees positions first and flattened in the second.

    Draws of all layers come from one generator, and are others where the layer took part.
    """

    def turning(net: Net, x: Tensor) -> Tensor:
        z = x.transpose(0, 1).flatten(0, 1) if net.turned else x
        z = torch.tanh(net.layer(z))
        z = z.view(3, -1, SIZE).transpose(0, 1) if net.turned else z
        return net.last(torch.tanh(net.other(z)).mean(1))

    generator, found = torch.Generator().manual_seed(0), []
    x = torch.randn(2, 4, 3, SIZE, generator=generator, dtype=torch.float64)
    y = torch.randint(CLASSES, (2, 4), generator=generator)
    for exclude in ((), ("layer",)):
        model = model_of(turning)
        optimizer = METHODS[method](model, exclude=exclude, other_lr=0.05)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for step in range(2):
                optimizer.zero_grad()
                for model.turned in (False, True):
                    part = int(model.turned)
                    cross_entropy(model(x[part] + step), y[part]).div(2).backward()
                optimizer.step()
        named = [str(one.message) for one in said if "layer 'layer'" in str(one.message)]
        assert len(named) == (not exclude)
        found.append(weights(model))
    assert_close(*found, 1e-13)
