"""The seam to autograd: gradients as they come, as torch gives them, and group norms that end the process."""

import subprocess
import sys
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


CHANNELS_LAST = """
import torch
from torch import nn
from torch.nn.functional import group_norm
from torch.utils.checkpoint import checkpoint
import fisherlab as fl

class Scaled(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm, self.scale, self.shift = norm, nn.Parameter(torch.rand(4) + 1), nn.Parameter(torch.rand(4))
    def forward(self, x):
        return self.norm(x, self.scale, self.shift)

def again(x, w, b):
    return checkpoint(group_norm, x, 2, w, b, use_reentrant=False)

norms = {
    "functional": lambda x, w, b: group_norm(x, 2, w, b),
    "torch": lambda x, w, b: torch.group_norm(input=x, num_groups=2, weight=w, bias=b),
    "checkpoint": again,
}
x, y = torch.randn(5, 4, 2, 3, dtype=torch.float64), torch.randint(3, (5,))
for name, norm in norms.items():
    for before in ((), (nn.Conv2d(4, 4, 1),)):
        model = nn.Sequential(*before, Scaled(norm), nn.Flatten(), nn.Linear(24, 3)).double()
        found, expected = (
            fl.exact_fisher(model, (x.to(memory_format=layout), y), kind="empirical")
            for layout in (torch.channels_last, torch.contiguous_format)
        )
        assert len(found) == len(before) + 3
        for layer, block in found.items():
            torch.testing.assert_close(block.dense(), expected[layer].dense(), rtol=1e-10, atol=1e-14)
        print(name, len(before))
"""


def test_group_norms_of_channels_last_tensors_do_not_end_the_process():
    """By whatever function they are called; torch alone ends it where only the weight's gradient is asked."""
    done = subprocess.run([sys.executable, "-c", CHANNELS_LAST], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split("\n")) == 7
