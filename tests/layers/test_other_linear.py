"""Linear layers under other names: found by the qualified name, and the same numbers as with torch's."""

import copy

import pytest
import torch
from model_cases import Net
from reference import relative
from torch import Tensor, nn
from torch.nn import functional

import fisherlab as fl
from fisherlab.errors import InputTypeError
from fisherlab.layers import adapter

METHODS = ("kfac", "ekfac", "tkfac", "lngd", "diagonal")


def named(cls: type[nn.Module], qualified: str) -> type[nn.Module]:
    """A class of its own that says it is another package's."""
    module, _, name = qualified.rpartition(".")
    return type(name, (cls,), {"__module__": module, "__qualname__": name, "forward": cls.forward})


class _Transposed(nn.Module):
    """y = x weight + bias, as GPT-2 has it."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.nf, self.nx = outputs, inputs
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.flatten(0, -2), self.weight).view(*x.shape[:-1], -1)


class _Plain(nn.Module):
    """Without `in_features`, and with a bias that may be None."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.register_parameter("bias", nn.Parameter(torch.randn(outputs)))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


Conv1D = named(_Transposed, "transformers.pytorch_utils.Conv1D")
GraphLinear = named(_Plain, "torch_geometric.nn.dense.linear.Linear")


def network(inner: nn.Module) -> Net:
    return Net(lambda net, x: net.head(net.inner(x).tanh().mean(1)), inner=inner, head=nn.Linear(4, 3))


@pytest.fixture(params=[Conv1D, GraphLinear], ids=["Conv1D", "GraphLinear"])
def pair(request) -> tuple[nn.Module, nn.Module]:
    """A network, and the same with torch's Linear."""
    one, linear = request.param(4, 5), nn.Linear(5, 4)
    weight = one.weight.mT if request.param is Conv1D else one.weight
    linear.load_state_dict({"weight": weight.detach(), "bias": one.bias.detach()})
    models = network(one).double(), network(linear).double()
    models[1].head = copy.deepcopy(models[0].head)
    return models


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    return torch.randn(7, 3, 5, dtype=torch.float64), torch.arange(7) % 3


