"""Rung 10 of the exactness ladder: nothing of the model or of torch is left changed, even by an error."""

import copy
from collections.abc import Iterator

import pandas as pd
import pytest
import torch
from model_cases import assert_same, state_of
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
            raise KeyError("stop")

    busy[2].register_forward_pre_hook(stop)
    before = state_of(busy)
    with pytest.raises(fl.FisherlabError, match="KeyError: 'stop'") as caught:
        CALLS[call](busy, data)
    assert isinstance(caught.value.__cause__, KeyError)
    assert 8 in sizes
    assert_same(before, state_of(busy))


def test_dropout_and_batch_norm_act_as_in_evaluation(busy):
    data = torch.randn(12, 4, dtype=torch.float64), torch.arange(12) % 3
    evaluated = copy.deepcopy(busy).eval()
    expected = fl.exact_fisher(evaluated, data)
    for layer, operator in fl.exact_fisher(busy, data).items():
        assert torch.equal(operator.dense(), expected[layer].dense())


# How users allow less than full precision: the older flags, and those of torch 2.9 and later.
PRECISIONS = {
    "autocast": "pass",
    "flags": "cuda.matmul.allow_tf32 = True; cudnn.allow_tf32 = False",
    "medium": "torch.set_float32_matmul_precision('medium')",
    "matmul": "cuda.matmul.fp32_precision = 'tf32'",
    "cudnn": "cudnn.fp32_precision = 'tf32'",
    "all": "torch.backends.fp32_precision = 'tf32'",
    "all ieee": "torch.backends.fp32_precision = 'ieee'",
}
FLAGS = (
    "cuda.matmul.allow_tf32",
    "cudnn.allow_tf32",
    "torch.get_float32_matmul_precision()",
    "cuda.matmul.fp32_precision",
    "cudnn.conv.fp32_precision",
    "cudnn.rnn.fp32_precision",
    "mkldnn.matmul.fp32_precision",
    "mkldnn.conv.fp32_precision",
    "torch.backends.fp32_precision",
)


def flags() -> dict[str, object]:
    """Every flag, or that torch refuses to read it, or has none of that name."""
    found: dict[str, object] = {}
    for flag in FLAGS:
        try:
            found[flag] = eval(flag, {"torch": torch, **vars(torch.backends)})
        except (RuntimeError, AttributeError) as error:
            found[flag] = type(error)
    return found


@pytest.fixture
def default_flags() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    if hasattr(torch.backends, "fp32_precision"):
        torch.backends.fp32_precision = torch.backends.cudnn.fp32_precision = "none"
        torch.backends.cuda.matmul.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = "none"
        torch.backends.cudnn.conv.fp32_precision = torch.backends.cudnn.rnn.fp32_precision = "tf32"


@pytest.mark.parametrize("allowed", PRECISIONS)
def test_products_are_in_full_precision_and_flags_as_before(default_flags, allowed):
    if "fp32_precision" in PRECISIONS[allowed] and not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("this torch has no such flag")
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    data = torch.randn(6, 4), torch.arange(6) % 3
    expected = fl.exact_fisher(model, data)
    during = []
    model[0].register_forward_hook(lambda module, args, output: during.append((flags(), output.dtype)))
    exec(PRECISIONS[allowed], {"torch": torch, **vars(torch.backends)})
    before = flags()
    with torch.autocast("cpu", torch.bfloat16, enabled=allowed == "autocast"):
        found = fl.exact_fisher(model, data)
    assert flags() == before
    for seen, dtype in during:
        assert dtype == torch.float32
        assert not {seen["cuda.matmul.allow_tf32"], seen["cudnn.allow_tf32"]} - {False}
        assert not {seen[flag] for flag in FLAGS[3:8]} - {"ieee", AttributeError}
    for layer, operator in found.items():
        assert torch.equal(operator.dense(), expected[layer].dense())


def test_the_default_device_of_torch_does_not_matter(tmp_path):
    """Numbers of fisherlab's own stand on the CPU, or where the model is; on "meta" nothing could be read."""
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(18, 3)).double()
    data = torch.randn(12, 1, 4, 4, dtype=torch.float64), torch.arange(12) % 3
    names = ("kfac", "ekfac", "lngd")
    expected = fl.compare(model, data, names).records.drop(columns="seconds")
    with torch.device("meta"):
        found = fl.compare(model, data, names).records.drop(columns="seconds")
        fl.exact_fisher(model, data, kind="monte-carlo")
        fl.approximate("lngd", model, data, sampling=2)
        fl.collect_statistics(model, data).save(tmp_path / "statistics")
    pd.testing.assert_frame_equal(found, expected)


def test_a_wider_setting_still_reaches_products_afterwards(default_flags):
    if not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("this torch has no such flag")
    torch.backends.fp32_precision = "tf32"
    fl.exact_fisher(nn.Sequential(nn.Linear(2, 3)), (torch.randn(4, 2), torch.arange(4) % 3))
    torch.backends.fp32_precision = "ieee"
    assert torch.backends.cuda.matmul.fp32_precision == "ieee"


# --- buffers ----------------------------------------------------------------------------------------------


class Counting(nn.Module):
    """A layer whose forward pass treats its buffers in the ways that models do."""

    def __init__(self, change) -> None:
        super().__init__()
        self.change = change
        self.layer = nn.Linear(3, 4)
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        whole = torch.ones(4)
        self.register_buffer("part", whole[:2])
        self.register_buffer("passing", whole, persistent=False)
        self.register_buffer("flag", torch.tensor([True, False]))
        self.register_buffer("gap", torch.tensor([float("nan"), 1.0]))
        self.register_buffer("nothing", None)
        self.register_buffer("same", self.passing)
        self.register_buffer("matrix", torch.eye(3).to_sparse())

    def forward(self, x):
        out = self.layer(x)
        self.change(self, out)
        return out


