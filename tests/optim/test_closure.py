"""`step(closure)`: the closure's loss and gradients are those of the step."""

import pytest
import torch
from optim.cases import METHODS, assert_same, backward, batches, network, train, weights

from fisherlab.errors import InputError
from fisherlab.optim import KFAC, LNGD


@pytest.mark.parametrize("method", METHODS)
def test_a_closure_gives_the_steps_of_the_usual_loop(method):
    data = batches("cnn", 4)
    model, usual = network("cnn"), network("cnn")
    optimizer = METHODS[method](model, statistics_every=2, inverse_every=2)
    called = []

    def closure() -> torch.Tensor:
        called.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        return backward(model, batch)

    for batch in data:
        before = torch.nn.functional.cross_entropy(model(batch[0]), batch[1]).item()
        assert optimizer.step(closure).item() == pytest.approx(before)
    assert called == [True] * len(data)
    reference = METHODS[method](usual, statistics_every=2, inverse_every=2)
    for batch in data:  # the batch norm has seen each batch twice
        torch.nn.functional.cross_entropy(usual(batch[0]), batch[1])
        train(usual, reference, [batch])
    if method in ("lngd", "lngd-sample", "ngplus", "lngd-empirical", "kfac-empirical"):
        assert_same(weights(model), weights(usual))


def test_without_a_closure_nothing_comes_back():
    model = network("mlp")
    optimizer = LNGD(model)
    backward(model, batches("mlp")[0])
    assert optimizer.step() is None


def test_the_closure_may_return_anything():
    model = network("mlp")
    optimizer = KFAC(model)

    def closure() -> str:
        backward(model, batches("mlp")[0])
        return "done"

    assert optimizer.step(closure) == "done"


def test_a_closure_that_clears_a_backward_pass_takes_its_place():
    """The batch whose gradients were dropped has no part in the step."""
    first, second = batches("mlp", 2)
    model, usual = network("mlp"), network("mlp")
    for rate in ("layerwise", "fixed"):
        optimizer = LNGD(model, source="empirical", rate=rate, loss_reduction="mean")
        backward(model, first)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()  # noqa: B023
            return backward(model, second)

        optimizer.step(closure)
        train(usual, LNGD(usual, source="empirical", rate=rate), [second])
        assert_same(weights(model), weights(usual))


def test_a_closure_without_a_backward_pass_is_refused():
    model = network("mlp")
    optimizer = LNGD(model)
    before = weights(model)
    with pytest.raises(InputError, match="without a backward pass"):
        optimizer.step(lambda: None)
    assert_same(weights(model), before)
