"""Modules that compute several projections in one forward: one file, one registration, and all is seen."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fisherlab as fl
from fisherlab.collect.hooks import capture
from fisherlab.errors import InputError
from fisherlab.layers import adapter as registry
from fisherlab.layers import spelled_out


class FusedGate(nn.Module):
    """Attention's q, k and v in one weight, v gated by stacked matrices of which each token picks one."""

    def __init__(self, d: int = 4, experts: int = 3) -> None:
        super().__init__()
        self.qkv = nn.Parameter(torch.randn(3 * d, d) / 2)
        self.qkv_bias = nn.Parameter(torch.randn(3 * d) / 4)
        self.gates = nn.Parameter(torch.randn(experts, d, d) / 2)
        self.gate_biases = nn.Parameter(torch.randn(experts, d) / 4)

    def route(self, x: Tensor) -> Tensor:
        return (x.detach()[..., 0] * 7).long() % len(self.gates)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = functional.linear(x, self.qkv, self.qkv_bias).chunk(3, -1)
        chosen = self.route(x)
        gate = torch.einsum("ntmd,ntd->ntm", self.gates[chosen], x) + self.gate_biases[chosen]
        return torch.softmax(q @ k.mT, -1) @ (v * gate.tanh())


class FusedGateAdapter(fl.FusedAdapter):
    modules = (FusedGate,)

    def parts(self, module):
        d = module.qkv.shape[1]
        rows = {name: slice(place * d, (place + 1) * d) for place, name in enumerate("qkv")}
        fused = [fl.Part(name, "qkv", "qkv_bias", own, own) for name, own in rows.items()]
        experts = range(len(module.gates))
        return [*fused, *(fl.Part(f"gate.{e}", "gates", "gate_biases", e, e) for e in experts)]

    def forward(self, module, record, x):
        projected = []
        for name, weight, bias in zip("qkv", module.qkv.chunk(3), module.qkv_bias.chunk(3), strict=True):
            projected.append(functional.linear(x, weight, bias))
            record(name, x, projected[-1])
        q, k, v = projected
        chosen, gate = module.route(x), 0
        for e, (weight, bias) in enumerate(zip(module.gates, module.gate_biases, strict=True)):
            own, valid = functional.linear(x, weight, bias), chosen == e
            record(f"gate.{e}", x, own, valid=valid)
            gate = gate + own * valid.unsqueeze(-1)
        return torch.softmax(q @ k.mT, -1) @ (v * gate.tanh())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.head = FusedGate(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gate(x).mean(1))


NAMES = ["gate.q", "gate.k", "gate.v", "gate.gate.0", "gate.gate.1", "gate.gate.2", "head"]


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(registry, "_ADAPTERS", dict(registry._ADAPTERS))
    fl.register_layer(FusedGateAdapter())


@pytest.fixture
def model(registered) -> Net:
    torch.manual_seed(0)
    return Net().double()


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(6, 5, 4, dtype=torch.float64), torch.randint(3, (6,))


def samples_gradients(model: nn.Module, data, name: str) -> Tensor:
    """V [n, m, d] of a layer by plain autograd, sample by sample, from the module's own forward."""
    view = fl.find_layers(model)[name]
    own = dict(model.named_parameters())
    rows = []
    for x, y in zip(*data, strict=True):
        loss = functional.cross_entropy(model(x[None]), y[None])
        found = torch.autograd.grad(loss, [own[p] for p in view.parameters])
        rows.append(view.to_matrix(dict(zip(view.parameters, found, strict=True))))
    return torch.stack(rows)


def loss_of_a_step(model: nn.Module, optimizer, data) -> float:
    optimizer.zero_grad()
    loss = functional.cross_entropy(model(data[0]), data[1])
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def test_every_part_is_a_layer_of_its_own(model):
    layers = fl.find_layers(model)
    assert list(layers) == NAMES
    assert [(v.outputs, v.inputs) for v in layers.values()] == [(4, 5)] * 6 + [(3, 5)]
    assert layers["gate.k"].family == "FusedGate"
    assert layers.coverage()["covered"].all()
    assert list(fl.find_layers(model, bias="separate"))[:2] == ["gate.q", "gate.q.bias"]


@pytest.mark.parametrize("name", NAMES)
def test_the_exact_block_is_that_of_autograd(model, data, name):
    V = samples_gradients(model, data, name).mT.flatten(1)
    expected = V.T @ V / len(V)
    F = fl.exact_fisher(model, data, kind="empirical", layers=[name])[name].dense()
    assert torch.linalg.norm(F - expected) < 1e-12 * torch.linalg.norm(expected)


def test_only_rows_that_count_enter_the_factors(model, data):
    """KFAC's A of an expert is that of the tokens that it was given."""
    x = data[0]
    A = fl.approximate("kfac", model, data, kind="empirical")["gate.gate.1"].A
    own = x[model.gate.route(x) == 1]
    a = torch.cat([own, own.new_ones(len(own), 1)], 1)
    shape = a.T @ a
    assert torch.allclose(A / A[-1, -1], shape / shape[-1, -1])


def test_every_approximation_and_every_optimizer_sees_the_parts(model, data):
    records = fl.compare(model, data, ("kfac", "ekfac", "tkfac", "lngd")).records
    assert set(records["layer"]) == set(NAMES)
    assert records["relative_error"].notna().all()
    for make in (fl.optim.LNGD, fl.optim.KFAC):
        own = copy.deepcopy(model)
        optimizer = make(own, lr=0.05)
        losses = [loss_of_a_step(own, optimizer, data) for _ in range(8)]
        assert losses[-1] < losses[0]
        assert set(optimizer.diagnostics()["layer"]) == set(NAMES)


