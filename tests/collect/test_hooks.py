"""One backward pass that gives gradients as they come, against torch's own."""

import weakref

import pytest
import torch
from torch import Tensor, nn

from fisherlab.collect.hooks import backward_one_by_one

torch.manual_seed(0)
X, W = (torch.randn(4, 6, dtype=torch.float64) for _ in range(2))


def chain() -> tuple[Tensor, list[Tensor]]:
    values = [X.clone().requires_grad_().tanh()]
    for _ in range(6):
        values.append((values[-1] @ W.T @ W).sin())
    return values[-1], values


def branches() -> tuple[Tensor, list[Tensor]]:
    """A residual sum, two pieces of one node, a branch of its own, and a value that is not used."""
    x = X.clone().requires_grad_()
    first = x.sin()
    left, right = (first + first.cos()).chunk(2, dim=1)
    own = (2 * x).tanh()
    unused = left.exp()
    return left * right + own[:, :3], [own, first, left, right, unused]


def edges(values: list[Tensor]) -> list[torch.autograd.graph.GradientEdge]:
    return [torch.autograd.graph.get_gradient_edge(value) for value in values]


@pytest.mark.parametrize("network", [chain, branches])
def test_the_gradients_are_torchs(network):
    output, values = network()
    column = torch.randn_like(output)
    expected = torch.autograd.grad(output, values, column, retain_graph=True, allow_unused=True)
    found: dict[int, Tensor | None] = {}
    backward_one_by_one(output, edges(values), column, lambda place, g: found.update({place: g}))
    assert set(found) == set(range(len(values)))
    for place, g in found.items():
        assert (g is None) == (expected[place] is None)
        assert g is None or torch.equal(g, expected[place])


def test_few_gradients_are_alive_at_once_and_no_hook_stays():
    output, values = chain()
    places, column = edges(values), torch.ones_like(output)
    references: list[weakref.ref[Tensor]] = []
    most = 0

    def take(_: int, g: Tensor | None) -> None:
        nonlocal most
        references.append(weakref.ref(g))
        most = max(most, sum(ref() is not None for ref in references))

    backward_one_by_one(output, places, column, take)
    assert len(references) == len(values)
    assert most <= 2
    torch.autograd.grad(output, places, column)
    assert len(references) == len(values)


def test_an_error_in_the_midst_leaves_no_hook():
    output, values = chain()

    def fail(*_: object) -> None:
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        backward_one_by_one(output, edges(values), torch.ones_like(output), fail)
    torch.autograd.grad(output, edges(values), torch.ones_like(output))


def test_deep_graphs_need_no_recursion():
    x = torch.ones(1, requires_grad=True)
    value = first = x * 1
    for _ in range(3000):
        value = value + 1
    found: dict[int, Tensor | None] = {}
    backward_one_by_one(
        value, edges([value, first]), torch.ones(1), lambda place, g: found.update({place: g})
    )
    assert found[0] is not None
    assert found[1] is not None
    assert float(found[0]) == float(found[1]) == 1


def test_layers_of_a_module_called_twice():
    layer = nn.Linear(6, 6, dtype=torch.float64)
    outputs: list[Tensor] = []
    layer.register_forward_hook(lambda _, __, y: outputs.append(y))
    output = layer(layer(X).relu())
    expected = torch.autograd.grad(output.sum(), outputs, retain_graph=True)
    found: dict[int, Tensor | None] = {}
    backward_one_by_one(
        output, edges(outputs), torch.ones_like(output), lambda place, g: found.update({place: g})
    )
    assert all(torch.equal(found[place], g) for place, g in enumerate(expected))