@pytest.fixture
def registry(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(adapter, "_ADAPTERS", dict(adapter._ADAPTERS))


def test_blocks_and_approximations_are_those_of_linear(pair, data):
    blocks = [fl.exact_fisher(model, data)["inner"].dense() for model in pair]
    assert relative(*blocks) < 1e-12
    for method in METHODS:
        found, expected = (fl.approximate(method, model, data)["inner"].dense() for model in pair)
        assert relative(found, expected) < 1e-10, method


@pytest.mark.parametrize("optimizer", [fl.optim.LNGD, fl.optim.KFAC])
def test_training_is_that_of_linear(pair, data, optimizer):
    x, y = data
    losses = []
    for model in pair:
        opt = optimizer(model, lr=0.05, statistics_every=1, inverse_every=1, source="empirical")
        for _ in range(4):
            opt.zero_grad()
            loss = functional.cross_entropy(model(x), y)
            loss.backward()
            opt.step()
            losses.append(loss.item())
    assert losses[:4] == pytest.approx(losses[4:], rel=1e-9)
    assert losses[3] < losses[0]


def test_a_subclass_with_a_forward_of_its_own_is_not_taken_for_it():
    class Doubled(Conv1D):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    class Named(Conv1D):
        pass

    assert "inner" not in fl.find_layers(network(Doubled(4, 5)))
    assert list(fl.find_layers(network(Named(4, 5)))) == ["inner", "head"]
    reason = adapter.why_unknown(Doubled(4, 5))
    assert "Doubled is a transformers.pytorch_utils.Conv1D with a forward of its own" in reason


def test_a_class_with_a_known_name_has_its_package_in_tables():
    model = nn.Sequential(GraphLinear(4, 5), nn.Linear(4, 3), Conv1D(2, 3))
    families = [view.family for view in fl.find_layers(model).values()]
    assert families == ["torch_geometric.Linear", "Linear", "Conv1D"]


def test_what_is_registered_last_holds(registry):
    class Other(adapter.adapter_of(nn.Linear(1, 1)).__class__):
        modules = ("transformers.pytorch_utils.Conv1D",)

        def refusal(self, module):
            return "by name"

    class Typed(Other):
        modules = (Conv1D,)

        def refusal(self, module):
            return "by type"

    def reason() -> str:
        return fl.find_layers(network(Conv1D(4, 5))).coverage()["reason"][0]

    fl.register_layer(Other())
    assert reason() == "by name"
    fl.register_layer(Typed())
    assert reason() == "by type"
    fl.register_layer(Other())
    assert reason() == "by name"


@pytest.mark.parametrize("name", ["Conv1D", "", "a package.Linear", "package..Linear", ".Linear"])
def test_a_name_without_its_module_is_refused(name):
    class Odd(type(adapter.adapter_of(nn.Linear(1, 1)))):
        modules = (name,)

    with pytest.raises(InputTypeError, match="qualified names"):
        fl.register_layer(Odd())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("keywords", [True, False])
def test_bilinear_is_linear_in_the_products_of_its_inputs(bias, keywords):
    def call(net, x, z):
        both = net.inner(input2=z, input1=x) if keywords else net.inner(x, z)
        return net.head(both.tanh().mean(1))

    def products(net, x, z):
        return net.head(net.inner((x[..., None] * z[..., None, :]).flatten(-2)).tanh().mean(1))

    one = Net(call, inner=nn.Bilinear(3, 2, 4, bias=bias), head=nn.Linear(4, 3)).double()
    other = Net(products, inner=nn.Linear(6, 4, bias=bias), head=copy.deepcopy(one.head)).double()
    other.inner.load_state_dict(
        {
            n: p.detach().reshape(-1, 6) if n == "weight" else p.detach()
            for n, p in one.inner.named_parameters()
        }
    )
    x, z = torch.randn(6, 2, 3, dtype=torch.float64), torch.randn(6, 2, 2, dtype=torch.float64)
    data = (x, z), torch.arange(6) % 3
    found, expected = (fl.exact_fisher(model, data)["inner"].dense() for model in (one, other))
    assert relative(found, expected) < 1e-12
    for method in METHODS:
        found, expected = (fl.approximate(method, model, data)["inner"].dense() for model in (one, other))
        assert relative(found, expected) < 1e-10, method
    losses = []
    for model in (one, other):
        opt = fl.optim.LNGD(model, lr=0.05, statistics_every=1, inverse_every=1)
        for _ in range(3):
            opt.zero_grad()
            loss = functional.cross_entropy(model(x, z), data[1])
            loss.backward()
            opt.step()
            losses.append(loss.item())
    assert losses[:3] == pytest.approx(losses[3:], rel=1e-9)


LAZY = {
    "linear": (nn.LazyLinear(4), (6, 5)),
    "convolution": (nn.LazyConv1d(4, 2), (6, 3, 5)),
    "transposed": (nn.LazyConvTranspose1d(4, 2), (6, 3, 5)),
    "norm": (nn.LazyBatchNorm1d(), (6, 4, 5)),
}


@pytest.mark.parametrize("name", LAZY)
def test_lazy_modules_are_the_others_once_they_have_seen_data(name):
    lazy, shape = LAZY[name]
    head = nn.Linear(4, 3)
    model = Net(
        lambda net, x: net.head(net.inner(x).tanh().view(len(x), 4, -1).mean(2)), inner=lazy, head=head
    )
    model.double()
    x = torch.randn(shape, dtype=torch.float64)
    model.eval()(x)
    found = fl.exact_fisher(model, (x, None))
    assert type(lazy).__name__ == fl.find_layers(model)["inner"].family
    expected = fl.exact_fisher(model, (x, None), method="per-sample")
    assert list(found) == ["inner", "head"]
    assert relative(found["inner"].dense(), expected["inner"].dense()) < 1e-12


def test_the_real_classes_are_the_ones_that_are_named():
    utils = pytest.importorskip("transformers.pytorch_utils")
    dense = pytest.importorskip("torch_geometric.nn.dense.linear")
    model = nn.Sequential(utils.Conv1D(4, 5), dense.Linear(4, 3))
    assert list(fl.find_layers(model)) == ["0", "1"]
