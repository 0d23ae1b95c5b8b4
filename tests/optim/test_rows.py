"""Which rows of a layer are samples: found in the first step, declared, or refused."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from model_cases import Mean, Net
from optim.cases import METHODS, assert_close, assert_same, batches, train, weights
from optim.identity import EXACT, assert_identity
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import fisherlab as fl
from fisherlab.errors import InputError, InputTypeError
from fisherlab.optim import KFAC, LNGD, NGPlus

SIZE, CLASSES = 6, 3
LEFT_OUT = r"layer 'layer': .*exclude=\('layer',\)"


def square() -> nn.Linear:
    return nn.Linear(SIZE, SIZE)


def recurrence() -> Net:
    """A hand-written recurrence over [t, n, d]: every step sees [n, d]."""

    def forward(net: Net, x: Tensor) -> Tensor:
        h = torch.zeros_like(x[0])
        for inputs in net.inner(x):
            h = torch.tanh(inputs + net.state(h))
        return net.last(h.expand_as(x)) + x

    return Net(forward, inner=square(), state=square(), last=square())


def half() -> Net:
    """The weight frozen: the block is of the bias alone."""
    layer = square()
    layer.weight.requires_grad_(False)
    return Net(lambda net, x: net.layer(x).tanh() * x, layer=layer)


def attention() -> Net:
    return Net(lambda net, x: net.attention(x, x, x)[0], attention=nn.MultiheadAttention(SIZE, 2))


def encoder(**options) -> nn.Module:
    return nn.TransformerEncoderLayer(SIZE, 2, 8, dropout=0.0, **options)


INSIDE = {
    "linear layers": lambda: (square(), nn.Tanh(), square()),
    "an encoder layer": lambda: (encoder(),),
    "an encoder layer, norm first": lambda: (encoder(norm_first=True),),
    "attention": lambda: (attention(),),
    "a recurrence": lambda: (recurrence(),),
    "a bias alone": lambda: (half(), square()),
}


def sequences(samples: int, length: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, length, SIZE, generator=generator, dtype=torch.float64)
    return x, torch.randint(CLASSES, (samples,), generator=generator)


def sequence_first(inside: str) -> Net:
    """Turns [n, t, d] to [t, n, d], runs what is inside, and takes the mean over t."""
    torch.manual_seed(0)
    return Net(
        lambda net, x: net.last(net.inside(x.transpose(0, 1)).mean(0)),
        inside=nn.Sequential(*INSIDE[inside]()),
        last=nn.Linear(SIZE, CLASSES),
    ).double()


@pytest.mark.parametrize("length", [4, 8, 2, 3, 1])
@pytest.mark.parametrize("inside", INSIDE)
def test_sequence_first_code_inside_a_model_of_samples(inside, length):
    """T equal to N, a multiple, a divisor, none of these, and one."""
    model = sequence_first(inside)
    assert_identity(model, LNGD(model, **EXACT), *sequences(4, length))


@pytest.mark.parametrize("make", [KFAC, NGPlus, fl.optim.EKFAC, fl.optim.TKFAC])
def test_sequence_first_code_with_every_method(make):
    model = sequence_first("an encoder layer")
    assert_identity(model, make(model, **EXACT), *sequences(4, 8))


@pytest.mark.parametrize("method", [name for name in METHODS if name != "lngd-draws"])
@pytest.mark.parametrize("inside", ["linear layers", "a recurrence"])
def test_sequence_first_code_trains_as_samples_first_code(inside, method):
    """To the last digits: the same function, turned back and forth, in some steps."""
    model = sequence_first("linear layers")
    usual = nn.Sequential(square(), nn.Tanh(), square(), Mean(), nn.Linear(SIZE, CLASSES))
    for p, q in zip(usual.double().parameters(), model.parameters(), strict=True):
        p.data.copy_(q.data)
    data = [sequences(4, 8, seed) for seed in range(3)]
    found = train(model, METHODS[method](model), data)
    expected = train(usual, METHODS[method](usual), data)
    assert_close(dict(enumerate(found.values())), dict(enumerate(expected.values())), 1e-9)


def layer_and_last(forward: Callable[..., object]) -> Net:
    """Two layers from one random state, to be used in some way of its own."""
    torch.manual_seed(0)
    return Net(forward, layer=square(), last=nn.Linear(SIZE, CLASSES)).double()


def flattened(net: Net, x: Tensor) -> Tensor:
    """Rows of all samples at one time, time after time: no dimension counts samples."""
    rows = net.layer(x.transpose(0, 1).reshape(-1, SIZE)).tanh()
    return net.last(rows.view(x.shape[1], x.shape[0], SIZE).mean(0))


def queries(net: Net, x: Tensor) -> Tensor:
    """A learned table that is the same for all samples."""
    return net.last((x * net.layer(net.queries).mean(0)).mean(1))


def ragged(net: Net, x: Tensor) -> Tensor:
    """An expert that sees some rows of some samples."""
    rows = x.reshape(-1, SIZE)
    chosen = rows[:, 0] > 0
    out = torch.zeros_like(rows)
    out[chosen] = net.layer(rows[chosen]).tanh()
    return net.last(out.view_as(x).mean(1))


@pytest.mark.parametrize("forward", [flattened, queries, ragged])
@pytest.mark.parametrize("method", ["lngd", "kfac", "ngplus"])
def test_rows_that_are_no_samples_are_left_out(method, forward):
    """The step is that without the layer, to the bit."""
    found = []
    for exclude in ((), ("layer",)):
        model = layer_and_last(forward)
        if forward is queries:
            model.queries = nn.Parameter(torch.ones(4, SIZE, dtype=torch.float64))
        optimizer, (x, y) = METHODS[method](model, exclude=exclude), sequences(4, 4)
        with nullcontext() if exclude else pytest.warns(UserWarning, match=LEFT_OUT):
            cross_entropy(model(x), y).backward()
        optimizer.step()
        found.append(weights(model))
    assert_same(*found)


def test_rows_that_the_user_declares_are_taken_as_they_are():
    """By layer; the model's own dimension stands under the empty name."""

    def for_four(net: Net, x: Tensor) -> Tensor:
        if x.shape[0] != 4:
            raise ValueError("only for four")
        return net.last(net.layer(x.transpose(0, 1)).tanh().mean(0))

    x, y = sequences(4, 8)
    model = layer_and_last(for_four)
    untold = LNGD(model, **EXACT)
    with pytest.raises(InputError, match=r"the model raises ValueError: only for four; batch_dim="):
        model(x)
    del untold
    told = LNGD(model, **EXACT, batch_dim={"layer": 1, "last": 0})
    usual = sequence_first("linear layers")
    usual.inside = nn.Sequential(model.layer, nn.Tanh())
    usual.last = model.last
    state = {name: p.clone() for name, p in model.state_dict().items()}
    train(model, told, [(x, y)])
    found = weights(model)
    model.load_state_dict(state)
    del told
    train(usual, LNGD(usual, **EXACT), [(x, y)])
    assert_close(weights(model), found)


