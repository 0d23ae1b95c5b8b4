"""Blocks of parameters that no call of a module tells of, against autograd sample by sample."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import Net, assert_same, made, state_of
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.parametrize import register_parametrization

import fisherlab as fl
from fisherlab.collect.collector import Collector
from fisherlab.errors import InputError

N, D, C = 7, 4, 3


def reference(model: nn.Module, x: Tensor, y: Tensor, name: str, kind: str = "predictive") -> Tensor:
    """F [p, p] of one parameter, flat: Σ p(y | f) ∇log p ∇log pᵀ, with one sample in the model at a time."""
    parameter = dict(model.named_parameters())[name]
    total = torch.zeros(parameter.numel(), parameter.numel(), dtype=torch.float64)
    for sample, label in zip(x, y, strict=True):
        logs = model(sample[None]).log_softmax(-1)[0]
        for c, log in enumerate(logs):
            weight = float(log.detach().exp()) if kind == "predictive" else float(c == label)
            (g,) = torch.autograd.grad(log, parameter, retain_graph=True, allow_unused=True)
            if g is not None:
                total += weight * torch.outer(g.flatten(), g.flatten())
    return total / len(x)


def close(found: Tensor, expected: Tensor) -> bool:
    return bool(torch.linalg.norm(found - expected) <= 1e-12 * torch.linalg.norm(expected))


class Tokens(nn.Module):
    """A class token, positions, a gate, a scale a layer, and a parameter that nothing needs."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, D)), nn.Parameter(torch.randn(3, D))
        self.gate, self.one = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.ones(1, 1))
        self.scales = nn.ParameterList([nn.Parameter(torch.rand(D)), nn.Parameter(torch.rand(D))])
        self.more = nn.ParameterDict({"shift": nn.Parameter(torch.randn(D))})
        self.inner, self.head = nn.Linear(D, D), nn.Linear(D, C)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.token.expand(len(x), 1, D), x.unflatten(1, (2, D))], 1) + self.positions
        h = h + self.gate * self.scales[0] * self.inner(h).tanh()
        return self.head((self.scales[1] * h + self.one * self.more["shift"]).tanh().mean(1))


RAW = ["token", "positions", "gate", "one", "scales.0", "scales.1", "more.shift"]


@pytest.fixture
def tokens() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    return made(Tokens), (torch.randn(N, 2 * D).double(), torch.arange(N) % C)


@pytest.mark.parametrize("kind", ["predictive", "empirical"])
@pytest.mark.parametrize("method", ["auto", "per-sample", "kronecker", "gram"])
def test_a_raw_parameter_has_a_block_of_its_own(tokens, method, kind):
    model, data = tokens
    F = fl.exact_fisher(model, data, kind=kind, method=method, layers=RAW)
    assert set(F) == set(RAW)
    for name, block in F.items():
        assert close(block.dense(), reference(model, *data, name, kind)), name


def test_every_function_takes_them(tokens, tmp_path):
    model, data = tokens
    before = state_of(model)
    records = fl.compare(model, data, ("kfac", "tkfac")).records.set_index("layer")
    assert set(records.loc[RAW, "module"]) == {"Parameter"}
    assert set(records.loc[RAW, "approximation"]) == {"diagonal"}
    assert records.loc[RAW, "note"].str.contains("a parameter of ").all()
    F = fl.exact_fisher(model, data)
    diagonal = fl.approximate("diagonal", model, data)
    for name in RAW:
        assert close(diagonal[name].diagonal(), F[name].diagonal())
        assert records.loc[name, "trace_exact"] == pytest.approx(float(F[name].trace()))
    saved = fl.collect_statistics(model, data, approximations="diagonal", path=tmp_path / "sums.safetensors")
    assert close(saved.build("diagonal")["gate"].diagonal(), F["gate"].diagonal())
    assert not set(RAW) & set(fl.approximate("kfac", model, data))  # as of norms
    assert set(fl.represent(model, data).layers["layer"]) == {"inner", "head"}
    assert_same(state_of(model), before)


def test_all_of_them_come_from_one_pass(tokens, monkeypatch):
    model, data = tokens
    passes = []
    monkeypatch.setattr(Collector, "sample_gradients", _counted(Collector.sample_gradients, passes))
    fl.exact_fisher(model, data)
    assert [set(names) for names in passes] == [set(RAW)]


def _counted(function, calls):
    def counted(self, names):
        calls.append(tuple(names))
        return function(self, names)

    return counted


