"""⟨D, ∇ℓ_n⟩ and the layer-wise rate, beside gradients of each sample from `torch.func`."""

import pytest
import torch
from model_cases import Net
from optim.cases import METHODS, NETWORKS, assert_close, backward, batches, network, weights
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fisherlab.layers import LayerCall, find_layers
from fisherlab.optim import LNGD

Gradients = dict[str, Tensor]


def contributions(model: nn.Module, x: Tensor, y: Tensor) -> Gradients:
    """N times the part of each sample in the mean loss, [n, …] by parameter."""
    n = len(x)

    def loss_of(parameters: Gradients, weight: Tensor) -> Tensor:
        outputs = torch.func.functional_call(model, parameters, (x,))
        return (cross_entropy(outputs, y, reduction="none") * weight).sum()

    parameters = {name: p.detach() for name, p in model.named_parameters()}
    eye = torch.eye(n, dtype=x.dtype)
    rows = [torch.func.grad(loss_of)(parameters, eye[i]) for i in range(n)]
    return {name: torch.stack([row[name] for row in rows]) for name in parameters}


WITHOUT_BATCH_NORM = [name for name in NETWORKS if name != "cnn"]


@pytest.mark.parametrize("rule", [{}, {"momentum_on": "gradient"}, {"weight_decay_mode": "coupled"}])
@pytest.mark.parametrize("name", WITHOUT_BATCH_NORM)
def test_the_rate_is_that_of_explicit_gradients(name, rule):
    """α_l = ⟨D, ∇h⟩ / ((1/N) Σ_n ⟨D, ∇ℓ_n⟩² + μ)."""
    model, [(x, y)] = network(name), batches(name)
    V = contributions(model, x, y)
    optimizer = LNGD(model, momentum=0.0, weight_decay=0.1, **rule)
    optimizer.zero_grad()
    backward(model, (x, y))
    steps = optimizer._steps()
    for layer, view in optimizer._layers.items():
        per_sample = view.to_matrix({p: V[p] for p in view.parameters})
        D = steps[layer].direction
        products = torch.einsum("md,nmd->n", D, per_sample)
        along = (D * per_sample.mean(0)).sum()
        torch.testing.assert_close(steps[layer].gradient, along)
        torch.testing.assert_close(steps[layer].squares, products.square().mean())
        torch.testing.assert_close(
            optimizer._maker.rate(layer, steps[layer]), along / (products.square().mean() + 1e-3)
        )


@pytest.mark.parametrize("name", NETWORKS)
def test_contributions_add_up_to_the_gradient(name):
    """The mean of ⟨D, ∇ℓ_n⟩ over the samples is ⟨D, ∇h⟩, for any D; with batch norm too."""
    model, [(x, y)] = network(name), batches(name)
    layers = find_layers(model).select(METHODS["lngd"](network(name))._layers)
    for view, use, g in seen(model, layers, x, y):
        gradient = view.to_matrix({p: model.get_parameter(p).grad for p in view.parameters})
        torch.manual_seed(0)
        D = torch.randn_like(gradient)
        products = sum(view.products(u, each, D, len(x)) for u, each in zip(use, g, strict=True))
        torch.testing.assert_close(products.sum(), (D * gradient).sum())


def seen(model: nn.Module, layers, x: Tensor, y: Tensor) -> list:
    """For every layer its calls and the gradients of their outputs."""
    from fisherlab.collect.hooks import capture

    with capture(layers) as calls:
        loss = cross_entropy(model(x), y)
    edges = [call.edge for name in layers for call in calls[name]]
    gradients = iter(torch.autograd.grad(loss, edges, retain_graph=True))
    found = [(layers[name], calls[name], [next(gradients) for _ in calls[name]]) for name in layers]
    loss.backward()
    return found


MODULES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(4, 3), (4,)),
    "linear without bias": (nn.Linear(4, 3, bias=False), (4,)),
    "linear on sequences": (nn.Linear(4, 3), (5, 4)),
    "linear on planes": (nn.Linear(4, 3), (2, 5, 4)),
    "conv1d": (nn.Conv1d(2, 3, 3, stride=2, padding=1), (2, 7)),
    "conv2d": (nn.Conv2d(2, 4, (3, 2), stride=(2, 1), dilation=(1, 2), padding=(1, 2)), (2, 6, 5)),
    "conv2d same": (nn.Conv2d(2, 4, (4, 3), padding="same"), (2, 6, 5)),
    "conv2d reflect": (nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), (2, 6, 5)),
    "conv2d replicate": (nn.Conv2d(2, 4, 3, padding=(2, 1), padding_mode="replicate"), (2, 6, 5)),
    "conv2d circular": (nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular", bias=False), (2, 6, 5)),
    "conv2d in groups": (nn.Conv2d(4, 6, 3, groups=2), (4, 5, 5)),
    "conv2d by channel": (nn.Conv2d(4, 4, 3, groups=4, padding=1), (4, 5, 5)),
    "conv3d": (nn.Conv3d(1, 2, 2), (1, 3, 3, 3)),
    "transposed 1d": (nn.ConvTranspose1d(2, 3, 3, stride=2), (2, 4)),
    "transposed 2d": (nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1), (2, 4, 3)),
    "transposed in groups": (nn.ConvTranspose2d(4, 6, 2, groups=2, dilation=2, bias=False), (4, 3, 3)),
    "transposed 3d": (nn.ConvTranspose3d(1, 2, 2), (1, 2, 2, 2)),
}


