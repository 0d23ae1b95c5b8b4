"""The likelihood of a sequence: sums over tokens that count, one column for each token and class."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import Net
from reference import names_of, relative, seed
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev, vmap
from torch.nn import functional

import fisherlab as fl
from fisherlab.errors import InputError
from fisherlab.likelihoods import Categorical, Likelihood, TokenCategorical, label_columns

TOKENS = TokenCategorical()
IGNORE = TOKENS.ignore_index


@st.composite
def batches(draw) -> tuple[Tensor, Tensor]:
    """Outputs [n, T, V], some very sure, and targets [n, T] with tokens that do not count."""
    n, t, v = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(2, 4))
    values = st.lists(st.floats(-60, 60, width=32), min_size=n * t * v, max_size=n * t * v)
    labels = st.lists(st.sampled_from([IGNORE, *range(v)]), min_size=n * t, max_size=n * t)
    outputs = torch.tensor(draw(values), dtype=torch.float64).reshape(n, t, v)
    return outputs, torch.tensor(draw(labels)).reshape(n, t)


def nll(f: Tensor, y: Tensor, ignore: int = IGNORE) -> Tensor:
    return functional.cross_entropy(f, y, ignore_index=ignore, reduction="sum")


def hessians(outputs: Tensor, targets: Tensor, ignore: int = IGNORE) -> Tensor:
    """Of each sample's negative log-likelihood, [n, T V, T V]."""
    n, t, v = outputs.shape
    found = [hessian(lambda f, y=y: nll(f, y, ignore))(f) for f, y in zip(outputs, targets, strict=True)]
    return torch.stack(found).reshape(n, t * v, t * v)


def products(columns: Tensor) -> Tensor:
    flat = columns.flatten(2)
    return torch.einsum("cnk,cnl->nkl", flat, flat)


def some_batch(ignored: bool = True) -> tuple[Tensor, Tensor]:
    outputs = torch.randn(3, 4, 5, dtype=torch.float64)
    targets = torch.arange(12).reshape(3, 4) % 5
    if ignored:
        targets[0, 1:3] = targets[2] = IGNORE
    return outputs, targets


# --- columns ------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(batch=batches())
def test_columns_are_a_root_of_the_hessian_of_the_tokens_that_count(batch):
    outputs, targets = batch
    u = label_columns(TOKENS, "predictive", outputs, targets)
    assert u.shape == (TOKENS.count(outputs), *outputs.shape)
    assert torch.allclose(products(u), hessians(outputs, targets), rtol=1e-10, atol=1e-14)


@settings(max_examples=25)
@given(batch=batches())
def test_columns_are_finite_and_right_in_float32(batch):
    single, targets = batch[0].float(), batch[1]
    u = label_columns(TOKENS, "predictive", single, targets)
    assert u.dtype == torch.float32
    assert torch.isfinite(u).all()
    expected = label_columns(TOKENS, "predictive", single.double(), targets)
    assert torch.allclose(u.double(), expected, rtol=2e-4, atol=1e-6)


def test_every_column_is_one_of_a_categorical_at_one_token():
    outputs, _ = some_batch()
    u = TOKENS.columns(outputs).unflatten(0, (4, 4))
    for t in range(4):
        assert torch.allclose(u[t, :, :, t], Categorical().columns(outputs[:, t]), rtol=1e-12, atol=0)
        assert not u[t, :, :, [s for s in range(4) if s != t]].any()


def test_one_token_is_a_categorical():
    outputs, targets = torch.randn(6, 5, dtype=torch.float64), torch.arange(6) % 5
    sequence, labels = outputs.unsqueeze(1), targets.unsqueeze(1)
    assert torch.equal(TOKENS.columns(sequence).squeeze(2), Categorical().columns(outputs))
    assert torch.equal(TOKENS.residual(sequence, labels)[:, 0], Categorical().residual(outputs, targets))
    assert torch.equal(TOKENS.coordinates(sequence, labels), Categorical().coordinates(outputs, targets))
    assert torch.equal(TOKENS.draw(sequence, 3, seed(0)).squeeze(2), Categorical().draw(outputs, 3, seed(0)))


@given(data=st.data())
@settings(max_examples=25)
def test_a_part_of_the_columns_is_that_slice_of_all(data):
    outputs, targets = some_batch()
    start = data.draw(st.integers(0, 16))
    part = slice(start, data.draw(st.integers(start, 16)))
    whole = label_columns(TOKENS, "predictive", outputs, targets)
    assert torch.equal(label_columns(TOKENS, "predictive", outputs, targets, part=part), whole[part])


