"""`state_dict`: training goes on to the bit; the state of another optimizer or model is refused."""

import io
from copy import deepcopy
from itertools import islice

import pytest
import torch
from optim.cases import METHODS, assert_same, batches, network, train, weights
from torch import Tensor, nn

from fisherlab.errors import InputError
from fisherlab.optim import EKFAC, KFAC, LNGD, TKFAC

STEPS, DUE = 7, {"statistics_every": 3, "inverse_every": 2}


def through_a_file(state: dict) -> dict:
    """Saved and loaded with nothing but plain numbers and tensors."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def resumed(name: str, method: str, stop: int, data: list, **options) -> dict[str, Tensor]:
    """The weights of a run that is stopped after some steps, and goes on in new objects."""
    model = network(name)
    optimizer = METHODS[method](model, **DUE, **options)
    train(model, optimizer, data[:stop])
    saved = through_a_file({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    again = network(name, seed=5)
    again.load_state_dict(saved["model"])
    other = METHODS[method](again, **DUE, **options)
    other.load_state_dict(saved["optimizer"])
    return train(again, other, data[stop:])


@pytest.mark.parametrize("method", METHODS)
def test_training_goes_on_to_the_bit(method):
    """After any number of steps: before the first, between refreshes, and at them."""
    data = batches("mlp", STEPS)
    model = network("mlp")
    expected = train(model, METHODS[method](model, **DUE), data)
    for stop in range(STEPS):
        assert_same(resumed("mlp", method, stop, data), expected)


@pytest.mark.parametrize("method", ["lngd", "ekfac", "ngplus"])
@pytest.mark.parametrize("name", ["cnn", "transformer", "grouped", "twice"])
def test_training_goes_on_with_every_kind_of_layer(name, method):
    data = batches(name, 5)
    model = network(name)
    expected = train(model, METHODS[method](model, **DUE), data)
    assert_same(resumed(name, method, 2, data), expected)


@pytest.mark.parametrize("options", [{"momentum_on": "gradient"}, {"weight_decay_mode": "coupled"}])
def test_training_goes_on_with_options(options):
    data = batches("mlp", 5)
    model = network("mlp")
    expected = train(model, LNGD(model, **DUE, **options), data)
    assert_same(resumed("mlp", "lngd", 3, data, **options), expected)


def test_changed_settings_of_groups_are_taken_over():
    model, again = network("cnn"), network("cnn")
    optimizer = LNGD(model, groups=[{"layers": ["0"], "lr": 0.5}])
    optimizer.param_groups[1]["lr"] = 0.123
    other = LNGD(again, groups=[{"layers": ["0"], "lr": 0.5}])
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    assert [g["lr"] for g in other.param_groups] == [g["lr"] for g in optimizer.param_groups]


def test_a_layer_steps_with_its_loaded_settings():
    """Not with those of the group that was there before."""
    data = batches("mlp", 4)
    model, again = network("mlp"), network("mlp")
    optimizer = LNGD(model, lr=0.2, damping=(0.1, 0.5))
    train(model, optimizer, data[:2])
    again.load_state_dict(model.state_dict())
    other = LNGD(again, lr=0.01)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    assert_same(train(again, other, data[2:]), train(model, optimizer, data[2:]))


@pytest.mark.parametrize("method", ["lngd", "ekfac"])
def test_a_fresh_state_starts_anew(method):
    """Nothing of what the optimizer has seen is left."""
    data = batches("mlp", 3)
    model = network("mlp")
    optimizer = METHODS[method](model)
    start = deepcopy(optimizer.state_dict()), deepcopy(model.state_dict())
    expected = train(model, optimizer, data)
    optimizer.load_state_dict(start[0])
    model.load_state_dict(start[1])
    assert_same(train(model, optimizer, data), expected)


def test_a_state_does_not_change_with_later_steps():
    data = batches("mlp", 6)
    model = network("mlp")
    optimizer = LNGD(model, statistics_every=1, inverse_every=1)
    train(model, optimizer, data[:3])
    state, start = deepcopy(optimizer.state_dict()), deepcopy(model.state_dict())
    expected = train(model, optimizer, data[3:])
    again = network("mlp")
    for _ in range(2):  # loading copies: the state can be used once more
        again.load_state_dict(start)
        other = LNGD(again, statistics_every=1, inverse_every=1)
        other.load_state_dict(state)
        assert_same(train(again, other, data[3:]), expected)


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_parameters_keep_float32_statistics(method):
    model, data = network("mlp", dtype=torch.bfloat16), batches("mlp", 2, dtype=torch.bfloat16)
    optimizer = METHODS[method](model)
    train(model, optimizer, data)
    state = through_a_file(optimizer.state_dict())
    again = network("mlp", dtype=torch.bfloat16)
    other = METHODS[method](again)
    other.load_state_dict(state)
    for one in (optimizer, other):
        kept = list(tensors(one.state_dict()["state"]))
        assert {t.dtype for t in kept} == {torch.float32}
        assert len(kept) >= 3 * 3  # momentum, a statistic and a part of the inverse for each layer
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}


def tensors(value):
    """All tensors in a nested state."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from tensors(one)
    elif isinstance(value, list):
        for one in value:
            yield from tensors(one)


