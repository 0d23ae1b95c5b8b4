"""Batch norms of a shared batch: of one process they are torch's; of several see train/test_processes.py."""

import pytest
import torch
from torch import Tensor, nn

from fisherlab.collect.hooks import unchanged
from fisherlab.errors import NotSupportedError
from fisherlab.layers.adapter import adapter_of
from fisherlab.loop.norms import norms_to_share, shared

TOLERANCES = {torch.float64: 1e-12, torch.float32: 3e-5, torch.bfloat16: 0.03}
SHAPES = {
    nn.BatchNorm1d: [(12, 3), (12, 3, 5)],
    nn.BatchNorm2d: [(6, 3, 4, 2)],
    nn.BatchNorm3d: [(6, 3, 2, 2, 2)],
}
OPTIONS = [
    {},
    {"affine": False},
    {"momentum": None},
    {"track_running_stats": False},
    {"eps": 0.1, "momentum": 0.3},
]


def trained(norm: nn.Module, x: Tensor, column: Tensor, share: bool) -> list[Tensor]:
    """Output, gradients and buffers after two passes."""
    x = x.clone().requires_grad_()
    for _ in range(2):
        norm.zero_grad()
        x.grad = None
        with shared(norms_to_share(norm) if share else []):
            y = norm(x)
        (y * column).sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in norm.parameters()), *norm.buffers()]


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", SHAPES)
def test_they_are_those_of_torch(kind, options, dtype):
    """Means are 17 deviations from zero."""
    torch.manual_seed(0)
    for shape in SHAPES[kind]:
        x, column = (3 * torch.randn(shape) + 50).to(dtype), torch.randn(shape).to(dtype)
        own, known = kind(3, **options).to(dtype), kind(3, **options).double()
        for parameter, values in zip(own.parameters(), ((1.0, 2.0, -3.0), (0.5, 2.0, -3.0)), strict=False):
            parameter.data.copy_(torch.tensor(values))
        known.load_state_dict(own.state_dict())
        found = trained(own, x, column, share=True)
        expected = trained(known, x.double(), column.double(), share=False)
        for one, other in zip(found, expected, strict=True):
            scale = float(other.abs().max())
            torch.testing.assert_close(one.double(), other.double(), rtol=0.0, atol=TOLERANCES[dtype] * scale)


def test_a_block_leaves_no_trace_and_hides_nothing():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.InstanceNorm1d(4), nn.SyncBatchNorm(4))
    names, seen = list(model.state_dict()), []
    norm = model[1]
    handle = norm.register_forward_hook(lambda module, *rest: seen.append(type(module)))
    with shared(norms_to_share(model)):
        y = norm(torch.randn(5, 4))
        assert "Normalised" in y.grad_fn.name()
        assert list(model.state_dict()) == names
        with unchanged(norm):  # a look of one process: the others may take none
            norm.train()
            assert "Normalised" not in norm(torch.randn(5, 4)).grad_fn.name()
        norm.eval()
        assert "Normalised" not in norm(torch.randn(5, 4)).grad_fn.name()
    handle.remove()
    assert seen == [nn.BatchNorm1d] * 3
    assert norms_to_share(model) == [norm]
    assert "forward" not in vars(norm)
    assert adapter_of(norm) is not None


def test_a_forward_of_its_own_is_refused():
    class Own(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    replaced = nn.BatchNorm1d(3)
    replaced.forward = lambda x: x
    for norm in (Own(3), replaced):
        with pytest.raises(NotSupportedError, match=r"batch norm '1' .* has a forward pass of its own"):
            norms_to_share(nn.Sequential(nn.BatchNorm1d(3), norm))
    assert "forward" in vars(replaced)