# --- masks --------------------------------------------------------------------------------------------


def test_the_mask_marks_tokens_that_count():
    outputs, targets = some_batch()
    assert torch.equal(TOKENS.mask(targets), targets >= 0)
    assert TOKENS.mask(targets.clamp(min=0)) is None
    for kind in ("predictive", "monte-carlo", "empirical"):
        columns = label_columns(TOKENS, kind, outputs, targets, 2, seed(0))
        counts = columns.abs().sum((0, 3)) > 0
        assert torch.equal(counts, targets >= 0)


def test_without_targets_every_token_counts():
    outputs, targets = some_batch(ignored=False)
    for kind in ("predictive", "monte-carlo"):
        found = label_columns(TOKENS, kind, outputs, None, 2, seed(0))
        assert torch.equal(found, label_columns(TOKENS, kind, outputs, targets, 2, seed(0)))


def test_a_mask_does_not_change_the_draws_of_other_tokens():
    outputs, targets = some_batch()
    counts = targets >= 0
    masked = label_columns(TOKENS, "monte-carlo", outputs, targets, 3, seed(1))
    every = label_columns(TOKENS, "monte-carlo", outputs, None, 3, seed(1))
    assert torch.equal(masked, every * counts[..., None])


def test_an_ignored_label_may_be_a_class_which_the_model_still_draws():
    """Padding with class 0: labels 0 of the data do not count, labels 0 of the model do."""
    padded = TokenCategorical(ignore_index=0)
    outputs = torch.tensor([[[2.0, 0.0, -1.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]], dtype=torch.float64)
    targets = torch.tensor([[1, 2, 0]])
    expected = hessians(outputs, targets, 0)
    assert torch.allclose(products(label_columns(padded, "predictive", outputs, targets)), expected)
    draws = 5000
    r = label_columns(padded, "monte-carlo", outputs, targets, draws, seed(0)) * math.sqrt(draws)
    assert (r.flatten(1).mean(0).abs() < 5 * r.flatten(1).std(0) / math.sqrt(draws) + 1e-12).all()
    each = torch.einsum("sk,sl->skl", r.flatten(1), r.flatten(1))
    assert ((each.mean(0) - expected[0]).abs() < 5 * each.std(0) / math.sqrt(draws) + 1e-12).all()


def test_labels_of_any_integer_type():
    outputs, targets = some_batch(ignored=False)
    outputs = outputs.repeat(1, 1, 40)
    for dtype in (torch.uint8, torch.int32):
        same = targets.to(dtype) + 152  # 156 is −100 in eight bits
        TOKENS.check(outputs, same)
        assert torch.equal(TOKENS.residual(outputs, same), TOKENS.residual(outputs, same.long()))
        assert TOKENS.mask(same) is None


# --- residuals, coordinates and draws -----------------------------------------------------------------------


@settings(max_examples=25)
@given(batch=batches())
def test_residuals_are_gradients(batch):
    outputs, targets = batch
    expected = torch.stack([grad(nll)(f, y) for f, y in zip(outputs, targets, strict=True)])
    assert torch.allclose(TOKENS.residual(outputs, targets), expected, rtol=1e-9, atol=1e-12)


@settings(max_examples=25)
@given(batch=batches())
def test_coordinates_express_the_residual_in_the_columns(batch):
    outputs, targets = batch[0] / 4, batch[1]
    w, u = TOKENS.coordinates(outputs, targets), label_columns(TOKENS, "predictive", outputs, targets)
    assert w.shape == u.shape[:2]
    found = torch.einsum("cn,cntk->ntk", w, u)
    assert torch.allclose(found, TOKENS.residual(outputs, targets), rtol=1e-7, atol=1e-8)


def test_the_general_coordinates_agree_with_the_closed_form():
    outputs, targets = some_batch()
    general = Likelihood.coordinates(TOKENS, outputs, targets)
    assert torch.allclose(general, TOKENS.coordinates(outputs, targets), rtol=1e-9, atol=1e-11)


def test_residuals_of_draws_have_the_hessian_as_their_second_moment():
    """Also between tokens: labels of a sample's tokens are independent."""
    outputs, draws = torch.randn(2, 2, 3, dtype=torch.float64), 5000
    r = label_columns(TOKENS, "monte-carlo", outputs, None, draws, seed(3)).flatten(2) * math.sqrt(draws)
    each = torch.einsum("snk,snl->snkl", r, r)
    expected = products(TOKENS.columns(outputs))
    assert ((each.mean(0) - expected).abs() < 5 * each.std(0) / math.sqrt(draws) + 1e-12).all()
    assert (r.mean(0).abs() < 5 * r.std(0) / math.sqrt(draws)).all()


# --- checks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outputs", "targets", "message"),
    [
        ((2, 3, 4), torch.full((2, 3), 4), "label 4 is out of range.*0 to 3, or -100"),
        ((2, 3, 4), torch.full((2, 3), -1), "label -1 is out of range"),
        ((2, 3, 4), torch.zeros(2, 3), r"integer label a token, shape \[2, 3\].*float32"),
        ((2, 3, 4), torch.zeros(2, 3).bool(), "integer label a token.*bool"),
        ((2, 4, 3), torch.zeros(2, 3).long(), "classes last"),
        ((2, 3, 4), torch.zeros(6).long(), r"shape \[2, 3\]"),
        ((2, 4), torch.zeros(2).long(), r"shape \[samples, tokens, classes\]"),
        ((2, 3, 1), torch.zeros(2, 3).long(), "2 classes or more"),
        ((2, 0, 4), torch.zeros(2, 0).long(), r"shape \[2, 0, 4\], which holds no numbers"),
    ],
)
def test_targets_that_do_not_fit_are_refused(outputs, targets, message):
    with pytest.raises(InputError, match=message):
        TOKENS.check(torch.zeros(outputs), targets)


