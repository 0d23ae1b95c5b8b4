"""Gradients of several backward passes in one step."""

import gc
import weakref

import pytest
import torch
from model_cases import Net
from optim.cases import METHODS, Batch, assert_close, assert_same, backward, batches, network, train, weights
from torch import nn
from torch.nn.functional import cross_entropy

from fisherlab.optim import EKFAC, LNGD, NaturalGradient

# Draws of layer-wise sampling go layer by layer through a batch: cut otherwise, they are other ones.
# The layer-wise rate is made of the last micro-batch alone: with it a step is compared by hand further down.
FIXED = {name: make for name, make in METHODS.items() if name != "kfac-layerwise"}
SAMPLES = 12


class Token:
    """Lives as long as what holds it."""


def cut(batch: Batch, sizes: tuple[int, ...]) -> list[Batch]:
    return list(zip(*(value.split(list(sizes)) for value in batch), strict=True))


def accumulate(
    model: nn.Module, optimizer: NaturalGradient, batch: Batch, sizes: tuple[int, ...], reduction="mean"
) -> None:
    """One step with the loss over the whole batch, a backward pass for each micro-batch."""
    optimizer.zero_grad()
    for x, y in cut(batch, sizes):
        loss = cross_entropy(model(x), y, reduction="sum")
        (loss / SAMPLES if reduction == "mean" else loss).backward()
    optimizer.step()


@pytest.mark.parametrize("sizes", [(4, 4, 4), (5, 5, 2)])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("method", [name for name in FIXED if name not in ("ekfac", "lngd-draws")])
def test_micro_batches_give_the_step_of_the_whole_batch(method, reduction, sizes):
    """When statistics are due and when not; the last micro-batch may be smaller."""
    whole, parts = network("mlp"), network("mlp")
    options = {"rate": "fixed", "statistics_every": 2, "inverse_every": 3, "loss_reduction": reduction}
    one, several = FIXED[method](whole, **options), FIXED[method](parts, **options)
    for batch in batches("mlp", 4, SAMPLES):
        accumulate(whole, one, batch, (SAMPLES,), reduction)
        accumulate(parts, several, batch, sizes, reduction)
        assert_close(weights(parts), weights(whole))


@pytest.mark.parametrize("name", ["transformer", "twice", "grouped"])
@pytest.mark.parametrize("method", ["lngd", "lngd-lr", "ngplus", "tkfac"])
def test_micro_batches_of_other_networks(method, name):
    whole, parts = network(name), network(name)
    one, several = FIXED[method](whole, rate="fixed"), FIXED[method](parts, rate="fixed")
    for batch in batches(name, 2, SAMPLES):
        accumulate(whole, one, batch, (SAMPLES,))
        accumulate(parts, several, batch, (5, 7))
    assert_close(weights(parts), weights(whole))


def test_micro_batches_of_ekfac_have_one_basis():
    """That of the first micro-batch: the second moments of all of them are taken in it.

    Gradients of samples are not kept until all of them came. A basis that stands gives the step of the whole.
    """
    whole, parts = network("mlp"), network("mlp")
    options = {"statistics_every": 1, "inverse_every": 100, "source": "empirical", "decay": 0.5}
    one, several = EKFAC(whole, **options), EKFAC(parts, **options)
    first, *rest = batches("mlp", 3, SAMPLES)
    for model, optimizer in ((whole, one), (parts, several)):
        accumulate(model, optimizer, first, (SAMPLES,))
    for batch in rest:
        accumulate(whole, one, batch, (SAMPLES,))
        accumulate(parts, several, batch, (4, 8))
        assert_close(weights(parts), weights(whole))


def test_ekfacs_basis_of_the_first_micro_batch_by_hand():
    """D = U_B [(U_Bᵀ ∇h U_A)/(S + λ)] U_Aᵀ, U of the first micro-batch, S and ∇h of the whole."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3, bias=False).double()
    W = model.weight.detach().clone()
    x, y = torch.randn(SAMPLES, 4, dtype=torch.float64), torch.arange(SAMPLES) % 3
    plain = {"momentum": 0.0, "weight_decay": 0.0, "kl_clip": None}
    optimizer = EKFAC(model, lr=1.0, damping=0.1, source="empirical", **plain)
    accumulate(model, optimizer, (x, y), (5, 7))
    g = torch.softmax(x @ W.T, -1) - nn.functional.one_hot(y, 3)
    U_A = torch.linalg.eigh(x[:5].T @ x[:5]).eigenvectors
    U_B = torch.linalg.eigh(g[:5].T @ g[:5]).eigenvectors
    S = ((g @ U_B).square().T @ (x @ U_A).square()) / SAMPLES
    gradient = g.T @ x / SAMPLES
    D = U_B @ ((U_B.T @ gradient @ U_A) / (S + 0.1)) @ U_A.T
    torch.testing.assert_close(model.weight.detach(), W - D)


def by_hand(W: torch.Tensor, x: torch.Tensor, y: torch.Tensor, kept: slice) -> torch.Tensor:
    """LNGD's first step of one layer without an activation: Φ = m E[a aᵀ], Ψ = I/m.

    ∇h and Φ are those of the whole batch; the mean of ⟨D, ∇ℓ_n⟩² is over the samples kept.
    """
    m, d = W.shape
    g = torch.softmax(x @ W.T, -1) - nn.functional.one_hot(y, m)
    gradient = g.T @ x / len(x)
    phi = m * x.T @ x / len(x)
    eye = torch.eye(d, dtype=x.dtype)
    D = gradient @ torch.linalg.inv(phi + min(max(float(phi.trace()) / d, 1e-5), 1e-2) * eye) / (1 / m + 1e-2)
    squares = torch.einsum("nm,md,nd->n", g[kept], D, x[kept]).square().mean()
    return W - 0.1 * (D * gradient).sum() / (squares + 1e-3) * D


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    ("sizes", "rate_samples", "kept"),
    [
        ((12,), None, slice(12)),
        ((4, 4, 4), None, slice(8, 12)),
        ((5, 5, 2), None, slice(10, 12)),
        ((12,), 3, slice(3)),
        ((6, 6), 3, slice(6, 9)),
        ((6, 6), 100, slice(6, 12)),
    ],
)
def test_the_layerwise_rate_by_hand(sizes, rate_samples, kept, reduction):
    """D of the whole; α_l of the last micro-batch, or of its first samples."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3, bias=False).double()
    W = model.weight.detach().clone()
    x, y = torch.randn(SAMPLES, 4, dtype=torch.float64), torch.arange(SAMPLES) % 3
    plain = {"momentum": 0.0, "weight_decay": 0.0, "kl_clip": None}
    optimizer = LNGD(model, rate_samples=rate_samples, loss_reduction=reduction, **plain)
    accumulate(model, optimizer, (x, y), sizes, reduction)
    torch.testing.assert_close(model.weight.detach(), by_hand(W, x, y, kept))


