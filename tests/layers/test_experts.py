"""Stacked experts of the transformers package: blocks against those of experts that are modules."""

import copy

import pytest
import torch
from model_cases import Net
from reference import relative
from torch import Tensor, nn
from torch.nn import functional

import fisherlab as fl
from fisherlab.layers.adapter import adapter_of

EXPERTS, WIDTH, INNER = 4, 5, 3
MIXED = (True, False)

# The interface that transformers' classes share, with the one forward that all of them have.
_MODULE = {"__name__": "transformers.integrations.moe"}
exec("def forward(self, *args, **kwargs):\n    return self.computed(*args, **kwargs)\n", _MODULE)


class Stacked(nn.Module):
    """Experts as transformers stores them, computed in another way: every expert for every token."""

    def __init__(self, gate: bool, bias: bool, transposed: bool) -> None:
        super().__init__()
        self.has_gate, self.has_bias, self.is_transposed = gate, bias, transposed
        first, outer = ("gate_up_proj", 2 * INNER) if gate else ("up_proj", INNER), WIDTH
        for (name, m), d in ((first, WIDTH), (("down_proj", outer), INNER)):
            shape = (EXPERTS, d, m) if transposed else (EXPERTS, m, d)
            setattr(self, name, nn.Parameter(torch.randn(shape)))
            if bias:
                setattr(self, f"{name}_bias", nn.Parameter(torch.randn(EXPERTS, m)))

    def act_fn(self, x: Tensor) -> Tensor:
        return x.tanh()

    def _apply_gate(self, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, -1)
        return gate.sigmoid() * up

    def _all(self, name: str, x: Tensor) -> Tensor:
        W = getattr(self, name)
        W = W.mT if self.is_transposed else W
        y = torch.einsum("emd,etd->etm", W, x)
        return y + getattr(self, f"{name}_bias")[:, None] if self.has_bias else y

    def computed(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        x = hidden_states.expand(EXPERTS, *hidden_states.shape)
        x = self._all("gate_up_proj" if self.has_gate else "up_proj", x)
        x = self._all("down_proj", self._apply_gate(x) if self.has_gate else self.act_fn(x))
        shares = (top_k_index[..., None] == torch.arange(EXPERTS)) * top_k_weights[..., None]
        return torch.einsum("te,etd->td", shares.sum(1), x)


Stacked.forward = _MODULE["forward"]


def routed(net: Net, x: Tensor) -> Tensor:
    """Tokens [n, t, d], two experts for each by a fixed rule; the last expert gets none."""
    tokens = x.flatten(0, 1)
    scores = tokens[:, : EXPERTS - 1]
    weights, index = scores.softmax(-1).topk(2)
    y = net.experts(tokens, index, weights).view(x.shape)
    return net.head((x + y).tanh().mean(1))


def network(*layout: bool) -> Net:
    return Net(routed, experts=Stacked(*layout), head=nn.Linear(WIDTH, 3)).double()


class Apart(nn.Module):
    """The same experts as modules, each called with the tokens of one sample after the other's, ragged."""

    def __init__(self, stacked: Stacked) -> None:
        super().__init__()
        self.made_of = [stacked]
        first = "gate_up_proj" if stacked.has_gate else "up_proj"
        for name in (first, "down_proj"):
            linears = []
            for e in range(EXPERTS):
                W = getattr(stacked, name)[e].detach()
                W = W.mT if stacked.is_transposed else W
                linear = nn.Linear(W.shape[1], W.shape[0], bias=stacked.has_bias).double()
                linear.weight.data = W.clone()
                if stacked.has_bias:
                    linear.bias.data = getattr(stacked, f"{name}_bias")[e].detach().clone()
                linears.append(linear)
            self.add_module("first" if name == first else "second", nn.ModuleList(linears))

    def forward(self, hidden_states: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        (stacked,), result = self.made_of, torch.zeros_like(hidden_states)
        for e in range(EXPERTS):
            share = ((index == e) * weights).sum(1, keepdim=True)
            x = self.first[e](hidden_states)
            x = stacked._apply_gate(x) if stacked.has_gate else stacked.act_fn(x)
            result = result + share * self.second[e](x)
        return result


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 4, WIDTH, dtype=torch.float64), torch.arange(6) % 3


LAYOUTS = [
    pytest.param(*layout, id=name)
    for name, layout in {
        "gate": (True, False, False),
        "plain with a bias": (False, True, False),
        "transposed with a bias": (True, True, True),
    }.items()
]


@pytest.mark.parametrize(("gate", "bias", "transposed"), LAYOUTS)
def test_a_block_an_expert(data, gate, bias, transposed):
    model = network(gate, bias, transposed)
    first = "gate_up_proj" if gate else "up_proj"
    layers = fl.find_layers(model)
    names = [f"experts.{name}.{e}" for name in (first, "down_proj") for e in range(EXPERTS)]
    assert list(layers) == [*names, "head"]
    assert layers.coverage()["covered"].all()
    view = layers[f"experts.{first}.2"]
    assert (view.outputs, view.inputs) == ((2 if gate else 1) * INNER, WIDTH + bias)
    other = Net(routed, experts=Apart(model.experts), head=model.head)
    found, expected = (fl.exact_fisher(m, data) for m in (model, other))
    for e in range(EXPERTS):
        for name, module in ((first, "first"), ("down_proj", "second")):
            block, own = found[f"experts.{name}.{e}"].dense(), expected[f"experts.{module}.{e}"].dense()
            assert torch.allclose(block, own, rtol=0, atol=1e-12 * max(1.0, float(own.norm())))
            assert bool(block.any()) == (e < EXPERTS - 1)


def test_only_tokens_that_are_routed_count(data):
    """KFAC's factors of one expert from their definition, over its own tokens."""
    model = network(True, True, False)
    x, y = data
    kept: list[Tensor] = []
    experts, n = model.experts, len(x)
    gather = fl.approximate("kfac", model, data, kind="empirical")["experts.down_proj.0"]
    tokens = x.flatten(0, 1)
    index = tokens[:, : EXPERTS - 1].topk(2)[1]
    own = (index == 0).any(1)
    inner = experts._apply_gate(
        functional.linear(tokens, experts.gate_up_proj[0], experts.gate_up_proj_bias[0])
    )
    a = torch.cat([inner, torch.ones_like(inner[:, :1])], 1)[own].detach()
    with fl.layers.spelled_out(
        [experts], lambda *told: kept.append(told[4]) if told[1] == "down_proj.0" else None
    ):
        outputs = model(x)
    losses = functional.cross_entropy(outputs, y, reduction="sum")
    g = torch.autograd.grad(losses, kept[0])[0][own]
    A, B = a.mT @ a / n, g.mT @ g / int(own.sum())
    assert relative(gather.A, A) < 1e-12
    assert relative(gather.B, B) < 1e-12


def test_an_expert_that_sees_no_token_counts_zero(data):
    model = network(True, False, False)
    blocks = fl.exact_fisher(model, data)
    last = f"experts.down_proj.{EXPERTS - 1}"
    assert not blocks[last].dense().any()
    for method in ("kfac", "ekfac", "tkfac", "lngd", "diagonal"):
        found = fl.approximate(method, model, data)
        assert torch.isfinite(found[last].dense()).all()
        assert method == "lngd" or not found[last].dense().any()
    table = fl.compare(model, data, ("kfac",), spectra=False).records
    assert set(table["layer"]) == set(blocks)


def test_the_forward_gives_the_same_and_is_restored(data):
    model = network(True, True, True)
    x, _ = data
    expected, told = model(x), []
    with fl.layers.spelled_out([model.experts], lambda *one: told.append(one[1])):
        found = model(x)
    assert torch.allclose(found, expected, rtol=0, atol=1e-13)
    assert len(told) == 2 * EXPERTS
    assert "forward" not in vars(model.experts)
    copy.deepcopy(model)


@pytest.mark.parametrize("optimizer", [fl.optim.LNGD, fl.optim.KFAC, fl.optim.EKFAC])
def test_training(data, optimizer):
    model = network(True, True, False)
    x, y = data
    opt = optimizer(model, lr=0.02, statistics_every=1, inverse_every=1)
    assert len(opt.rates()) == 2 * EXPERTS + 1
    unused = model.experts.down_proj[-1].detach().clone()
    losses = []
    for _ in range(5):
        opt.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert model.experts.down_proj[-1].detach().norm() <= unused.norm()  # decay alone
    again = optimizer(copy.deepcopy(model), lr=0.02)
    again.load_state_dict(opt.state_dict())


def test_experts_that_are_shared_out_are_refused():
    model = network(True, False, False)
    model.experts._is_expert_parallel = True
    assert "experts.down_proj.0" not in fl.find_layers(model)
    assert "shared out among processes" in adapter_of(model.experts).refusal(model.experts)


def test_the_real_classes():
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(
        vocab_size=11,
        hidden_size=8,
        intermediate_size=6,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=3,
    )
    model = Net(
        lambda net, x: net.inner(input_ids=x, use_cache=False).logits[:, -1],
        inner=transformers.MixtralForCausalLM(config),
    ).eval()
    model.inner.config._experts_implementation = "eager"  # others ask for widths of 16 bytes
    names = list(fl.find_layers(model))
    assert [n for n in names if ".experts." in n] == [
        f"inner.model.layers.0.mlp.experts.{name}.{e}"
        for name in ("gate_up_proj", "down_proj")
        for e in range(3)
    ]
    data = torch.randint(11, (3, 4)), None
    found, expected = fl.exact_fisher(model, data), fl.exact_fisher(model, data, method="per-sample")
    assert all(relative(found[n].dense(), expected[n].dense()) < 1e-4 for n in names if expected[n].trace())
