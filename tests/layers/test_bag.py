"""EmbeddingBag: the same numbers as an Embedding and a sum after it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import Net
from reference import relative
from torch import Tensor, nn

import fisherlab as fl
from fisherlab.layers import spelled_out
from fisherlab.layers.adapter import adapter_of

WORDS = 7


def bagged(bag: nn.EmbeddingBag, weights: bool) -> Net:
    """Indices [n, t], and numbers [n, t] for each."""
    return Net(
        lambda net, x, w: net.head(net.bag(x, per_sample_weights=w if weights else None).tanh()),
        bag=bag,
        head=nn.Linear(4, 3),
    ).double()


def looked_up(model: Net, weights: bool) -> Net:
    """The same network in other words."""
    bag = model.bag

    def call(net, x, w):
        shares = w if weights else torch.ones_like(w)
        if bag.padding_idx is not None:
            shares = shares * (x != bag.padding_idx)
        rows = net.bag(x) * shares[..., None]
        count = shares.sum(1, keepdim=True).clamp(min=1) if bag.mode == "mean" else 1
        return net.head((rows.sum(1) / count).tanh())

    table = nn.Embedding(WORDS, 4, padding_idx=bag.padding_idx)
    table.weight = bag.weight
    return Net(call, bag=table, head=model.head)


@pytest.fixture
def data() -> tuple[tuple[Tensor, Tensor], Tensor]:
    x = torch.randint(WORDS, (6, 4))
    x[0] = 0
    return (x, torch.rand(6, 4, dtype=torch.float64)), torch.arange(6) % 3


@pytest.mark.parametrize("padding", [None, 0])
@pytest.mark.parametrize(("mode", "weights"), [("sum", False), ("sum", True), ("mean", False)])
def test_blocks_and_approximations_are_those_of_an_embedding(data, mode, weights, padding):
    one = bagged(nn.EmbeddingBag(WORDS, 4, mode=mode, padding_idx=padding), weights)
    other = looked_up(one, weights)
    view = fl.find_layers(one)["bag"]
    assert (view.one_hot, view.outputs, view.inputs, view.family) == (True, 4, WORDS, "EmbeddingBag")
    assert relative(*(fl.exact_fisher(m, data)["bag"].dense() for m in (one, other))) < 1e-12
    for method in ("kfac", "ekfac", "tkfac", "lngd", "diagonal"):
        found, expected = (fl.approximate(method, m, data)["bag"].dense() for m in (one, other))
        assert relative(found, expected) < 1e-12, method


class Ragged(nn.Module):
    """Takes the words of a sample up to its first zero, as bags of other lengths, one after another."""

    def __init__(self, closed: bool) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(WORDS, 4, mode="mean", include_last_offset=closed)
        self.head, self.closed = nn.Linear(4, 3), closed

    def forward(self, x: Tensor) -> Tensor:
        valid = (x > 0).long().cumprod(1).bool()
        ends = valid.sum(1).cumsum(0)
        offsets = torch.cat([ends.new_zeros(1), ends if self.closed else ends[:-1]])
        return self.head(self.bag(x[valid], offsets).tanh())


@pytest.mark.parametrize("closed", [True, False])
def test_bags_of_other_lengths(closed):
    model = Ragged(closed).double()
    x = torch.randint(1, WORDS, (8, 5))
    x[torch.arange(8), torch.arange(8) % 5] = 0  # one has no words
    found = fl.exact_fisher(model, (x, None))["bag"].dense()
    expected = fl.exact_fisher(model, (x, None), method="per-sample")["bag"].dense()
    assert relative(found, expected) < 1e-12


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=5),
    mode=st.sampled_from(["sum", "mean"]),
    padding=st.sampled_from([None, 0, WORDS - 1]),
    closed=st.booleans(),
    weights=st.booleans(),
)
def test_written_out_it_gives_what_it_gives(lengths, mode, padding, closed, weights):
    bag = nn.EmbeddingBag(WORDS, 3, mode=mode, padding_idx=padding, include_last_offset=closed).double()
    total = sum(lengths)
    x = torch.randint(WORDS, (total,))
    offsets = torch.tensor([0, *lengths]).cumsum(0)[: None if closed else -1]
    w = torch.rand(total, dtype=torch.float64) if weights and mode == "sum" else None
    expected, told = bag(x, offsets, w), []
    with spelled_out([bag], lambda module, part, x, output, at, valid: told.append((part, x.shape))):
        found = bag(x, offsets, per_sample_weights=w)
    assert torch.allclose(found, expected, rtol=0, atol=1e-14)
    assert told == [("", (len(lengths), max(lengths)))]
    g = torch.randn_like(expected)
    grads = [torch.autograd.grad(y, bag.weight, g)[0] for y in (found, expected)]
    assert torch.allclose(*grads, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"mode": "max"}, "mode='max' is no linear map"),
        ({"max_norm": 1.0}, "changes its weight in the forward pass"),
        ({"scale_grad_by_freq": True, "mode": "sum"}, "no gradient of the loss"),
    ],
)
def test_others_are_refused_with_the_reason(options, reason):
    bag = nn.EmbeddingBag(WORDS, 4, **options)
    assert reason in adapter_of(bag).refusal(bag)
    assert "0" not in fl.find_layers(nn.Sequential(bag, nn.Linear(4, 3)))


def test_optimizers_leave_it_to_the_step_of_other_parameters(data):
    model = bagged(nn.EmbeddingBag(WORDS, 4, mode="sum"), weights=True)
    optimizer = fl.optim.LNGD(model, lr=0.1)
    assert list(optimizer.rates()["layer"]) == ["head"]
    (x, w), y = data
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x, w), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
