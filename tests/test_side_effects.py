"""Rung 10 of the exactness ladder: nothing of the model or of torch is left changed, even by an error."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import fisherlab as fl


@pytest.fixture
def busy() -> nn.Module:
    """A network with buffers, mixed modes, a frozen weight and one gradient."""
    model = nn.Sequential(
        nn.Linear(4, 5),
        nn.BatchNorm1d(5),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(5, 4),
        nn.Tanh(),
        nn.Linear(4, 3),
    ).double()
    model(torch.randn(20, 4, dtype=torch.float64))
    model.train()
    model[1].eval()
    model[5].eval()
    model[6].weight.requires_grad_(False)
    model[4].weight.grad = torch.full_like(model[4].weight, 7.0)
    return model


def state_of(model: nn.Module) -> dict:
    return {
        "state": {k: v.clone() for k, v in model.state_dict().items()},
        "gradients": {
            n: None if p.grad is None else (id(p.grad), p.grad.clone()) for n, p in model.named_parameters()
        },
        "free": [p.requires_grad for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "hooks": [
            len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
            for m in model.modules()
        ],
        "random": torch.get_rng_state(),
        "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "grad": torch.is_grad_enabled(),
        "attributes": [sorted(vars(m)) for m in model.modules()],
    }


def assert_same(one: object, two: object) -> None:
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_same(one[key], two[key])
    elif isinstance(one, Tensor):
        assert torch.equal(one, two)
    elif isinstance(one, (tuple, list)):
        assert len(one) == len(two)
        for left, right in zip(one, two, strict=True):
            assert_same(left, right)
    else:
        assert one == two


@pytest.fixture
def tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


CALLS = {
    "predictive": lambda model, data: fl.exact_fisher(model, data),
    "per-sample": lambda model, data: fl.exact_fisher(model, data, method="per-sample"),
    "monte-carlo": lambda model, data: fl.exact_fisher(model, data, kind="monte-carlo"),
    "ekfac": lambda model, data: fl.approximate("ekfac", model, data),
    "lngd draws": lambda model, data: fl.approximate("lngd", model, data, sampling=2),
    "compare": lambda model, data: fl.compare(model, data, spectra=False),
}


@pytest.mark.parametrize("call", CALLS)
def test_nothing_is_left_changed(busy, tf32, call):
    data = torch.randn(12, 4, dtype=torch.float64), torch.arange(12) % 3
    before = state_of(busy)
    with torch.no_grad():
        CALLS[call](busy, data)
    assert_same(before, state_of(busy))


@pytest.mark.parametrize("call", CALLS)
def test_nothing_is_left_changed_after_an_error(busy, tf32, call):
    x = torch.randn(12, 4, dtype=torch.float64)
    data = [(x[:8], torch.arange(8) % 3), (x[8:], torch.arange(4) % 3)]
    sizes = []

    def stop(module: nn.Module, args: tuple[Tensor]) -> None:
        sizes.append(len(args[0]))
        if len(args[0]) == 4:
            raise RuntimeError("stop")

    busy[2].register_forward_pre_hook(stop)
    before = state_of(busy)
    with pytest.raises(RuntimeError, match="stop"):
        CALLS[call](busy, data)
    assert 8 in sizes
    assert_same(before, state_of(busy))


def test_dropout_and_batch_norm_act_as_in_evaluation(busy):
    data = torch.randn(12, 4, dtype=torch.float64), torch.arange(12) % 3
    evaluated = copy.deepcopy(busy).eval()
    expected = fl.exact_fisher(evaluated, data)
    for layer, operator in fl.exact_fisher(busy, data).items():
        assert torch.equal(operator.dense(), expected[layer].dense())