def test_a_model_of_sequences_first_is_declared():
    turning = Net(lambda net, x: x.mean(0))  # [t, n, d] to [n, d]
    model = nn.Sequential(square(), nn.Tanh(), turning, nn.Linear(SIZE, CLASSES)).double()
    x, y = sequences(4, 5)
    optimizer = LNGD(model, **EXACT, batch_dim=1)
    optimizer.zero_grad()
    cross_entropy(model(x.transpose(0, 1)), y).backward()
    optimizer.step()
    assert optimizer.rates()["rate"].gt(0).all()


@pytest.mark.parametrize("wrong", [-1, 0.5, True, "1", {"0": -1}, {"nowhere": 1}, {0: 1}, None])
def test_a_batch_dim_that_is_none(wrong):
    with pytest.raises((InputError, InputTypeError), match=r"batch_dim|unknown layer"):
        LNGD(nn.Linear(3, 2), batch_dim=wrong)


def normed() -> Net:
    """Batch norm mixes the samples of a batch in training; a loss of pairs mixes them too."""
    return Net(
        lambda net, x: net.last(net.norm(net.first(x)).relu()),
        first=nn.Linear(SIZE, 8),
        norm=nn.BatchNorm1d(8),
        last=nn.Linear(8, CLASSES),
    )