@pytest.mark.parametrize("options", [{"momentum_on": "gradient"}, {"weight_decay_mode": "coupled"}, {}])
def test_the_layerwise_rate_of_every_step_rule(options):
    """Where D is made in `step()` the rate is of the last micro-batch too: a batch twice is that batch."""
    [(x, y)] = batches("mlp", 1, SAMPLES // 2)
    twice, once = network("mlp"), network("mlp")
    several, one = LNGD(twice, **options), LNGD(once, **options)
    for _ in range(3):
        accumulate(twice, several, (torch.cat([x, x]), torch.cat([y, y])), (6, 6))
        train(once, one, [(x, y)])
    assert_close(weights(twice), weights(once))


@pytest.mark.parametrize("method", [name for name in METHODS if name != "lngd-draws"])
def test_several_forward_passes_before_one_backward_pass(method):
    """With one loss of all: the rate is made of all samples too."""
    whole, parts = network("mlp"), network("mlp")
    one, several = METHODS[method](whole), METHODS[method](parts)
    for batch in batches("mlp", 2, SAMPLES):
        train(whole, one, [batch])
        several.zero_grad()
        pieces = cut(batch, (5, 7))
        losses = [cross_entropy(parts(x), y, reduction="sum") for x, y in pieces]
        (sum(losses) / SAMPLES).backward()
        several.step()
        if method == "ekfac":  # the basis is that of the first pass
            break
        assert_close(weights(parts), weights(whole))


def test_a_rate_of_some_samples_of_a_module_called_with_different_rows():
    """Where a call has several rows a sample all samples are kept."""

    def rows() -> Net:
        return Net(
            lambda net, x: net.same(net.same(x.reshape(-1, 6)).tanh().reshape(x.shape).mean(1)),
            same=nn.Linear(6, 6),
        )

    [(x, y)] = batches("sequences")
    torch.manual_seed(0)
    model = rows().double()
    other = rows().double()
    other.load_state_dict(model.state_dict())
    some, every = LNGD(model, rate_samples=3), LNGD(other)
    assert_close(train(model, some, [(x, y)]), train(other, every, [(x, y)]))


def test_forward_passes_without_a_backward_pass_keep_nothing():
    """Their graphs go as in any training, and what the optimizer knows does not grow."""
    model, [(x, y)] = network("mlp"), batches("mlp")
    optimizer = LNGD(model)
    passes = optimizer._tap.passes
    gc.disable()
    try:
        for _ in range(5):
            output = model(x)
            output.grad_fn.metadata["token"] = token = Token()
            alive = weakref.ref(token)
            del token
            assert alive() is not None
            del output
            assert alive() is None
        assert len(passes._known) <= 1
        assert sum(map(len, passes._kin.values())) <= 2
    finally:
        gc.enable()
    cross_entropy(model(x), y).backward()
    optimizer.step()


def test_a_forward_pass_without_a_backward_pass_adds_to_no_step():
    """Where statistics come from the loss, or are not due."""
    first, second = batches("mlp", 2)
    for options in ({"source": "empirical"}, {"source": "layerwise", "statistics_every": 5}):
        model, usual = network("mlp"), network("mlp")
        optimizer, reference = LNGD(model, **options), LNGD(usual, **options)
        for one, other in ((model, optimizer), (usual, reference)):
            train(one, other, [first])
        model(first[0])
        assert_same(train(model, optimizer, [second]), train(usual, reference, [second]))


def test_micro_batches_with_clear_gradients_between_are_steps_apart():
    """`zero_grad` drops the backward passes before it, by whichever name."""
    data = batches("mlp", 3)
    for clear in (
        lambda model, optimizer: optimizer.zero_grad(),
        lambda model, optimizer: optimizer.zero_grad(set_to_none=False),
        lambda model, optimizer: model.zero_grad(),
    ):
        for options in ({"source": "empirical"}, {"source": "layerwise", "statistics_every": 3}):
            model, usual = network("mlp"), network("mlp")
            optimizer, reference = LNGD(model, **options), LNGD(usual, **options)
            for one, other in ((model, optimizer), (usual, reference)):
                train(one, other, data[:1])
            optimizer.zero_grad()
            backward(model, data[1])
            clear(model, optimizer)
            backward(model, data[2])
            optimizer.step()
            assert_close(weights(model), train(usual, reference, data[2:]))