@pytest.mark.parametrize("module", MODULES)
def test_products_of_every_module_are_those_of_explicit_gradients(module):
    layer, shape = MODULES[module]
    layer = layer.double()
    torch.manual_seed(0)
    x = torch.randn(6, *shape, dtype=torch.float64)
    output = layer(x)
    g = torch.randn_like(output)
    [view] = find_layers(layer).values()
    D = torch.randn(view.outputs, view.inputs, dtype=torch.float64)

    def weighted(parameters: Gradients, x: Tensor, g: Tensor) -> Tensor:
        return (torch.func.functional_call(layer, parameters, (x.unsqueeze(0),)) * g).sum()

    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    V = torch.func.vmap(torch.func.grad(weighted), (None, 0, 0))(parameters, x, g)
    expected = torch.einsum("md,nmd->n", D, view.to_matrix(V))
    shape_only = output.detach().new_empty(()).expand(output.shape)
    torch.testing.assert_close(view.products(LayerCall(x, shape_only), g, D, len(x)), expected)


@pytest.mark.parametrize("module", MODULES)
def test_parts_of_a_matrix_are_shaped_as_the_parameters(module):
    """`to_parameters` is the inverse of `to_matrix`."""
    layer = MODULES[module][0]
    [view] = find_layers(layer).values()
    matrix = view.to_matrix(dict(layer.named_parameters()))
    for name, rows, part in view.to_parameters(matrix):
        p = layer.get_parameter(name)
        assert torch.equal(part, p if rows is None else p[rows])


@pytest.mark.parametrize(
    "options", [{}, {"kdim": 5, "vdim": 3}, {"bias": False}, {"add_bias_kv": True, "add_zero_attn": True}]
)
@pytest.mark.parametrize("batch_first", [True, False])
def test_attention(options, batch_first):
    """Whichever dimension counts samples, projections have the products of explicit gradients."""

    torch.manual_seed(0)
    n, positions = 5, 1 if batch_first else 0
    model = Net(
        lambda net, q, k, v: net.attention(q, k, v, need_weights=False)[0].mean(positions),
        attention=nn.MultiheadAttention(4, 2, batch_first=batch_first, **options),
    ).double()
    shapes = [(3, 4), (6, options.get("kdim", 4)), (6, options.get("vdim", 4))]
    data = [torch.randn(n, *shape, dtype=torch.float64) for shape in shapes]
    y = torch.arange(n) % 4

    def called(parameters: Gradients, *sample: Tensor) -> Tensor:
        return torch.func.functional_call(
            model, parameters, tuple(v if batch_first else v.transpose(0, 1) for v in sample)
        )

    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def one_loss(parameters: Gradients, y: Tensor, *sample: Tensor) -> Tensor:
        return cross_entropy(called(parameters, *(v.unsqueeze(0) for v in sample)), y.unsqueeze(0))

    V = torch.func.vmap(torch.func.grad(one_loss), (None, *[0] * 4))(parameters, y, *data)
    optimizer = LNGD(model, batch_dim=0 if batch_first else 1)
    cross_entropy(model(*(v if batch_first else v.transpose(0, 1) for v in data)), y).backward()
    steps = optimizer._steps()
    assert len(steps) == 4
    for layer, view in optimizer._layers.items():
        per_sample = torch.stack([view.to_matrix({p: V[p][i] for p in view.parameters}) for i in range(n)])
        products = torch.einsum("md,nmd->n", steps[layer].direction, per_sample)
        torch.testing.assert_close(steps[layer].squares, products.square().mean(), msg=layer)


@pytest.mark.parametrize(("n", "t"), [(6, 4), (5, 5)])
def test_samples_in_the_second_dimension(n, t):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    model = Net(lambda net, x: net.layers(x).mean(0), layers=layers).double()
    x, y = torch.randn(t, n, 4, dtype=torch.float64), torch.arange(n) % 3
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def one_loss(parameters: Gradients, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(torch.func.functional_call(model, parameters, (x.unsqueeze(1),))[0], y)

    V = torch.func.vmap(torch.func.grad(one_loss), (None, 1, 0))(parameters, x, y)
    optimizer = LNGD(model, batch_dim=1)
    cross_entropy(model(x), y).backward()
    steps = optimizer._steps()
    assert len(steps) == 2
    for layer, view in optimizer._layers.items():
        per_sample = view.to_matrix({p: V[p] for p in view.parameters})
        products = torch.einsum("md,nmd->n", steps[layer].direction, per_sample)
        torch.testing.assert_close(steps[layer].squares, products.square().mean())


@pytest.mark.parametrize("name", ["mlp", "transformer"])
def test_the_rate_of_a_sum_is_that_of_a_mean(name):
    model, other = network(name), network(name)
    [(x, y)] = batches(name)
    one, two = LNGD(model), LNGD(other, loss_reduction="sum")
    cross_entropy(model(x), y).backward()
    cross_entropy(other(x), y, reduction="sum").backward()
    one.step()
    two.step()
    assert_close(weights(model), weights(other))
    assert list(one.diagnostics().rate) == pytest.approx(list(two.diagnostics().rate))


def test_weighted_losses_are_contributions():
    """A mean over tokens, or weights of samples: ∇ℓ_n is N times what the sample adds to ∇h."""
    model, [(x, y)] = network("mlp"), batches("mlp")
    share = torch.rand(len(x), dtype=x.dtype)
    V = contributions(model, x, y)
    optimizer = LNGD(model, rate="layerwise")
    (cross_entropy(model(x), y, reduction="none") * share).sum().backward()
    steps = optimizer._steps()
    for layer, view in optimizer._layers.items():
        own = view.to_matrix({p: V[p] for p in view.parameters}) * (len(x) * share)[:, None, None]
        products = torch.einsum("md,nmd->n", steps[layer].direction, own)
        torch.testing.assert_close(steps[layer].squares, products.square().mean())