def state_of(make, name: str = "mlp", steps: int = 1) -> dict:
    model = network(name)
    optimizer = make(model)
    train(model, optimizer, batches(name, steps))
    return optimizer.state_dict()


FOREIGN = {
    "torch.optim": (
        lambda: state_of(lambda model: torch.optim.SGD(model.parameters(), lr=0.1)),
        LNGD,
        "another optimizer",
    ),
    "another method": (lambda: state_of(KFAC), LNGD, "another optimizer"),
    "the same factors": (lambda: state_of(KFAC), TKFAC, "another optimizer"),
    "other labels": (lambda: state_of(LNGD), METHODS["lngd-lr"], "another optimizer"),
    "a method with a basis": (lambda: state_of(KFAC), EKFAC, "another optimizer"),
    "other layers": (lambda: state_of(LNGD, "cnn"), LNGD, "a model with other layers"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_foreign_state_is_refused(case):
    """And the optimizer is as before."""
    state, make, message = FOREIGN[case]
    data = batches("mlp", 4)
    model, untouched = network("mlp"), network("mlp")
    optimizer = make(model)
    train(model, optimizer, data[:2])
    with pytest.raises(InputError, match=message):
        optimizer.load_state_dict(state())
    assert_same(train(model, optimizer, data[2:]), train(untouched, make(untouched), data))


def test_layers_of_another_size_are_refused():
    """The names are the same."""
    state = state_of(LNGD)
    wide = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4, bias=False), nn.ReLU(), nn.Linear(4, 3))
    with pytest.raises(InputError, match="layer '0' has another shape"):
        LNGD(wide.double()).load_state_dict(state)


def test_groups_of_other_layers_are_refused():
    grouped = LNGD(network("mlp"), groups=[{"layers": ["0"], "lr": 0.1}])
    with pytest.raises(InputError, match="other groups"):
        grouped.load_state_dict(state_of(LNGD))


def test_a_backward_pass_before_loading_belongs_to_no_step():
    model = network("mlp")
    optimizer = LNGD(model)
    state = optimizer.state_dict()
    loss = nn.functional.cross_entropy(
        *(f(v) for f, v in zip((model, lambda y: y), batches("mlp")[0], strict=True))
    )
    loss.backward()
    before = weights(model)
    optimizer.load_state_dict(state)
    with pytest.raises(InputError, match="without a backward pass"):
        optimizer.step()
    assert_same(weights(model), before)


def test_the_random_state_is_kept():
    """Two runs from one seed draw the same labels, from another seed others."""
    data = batches("mlp", 3)
    runs = [
        train(model, KFAC(model, seed=seed), data)
        for seed, model in ((0, network("mlp")), (0, network("mlp")), (1, network("mlp")))
    ]
    assert_same(runs[0], runs[1])
    assert any(not torch.equal(runs[0][name], runs[2][name]) for name in islice(runs[0], 3))


@pytest.mark.parametrize("method", ["lngd", "kfac"])
@pytest.mark.parametrize("momentum_on", ["update", "gradient"])
def test_the_state_is_where_momentum_is(method, momentum_on):
    """What a user clears or puts there is what the next step is made of, and what is saved."""
    data = batches("mlp", 4)
    made = []
    for clear in (True, False):
        model = network("mlp")
        optimizer = METHODS[method](model, momentum_on=momentum_on, **DUE)
        train(model, optimizer, data[:2])
        if clear:
            optimizer.state.clear()
        else:
            for kept in optimizer.state.values():
                for values in kept.get("layers", {}).values():
                    values["momentum"] = torch.zeros_like(values["momentum"])
        train(model, optimizer, data[2:])
        again = METHODS[method](deepcopy(model), momentum_on=momentum_on, **DUE)
        again.load_state_dict(through_a_file(optimizer.state_dict()))
        assert len(again.state) > 0
        made.append(weights(model))
    assert_same(*made)
    plain = network("mlp")
    going_on = train(plain, METHODS[method](plain, momentum_on=momentum_on, **DUE), data)
    assert any(not torch.equal(made[0][name], going_on[name]) for name in going_on)