def scalar() -> Net:
    """Gives the loss itself, and runs its layers over [t, n, d]."""
    return Net(lambda net, x, y: cross_entropy(net.net(x), y), net=sequence_first("an encoder layer"))


def test_a_model_that_gives_its_loss():
    model = scalar()
    x, y = sequences(4, 4)
    optimizer = LNGD(model, **EXACT)

    def step() -> None:
        model(x, y).backward()
        optimizer.step()

    assert_identity(model, optimizer, x, y, step, model.net)


def test_what_the_look_leaves_behind():
    """Buffers, modes, random state and gradients are as after a plain pass."""
    torch.manual_seed(0)
    model, usual = normed(), normed()
    usual.load_state_dict(model.state_dict())
    x = torch.randn(5, SIZE)
    optimizer = LNGD(model)
    for net in (model, usual):
        torch.manual_seed(1)
        net(x)
        net.drawn = torch.rand(2)
    assert torch.equal(model.drawn, usual.drawn)
    for found, expected in zip(model.buffers(), usual.buffers(), strict=True):
        assert torch.equal(found, expected)
    assert all(p.grad is None for p in model.parameters())
    assert model.training
    assert model.norm.training
    assert optimizer.param_groups


def test_a_look_costs_a_few_samples_in_the_first_step_only():
    model, rows = normed().double(), []
    model.first.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    train(model, LNGD(model), batches("mlp", 3, 32))
    assert rows == [8, 8, 32, 32, 32]


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_small_first_batches(samples):
    """One sample tells nothing, and needs to tell nothing; the look comes with the first batch of two."""
    model = sequence_first("an encoder layer")
    optimizer = LNGD(model, **EXACT)
    train(model, optimizer, [sequences(1, 4, 7)] * 2)
    assert_identity(model, optimizer, *sequences(samples, 4))


# --- which argument counts samples ----------------------------------------------------------------------


def first_and_last(forward: Callable[..., object], **kept: object) -> Net:
    """Two layers from one random state, to be used in some way of its own."""
    torch.manual_seed(0)
    return Net(forward, first=nn.Linear(SIZE, 5), last=nn.Linear(5, CLASSES), **kept)


def conditioned(net: Net, other: Tensor, x: Tensor) -> Tensor:
    """Takes something else before its samples: a time, a condition, a mask."""
    return net.last(torch.tanh(net.first(x) + other.mean()))


@pytest.mark.parametrize("shape", [(), (1,), (1, 5), (1, 4, 4), (7,), (2, 3), (4, 4)])
@pytest.mark.parametrize("samples", [4, 6])
def test_arguments_before_the_samples(samples, shape):
    model, other = first_and_last(conditioned).double(), torch.full(shape, 0.3, dtype=torch.float64)
    [(x, y)] = batches("mlp", 1, samples)
    assert_identity(model, LNGD(model, **EXACT), x, y, call=lambda inputs: model(other, inputs))


# --- rows in another order, and ragged ones -------------------------------------------------------------


def copies(net: Net, x: Tensor) -> Tensor:
    """Several copies of every sample, copy after copy."""
    return net.last(net.layer(x.repeat(3, 1)).tanh().view(3, -1, SIZE).mean(0))


def sorts(net: Net, x: Tensor) -> Tensor:
    order = x[:, 0].argsort()
    return net.last(net.layer(net.layer(x).tanh()[order]).tanh()[order.argsort()])