def test_what_does_not_fit_is_left_out_and_the_others_are_not(tokens):
    model, data = tokens
    other = Net(
        lambda net, x: net.inside(x) * (net.big * x.mean(1, keepdim=True)).cos().mean(1, keepdim=True),
        inside=model,
        big=nn.Parameter(torch.rand(4000, dtype=torch.float64)),
    )
    with pytest.warns(UserWarning, match="layer 'big' would need .* memory limit"):
        F = fl.exact_fisher(other, data, memory="200kB")
    assert set(F) == {f"inside.{name}" for name in [*RAW, "inner", "head"]}


@pytest.mark.parametrize(
    ("parameter", "reason"),
    [
        (nn.Parameter(torch.ones(D), requires_grad=False), "frozen"),
        (nn.Parameter(torch.ones(D, dtype=torch.complex128)), "complex"),
        (nn.Parameter(torch.ones(D).to_sparse()), "sparse"),
        (nn.Parameter(torch.ones(0)), "it has no entries"),
    ],
)
def test_what_can_have_none_says_why(parameter, reason):
    layers = fl.find_layers(Net(lambda net, x: net.head(x), own=parameter, head=nn.Linear(D, C)))
    table = layers.coverage().set_index("parameter")
    assert list(layers) == ["head"]
    assert reason in table.loc["own", "reason"]


def test_one_that_takes_no_part_is_left_out(tokens):
    model, data = tokens
    model.idle = nn.Parameter(torch.ones(2, dtype=torch.float64))
    with pytest.warns(UserWarning, match="'idle': it takes no part"):
        assert set(fl.exact_fisher(model, data)) == {*RAW, "inner", "head"}


def test_a_model_that_mixes_samples_gives_no_block_of_its_parameters():
    own = nn.Parameter(torch.rand(C))
    model = Net(lambda net, x: net.head(x) + net.own * x.mean(), own=own, head=nn.Linear(D, C)).double()
    data = torch.randn(N, D).double(), torch.arange(N) % C
    with pytest.raises(InputError):
        fl.exact_fisher(model, data)


@settings(max_examples=8, deadline=None)
@given(shape=st.lists(st.integers(1, 3), max_size=3), seed=st.integers(0, 99), scale=st.booleans())
def test_any_shape(shape, seed, scale):
    def build() -> nn.Module:
        def forward(net: Net, x: Tensor) -> Tensor:
            own = net.own.exp().sum() if scale else net.own.flatten().cumsum(0).sin().prod()
            return net.head((x * own).tanh())

        return Net(forward, own=nn.Parameter(torch.randn(shape)), head=nn.Linear(D, C))

    model = made(build, seed)
    data = torch.randn(N, D).double(), torch.arange(N) % C
    found = fl.exact_fisher(model, data, layers="own")["own"].dense()
    assert close(found, reference(model, *data, "own"))


# --- tied weights -------------------------------------------------------------------------------------


def tied() -> nn.Module:
    """A network whose output layer has the embedding's matrix."""
    layers = {"token": nn.Embedding(6, D), "inner": nn.Linear(D, D), "head": nn.Linear(D, 6)}
    model = Net(lambda net, x: net.head(net.inner(net.token(x).mean(1)).tanh()), **layers)
    model.head.weight = model.token.weight
    return model


