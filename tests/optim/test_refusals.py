"""What an optimizer refuses, with which sentence; the weights stay."""

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from model_cases import Net
from optim.cases import METHODS, assert_same, backward, batches, network, train, weights
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fisherlab.errors import InputError, InputTypeError, NumericalError
from fisherlab.optim import EKFAC, KFAC, LNGD, TKFAC, NGPlus

# --- settings -------------------------------------------------------------------------------------------

SETTINGS = {
    "lr must be finite and above 0, not 0": {"lr": 0},
    "lr must be finite and above 0, not -0.1": {"lr": -0.1},
    "lr must be finite and above 0, not nan": {"lr": float("nan")},
    "lr must be finite and above 0, not inf": {"lr": float("inf")},
    "lr must be a number, not '0.1'": {"lr": "0.1"},
    "lr must be a number, not True": {"lr": True},
    "other_lr must be finite and above 0, not 0": {"other_lr": 0},
    "max_rate must be finite and above 0, not 0": {"max_rate": 0},
    "weight_decay must be finite and at least 0, not -1": {"weight_decay": -1},
    "rate_damping must be finite and at least 0, not -1e-09": {"rate_damping": -1e-9},
    "momentum must be at least 0 and below 1, not 1": {"momentum": 1},
    "momentum must be at least 0 and below 1, not -0.5": {"momentum": -0.5},
    "decay must be at least 0 and below 1, not 1.5": {"decay": 1.5},
    "statistics_every must be at least 1, not 0": {"statistics_every": 0},
    "inverse_every must be a whole number, not 2.0": {"inverse_every": 2.0},
    "rate_samples must be at least 1, not -3": {"rate_samples": -3},
    "statistics_every must be a whole number, not True": {"statistics_every": True},
    "kl_clip must be above 0, not 0": {"kl_clip": 0},
    "kl_clip must be above 0, not nan": {"kl_clip": float("nan")},
    "unknown rate 'layer-wise'; did you mean layerwise": {"rate": "layer-wise"},
    "unknown momentum_on 'updates'; did you mean update": {"momentum_on": "updates"},
    "unknown loss_reduction 'none'": {"loss_reduction": "none"},
    "unknown weight_decay_mode 'decouple'; did you mean decoupled": {"weight_decay_mode": "decouple"},
    "unknown likelihood 'categorial'": {"likelihood": "categorial"},
    "unknown layer 'head'": {"include": ["head"]},
    "unknown layer 'tail'": {"exclude": ["tail"]},
}


@pytest.mark.parametrize("make", [LNGD, KFAC])
@pytest.mark.parametrize("message", SETTINGS)
def test_values_out_of_their_range(message, make):
    with pytest.raises((InputError, InputTypeError)) as refused:
        make(network("mlp"), **SETTINGS[message])
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


OWN = {
    "the damping bounds \\(0.1, 0.01\\) are reversed": (LNGD, {"damping": (0.1, 0.01)}, InputError),
    "are reversed": (LNGD, {"damping": {"input": (0.1, 0.2), "output": (0.2, 0.1)}}, InputError),
    "damping bound is -1": (LNGD, {"damping": (-1, 1)}, InputError),
    "the damping of LNGD is a pair": (LNGD, {"damping": 0.1}, InputTypeError),
    "a pair \\(lowest, highest\\)": (LNGD, {"damping": {"input": (0.1, 0.2)}}, InputTypeError),
    "or {'input': pair, 'output': pair}": (LNGD, {"damping": (0.1, 0.2, 0.3)}, InputTypeError),
    "unknown source 'layer'": (LNGD, {"source": "layer"}, InputError),
    "sampling must be at least 1, not 0": (LNGD, {"sampling": 0}, InputError),
    "unknown last 'softmax'": (LNGD, {"last": "softmax"}, InputError),
    "unknown activation 'reloo'": (LNGD, {"activations": {"0": "reloo"}}, InputError),
    "unknown layer 'zero'": (LNGD, {"activations": {"zero": "relu"}}, InputError),
    "the damping is -0.1": (KFAC, {"damping": -0.1}, InputError),
    "the damping is nan": (EKFAC, {"damping": float("nan")}, InputError),
    "damping of the (in|out)put factor is -1": (NGPlus, {"damping": -1.0}, InputError),
    "damping must be a number, not \\(1, 2\\); it is λ": (TKFAC, {"damping": (1, 2)}, InputTypeError),
    "source is 'layerwise'; KFAC takes predictive or empirical": (KFAC, {"source": "layerwise"}, InputError),
    "source is 'predictive'; NGPlus takes empirical": (NGPlus, {"source": "predictive"}, InputError),
}


@pytest.mark.parametrize("message", OWN)
def test_values_that_a_method_cannot_take(message):
    make, options, error = OWN[message]
    with pytest.raises(error, match=message):
        make(network("mlp"), **options)


def test_a_rate_of_zero_is_fine_in_a_schedule():
    """Only the first rate must be above 0: a warm-up may begin at 0."""
    model, [batch] = network("mlp"), batches("mlp")
    optimizer = LNGD(model)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = weights(model)
    train(model, optimizer, [batch])
    assert_same(weights(model), before)


