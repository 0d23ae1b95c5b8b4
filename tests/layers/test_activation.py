"""The activation after a layer, found from the graph, and its slope."""

import pytest
import torch
from model_cases import Net
from torch import Tensor, nn
from torch.nn import functional

import fisherlab as fl
from fisherlab.collect.collector import Collector
from fisherlab.errors import InputError
from fisherlab.layers import ACTIVATIONS, slope_of
from fisherlab.likelihoods import Gaussian


def collector(model: nn.Module, x: Tensor, **options) -> Collector:
    return Collector(model, fl.find_layers(model, **options), (x, None), Gaussian())


def found(model: nn.Module, layer: str = "0") -> tuple[str, str]:
    activation = collector(model.double(), torch.randn(4, 3).double()).activations[layer]
    return activation.name, activation.reason


def slope(model: nn.Module, x: Tensor, layer: str = "0") -> Tensor:
    (batches,) = collector(model, x).passes({layer: frozenset({"layerwise"})}, "")
    return batches[layer].g["layerwise"][0, :, 0]


def net(activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 5), activation, nn.Linear(5, 2))


def called(function) -> Net:
    return Net(lambda net, x: function(x))


MODULES = [
    (nn.ReLU(), "relu"),
    (nn.ReLU(inplace=True), "relu"),
    (called(torch.relu_), "relu"),
    (called(functional.relu), "relu"),
    (nn.LeakyReLU(0.3), "leaky-relu"),
    (nn.LeakyReLU(0.3, inplace=True), "leaky-relu"),
    (nn.PReLU(), "prelu"),
    (nn.PReLU(5), "prelu"),
    (nn.ELU(0.7), "elu"),
    (nn.ELU(0.7, inplace=True), "elu"),
    (nn.SELU(), "elu"),
    (nn.CELU(0.6), "celu"),
    (nn.GELU(), "gelu"),
    (nn.GELU("tanh"), "gelu"),
    (nn.SiLU(), "silu"),
    (nn.SiLU(inplace=True), "silu"),
    (nn.Mish(), "mish"),
    (nn.Tanh(), "tanh"),
    (called(torch.tanh_), "tanh"),
    (nn.Sigmoid(), "sigmoid"),
    (called(Tensor.sigmoid_), "sigmoid"),
    (nn.LogSigmoid(), "logsigmoid"),
    (nn.Softplus(2.0), "softplus"),
    (nn.ReLU6(), "hardtanh"),
    (nn.Hardtanh(-0.5, 0.7), "hardtanh"),
    (nn.Hardswish(), "hardswish"),
    (nn.Hardsigmoid(), "hardsigmoid"),
    (called(torch.sin), "sin"),
    (called(torch.cos), "cos"),
]
names = [f"{place}-{name}" for place, (_, name) in enumerate(MODULES)]


@pytest.mark.parametrize(("activation", "name"), MODULES, ids=names)
def test_activations_are_found(activation, name):
    assert found(net(activation)) == (name, "")


@pytest.mark.parametrize(("activation", "name"), MODULES, ids=names)
def test_slopes_are_those_of_autograd(activation, name):
    model = net(activation).double()
    x = 2 * torch.randn(20, 3, dtype=torch.float64)
    s = (model[0](x)).detach().requires_grad_()
    (expected,) = torch.autograd.grad(activation(s * 1).sum(), s)
    assert torch.allclose(slope(model, x), expected, rtol=1e-12, atol=1e-14)
    assert expected.std() > 0


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slopes_of_named_activations_are_finite_differences(name):
    s = torch.tensor([-4.1, -2.2, -0.7, -0.3, 0.2, 0.6, 1.7, 4.3], dtype=torch.float64)
    h = 1e-6
    expected = (ACTIVATIONS[name](s + h) - ACTIVATIONS[name](s - h)) / (2 * h)
    with torch.no_grad():
        assert torch.allclose(slope_of(name, s), expected, atol=1e-8)


def test_an_unknown_name_has_no_slope():
    with pytest.raises(InputError, match="did you mean sigmoid"):
        slope_of("sigmoit", torch.zeros(1))


def test_a_named_activation_takes_the_place_of_the_graphs():
    model = net(nn.ReLU(inplace=True)).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    layers = fl.find_layers(model, activations={"0": "tanh"})
    (batches,) = Collector(model, layers, (x, None), Gaussian()).passes({"0": frozenset({"layerwise"})}, "")
    expected = 1 - torch.tanh(model[0](x).detach()).square()
    assert torch.allclose(batches["0"].g["layerwise"][0, :, 0], expected, atol=1e-14)


def test_the_last_layer_has_the_identity():
    assert found(net(nn.ReLU()), "2") == ("identity", "the network's output")
    model = net(nn.ReLU()).double()
    assert torch.equal(slope(model, torch.randn(4, 3).double(), "2"), torch.ones(4, 2).double())


def around(s: Tensor) -> Tensor:
    """s goes through an activation and around it."""
    return torch.relu(s) + s


def squared(s: Tensor) -> Tensor:
    """One node reads s twice."""
    return s * s


@pytest.mark.parametrize("use", [around, squared])
def test_an_output_used_twice_has_the_identity(use):
    model = Net(lambda net, x: net.last(use(net.inner(x))), inner=nn.Linear(3, 5), last=nn.Linear(5, 2))
    assert found(model, "inner") == ("identity", "used in 2 places")
    assert torch.equal(slope(model, torch.randn(4, 3).double(), "inner"), torch.ones(4, 5).double())


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (nn.LayerNorm(5), "followed by NativeLayerNorm"),
        (nn.BatchNorm1d(5), "followed by NativeBatchNorm"),
        (nn.Softmax(1), "followed by Softmax"),
        (nn.Identity(), "followed by Addmm"),
        (called(lambda s: s.view(-1, 5).relu()), "followed by View"),
    ],
)
def test_other_consumers_mean_the_identity(between, reason):
    assert found(net(between)) == ("identity", reason)


def test_dropout_in_evaluation_does_not_hide_the_activation():
    model = nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.5), nn.ReLU(), nn.Linear(5, 2))
    assert found(model) == ("relu", "")


def test_coverage_of_a_comparison_names_activations_and_reasons(categorical):
    table = fl.compare(categorical.model, categorical.data, "kfac", spectra=False).layers.coverage()
    by_parameter = table.set_index("parameter")
    assert by_parameter["activation"].to_dict() == {
        "0.weight": "tanh",
        "0.bias": "tanh",
        "2.weight": "leaky-relu",
        "4.weight": "identity",
        "4.bias": "identity",
    }
    assert by_parameter["reason"]["4.weight"] == "activation: the network's output"
    assert by_parameter["reason"]["0.weight"] == ""