class Held(nn.Module):
    """A layer's weight that its parent has too, and another parameter that two modules have."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(D, D), nn.Linear(D, C)
        self.weight = self.layer.weight
        self.one, self.other = nn.PReLU(D), nn.PReLU(D)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.other(self.one(self.layer(x)) @ self.weight))


@pytest.mark.parametrize("method", ["auto", "per-sample", "gram"])
def test_a_matrix_of_an_embedding_and_the_output_layer_is_one_block(method):
    model = made(tied)
    tokens = torch.randint(6, (N, 3))
    labels = torch.zeros(N, dtype=torch.long)
    F = fl.exact_fisher(model, (tokens, labels), method=method, layers=["token"])["token"]
    expected = reference(model, tokens, labels, "token.weight")
    assert (F.outputs, F.inputs) == (6, D)  # as the output layer sees it
    assert close(F.dense("row"), expected)
    methods = ["diagonal", "tkfac", "nearest-kronecker"]
    assert all(list(fl.approximate(m, model, (tokens, labels), layers="token")) == ["token"] for m in methods)


def test_of_tied_weights_all_owners_are_named():
    reasons = fl.find_layers(made(tied)).coverage().set_index("parameter")["reason"]
    assert reasons["token.weight"] == "tied between token.weight (Embedding) and head.weight (Linear)"
    held = fl.find_layers(made(Held)).coverage().set_index("parameter")["reason"]
    assert held["weight"].startswith("tied between weight (")
    assert held["weight"].endswith("Held) and layer.weight (Linear)")
    assert held["one.weight"] == "tied: summed over other too"


@pytest.mark.parametrize("bias", ["joint", "separate", "ignore"])
def test_parameters_that_several_modules_have(bias):
    model, data = made(Held), (torch.randn(N, D).double(), torch.arange(N) % C)
    F = fl.exact_fisher(model, data, bias=bias)
    assert close(F["layer"].dense("row"), reference(model, *data, "weight"))
    assert close(F["one"].dense(), reference(model, *data, "one.weight"))
    assert ("layer.bias" in F) == (bias != "ignore")


# --- weights that are computed ------------------------------------------------------------------------


class Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).mT


COMPUTED = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal, exponential": lambda module: parametrizations.orthogonal(
        module, orthogonal_map="matrix_exp"
    ),
    "orthogonal, householder": lambda module: parametrizations.orthogonal(
        module, orthogonal_map="householder"
    ),
    "parametrization": lambda module: register_parametrization(module, "weight", Symmetric()),
    "two parametrizations": lambda module: register_parametrization(
        register_parametrization(module, "weight", Symmetric()), "weight", Symmetric()
    ),
    "of the bias": lambda module: register_parametrization(module, "bias", nn.Softplus(), unsafe=True),
    "weight norm by a hook": nn.utils.weight_norm,
    "spectral norm by a hook": nn.utils.spectral_norm,
    "pruning": lambda module: prune.l1_unstructured(module, "weight", 0.5),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", COMPUTED)
def test_a_computed_weight_gives_blocks_of_its_originals(case, training):
    def build() -> nn.Module:
        model = nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, C))
        COMPUTED[case](model[0])
        return model

    model, data = made(build).train(training), (torch.randn(N, D).double(), torch.arange(N) % C)
    before = state_of(model)
    assert fl.find_layers(model).coverage()["covered"].all()
    F, records = fl.exact_fisher(model, data), fl.compare(model, data).records
    assert_same(state_of(model), before)
    model.eval()
    own = [name for name, _ in model[0].named_parameters() if name not in ("weight", "bias")]
    assert own
    for name in own:
        assert close(F[f"0.{name}"].dense(), reference(model, *data, f"0.{name}"))
        assert f"0.{name}" in set(records["layer"])
    if "0.bias" in F:
        assert close(F["0.bias"].dense(), reference(model, *data, "0.bias"))


# --- optimizers ---------------------------------------------------------------------------------------


def test_optimizers_leave_them_to_the_step_of_other_parameters(tokens, recwarn):
    model, (x, y) = tokens
    optimizer = fl.optim.KFAC(model, lr=0.01, other_lr=0.1, momentum=0.0, weight_decay=0.0)
    assert {row["layer"] for row in optimizer.diagnostics().to_dict("records")} <= {"inner", "head"}
    nn.functional.cross_entropy(model(x), y).backward()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    own = dict(model.named_parameters())
    steps = {name: own[name].grad.clone() for name in RAW}
    optimizer.step()
    for name in RAW:
        assert torch.allclose(own[name], before[name] - 0.1 * steps[name], rtol=1e-12, atol=1e-15), name
    assert not recwarn.list


def test_a_tied_matrix_is_stepped_once_as_the_others():
    model = made(tied)
    tokens = torch.randint(6, (N, 3))
    rate = 0.1
    optimizer = fl.optim.KFAC(model, lr=0.01, other_lr=rate, momentum=0.0, weight_decay=0.2)
    nn.functional.cross_entropy(model(tokens), torch.zeros(N, dtype=torch.long)).backward()
    weight = model.token.weight
    before, gradient = weight.detach().clone(), weight.grad.clone()
    optimizer.step()
    assert torch.allclose(weight, before - rate * gradient, rtol=1e-12, atol=1e-15)


def test_names_and_globs_choose_parameters(tokens):
    model, _ = tokens
    assert list(fl.find_layers(model, "scales.*")) == ["scales.0", "scales.1"]
    assert list(fl.find_layers(model, exclude=["*.?", "gate", "one", "more*", "positions"])) == [
        "token",
        "inner",
        "head",
    ]