def shuffles(net: Net, x: Tensor) -> Tensor:
    z = net.layer(x).tanh()
    return net.last(z) + net.last(z.roll(1, 0)).roll(-1, 0)


def masked(net: Net, x: Tensor, y: Tensor) -> Tensor:
    """The loss of a head on chosen rows."""
    z, chosen = net.last(x), x[:, 0] > 0
    return cross_entropy(z, y) + net.layer(x[chosen]).tanh().square().sum() / len(x)


@pytest.mark.parametrize("forward", [copies, sorts, shuffles])
@pytest.mark.parametrize("method", ["lngd", "kfac", "ngplus"])
def test_rows_in_another_order_are_left_out(method, forward):
    """The other layer, which sees its samples in order, goes on."""
    model = layer_and_last(forward)
    optimizer = METHODS[method](model)
    [(x, y)] = batches("mlp", 1, 12)
    bad, good = ("last", "layer") if forward is shuffles else ("layer", "last")
    reason = "what it sees of one sample, or what comes back to it, belongs to others"
    with pytest.warns(UserWarning, match=f"layer '{bad}': {reason}.*batch_dim="):
        cross_entropy(model(x), y).backward()
    optimizer.step()
    assert list(optimizer.rates()["layer"]) == [good]


@pytest.mark.parametrize("seed", range(8))
def test_rows_that_fit_by_chance_are_right_or_left_out(seed):
    """In every step: the rows of another batch may fit too."""
    model = layer_and_last(masked)
    optimizer = LNGD(model, **EXACT)
    for step, samples in enumerate((2, 4, 2)):
        x, y = batches("mlp", 1, samples, seed=10 * seed + step)[0]
        optimizer.zero_grad()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model(x, y).backward()
            optimizer.step()
        if "layer" in set(optimizer.rates()["layer"]):
            chosen = x[:, 0] > 0
            assert bool(chosen.all()) or not bool(chosen.any())


def test_another_layout_in_a_later_step():
    """A layer that begins to see positions first is looked at again."""

    def may_turn(net: Net, x: Tensor) -> Tensor:
        return net.last(net.layer(x.transpose(0, 1) if net.turned else x).tanh().mean(0 if net.turned else 1))

    model = layer_and_last(may_turn)
    model.turned = False
    optimizer = LNGD(model, **EXACT)
    train(model, optimizer, [sequences(4, 8, seed) for seed in range(2)])
    model.turned = True
    assert_identity(model, optimizer, *sequences(4, 8, 5))


# --- models that are no plain functions -----------------------------------------------------------------


def noisy(net: Net, x: Tensor) -> Tensor:
    """Random numbers in both modes."""
    h = torch.tanh(net.first(x))
    return net.last(h + 0.1 * torch.randn_like(h))


def keeping(net: Net, x: Tensor) -> Tensor:
    """Keeps a loss, a state, a list and a count."""
    net.count += 1
    h = torch.tanh(net.first(x))
    if net.state is not None:
        h = h + net.state.detach()
    net.state = h
    net.losses.append(h.square().mean())
    return net.last(h)