def test_samples_of_which_no_token_counts_are_accepted():
    outputs, targets = some_batch()
    TOKENS.check(outputs, targets)
    TOKENS.check(outputs, torch.full_like(targets, IGNORE))
    assert not label_columns(TOKENS, "predictive", outputs, torch.full_like(targets, IGNORE)).any()


# --- the Fisher of a network ----------------------------------------------------------------------------


@pytest.fixture
def masked() -> tuple[nn.Module, Tensor, Tensor]:
    """Tokens mix before the last layer, so that samples' positions are not samples of their own."""

    def mixing(net: Net, x: Tensor) -> Tensor:
        h = torch.tanh(net.first(x))
        return net.last(h + h.cumsum(1))

    model = Net(mixing, first=nn.Linear(3, 4), last=nn.Linear(4, 3)).double()
    targets = torch.tensor([[0, 2, 1], [1, IGNORE, 0], [IGNORE] * 3, [2, 2, IGNORE]])
    return model, torch.randn(4, 3, 3, dtype=torch.float64), targets


def ggn(model: nn.Module, inputs: Tensor, targets: Tensor, layer: str) -> Tensor:
    """(1/N) Σ_n Jᵀ H_n J, column-vec order, H_n of the sum over sample n's tokens that count."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    weight, bias = names_of(layer, model)

    def output(W: Tensor, x: Tensor) -> Tensor:
        block = {weight: W[:, :-1], bias: W[:, -1]}
        return functional_call(model, {**parameters, **block}, (x.unsqueeze(0),)).flatten()

    W = torch.cat([parameters[weight], parameters[bias].unsqueeze(1)], 1)
    J = vmap(jacrev(output), in_dims=(None, 0))(W, inputs).transpose(-1, -2).flatten(2)
    H = hessians(model(inputs).detach(), targets)
    return torch.einsum("nkd,nkl,nle->de", J, H, J) / len(inputs)


@pytest.mark.parametrize("method", ["per-sample", "gram", "auto"])
@pytest.mark.parametrize("layer", ["first", "last"])
def test_the_fisher_of_a_sequence_is_the_hessian_of_the_sum_over_tokens(masked, method, layer):
    model, inputs, targets = masked
    F = fl.exact_fisher(model, (inputs, targets), "token-categorical", layers=layer, method=method)[layer]
    assert relative(F.dense(), ggn(model, inputs, targets, layer)) < 1e-12


def test_batches_do_not_change_the_drawn_fisher_of_a_sequence(masked):
    model, inputs, targets = masked
    cut = list(zip(inputs.split([1, 3]), targets.split([1, 3]), strict=True))
    one, other = (
        fl.exact_fisher(model, data, "token-categorical", "monte-carlo", draws=3)
        for data in ((inputs, targets), cut)
    )
    for name in one:
        assert relative(other[name].dense(), one[name].dense()) < 1e-12
