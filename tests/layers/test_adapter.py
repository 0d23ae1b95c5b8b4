"""Modules of one's own: a registered adapter, and what is refused."""

import pytest
import torch
from model_cases import Net
from reference import Case, exact, relative
from torch import Tensor, nn

import fisherlab as fl
from fisherlab.errors import InputTypeError
from fisherlab.layers import adapter


class Pointwise(nn.Module):
    """y[n, h, w] = weight x[n, h, w]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / inputs**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nhwi,ji->nhwj", x, self.weight)


class PointwiseAdapter(fl.Adapter):
    modules = (Pointwise,)

    def shape(self, module):
        return tuple(module.weight.shape)

    def inputs(self, module, x, output):
        return x.flatten(1, -2)

    def outputs(self, module, g):
        return g.flatten(2, -2)


def network(inner: nn.Module) -> Net:
    return Net(lambda net, x: net.head(net.inner(x).tanh().mean((1, 2))), inner=inner, head=nn.Linear(4, 3))


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(adapter, "_ADAPTERS", dict(adapter._ADAPTERS))


@pytest.fixture
def case() -> Case:
    x = torch.randn(9, 2, 3, 5, dtype=torch.float64)
    return Case(network(Pointwise(5, 4)).double(), x, torch.arange(9) % 3, "categorical")


@pytest.fixture
def linear(case) -> Case:
    """The same network with a layer that fisherlab knows."""
    inner = nn.Linear(5, 4, bias=False)
    inner.weight = case.model.inner.weight
    model = network(inner).double()
    model.head = case.model.head
    return Case(model, case.inputs, case.targets, case.likelihood)


def test_the_weight_of_an_unknown_module_is_a_parameter_by_itself(case):
    layers = fl.find_layers(case.model)
    assert list(layers) == ["inner.weight", "head"]
    assert (layers["inner.weight"].family, layers["inner.weight"].by_gradients) == ("Parameter", True)


def test_a_registered_module_has_a_block(case):
    fl.register_layer(PointwiseAdapter())
    view = fl.find_layers(case.model)["inner"]
    assert (view.outputs, view.inputs, view.groups, view.family) == (4, 5, 1, "Pointwise")
    assert view.parameters == ("inner.weight",)
    assert fl.find_layers(case.model).coverage()["covered"].all()


@pytest.mark.parametrize("method", ["auto", "per-sample", "gram"])
def test_its_exact_block_is_that_of_the_same_layer_in_other_words(case, linear, method):
    fl.register_layer(PointwiseAdapter())
    found, expected = (exact(one, method=method)["inner"].dense() for one in (case, linear))
    assert relative(found, expected) < 1e-12


def test_every_function_sees_it(case, linear):
    fl.register_layer(PointwiseAdapter())
    names = ("kfac", "ekfac", "tkfac", "lngd", "diagonal")
    found, expected = (
        fl.compare(one.model, one.data, names, spectra=False).records for one in (case, linear)
    )
    assert set(found["module"]) == {"Pointwise", "Linear"}
    for column in ("positions", "relative_error", "population_error", "direction_cosine", "trace_ratio"):
        assert found[column].tolist() == pytest.approx(expected[column].tolist(), rel=1e-9), column


def test_a_subclass_with_a_forward_of_its_own_is_not_taken_for_it(case):
    class Doubled(Pointwise):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    class Named(Pointwise):
        pass

    fl.register_layer(PointwiseAdapter())
    assert list(fl.find_layers(network(Doubled(5, 4)))) == ["inner.weight", "head"]
    assert list(fl.find_layers(network(Named(5, 4)))) == ["inner", "head"]


def test_an_adapter_can_refuse_a_module(case):
    class Careful(PointwiseAdapter):
        def refusal(self, module):
            return "too small" if len(module.weight) < 5 else ""

    fl.register_layer(Careful())
    layers = fl.find_layers(case.model)
    assert list(layers) == ["inner.weight", "head"]
    table = layers.coverage().set_index("parameter")
    assert table["reason"]["inner.weight"] == "too small"


@pytest.mark.parametrize("thing", [PointwiseAdapter, Pointwise(2, 2), "pointwise"])
def test_other_things_are_not_registered(thing):
    with pytest.raises(
        InputTypeError, match=r"an instance of a fisherlab Adapter|adapter must be a ModuleAdapter, not "
    ):
        fl.register_layer(thing)


@pytest.mark.parametrize("types", [None, Pointwise, (), ("Pointwise",), (Pointwise(2, 2),), (int,), 3])
def test_an_adapter_names_its_types_in_a_tuple(types):
    class Odd(PointwiseAdapter):
        modules = types

    with pytest.raises(InputTypeError, match="with a tuple of module types"):
        fl.register_layer(Odd())


def test_an_adapter_without_types_is_not_registered():
    class Odd(fl.Adapter):
        shape = inputs = outputs = PointwiseAdapter.shape

    with pytest.raises(InputTypeError, match="with a tuple of module types"):
        fl.register_layer(Odd())