def test_the_products_of_samples_are_those_of_their_gradients(model, data):
    """⟨D, V_n⟩ through the calls that were kept."""
    layers = fl.find_layers(model)
    with capture(layers) as seen:
        loss = functional.cross_entropy(model(data[0]), data[1], reduction="sum")
    for name, view in layers.items():
        D = torch.randn(view.outputs, view.inputs, dtype=torch.float64)
        expected = (samples_gradients(model, data, name) * D).sum((1, 2))
        [call] = seen[name]
        [g] = torch.autograd.grad(loss, [call.edge], retain_graph=True)
        torch.testing.assert_close(view.products(call, g, D, 6), expected)


def test_nothing_is_left_behind(model, data):
    before = model(data[0])
    fl.compare(model, data, ("kfac",))
    assert "forward" not in vars(model.gate)
    assert torch.equal(model(data[0]), before)
    again = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert torch.equal(again(data[0]), before)


def test_several_may_listen_and_stop_in_any_order(model, data):
    told: dict[str, list[str]] = {"first": [], "second": []}

    def listener(name):
        return lambda module, part, x, output, at, valid: told[name].append(part)

    first, second = (spelled_out([model.gate], listener(name)) for name in told)
    first.__enter__()
    second.__enter__()
    model(data[0])
    first.__exit__(None, None, None)
    model(data[0])
    second.__exit__(None, None, None)
    model(data[0])
    assert len(told["first"]) == 6
    assert len(told["second"]) == 12
    assert "forward" not in vars(model.gate)


def test_two_optimizers_may_have_different_parts_of_one_module(model, data):
    optimizers = [
        fl.optim.KFAC(model, lr=0.01, include=("gate.[qkv]",)),
        fl.optim.KFAC(model, lr=0.01, include=("gate.gate.*",)),
    ]
    for _ in range(2):
        for one in optimizers:
            one.zero_grad()
        functional.cross_entropy(model(data[0]), data[1]).backward()
        for one in optimizers:
            one.step()
    found = [set(one.diagnostics()["layer"]) for one in optimizers]
    assert found == [set(NAMES[:3]), set(NAMES[3:6])]


def test_a_forward_of_the_users_own_stays(model, data):
    layers, own = fl.find_layers(model), model.gate.forward
    calls = []

    def wrapped(x):
        calls.append(x)
        return own(x)

    model.gate.forward = wrapped
    with spelled_out([model.gate], lambda *told: calls.append(told)):
        model(data[0])
    assert len(calls) == 1
    assert model.gate.forward is wrapped
    assert "gate.q" not in fl.find_layers(model)
    assert layers["gate.q"].fused is model.gate


def test_a_forward_that_tells_what_is_not_so_spoils_no_block(registered, data):
    """Rows that are said not to count and do: the block is made of the samples' gradients instead."""

    class Wrong(FusedGateAdapter):
        def forward(self, module, record, x):
            def hidden(part, x, output, *, valid=None):
                record(part, x, output, valid=torch.zeros(x.shape[:2], dtype=torch.bool))

            return super().forward(module, hidden, x)

    fl.register_layer(Wrong())
    torch.manual_seed(0)
    model = Net().double()
    with pytest.warns(UserWarning, match="not measured: layer 'gate.q': kfac needs"):
        assert set(fl.approximate("kfac", model, data)) == {"head"}
    V = samples_gradients(model, data, "gate.q").mT.flatten(1)
    F = fl.exact_fisher(model, data, kind="empirical")["gate.q"].dense()
    assert torch.allclose(F, V.T @ V / len(V), rtol=1e-12)
    with pytest.warns(UserWarning, match="do not give the gradient of its parameters"):
        loss_of_a_step(model, optimizer := fl.optim.KFAC(model), data)
    assert list(optimizer.rates()["layer"]) == ["head"]


@pytest.mark.parametrize("rows", [slice(0, 5), slice(0, 8), None])
def test_parts_that_overlap_are_left_out_in_training(registered, data, rows):
    """The blocks of an analysis are made of the samples' gradients, and right."""

    class Overlapping(FusedGateAdapter):
        def parts(self, module):
            first, *others = super().parts(module)
            return [fl.Part("q", first.weight, first.bias, rows, rows), *others]

    fl.register_layer(Overlapping())
    torch.manual_seed(0)
    model = Net().double()
    V = samples_gradients(model, data, "gate.q").mT.flatten(1)
    F = fl.exact_fisher(model, data, kind="empirical", layers=["gate.q"])["gate.q"].dense()
    assert torch.allclose(F, V.T @ V / len(V), rtol=1e-12)
    with pytest.warns(UserWarning, match=r"layer 'gate\.q'.*do not give the gradient of its parameters"):
        loss_of_a_step(model, optimizer := fl.optim.KFAC(model), data)
    assert "gate.q" not in set(optimizer.rates()["layer"])


@pytest.mark.parametrize("rows", [0, slice(20, 22)], ids=["one", "none"])
def test_rows_that_are_no_matrix_are_refused(registered, rows):
    class Wrong(FusedGateAdapter):
        def parts(self, module):
            return [fl.Part("q", "qkv", "qkv_bias", rows, rows)]

    fl.register_layer(Wrong())
    match = r"part 'q' of a FusedGate: rows=\S.* of 'qkv', of shape \[12, 4\]"
    with pytest.raises(InputError, match=match):
        fl.find_layers(Net())
