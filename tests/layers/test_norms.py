"""Norms of one's own, by an adapter or recognised: their blocks against single samples' gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import Net
from reference import relative
from torch import Tensor, nn
from torch.nn import functional

import fisherlab as fl
from fisherlab.collect.hooks import draw_layerwise, unit_columns
from fisherlab.layers import adapter
from fisherlab.layers.recognised import RecognisedNormAdapter
from fisherlab.likelihoods.draws import Generators


class Root(nn.Module):
    """y = (plus + weight) x / √(mean x² + ε) + bias."""

    def __init__(self, size: int, plus: float = 0.0, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(size))
        self.register_parameter("bias", nn.Parameter(torch.randn(size)) if bias else None)
        self.plus = plus

    def forward(self, x: Tensor) -> Tensor:
        y = (self.plus + self.weight) * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
        return y if self.bias is None else y + self.bias


class Image(nn.LayerNorm):
    """Over the channels of images, as ConvNeXt has it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Squared(Root):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.square()


class Mixing(Root):
    """Each output has all of the weight in it."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.mean() + self.weight


class Told(Root):
    """With a second argument, which the recognised form knows nothing of."""

    def forward(self, x: Tensor, factor: Tensor | None = None) -> Tensor:
        return super().forward(x) * (1.0 if factor is None else factor)


def lines(inner: nn.Module, *arguments: Tensor) -> Net:
    """Rows of numbers [n, t, 4]."""
    return Net(
        lambda net, x: net.head(net.inner(x, *arguments).tanh().mean(1)), inner=inner, head=nn.Linear(4, 3)
    )


def pictures(inner: nn.Module) -> Net:
    """Images [n, 4, h, w]."""
    return Net(
        lambda net, x: net.head(net.inner(x).tanh().flatten(2).mean(2)), inner=inner, head=nn.Linear(4, 3)
    )


def block(model: nn.Module, x: Tensor) -> Tensor:
    """The predictive Fisher of the inner module's parameters, one sample and one class after the other."""
    own = list(model.inner.parameters())
    total, outputs = 0, model(x)
    for n, p in enumerate(outputs.detach().softmax(-1)):
        for k, share in enumerate(p):
            loss = outputs[n].log_softmax(-1)[k]
            v = torch.cat([g.flatten() for g in torch.autograd.grad(loss, own, retain_graph=True)])
            total = total + share * v.outer(v)
    return total / len(x)


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(adapter, "_ADAPTERS", dict(adapter._ADAPTERS))


RECOGNISED = {
    "root": lambda: lines(Root(4)),
    "root with a bias": lambda: lines(Root(4, bias=True)),
    "one plus weight": lambda: lines(Root(4, plus=1.0)),
    "one plus weight and a bias": lambda: lines(Root(4, plus=1.0, bias=True)),
    "slopes": lambda: pictures(nn.PReLU(4)),
    "one slope": lambda: lines(nn.PReLU()),
    "layer norm of channels": lambda: pictures(Image(4)),
    "in place after it": lambda: Net(
        lambda net, x: net.head(net.inner(x).mul_(2).mean(1)), inner=Root(4), head=nn.Linear(4, 3)
    ),
}


def inputs(model: nn.Module, samples: int = 5) -> Tensor:
    images = isinstance(model.inner, (Image, nn.PReLU)) and model.inner.weight.numel() > 1
    return (
        torch.randn(samples, 4, 3, 2, dtype=torch.float64)
        if images
        else torch.randn(samples, 3, 4, dtype=torch.float64)
    )


@pytest.mark.parametrize("name", RECOGNISED)
def test_the_block_of_a_recognised_norm(name):
    model = RECOGNISED[name]().double()
    x = inputs(model)
    view = fl.find_layers(model)["inner"]
    assert isinstance(view.adapter, RecognisedNormAdapter)
    assert (view.vector, view.size) == (True, sum(p.numel() for p in model.inner.parameters()))
    comparison = fl.compare(model, (x, torch.arange(len(x)) % 3), ("diagonal", "kfac"), spectra=False)
    assert not comparison.layers["inner"].by_gradients
    found = fl.exact_fisher(model, (x, None))["inner"].dense()
    assert relative(found, block(model, x)) < 1e-12


