"""What the optimizer keeps alive: nothing of a batch after its backward pass, and no graph."""

import gc
import io
import weakref
from collections.abc import Iterator
from copy import deepcopy

import pytest
import torch
from optim.cases import METHODS, NETWORKS, batches, network, train
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fisherlab.errors import InputError
from fisherlab.layers import LayerCall
from fisherlab.optim import LNGD


@pytest.fixture(autouse=True)
def counted() -> Iterator[None]:
    """References alone free memory."""
    gc.disable()
    yield
    gc.enable()


class Token:
    """Lives as long as what holds it."""


def marked(graph: Tensor) -> "weakref.ref[Token]":
    """Dies with the graph."""
    token = Token()
    graph.grad_fn.metadata["token"] = token
    return weakref.ref(token)


@pytest.fixture
def captured(monkeypatch) -> list["weakref.ref[Tensor]"]:
    """The inputs and outputs of all layers that were seen."""
    found: list[weakref.ref[Tensor]] = []
    plain = LayerCall.__init__

    def kept(self, *given, **named) -> None:
        plain(self, *given, **named)
        found.extend((weakref.ref(self.input), weakref.ref(self.output)))

    monkeypatch.setattr(LayerCall, "__init__", kept)
    return found


def alive(references: list) -> int:
    return sum(ref() is not None for ref in references)


@pytest.mark.parametrize("method", METHODS)
def test_a_backward_pass_lets_go_of_all_inputs(captured, method):
    """Though the loss, and with it the graph, is still there; on steps with statistics and without."""
    model, data = network("transformer"), batches("transformer", 3)
    optimizer = METHODS[method](model, statistics_every=2, inverse_every=2)
    losses = []
    for x, y in data:
        optimizer.zero_grad()
        losses.append(cross_entropy(model(x), y))
        del x, y
        losses[-1].backward()
        assert captured
        assert alive(captured) == 0
        optimizer.step()
        captured.clear()


@pytest.mark.parametrize("rule", [{"momentum_on": "gradient"}, {"weight_decay_mode": "coupled"}])
def test_where_the_rate_needs_inputs_in_the_step_they_go_after_it(captured, rule):
    model, [(x, y)] = network("mlp"), batches("mlp")
    optimizer = LNGD(model, **rule)
    loss = cross_entropy(model(x), y)
    loss.backward()
    assert alive(captured) > 0
    optimizer.step()
    del x
    assert alive(captured) == 0


@pytest.mark.parametrize("name", NETWORKS)
def test_no_cycle_holds_a_graph(name):
    """Before and after a backward pass the graph dies with its loss."""
    model, data = network(name), batches(name, 3)
    optimizer = LNGD(model)
    for x, y in data:
        forward_only = marked(model(x))
        assert forward_only() is None
        loss = cross_entropy(model(x), y)
        graph = marked(loss)
        assert graph() is not None
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        del loss
        assert graph() is None


@pytest.mark.parametrize("method", METHODS)
def test_no_method_holds_a_graph(method):
    model, data = network("mlp"), batches("mlp", 2)
    optimizer = METHODS[method](model)
    for x, y in data:
        output = model(x)
        loss = cross_entropy(output, y)
        graphs = [marked(output), marked(loss)]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        del output, loss
        assert alive(graphs) == 0


def test_a_failed_forward_pass_leaves_nothing(captured):
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no")

    model = nn.Sequential(nn.Linear(6, 5), Failing()).double()
    optimizer = LNGD(model)
    hooks = len(model._forward_hooks)
    [(x, _)] = batches("mlp")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no"):
            model(x)
    del x
    assert len(model._forward_hooks) == hooks
    assert not model[0]._forward_hooks
    assert alive(captured) == 0
    assert optimizer.param_groups


def test_hooks_are_open_only_during_forward_passes():
    model, [(x, _)] = network("transformer"), batches("transformer")
    optimizer = LNGD(model)
    output = model(x)
    assert not any(module._forward_hooks for module in model.modules())
    assert not any("forward" in vars(module) for module in model.modules())
    assert output.requires_grad
    assert optimizer.param_groups


def numbers() -> int:
    """How many numbers all tensors hold."""
    return sum(t.numel() for t in gc.get_objects() if type(t) in (Tensor, nn.Parameter))


@pytest.mark.parametrize("method", ["lngd", "ekfac"])
def test_steps_and_states_add_nothing(method):
    """All tensors there are after five steps, and after fifteen and some checkpoints."""
    model, data = network("mlp"), batches("mlp", 5)
    optimizer = METHODS[method](model, statistics_every=1, inverse_every=1)
    train(model, optimizer, data)
    optimizer.zero_grad()
    gc.collect()
    before = numbers()
    for _ in range(2):
        optimizer.state_dict()
        train(model, optimizer, data)
        optimizer.zero_grad()
    gc.collect()
    assert numbers() <= before


def test_a_copy_of_the_model_has_nothing_of_the_optimizer():
    """Nor has a saved one; as for a moving average of weights."""
    model, [(x, y)] = network("mlp"), batches("mlp")
    optimizer = LNGD(model)
    stored = io.BytesIO()
    torch.save(model, stored)
    stored.seek(0)
    for other in (deepcopy(model), torch.load(stored, weights_only=False)):
        cross_entropy(other(x), y).backward()
        with pytest.raises(InputError, match="without a backward pass"):
            optimizer.step()


def test_an_optimizer_that_is_gone_follows_no_more():
    model, [(x, y)] = network("mlp"), batches("mlp")
    first = weakref.ref(LNGD(model)._tap)
    gc.collect()
    assert first() is None
    cross_entropy(model(x), y).backward()
