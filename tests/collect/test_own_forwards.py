"""An adapter whose forward is not its module's: everything that is looked at would be of another network."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fisherlab as fl
from fisherlab.errors import InputError
from fisherlab.layers import adapter as registry
from fisherlab.layers.attention import AttentionAdapter
from fisherlab.layers.recurrent import CellAdapter


class Gate(nn.Module):
    """y = (W_1 x + b) ∘ σ(W_2 x), in training times 2."""

    def __init__(self, d: int = 4, m: int = 3) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(2 * m, d) / 2), nn.Parameter(torch.zeros(m))

    def forward(self, x: Tensor) -> Tensor:
        value, gate = (x @ self.weight.mT).chunk(2, -1)
        return (value + self.bias) * gate.sigmoid() * (1 + self.training)


class GateAdapter(fl.FusedAdapter):
    modules = (Gate,)

    def parts(self, module):
        m = len(module.bias)
        return [
            fl.Part("value", "weight", "bias", rows=slice(0, m)),
            fl.Part("gate", "weight", rows=slice(m, 2 * m)),
        ]

    def forward(self, module, record, x):
        above, below = module.weight.chunk(2)
        value, gate = functional.linear(x, above, module.bias), x @ below.mT
        record("value", x, value)
        record("gate", x, gate)
        return self.changed(module, value * gate.sigmoid() * (1 + module.training))

    def changed(self, module, y):
        return y


class WrongInEvaluation(GateAdapter):
    def changed(self, module, y):
        return y if module.training else 1.01 * y


class WrongInTraining(GateAdapter):
    def changed(self, module, y):
        return 1.01 * y if module.training else y


class WithoutItsBias(GateAdapter):
    """The bias is zero now: the outputs are the same."""

    def forward(self, module, record, x):
        value, gate = (x @ weight.mT for weight in module.weight.chunk(2))
        record("value", x, value)
        record("gate", x, gate)
        return value * gate.sigmoid() * (1 + module.training)


class WithoutAPath(GateAdapter):
    """What comes before gets no gradient through it; its own parameters get theirs."""

    def forward(self, module, record, x):
        return super().forward(module, record, x.detach())


class WrongAtTheSecondCall(CellAdapter):
    def forward(self, module, record, input, hx=None):
        end = super().forward(module, record, input, hx)
        return end if hx is None else 1.01 * end


class WrongAttention(AttentionAdapter):
    """Without the mask."""

    def forward(self, module, record, query, key, value, attn_mask=None, **options):
        return super().forward(module, record, query, key, value, **options)


class Before(nn.Sequential):
    """Two layers and what stands between them."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__(nn.Linear(4, 4), inside, nn.Linear(3, 3))


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = self.cell(x)
        return self.head(self.cell(x, state))


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.stack([x, x.flip(-1)], 1)
        mask = torch.tensor([[False, True], [False, False]])
        return self.head(self.attention(x, x, x, attn_mask=mask, need_weights=False)[0].mean(1))


CASES = {
    "in evaluation mode": (WrongInEvaluation, lambda: Before(Gate()), r"module '1' \(.*Gate\)"),
    "by its bias": (WithoutItsBias, lambda: Before(Gate()), "module '1'"),
    "by a path": (WithoutAPath, lambda: Before(Gate()), "module '1'"),
    "at the second call": (WrongAtTheSecondCall, Cell, r"module 'cell' \(GRUCell\)"),
    "of torch": (WrongAttention, Masked, r"module 'attention' \(MultiheadAttention\)"),
}


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(registry, "_ADAPTERS", dict(registry._ADAPTERS))
    fl.register_layer(GateAdapter())


def made(build) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = build().double()
    return model, (torch.randn(6, 4, dtype=torch.float64), torch.randint(3, (6,)))


def step(model: nn.Module, optimizer, data) -> None:
    functional.cross_entropy(model(data[0]), data[1]).backward()
    optimizer.step()


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_by_name(case):
    adapter, build, module = CASES[case]
    fl.register_layer(adapter())
    model, data = made(build)
    match = rf"forward of {adapter.__name__} does not give what {module}.*exclude="
    with pytest.raises(InputError, match=match):
        fl.exact_fisher(model, data)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = fl.optim.KFAC(model)
    with pytest.raises(InputError, match=match):
        step(model, optimizer, data)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_only_the_wrong_one_is_named():
    fl.register_layer(WrongAtTheSecondCall())
    model, data = made(lambda: nn.Sequential(Before(Gate()), nn.Linear(3, 4), Cell()))
    with pytest.raises(InputError) as raised:
        fl.exact_fisher(model, data)
    assert "module '2.cell'" in str(raised.value)
    assert "Gate" not in str(raised.value)


def test_its_layers_may_be_left_out():
    fl.register_layer(WrongInEvaluation())
    model, data = made(lambda: Before(Gate()))
    assert set(fl.exact_fisher(model, data, exclude=("1",))) == {"0", "2"}
    step(model, fl.optim.KFAC(model, exclude=("1",)), data)


def test_an_optimizer_looks_at_the_mode_of_training():
    """An analysis, in evaluation mode, need not mind."""
    fl.register_layer(WrongInTraining())
    model, data = made(lambda: Before(Gate()))
    assert len(fl.exact_fisher(model, data)) == 4
    step(model.eval(), optimizer := fl.optim.KFAC(model), data)
    with pytest.raises(InputError, match="forward of WrongInTraining"):
        step(model.train(), optimizer, data)


class Dropping(Gate):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(super().forward(x))


class WithoutItsDropout(GateAdapter):
    modules = (Dropping,)


class WithItsDropout(WithoutItsDropout):
    """By another mask than the module's own."""

    def changed(self, module, y):
        return module.drop(y.flip(0)).flip(0)


@pytest.mark.parametrize("beside", [nn.Identity, nn.Dropout], ids=["alone", "beside another"])
def test_dropout_that_is_forgotten_is_refused(beside):
    fl.register_layer(WithoutItsDropout())
    model, data = made(lambda: nn.Sequential(Before(Dropping()), beside()))
    assert len(fl.exact_fisher(model, data)) == 4  # in evaluation mode nothing is dropped
    with pytest.raises(InputError, match=r"forward of WithoutItsDropout does not give what module '0\.1'"):
        step(model, fl.optim.KFAC(model), data)
    fl.register_layer(WithItsDropout())
    step(model, fl.optim.KFAC(model), data)


@pytest.mark.parametrize("samples", [1, 6])
def test_a_right_one_is_taken_with_dropout_and_batch_norm(samples):
    def build():
        inside = nn.Sequential(nn.BatchNorm1d(4), nn.Unflatten(1, (1, 4)))
        attention = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.3, batch_first=True)
        return nn.Sequential(inside if samples > 1 else inside[1], attention, nn.Flatten(), Before(Gate()))

    model, (x, _) = made(build)
    model, x = model.float(), x.float()
    state, random = torch.get_rng_state(), [b.clone() for b in model.buffers()]
    optimizer = fl.optim.LNGD(model)
    model(x[:samples])
    after = torch.get_rng_state()
    usual = model.state_dict()
    del optimizer
    other, _ = made(build)
    other.float().load_state_dict({**usual, **dict(zip(dict(other.named_buffers()), random, strict=True))})
    torch.set_rng_state(state)
    other(x[:samples])
    assert torch.equal(torch.get_rng_state(), after)
    assert all(torch.equal(a, b) for a, b in zip(other.buffers(), model.buffers(), strict=True))
