"""A layer's call as a forward pass leaves it: numbers without a graph, and the place in it."""

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

from fisherlab.collect.hooks import capture, inputs_of, outputs_of
from fisherlab.layers import LayerCall, find_layers

N, D, M = 5, 4, 3


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, M), nn.Tanh(), nn.Linear(M, 2)).double()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(N, D, dtype=torch.float64)


@pytest.mark.parametrize("outputs", [True, False])
def test_a_call_has_shapes_and_a_place_but_no_graph_in_its_tensors(model, x, outputs):
    with capture(find_layers(model), outputs=outputs) as seen:
        f = model(x)
    (call,) = seen["0"]
    assert not call.input.requires_grad
    assert not call.output.requires_grad
    assert call.output.shape == (N, M)
    if outputs:
        assert torch.equal(call.output, model[0](x).detach())
    (g,) = torch.autograd.grad(f.sum(), [call.edge])
    expected = model[2].weight.sum(0) * (1 - model[0](x).tanh().square())
    torch.testing.assert_close(g, expected.detach(), rtol=1e-12, atol=0)


def test_without_its_edge_a_call_lets_go_of_the_graph(model, x):
    class Token:
        pass

    with capture(find_layers(model)) as seen:
        f = model(x)
    token = Token()
    f.grad_fn.metadata["token"] = token
    graph = weakref.ref(token)
    kept = [call.without_graph() for calls in seen.values() for call in calls]
    seen.clear()
    del token, f
    gc.collect()
    assert graph() is None
    assert [call.edge for call in kept] == [None, None]
    assert kept[0].output.shape == (N, M)


def test_what_no_path_leads_to_is_zero(x):
    call = LayerCall(x, x[:, :M])
    assert torch.equal(call.gradients(None, 2), torch.zeros(2, N, M, dtype=x.dtype))
    g = torch.randn(2, N, M)
    assert call.gradients(g, 2) is g


def test_the_calls_of_a_layer_lie_side_by_side(model, x):
    view = find_layers(model)["0"]
    calls = [LayerCall(part, model[0](part).detach()) for part in (x, 2 * x)]
    a = inputs_of(view, calls, N, 0)
    ones = torch.ones(N, 1, dtype=x.dtype)
    assert torch.equal(a, torch.stack([torch.cat([x, ones], 1), torch.cat([2 * x, ones], 1)], 1))
    g = outputs_of(view, [(call, call.output.unsqueeze(0)) for call in calls], N, 0)
    assert torch.equal(g[0], torch.stack([call.output for call in calls], 1))