# --- models ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "what",
    [lambda m: m.parameters(), lambda m: list(m.parameters()), lambda m: m.state_dict(), lambda m: None],
)
@pytest.mark.parametrize("make", [LNGD, KFAC])
def test_anything_but_a_model(make, what):
    with pytest.raises(InputTypeError, match="takes the model itself, not its parameters"):
        make(what(network("mlp")))


def holding(**other: nn.Parameter) -> Net:
    return Net(lambda net, x: net.last(x), **other, last=nn.Linear(3, 2))


MODELS = {
    "parameter 'mask' is sparse": lambda: holding(mask=nn.Parameter(torch.eye(3).to_sparse())),
    "embedding '0' has sparse gradients; set sparse=False": lambda: nn.Sequential(
        nn.Embedding(4, 3, sparse=True), nn.Linear(3, 2)
    ),
    r"a matrix that a module's call applies \(.*, as '0', are none\)": lambda: nn.Sequential(nn.LayerNorm(3)),
    "no layer of the model has a Fisher block \\(frozen": lambda: nn.Linear(3, 2).requires_grad_(False),
}


@pytest.mark.parametrize("message", MODELS)
def test_models_that_cannot_be_followed(message):
    with pytest.raises(InputError, match=message):
        LNGD(MODELS[message]())


def test_compiled_models():
    """Whole or in part, by the function or the method; nothing is compiled before it is called."""
    model = network("mlp")
    with pytest.raises(InputError, match="the model is compiled, which hides its layers"):
        LNGD(torch.compile(model))
    model.compile()
    with pytest.raises(InputError, match="the model is compiled"):
        LNGD(model)
    part = network("transformer")
    part[0].compile()
    with pytest.raises(InputError, match="module '0' is compiled"):
        LNGD(part)
    part = network("transformer")
    part[0] = torch.compile(part[0])
    with pytest.raises(InputError, match="module '0' is compiled"):
        LNGD(part)


@pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")
def test_sharded_models(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        model = network("mlp")
        mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
        model[2].weight = nn.Parameter(dist.tensor.distribute_tensor(model[2].weight.detach(), mesh))
        with pytest.raises(InputError, match=r"'2\.weight' is a DTensor; .* use DistributedDataParallel"):
            LNGD(model)
    finally:
        dist.destroy_process_group()


# --- training -------------------------------------------------------------------------------------------


def both(first: Callable[[], object], second: Callable[[], object]) -> None:
    first()
    second()


def refused(model: nn.Module, optimizer, action, message: str, error: type[Exception] = InputError) -> None:
    before = weights(model)
    with pytest.raises(error, match=message):
        both(action, optimizer.step)
    assert_same(weights(model), before)


@pytest.mark.parametrize("method", METHODS)
def test_a_step_without_a_backward_pass(method):
    model, [batch] = network("mlp"), batches("mlp")
    optimizer = METHODS[method](model)
    refused(model, optimizer, lambda: None, "step\\(\\) without a backward pass since the last one")
    refused(model, optimizer, lambda: model(batch[0]), "without a backward pass")
    train(model, optimizer, [batch])
    refused(model, optimizer, lambda: None, "without a backward pass")
    backward(model, batch)
    optimizer.zero_grad()
    refused(model, optimizer, lambda: None, "without a backward pass")
    backward(model, batch)
    for p in model.parameters():
        p.grad = None
    refused(model, optimizer, lambda: None, "without a backward pass")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("given", ["mean", "sum"])
def test_the_other_reduction_is_found(method, given):
    """In the first step, from the gradient at the outputs."""
    other = {"mean": "sum", "sum": "mean"}[given]
    model, [(x, y)] = network("mlp"), batches("mlp")
    optimizer = METHODS[method](model, loss_reduction=given)
    loss = cross_entropy(model(x), y, reduction=other)
    message = f"the loss is the {other} over the batch; give loss_reduction='{other}', or take its {given}"
    refused(model, optimizer, loss.backward, message)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", ["2.weight", "4.bias"])
@pytest.mark.parametrize("method", ["lngd", "lngd-empirical", "kfac", "ekfac", "ngplus"])
def test_a_gradient_that_is_not_finite(method, place, value):
    """Names the layer; no weight is changed, and the next batch goes on."""
    model, data = network("mlp"), batches("mlp", 3)
    optimizer = METHODS[method](model)
    train(model, optimizer, data[:1])

    def spoiled() -> None:
        optimizer.zero_grad()
        backward(model, data[1])
        model.get_parameter(place).grad.view(-1)[0] = value

    refused(model, optimizer, spoiled, f"the gradient of layer '{place[0]}' is not finite", NumericalError)
    assert all(bool(v.isfinite().all()) for v in train(model, optimizer, data[2:]).values())


def test_a_parameter_in_no_block_whose_gradient_is_not_finite():
    model, [batch] = network("cnn"), batches("cnn")
    optimizer = LNGD(model)

    def spoiled() -> None:
        backward(model, batch)
        model[1].bias.grad[0] = float("nan")

    refused(model, optimizer, spoiled, "the gradient of parameter '1.bias' is not finite", NumericalError)


@pytest.mark.parametrize("method", METHODS)
def test_inputs_that_are_not_finite(method):
    model, [(x, y)] = network("mlp"), batches("mlp")
    optimizer = METHODS[method](model)
    refused(model, optimizer, lambda: backward(model, (x * float("nan"), y)), "not finite", NumericalError)


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_called_without_gradients_takes_no_part(method):
    """As a teacher or a target network inside the model does; the rest is as if it were no layer."""

    def detour(net: Net, x: Tensor) -> Tensor:
        with torch.no_grad():
            weight = net.side(x).sigmoid()
        return net.main(x) * weight

    model, usual = (Net(detour, main=nn.Linear(6, 3), side=nn.Linear(6, 3)).double() for _ in range(2))
    usual.load_state_dict(model.state_dict())
    data = batches("mlp", 3)
    side = weights(model.side)
    found = train(model, METHODS[method](model), data)
    assert_same(found, train(usual, METHODS[method](usual, exclude=["side"]), data))
    assert_same(weights(model.side), side)


@pytest.mark.parametrize("method", METHODS)
def test_a_weight_used_outside_its_module(method):
    """No method's statistics would be of the whole weight."""
    [batch], layer = batches("mlp"), nn.Linear(6, 3)
    model = Net(lambda net, x: net.layer(x) + x[:, :3] * net.layer.weight.sum(), layer=layer).double()
    optimizer = METHODS[method](model)
    message = "layer 'layer': its module's calls do not give the gradient of its parameters"
    refused(model, optimizer, lambda: backward(model, batch), message)


def test_a_gradient_from_before():
    """Kept from a backward pass before the optimizer was made."""
    model, data = network("mlp"), batches("mlp", 2)
    backward(model, data[0])
    optimizer = LNGD(model)
    refused(model, optimizer, lambda: backward(model, data[1]), "kept from an earlier backward pass")


def test_a_model_without_tensors_to_count():
    model = Net(lambda net, number: net.layer(torch.full((1, 2), number)), layer=nn.Linear(2, 2))
    optimizer = LNGD(model)
    with pytest.raises(InputError, match="without a tensor whose first dimension could count samples"):
        model(1.0).sum().backward()
    assert optimizer.param_groups


def test_the_wrong_dimension_for_samples():
    model = Net(lambda net, x: net.layer(x.flatten(0, 1)[:-1]), layer=nn.Linear(6, 3))
    optimizer = LNGD(model, batch_dim=1)
    with pytest.raises(InputError, match=r"no layer is left.*of its outputs counts samples: 3 and 4 "):
        model(torch.randn(5, 4, 6))
    assert optimizer.param_groups


def test_labels_are_drawn_from_one_tensor():
    model, empirical = (Net(lambda net, x: (net.layer(x), x), layer=nn.Linear(6, 3)) for _ in range(2))
    optimizer = KFAC(model)
    with pytest.raises(
        InputError, match=r"several tensors .* say which with output=; or use source='empirical'"
    ):
        model(torch.randn(2, 6))
    assert optimizer.param_groups
    other = KFAC(empirical, source="empirical")
    cross_entropy(empirical(torch.randn(2, 6))[0], torch.tensor([0, 1])).backward()
    other.step()


def test_nothing_is_said_in_a_usual_run():
    model, data = network("cnn"), batches("cnn", 2)
    with warnings.catch_warnings(action="error"):
        train(model, LNGD(model), data)


@pytest.mark.parametrize("first", [True, False])
def test_a_complex_parameter_takes_the_step_of_sgd(first):
    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            filters = nn.Parameter(torch.randn(3, dtype=torch.complex128))
            if first:
                self.filters = filters
            self.inner, self.head = nn.Linear(3, 4).double(), nn.Linear(4, 2).double()
            self.filters = filters

        def forward(self, x):
            return self.head(torch.fft.irfft(torch.fft.rfft(self.inner(x).tanh()) * self.filters, n=4))

    model = Spectral()
    optimizer = KFAC(model, lr=0.1, momentum=0.0)
    before = model.filters.detach().clone()
    nn.functional.cross_entropy(model(torch.randn(8, 3).double()), torch.arange(8) % 2).backward()
    optimizer.step()
    assert torch.allclose(model.filters, before - 0.1 * model.filters.grad, rtol=1e-12)


def test_an_interrupted_forward_pass_leaves_nothing_behind():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

    def interrupt(*_):
        raise KeyboardInterrupt

    def hooks():
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    for goes_on in (False, True):
        optimizer = KFAC(model)
        handle = list(model.modules())[-1].register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(torch.randn(6, 3))
        handle.remove()
        if goes_on:
            out = model(torch.randn(6, 3))
            nn.functional.cross_entropy(out, torch.zeros(6, dtype=torch.long)).backward()
            optimizer.step()
        del optimizer
        assert hooks() == 0