def replaced(module: nn.Module, out: Tensor) -> None:
    module.count = module.count + 1
    module.passing = module.passing * 2
    module.flag = ~module.flag
    module.gap = module.gap + 1


def written(module: nn.Module, out: Tensor) -> None:
    module.count += 1
    module.passing.mul_(2)
    module.flag.logical_not_()
    module.gap.nan_to_num_()
    module.matrix.mul_(2)


def registered(module: nn.Module, out: Tensor) -> None:
    module.register_buffer("new", out.detach().mean())
    module.register_buffer("flag", torch.zeros(2), persistent=False)
    module.register_buffer("passing", torch.zeros(7))


def removed(module: nn.Module, out: Tensor) -> None:
    module.count = None
    module.nothing = torch.ones(2)
    for name in ("passing", "flag", "gap"):
        if name in module._buffers:
            delattr(module, name)
    module.flag = 3
    module.gap = nn.Parameter(torch.ones(1))


def resized(module: nn.Module, out: Tensor) -> None:
    module.passing.data = torch.zeros(7)
    module.count.data = torch.ones(2)


def in_the_graph(module: nn.Module, out: Tensor) -> None:
    module.passing.mul_(0.5).add_(out.mean(0))


@pytest.mark.parametrize("fails", [False, True], ids=["done", "failed"])
@pytest.mark.parametrize("change", [replaced, written, registered, removed, resized, in_the_graph])
def test_buffers_are_the_same_tensors_with_the_same_numbers(change, fails):
    inner = Counting(change)
    model = nn.Sequential(nn.Linear(2, 3), nn.Sequential(inner), nn.Linear(4, 3)).train()
    data = torch.randn(8, 2), torch.arange(8) % (9 if fails else 3)
    names = list(inner._buffers)
    tensors = {name: (b, None if b is None else b.clone()) for name, b in inner._buffers.items()}
    keys, parameters = list(model.state_dict()), list(inner._parameters)
    if fails:
        with pytest.raises(fl.FisherlabError, match="label"):
            fl.approximate("ekfac", model, data)
    else:
        fl.approximate("ekfac", model, data)
        fl.exact_fisher(model, data)
    assert list(inner._buffers) == names
    assert (list(model.state_dict()), list(inner._parameters)) == (keys, parameters)
    assert not {"flag", "new"} & vars(inner).keys()
    for name, (tensor, before) in tensors.items():
        assert inner._buffers[name] is tensor
        if before is not None:
            assert not tensor.requires_grad
            assert tensor.dtype == before.dtype
            torch.testing.assert_close(tensor.to_dense(), before.to_dense(), rtol=0, atol=0, equal_nan=True)
    assert inner.same is inner.passing


def test_a_buffer_that_is_not_written_keeps_its_version():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    versions = [buffer._version for buffer in model.buffers()]
    fl.exact_fisher(model, (torch.randn(8, 2), torch.arange(8) % 2))
    assert [buffer._version for buffer in model.buffers()] == versions


class TiedTwice(nn.Module):
    """A table with two names, whose weight a head has too (prompt tuning of a language model)."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.inner, self.head = nn.Embedding(5, 4), nn.Module(), nn.Linear(4, 5, bias=False)
        self.inner.same = self.table
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.table(x)).sum(1) + self.inner.same(x).mean(1).square())


def places_of(model: nn.Module) -> list[tuple[int, str, int]]:
    """Which module has which parameter under which name."""
    return [(id(module), name, id(p)) for module in model.modules() for name, p in module._parameters.items()]


@pytest.mark.parametrize("method", ["auto", "per-sample"])
def test_ties_are_not_broken(method):
    """Every place has its own parameter after the analysis, and the block is that of all uses."""
    torch.manual_seed(0)
    model, x = TiedTwice().double(), torch.arange(18).view(6, 3) % 5
    before = places_of(model)
    data = [(x[:4], x[:4, 0]), (x[4:], x[4:, 0])]
    block = fl.exact_fisher(model, data, method=method)["table"]
    assert places_of(model) == before
    trace = 0.0
    for f in model(x):
        for log_p in torch.log_softmax(f, 0):
            (g,) = torch.autograd.grad(log_p, model.table.weight, retain_graph=True)
            trace += float(log_p.exp() * g.square().sum()) / len(x)
    torch.testing.assert_close(float(block.trace()), trace, rtol=1e-12, atol=0)


@pytest.mark.parametrize("cls", [nn.Embedding, nn.EmbeddingBag])
def test_weights_that_a_forward_pass_writes_are_put_back(cls):
    """Those of embeddings with `max_norm`."""
    torch.manual_seed(0)
    last = [nn.Flatten(), nn.Linear(20, 3)] if cls is nn.Embedding else [nn.Linear(5, 3)]
    model = nn.Sequential(cls(7, 5, max_norm=0.5), *last)
    x, y = torch.randint(7, (6, 4)), torch.randint(3, (6,))
    before = state_of(model)
    fl.exact_fisher(model, (x, y))
    assert_same(before, state_of(model))
    optimizer, other = fl.optim.KFAC(model), copy.deepcopy(model)
    model(x)
    other(x)
    assert torch.equal(model[0].weight, other[0].weight)
    assert not torch.equal(model[0].weight, before["state"]["0.weight"])
    del optimizer