UNLIKE = {
    "squared": lambda: lines(Squared(4)),
    "mixing": lambda: lines(Mixing(4)),
    "two arguments": lambda: lines(Told(4), torch.linspace(0.5, 2.0, 4, dtype=torch.float64)),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_what_only_looks_like_a_norm_is_read_in_another_way(name):
    model = UNLIKE[name]().double()
    if name == "squared":  # where the derivative in the weight is what a linear one has
        model.inner.weight.data[:] = 0.5
    x = inputs(model)
    layers = fl.compare(model, (x, None), ("diagonal",), spectra=False).layers
    assert layers["inner"].by_gradients
    found = fl.exact_fisher(model, (x, None))["inner"].dense()
    assert relative(found, block(model, x)) < 1e-12


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.gain = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))


class Uneven(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.inside = nn.Parameter(torch.ones(2)), nn.Linear(2, 2)


@pytest.mark.parametrize("cls", [Wide, Two, Uneven, Holder])
def test_modules_with_other_parameters_are_not_taken_for_norms(cls):
    assert adapter.adapter_of(cls()) is None


def test_looking_leaves_nothing_behind():
    model = lines(Root(4, bias=True)).double()
    calls = []
    model.inner.register_forward_hook(lambda module, args, output: calls.append(len(args[0])))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    parameters = dict(model.inner._parameters)
    x = inputs(model)
    fl.exact_fisher(model, (x, None))
    known, layers = len(calls), fl.find_layers(model)
    layers["inner"].adapter.why_not(model.inner, x, x)
    layers["inner"].adapter.normalised(model.inner, x)
    assert len(calls) == known
    assert all(model.inner._parameters[name] is p for name, p in parameters.items())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_an_adapter_of_four_lines():
    """The example of `NormAdapter`, by name and by type, on a norm that is recognised otherwise."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.weight * functional.normalize(x, dim=-1)

    class ScaledAdapter(fl.NormAdapter):
        modules = (f"{Scaled.__module__}.{Scaled.__qualname__}",)

        def normalised(self, module, x):
            return x / x.norm(dim=-1, keepdim=True)

    fl.register_layer(ScaledAdapter())
    model = lines(Scaled()).double()
    x = inputs(model)
    assert isinstance(fl.find_layers(model)["inner"].adapter, ScaledAdapter)
    assert relative(fl.exact_fisher(model, (x, None))["inner"].dense(), block(model, x)) < 1e-12


def test_an_adapter_for_channels():
    class Channels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.rand(4)), nn.Parameter(torch.rand(4))

        def forward(self, x: Tensor) -> Tensor:
            return functional.group_norm(x, 2, self.weight, self.bias)

    class ChannelsAdapter(fl.NormAdapter):
        modules = (Channels,)
        channels = True

        def normalised(self, module, x):
            return functional.group_norm(x, 2)

    fl.register_layer(ChannelsAdapter())
    model = pictures(Channels()).double()
    x = torch.randn(5, 4, 3, 2, dtype=torch.float64)
    assert relative(fl.exact_fisher(model, (x, None))["inner"].dense(), block(model, x)) < 1e-12


def test_optimizers_leave_them_to_the_step_of_other_parameters():
    model = lines(Root(4))
    x = torch.randn(6, 3, 4)
    optimizer = fl.optim.KFAC(model, lr=0.1)
    assert list(optimizer.rates()["layer"]) == ["head"]
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), torch.arange(6) % 3)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@settings(max_examples=15, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    size=st.integers(1, 4),
    channels=st.booleans(),
    shift=st.booleans(),
)
def test_its_gradients_are_those_of_autograd(shape, size, channels, shift):
    """Whatever the shape: Σ over positions of g∘u, for each sample."""

    class Sine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(size, dtype=torch.float64))
            self.register_parameter("bias", nn.Parameter(torch.rand_like(self.weight)) if shift else None)

        def forward(self, x: Tensor) -> Tensor:
            along = (-1, *[1] * (x.dim() - 2)) if channels else (-1,)
            y = (2 - self.weight.view(along)) * x.sin() + x
            return y if self.bias is None else y + self.bias.view(along)

    module = Sine()
    whole = (3, size, *shape) if channels else (3, *shape, size)
    x, g = torch.randn(whole, dtype=torch.float64), torch.randn(1, *whole, dtype=torch.float64)
    found = adapter.adapter_of(module)
    if found.why_not(module, x, x):  # the last dimension is as long as that of the channels
        assert channels
        assert whole[-1] == size
        return
    V = found.gradients(module, g, x, shift)[0, :, 0]
    for n in range(3):
        own = torch.autograd.grad(module(x[n : n + 1]), list(module.parameters()), g[0, n : n + 1])
        assert torch.allclose(V[n], torch.cat(own), rtol=1e-12, atol=1e-12)


LAYERWISE = {
    "rows": (lambda: nn.LayerNorm(4), (3, 4), 1),
    "one row": (lambda: nn.LayerNorm(4), (1, 4), 1),
    "called twice": (lambda: nn.LayerNorm(4), (3, 4), 2),
    "no shift": (lambda: nn.LayerNorm(4, bias=False), (3, 4), 1),
    "channels": (lambda: nn.GroupNorm(2, 4), (4, 3, 2), 1),
    "recognised": (lambda: Root(4, bias=True), (3, 4), 1),
}


@pytest.mark.parametrize("bias", ["joint", "separate"])
@pytest.mark.parametrize("case", LAYERWISE)
def test_the_layerwise_fisher_of_a_norm_is_that_of_independent_noise_at_every_place(case, bias):
    """F = Σ V Vᵀ over the places of its output, V what φ'(s) at one of them gives the scale and the shift."""
    build, shape, times = LAYERWISE[case]
    torch.manual_seed(0)

    def forward(net: Net, x: Tensor) -> Tensor:
        for _ in range(times):
            x = net.norm(x).tanh()
        return net.head(x.flatten(1))

    size = torch.Size(shape).numel()
    model = Net(forward, norm=build(), head=nn.Linear(size, 3)).double()
    with torch.no_grad():
        for parameter in model.norm.parameters():
            parameter.copy_(torch.rand_like(parameter) + 0.5)
    x = torch.randn(5, *shape, dtype=torch.float64)
    own = dict(model.norm.named_parameters())
    F = dict.fromkeys([tuple(own)] if bias == "joint" else [(name,) for name in own], 0.0)
    for inputs in x.split(1):
        for _ in range(times):
            s = model.norm(inputs)
            inputs = s.tanh().detach()
            slopes = (1 - inputs.square()).flatten()
            for place, slope in enumerate(slopes):
                found = torch.autograd.grad(s.flatten()[place], own.values(), slope, retain_graph=True)
                gradients = dict(zip(own, found, strict=True))
                for names in F:
                    V = torch.cat([gradients[name] for name in names])
                    F[names] = F[names] + V.outer(V) / len(x)
    data = x, torch.zeros(5, dtype=torch.int64)
    blocks = fl.exact_fisher(model, data, kind="layerwise", layers=["norm*"], bias=bias)
    diagonals = fl.approximate("diagonal", model, data, kind="layerwise", layers=["norm*"], bias=bias)
    assert len(blocks) == len(F)
    for (name, block), expected in zip(blocks.items(), F.values(), strict=True):
        assert relative(block.dense(), expected) < 1e-12
        assert relative(diagonals[name].diagonal(), expected.diagonal()) < 1e-12


def test_draws_of_a_norm_have_its_layerwise_fisher_as_their_mean():
    torch.manual_seed(0)
    roots = torch.rand(2, 1, 2, 6, dtype=torch.float64)
    roots[1, ..., :3] = 0
    columns = unit_columns(roots).flatten(1)
    drawn = draw_layerwise(roots, 200_000, Generators(0, 0), "draws").flatten(1)
    expected = columns.mT @ columns
    assert relative(drawn.mT @ drawn, expected) < 0.01
    assert float(expected[0, 3]) > 0