def test_a_model_with_noise_in_both_modes_is_followed():
    model, usual = first_and_last(noisy).double(), first_and_last(noisy).double()
    [(x, y)] = batches("mlp")
    optimizer = LNGD(model)
    torch.manual_seed(1)
    loss = cross_entropy(model(x), y)
    torch.manual_seed(1)
    assert float(loss) == float(cross_entropy(usual(x), y))
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize("method", ["lngd-sample", "kfac"])
def test_what_a_model_keeps_is_that_of_the_real_pass(method):
    """Losses, states and counts on the module, features that hooks take, and random numbers of Python."""
    import random

    import numpy as np

    model, usual = (first_and_last(keeping, count=0, state=None, losses=[]).double() for _ in range(2))
    optimizer = METHODS[method](model)
    [(x, y)] = batches("mlp")
    taken, drawn = {}, {}
    for net in (model, usual):
        net.first.register_forward_hook(lambda module, args, out, net=net: taken.__setitem__(net, out))
        for _ in range(2):
            random.seed(0)
            np.random.seed(0)  # noqa: NPY002
            for p in net.parameters():
                p.grad = None
            (cross_entropy(net(x), y) + net.losses[-1] + taken[net].square().mean()).backward()
            drawn[net] = random.random(), np.random.rand()  # noqa: NPY002
        assert net.count == len(net.losses) == 2
    assert drawn[model] == drawn[usual]
    for p, q in zip(model.parameters(), usual.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-12, atol=1e-15)
    optimizer.step()


def test_a_model_that_gives_a_distribution():
    def policy(net: Net, x: Tensor) -> torch.distributions.Categorical:
        return torch.distributions.Categorical(logits=net.last(torch.tanh(net.first(x))))

    model = first_and_last(policy).double()
    [(x, y)] = batches("mlp")
    optimizer = LNGD(model, **EXACT)
    assert_identity(model, optimizer, x, y, call=lambda inputs: model(inputs).logits)


def test_autocast_inside_a_model():
    def cast(net: Net, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return net.last(torch.tanh(net.first(x))).float()

    model = first_and_last(cast)
    train(model, LNGD(model), batches("mlp", 2, dtype=torch.float32))


def test_a_model_whose_samples_act_on_each_other():
    """Refused, unless its rows are declared to be the samples."""

    def similar(net: Net, x: Tensor) -> Tensor:
        z = torch.tanh(net.first(x))
        return z @ z.T + net.last(z).sum()

    model = first_and_last(similar).double()
    x, y = torch.randn(6, SIZE, dtype=torch.float64), torch.arange(6)
    optimizer = LNGD(model)
    with pytest.raises(InputError, match=r"act on each other.*batch_dim=\{'\*': 0\}"):
        cross_entropy(model(x), y).backward()
    del optimizer
    declared = LNGD(model, batch_dim={"*": 0})
    cross_entropy(model(x), y).backward()
    declared.step()


def mirrored(net: Net, x: Tensor) -> Tensor:
    """An auto-encoder whose decoder is the encoder, transposed."""
    z = net.second(torch.tanh(net.first(x)))
    return net.last(torch.tanh(z @ net.second.weight) @ net.first.weight)


@pytest.mark.parametrize("declared", [0, {"*": 0}])
@pytest.mark.parametrize("method", ["lngd", "kfac", "ngplus"])
def test_all_layers_whose_weight_is_used_elsewhere_are_named_at_once(method, declared):
    """Also where their rows are declared; the last layer goes on."""
    torch.manual_seed(0)
    layers = {"first": nn.Linear(SIZE, 5), "second": nn.Linear(5, 4), "last": nn.Linear(SIZE, CLASSES)}
    model, [(x, y)] = Net(mirrored, **layers).double(), batches("mlp")
    optimizer = METHODS[method](model, batch_dim=declared)
    with pytest.warns(
        UserWarning, match=r"layers 'first', 'second': .*exclude=\('first', 'second'\)"
    ) as said:
        train(model, optimizer, [(x, y)] * 2)
    assert len(said) == 1
    assert list(optimizer.rates()["layer"]) == ["last"]


def test_gradients_that_are_next_to_nothing_are_not_judged():
    """A network that has learned its batch: products are denormal numbers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(SIZE, 5), nn.Tanh(), nn.Linear(5, CLASSES))
    x, y = torch.randn(8, SIZE), torch.arange(8) % CLASSES
    optimizer = LNGD(model)
    for scale in (1.0, 1e-16, 1e-19, 1e-21, 1e-25):
        optimizer.zero_grad()
        (scale * cross_entropy(model(x), y)).backward()
        optimizer.step()
