"""What happens in training loops beside the usual step."""

import copy
from collections.abc import Callable

import pytest
import torch
from model_cases import Mean, Net
from optim.cases import (
    METHODS,
    NETWORKS,
    Block,
    assert_close,
    assert_same,
    backward,
    batches,
    network,
    train,
    weights,
)
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from fisherlab.optim import KFAC, LNGD

DUE = {"statistics_every": 2, "inverse_every": 2}
SOME = ("lngd", "lngd-empirical", "kfac", "ekfac", "ngplus")


# --- passes that are no training ------------------------------------------------------------------------


def without_gradients(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        model(x)


def in_evaluation_mode(model: nn.Module, x: Tensor) -> None:
    model.eval()
    model(x)
    model.train()


def evaluated(model: nn.Module, x: Tensor) -> None:
    model.eval()
    with torch.inference_mode():
        model(x)
    model.train()


def of_every_sample(model: nn.Module, x: Tensor) -> None:
    """Gradients of the samples by torch.func, in training mode."""

    def total(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, (sample.unsqueeze(0),)).sum()

    torch.func.vmap(torch.func.grad(total), (None, 0))(weights(model), x)
    torch.func.jacrev(model)(x)


@pytest.mark.parametrize("look", [without_gradients, in_evaluation_mode, evaluated, of_every_sample])
@pytest.mark.parametrize("method", METHODS)
def test_other_passes_change_nothing(method, look):
    """Before a step, and between its forward and its backward pass."""
    data, (other, _) = batches("mlp", 4), batches("mlp", 1, seed=7)[0]
    model, usual = network("mlp"), network("mlp")
    optimizer = METHODS[method](model, **DUE)
    for x, y in data:
        look(model, other)
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        look(model, other)
        loss.backward()
        look(model, other)
        optimizer.step()
    assert_same(weights(model), train(usual, METHODS[method](usual, **DUE), data))


@pytest.mark.parametrize("method", METHODS)
def test_the_default_device_of_torch_does_not_matter(method):
    """Numbers stand where the model is; on "meta" nothing could be read."""
    data, expected = batches("transformer", 3), network("transformer")
    usual = train(expected, METHODS[method](expected, **DUE), data)
    model = network("transformer")
    with torch.device("meta"):
        optimizer = METHODS[method](model, **DUE)
        found = train(model, optimizer, data)
        optimizer.diagnostics()
        optimizer.load_state_dict(optimizer.state_dict())
    assert_same(found, usual)


def test_the_models_own_random_numbers_stay():
    """Drawn labels come from the optimizer's generator, and looking at layers changes no forward pass."""
    torch.manual_seed(0)
    layers = [nn.Linear(6, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3)]
    model = nn.Sequential(*layers).double()
    [(x, _)] = batches("mlp")
    torch.manual_seed(1)
    plain = model(x)
    KFAC(model)
    torch.manual_seed(1)
    torch.testing.assert_close(model(x), plain, rtol=0, atol=0)


# --- frozen and unused layers ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", SOME)
@pytest.mark.parametrize("layer", ["0", "2"])
def test_layers_frozen_before(method, layer):
    """As if they were left out."""
    data = batches("mlp", 3)
    model, usual = network("mlp"), network("mlp")
    for one in (model, usual):
        one.get_submodule(layer).requires_grad_(False)
    before = weights(model.get_submodule(layer))
    found = train(model, METHODS[method](model, **DUE), data)
    assert_same(weights(model.get_submodule(layer)), before)
    other = network("mlp")
    optimizer = METHODS[method](other, exclude=[layer], **DUE)
    for p in other.get_submodule(layer).parameters():
        p.requires_grad_(False)
    assert_same(found, train(other, optimizer, data))


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("method", SOME)
@pytest.mark.parametrize("layer", ["0", "2"])
def test_layers_frozen_for_a_while(method, layer, to_none):
    """They stay to the bit, others go on, and they move again afterwards."""
    data = batches("mlp", 6)
    model = network("mlp")
    optimizer = METHODS[method](model, **DUE)

    def steps(some) -> None:
        for batch in some:
            optimizer.zero_grad(set_to_none=to_none)
            backward(model, batch)
            optimizer.step()

    steps(data[:2])
    before = weights(model)
    model.get_submodule(layer).requires_grad_(False)
    steps(data[2:4])
    middle = weights(model)
    for name in before:
        assert torch.equal(middle[name], before[name]) == name.startswith(layer)
    model.get_submodule(layer).requires_grad_(True)
    steps(data[4:])
    assert not any(torch.equal(middle[name], value) for name, value in weights(model).items())


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("part", ["weight", "bias"])
@pytest.mark.parametrize("method", SOME)
def test_one_parameter_of_a_layer_frozen(method, part, early):
    """The other goes on, with ⟨D, ∇ℓ_n⟩ of itself alone."""
    data = batches("mlp", 3)
    model = network("mlp")
    if not early:
        optimizer = METHODS[method](model, **DUE)
    for layer in (model[0], model[4]):
        layer.get_parameter(part).requires_grad_(False)
    if early:
        optimizer = METHODS[method](model, **DUE)
    before = weights(model)
    after = train(model, optimizer, data)
    frozen = {f"{layer}.{part}" for layer in (0, 4)}
    assert {name for name in before if torch.equal(before[name], after[name])} == frozen


def test_a_model_thawed_later_takes_the_step_of_other_parameters():
    """A layer that is frozen when the optimizer is made has no block."""
    data = batches("mlp", 2)
    model = network("mlp")
    model[0].requires_grad_(False)
    optimizer = LNGD(model, other_lr=0.3, momentum=0.0)
    train(model, optimizer, data[:1])
    model[0].requires_grad_(True)
    before = weights(model[0])
    train(model, optimizer, data[1:])
    for name, p in model[0].named_parameters():
        torch.testing.assert_close(p.detach(), before[name] - 0.3 * p.grad)


class Branches(nn.Module):
    """Which of two layers runs is decided for each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 3)
        self.branch = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.last((self.first if self.branch == 0 else self.second)(x).tanh())


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("method", SOME)
def test_layers_unused_in_a_batch(method, to_none):
    """They wait: a layer that is never used stays, and another starts when it is first seen."""
    model, data = Branches().double(), batches("mlp", 6)
    optimizer = METHODS[method](model, **DUE)
    for batch, branch in zip(data, (0, 0, 0, 1, 1, 0), strict=True):
        model.branch = branch
        unused = model.second if branch == 0 else model.first
        before = weights(unused)
        optimizer.zero_grad(set_to_none=to_none)
        backward(model, batch)
        optimizer.step()
        assert_same(weights(unused), before)
    assert all(bool(p.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_called_without_positions(method):
    """As an expert that no token was sent to; the rest is as if it had not been called."""

    class Idle(Branches):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.second(x.unsqueeze(1)[:, :0]).sum()

    torch.manual_seed(0)
    model, usual = Idle().double(), Branches().double()
    usual.load_state_dict(model.state_dict())
    data, optimizers = batches("mlp", 3), [METHODS[method](net, weight_decay=0.0) for net in (model, usual)]
    assert_same(train(model, optimizers[0], data), train(usual, optimizers[1], data))


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_without_samples(method):
    """It leaves the weights, and the next batches go on as if it had not been."""
    model, usual = network("mlp"), network("mlp")
    optimizer = METHODS[method](model, loss_reduction="sum", momentum=0.0, weight_decay=0.0)
    reference = METHODS[method](usual, loss_reduction="sum", momentum=0.0, weight_decay=0.0)
    (x, y), before = batches("mlp")[0], weights(model)
    for part, one in ((slice(0), (optimizer,)), (slice(None), (optimizer, reference))):
        for steps, net in zip(one, (model, usual), strict=False):
            steps.zero_grad()
            cross_entropy(net(x[part]), y[part], reduction="sum").backward()
            steps.step()
        if part == slice(0):
            assert_same(weights(model), before)
    assert_same(weights(model), weights(usual))


def test_a_layer_whose_output_is_thrown_away():
    def wasteful(net: Net, x: Tensor) -> Tensor:
        net.wasted(x)
        return net.used(x)

    for make in METHODS.values():
        model = Net(wasteful, used=nn.Linear(6, 3), wasted=nn.Linear(6, 3)).double()
        before = weights(model.wasted)
        train(model, make(model), batches("mlp", 2))
        assert_same(weights(model.wasted), before)


def input_factor(optimizer: LNGD) -> Tensor:
    """What was summed up for Φ of the layer `first` since the last step."""
    return optimizer._blocks["first"]._new["input-trace-independent/" + optimizer._kind]


def test_experts_whose_last_micro_batch_did_not_use_them():
    """N of ∇ℓ_n := N times the contribution is that of all micro-batches."""
    model, [(x, y)] = Branches().double(), batches("mlp")
    for source in ("layerwise", "empirical"):
        optimizer = LNGD(model, source=source, weight_decay=0.0, momentum=0.0)
        optimizer.zero_grad()
        for branch in (0, 1):
            model.branch = branch
            (cross_entropy(model(x.clone()), y) / 2).backward()  # another micro-batch
        steps = optimizer._steps()
        phi = input_factor(optimizer)
        reference = LNGD(model, source=source)
        reference.zero_grad()
        model.branch = 0
        (cross_entropy(model(x), y) / 2).backward()
        alone = reference._steps()["first"]
        if source == "layerwise":  # each ∇ℓ_n is twice as large, and those of the other half are zero
            ratio = (steps["first"].direction / alone.direction).mean()
            torch.testing.assert_close(steps["first"].direction, ratio * alone.direction)
            torch.testing.assert_close(steps["first"].squares, 2 * ratio**2 * alone.squares)
        else:  # Φ has g twice as large too
            torch.testing.assert_close(phi, 4 * input_factor(reference))


# --- batches, gradients, checkpointing ------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_smaller_last_batch_has_the_weight_of_a_batch(method):
    """A step with a batch is that with the batch twice over, where no label is drawn."""
    [(x, y)] = batches("mlp", 1, 5)
    model, doubled = network("mlp"), network("mlp")
    start = batches("mlp", 1, 8, seed=3)
    optimizer, other = (
        METHODS[method](model, statistics_every=1),
        METHODS[method](doubled, statistics_every=1),
    )
    train(model, optimizer, start)
    train(doubled, other, start)
    found = train(model, optimizer, [(x, y)])
    expected = train(doubled, other, [(torch.cat([x, x]), torch.cat([y, y]))])
    if method in ("lngd", "lngd-sample", "lngd-empirical", "kfac-empirical", "ngplus"):
        assert_close(found, expected)
    assert all(bool(value.isfinite().all()) for value in found.values())


@pytest.mark.parametrize("method", SOME)
@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_a_batch_of_one_sample(method, name):
    model = network(name)
    found = train(
        model, METHODS[method](model, damping=(1e-5, 1.0) if "lngd" in method else 0.1), batches(name, 2, 1)
    )
    assert all(bool(value.isfinite().all()) for value in found.values())


CLEARED: dict[str, Callable[[nn.Module, torch.optim.Optimizer], None]] = {
    "before the forward pass": lambda model, optimizer: None,
    "to zeros": lambda model, optimizer: optimizer.zero_grad(set_to_none=False),
    "by the model": lambda model, optimizer: model.zero_grad(),
    "by the model to zeros": lambda model, optimizer: model.zero_grad(set_to_none=False),
}


@pytest.mark.parametrize("clear", CLEARED)
@pytest.mark.parametrize("method", SOME)
def test_gradients_cleared_between_the_forward_and_the_backward_pass(method, clear):
    data = batches("mlp", 4)
    model, usual = network("mlp"), network("mlp")
    optimizer = METHODS[method](model, **DUE)
    for x, y in data:
        if clear == "before the forward pass":
            optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        CLEARED[clear](model, optimizer)
        loss.backward()
        optimizer.step()
    assert_same(weights(model), train(usual, METHODS[method](usual, **DUE), data))


def checkpointed(inner: nn.Module) -> Net:
    return Net(lambda net, x: checkpoint(net.inner, x, use_reentrant=False), inner=inner)


def nested(name: str, wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    if name == "layers":
        torch.manual_seed(0)
        parts = [nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 6)], [nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)]
        return nn.Sequential(*(wrap(nn.Sequential(*part)) for part in parts)).double()
    torch.manual_seed(0)
    return nn.Sequential(wrap(Block()), wrap(Block()), Mean(), nn.Linear(6, 3)).double()


@pytest.mark.parametrize("method", SOME)
def test_activation_checkpointing(method):
    """The second forward pass adds nothing."""
    data = batches("mlp", 3)
    model, usual = nested("layers", checkpointed), nested("layers", lambda module: module)
    found = train(model, METHODS[method](model, **DUE), data)
    expected = train(usual, METHODS[method](usual, **DUE), data)
    assert_same({key.replace("inner.", ""): value for key, value in found.items()}, expected)


@pytest.mark.parametrize("kind", ["attention", "gru", "cell"])
def test_activation_checkpointing_around_a_fused_module_leaves_it_out(kind):
    """What is saved would be made again by its own forward; the gradients themselves are right."""
    torch.manual_seed(0)
    inner = {
        "attention": lambda: Net(
            lambda net, x: net.part(x, x, x)[0], part=nn.MultiheadAttention(4, 2, batch_first=True)
        ),
        "gru": lambda: Net(lambda net, x: net.part(x)[0], part=nn.GRU(4, 4, batch_first=True)),
        "cell": lambda: Net(lambda net, x: net.part(x[:, 0])[0].unsqueeze(1), part=nn.LSTMCell(4, 4)),
    }
    model = Net(
        lambda net, x: net.head(net.body(x).mean(1)), body=checkpointed(inner[kind]()), head=nn.Linear(4, 3)
    )
    model, x, y = model.double(), torch.randn(5, 3, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    usual = copy.deepcopy(model)
    optimizer = METHODS["kfac"](model, **DUE)
    for one in (model, usual):
        cross_entropy(one(x), y).backward()
    for p, own in zip(model.parameters(), usual.parameters(), strict=True):
        torch.testing.assert_close(p.grad, own.grad)
    with pytest.warns(UserWarning, match="inside activation checkpointing"):
        optimizer.step()
    assert list(optimizer.rates()["layer"]) == ["head"]


def test_dropout_of_attention_stays():
    """A model in training is the same function with an optimizer and without."""
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(4, 2, dropout=0.9, batch_first=True)

    model = Net(lambda net, x: net.attention(x, x, x)[0], attention=attention).double()
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    optimizer = LNGD(model)
    first, second = model(x), model(x)
    assert not torch.allclose(first, second)
    assert optimizer.param_groups


# --- the identity behind the rate -----------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_the_mean_of_products_is_the_product_of_the_mean(name):
    """(1/N) Σ_n ⟨D, ∇ℓ_n⟩ = ⟨D, ∇h⟩ for the very D of the step, batch norm or not."""
    model, data = network(name), batches(name, 2)
    optimizer = LNGD(model)
    train(model, optimizer, data[:1])
    products, found = optimizer._tap.products, {}
    plain = products.along

    def kept(layer: str, direction: Tensor) -> tuple[Tensor, bool]:
        along, every = plain(layer, direction)
        found[layer] = along.sum()
        return along, every

    products.along = kept
    optimizer.zero_grad()
    backward(model, data[1])
    steps = optimizer._steps()
    assert set(found) == set(steps) == set(optimizer._layers)
    for layer, step in steps.items():
        torch.testing.assert_close(found[layer], step.gradient)
        assert step.squares >= step.gradient.square() * (1 - 1e-12)  # Jensen


@pytest.mark.parametrize("name", NETWORKS)
def test_a_rate_makes_the_step_that_the_quadratic_model_asks_for(name):
    """At lr = 1 and μ → 0 the step −α D minimises −α⟨D, ∇h⟩ + ½ α² (1/N) Σ_n ⟨D, ∇ℓ_n⟩² over α."""
    model, [batch] = network(name), batches(name)
    optimizer = LNGD(model, rate_damping=1e-300)
    backward(model, batch)
    for layer, step in optimizer._steps().items():
        rate = torch.tensor(
            float(optimizer._maker.rate(layer, step)), dtype=torch.float64, requires_grad=True
        )
        value = -rate * step.gradient + 0.5 * rate**2 * step.squares
        slope = torch.autograd.grad(value, rate)[0]
        assert abs(float(slope)) < 1e-9 * float(step.gradient)


@pytest.mark.parametrize("rates", [(0.1, None), (0.1, 0.01)])
def test_a_dead_layer_stays_finite(rates):
    """tr Φ = 0: its units never fire."""
    lr, other_lr = rates
    model = network("mlp")
    with torch.no_grad():
        model[2].weight.zero_()
        model[0].weight.zero_()
        model[0].bias.zero_()
    for method in METHODS:
        found = train(model, METHODS[method](model, lr=lr, other_lr=other_lr), batches("mlp", 2))
        assert all(bool(value.isfinite().all()) for value in found.values()), method
