"""Roots of the output Hessian, draws, coordinates and the checks of targets."""

import math
import textwrap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import NLL, jacobian, names_of, output_hessians, relative
from torch import Tensor, nn
from torch.func import grad, hessian, vmap

import fisherlab as fl
from fisherlab.errors import InputError, InputTypeError
from fisherlab.likelihoods import (
    Bernoulli,
    Categorical,
    Gaussian,
    Likelihood,
    TokenCategorical,
    as_likelihood,
    check_kind,
    label_columns,
)

ALL = (Categorical(), Bernoulli(), Gaussian())
by_name = pytest.mark.parametrize("likelihood", ALL, ids=lambda one: one.name)
of_any_shape = pytest.mark.parametrize("likelihood", ALL[1:], ids=lambda one: one.name)

outputs_of = st.integers(2, 7).flatmap(
    lambda k: st.lists(st.lists(st.floats(-60, 60, width=32), min_size=k, max_size=k), min_size=1, max_size=4)
)


def some_targets(likelihood: Likelihood, outputs: Tensor) -> Tensor:
    return likelihood.draw(outputs, 1, torch.Generator().manual_seed(0))[0]


# --- columns ------------------------------------------------------------------------------------------


@by_name
@settings(max_examples=25)
@given(values=outputs_of)
def test_columns_are_a_root_of_the_hessian(likelihood, values):
    outputs = torch.tensor(values, dtype=torch.float64)
    u = likelihood.columns(outputs)
    found = torch.einsum("cnk,cnl->nkl", u, u)
    expected = output_hessians(likelihood.name, outputs, some_targets(likelihood, outputs))
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-14)
    assert u.shape == (likelihood.count(outputs), *outputs.shape)


@by_name
@settings(max_examples=25)
@given(values=outputs_of)
def test_columns_are_finite_and_right_in_float32(likelihood, values):
    single = torch.tensor(values, dtype=torch.float32)
    u = likelihood.columns(single)
    assert u.dtype == torch.float32
    assert torch.isfinite(u).all()
    assert torch.allclose(u.double(), likelihood.columns(single.double()), rtol=2e-4, atol=1e-6)


@settings(max_examples=25)
@given(values=outputs_of)
def test_small_probabilities_keep_their_digits(values):
    """Hessian entries −p_k p_l far below the rounding of 1 are right to relative precision."""
    outputs = torch.tensor(values, dtype=torch.float64)
    u = Categorical().columns(outputs)
    found = torch.einsum("cnk,cnl->nkl", u, u)
    log_p = torch.log_softmax(outputs, -1)
    tails = torch.stack(
        [torch.cat([log_p[:, :k], log_p[:, k + 1 :]], 1).logsumexp(1) for k in range(outputs.shape[1])], 1
    )
    expected = torch.exp(log_p + tails)
    assert torch.allclose(found.diagonal(dim1=1, dim2=2), expected, rtol=1e-9, atol=1e-300)


def test_a_categorical_has_one_column_less_than_classes():
    assert Categorical().columns(torch.randn(3, 5)).shape == (4, 3, 5)
    assert Categorical().count(torch.randn(3, 5)) == 4


def test_columns_of_a_categorical_sum_to_zero():
    u = Categorical().columns(3 * torch.randn(20, 6, dtype=torch.float64))
    assert u.sum(-1).abs().max() < 1e-14


@of_any_shape
@pytest.mark.parametrize("shape", [(4, 2, 3), (4, 1, 2, 3)])
def test_outputs_of_more_dimensions_are_those_of_their_entries(likelihood, shape):
    """Images and multi-label sequences: every entry is an output of its own."""
    outputs = torch.randn(shape, dtype=torch.float64)
    targets, flat = some_targets(likelihood, outputs), outputs.flatten(1)
    likelihood.check(outputs, targets)
    assert targets.shape == outputs.shape
    assert likelihood.count(outputs) == 6
    assert torch.equal(likelihood.columns(outputs), likelihood.columns(flat).reshape(6, *shape))
    weights = likelihood.coordinates(outputs, targets)
    assert torch.equal(weights, likelihood.coordinates(flat, targets.flatten(1)))
    found = torch.einsum("cn,cn...->n...", weights, likelihood.columns(outputs))
    assert torch.allclose(found, likelihood.residual(outputs, targets))
    general = Likelihood.coordinates(likelihood, outputs, targets)
    assert torch.allclose(general, weights)


@by_name
@given(data=st.data())
@settings(max_examples=20)
def test_a_part_of_the_columns_is_that_slice_of_all(likelihood, data):
    outputs = torch.randn(3, data.draw(st.integers(2, 6)))
    count = likelihood.count(outputs)
    start = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(start, count))
    part = likelihood.columns_between(outputs, start, stop)
    assert torch.equal(part, likelihood.columns(outputs)[start:stop])


@pytest.mark.parametrize("likelihood", [*ALL, TokenCategorical()], ids=lambda one: one.name)
def test_a_part_of_many_columns_needs_no_others(likelihood):
    """All columns would be 2 · 30,000 · 30,000 numbers."""
    outputs = torch.randn(2, 1, 30_000) if likelihood.name == "token-categorical" else torch.randn(2, 30_000)
    part = label_columns(likelihood, "predictive", outputs, None, part=slice(20_000, 20_003))
    assert part.shape == (3, *outputs.shape)
    assert part.untyped_storage().nbytes() == 4 * part.numel()
    diagonal = part.flatten(2)[:, :, 20_000:20_003].diagonal(dim1=0, dim2=2)
    assert (diagonal > 0).all()


# --- residuals and coordinates --------------------------------------------------------------------------


@by_name
@settings(max_examples=25)
@given(values=outputs_of)
def test_residuals_are_gradients(likelihood, values):
    outputs = torch.tensor(values, dtype=torch.float64)
    targets = some_targets(likelihood, outputs)
    expected = vmap(grad(NLL[likelihood.name]))(outputs, targets)
    assert torch.allclose(likelihood.residual(outputs, targets), expected, rtol=1e-9, atol=1e-12)


@by_name
@settings(max_examples=25)
@given(values=outputs_of, number=st.integers(0, 1000))
def test_coordinates_express_the_residual_in_the_columns(likelihood, values, number):
    outputs = torch.tensor(values, dtype=torch.float64) / 4
    targets = likelihood.draw(outputs, 1, torch.Generator().manual_seed(number))[0]
    w, u = likelihood.coordinates(outputs, targets), likelihood.columns(outputs)
    assert w.shape == u.shape[:2]
    found = torch.einsum("cn,cnk->nk", w, u)
    assert torch.allclose(found, likelihood.residual(outputs, targets), rtol=1e-7, atol=1e-8)


@by_name
def test_the_general_coordinates_agree_with_the_closed_form(likelihood):
    outputs = torch.randn(6, 4, dtype=torch.float64)
    targets = some_targets(likelihood, outputs)
    general = Likelihood.coordinates(likelihood, outputs, targets)
    assert torch.allclose(general, likelihood.coordinates(outputs, targets), rtol=1e-9, atol=1e-11)


# --- draws ----------------------------------------------------------------------------------------------


@by_name
def test_residuals_of_draws_have_the_hessian_as_their_second_moment(likelihood):
    outputs = torch.tensor([[0.5, -1.0, 1.5], [-2.0, 0.3, 0.0]], dtype=torch.float64)
    draws = 20_000
    labels = likelihood.draw(outputs, draws, torch.Generator().manual_seed(3))
    assert len(labels) == draws
    r = likelihood.residual(outputs.repeat(draws, 1), labels.flatten(0, 1)).unflatten(0, (draws, 2))
    products = torch.einsum("snk,snl->snkl", r, r)
    expected = torch.einsum("cnk,cnl->nkl", *(2 * [likelihood.columns(outputs)]))
    error = products.std(0) / math.sqrt(draws)
    assert ((products.mean(0) - expected).abs() < 5 * error + 1e-12).all()
    assert (r.mean(0).abs() < 5 * r.std(0) / math.sqrt(draws)).all()


@by_name
def test_draws_come_from_the_generator(likelihood):
    outputs = torch.randn(30, 3)
    before = torch.get_rng_state()
    one, two, other = (likelihood.draw(outputs, 4, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(one[0], one[1])


@by_name
def test_drawn_targets_pass_the_check(likelihood):
    outputs = torch.randn(30, 3)
    for label in likelihood.draw(outputs, 3, torch.Generator().manual_seed(0)):
        likelihood.check(outputs, label)


# --- label columns --------------------------------------------------------------------------------------


@by_name
def test_label_columns_of_each_kind(likelihood):
    outputs = torch.randn(5, 3, dtype=torch.float64)
    targets = some_targets(likelihood, outputs)
    assert torch.equal(label_columns(likelihood, "predictive", outputs, None), likelihood.columns(outputs))
    empirical = label_columns(likelihood, "empirical", outputs, targets)
    assert torch.equal(empirical, likelihood.residual(outputs, targets)[None])
    drawn = label_columns(likelihood, "monte-carlo", outputs, None, 4, torch.Generator().manual_seed(1))
    labels = likelihood.draw(outputs, 4, torch.Generator().manual_seed(1))
    expected = torch.stack([likelihood.residual(outputs, label) for label in labels])
    assert torch.allclose(drawn * 2, expected)
    with pytest.raises(InputError, match="needs targets"):
        label_columns(likelihood, "empirical", outputs, None)


@by_name
@pytest.mark.parametrize("part", [slice(0, 2), slice(1, None), slice(1, 2), slice(None)])
def test_a_part_of_the_label_columns_is_that_slice_of_all(likelihood, part):
    outputs = torch.randn(5, 4, dtype=torch.float64)
    targets = some_targets(likelihood, outputs)
    for kind in ("predictive", "monte-carlo", "empirical"):
        whole, some = (
            label_columns(
                likelihood,
                kind,
                outputs,
                targets,
                draws=3,
                generator=torch.Generator().manual_seed(5),
                part=one,
            )
            for one in (None, part)
        )
        assert torch.equal(some, whole[part])


# --- a likelihood of one's own ---------------------------------------------------------------------------


@pytest.fixture
def poisson() -> Likelihood:
    """The example of the class docstring."""
    example = textwrap.dedent(Likelihood.__doc__.split("::\n", 1)[1])
    names = {"Likelihood": Likelihood, "InputError": InputError, "torch": torch}
    exec(example, names)
    return names["Poisson"]()


@pytest.fixture
def counts() -> tuple[nn.Module, Tensor, Tensor]:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    inputs = torch.randn(6, 3, dtype=torch.float64)
    return model, inputs, torch.poisson(torch.exp(model(inputs).detach()))


def poisson_nll(f: Tensor, y: Tensor) -> Tensor:
    return nn.functional.poisson_nll_loss(f, y, log_input=True, reduction="sum")


def poisson_ggn(model: nn.Module, inputs: Tensor, targets: Tensor, layer: str) -> Tensor:
    J = jacobian(model, inputs, names_of(layer, model))
    H = vmap(hessian(poisson_nll))(model(inputs).detach(), targets)
    return torch.einsum("nkd,nkl,nle->de", J, H, J) / len(inputs)


@pytest.mark.parametrize("layer", ["0", "2"])
def test_a_fisher_with_a_likelihood_of_ones_own(poisson, counts, layer):
    model, inputs, targets = counts
    for method in ("kronecker", "per-sample", "gram"):
        F = fl.exact_fisher(model, (inputs, targets), poisson, layers=layer, method=method)[layer]
        assert relative(F.dense(), poisson_ggn(model, inputs, targets, layer)) < 1e-12


def test_an_empirical_fisher_with_a_likelihood_of_ones_own(poisson, counts):
    model, inputs, targets = counts
    F = fl.exact_fisher(model, (inputs, targets), poisson, "empirical", layers="0")["0"]
    residuals = vmap(grad(poisson_nll))(model(inputs).detach(), targets)
    G = torch.einsum("nkd,nk->nd", jacobian(model, inputs, names_of("0", model)), residuals)
    assert relative(F.dense(), G.T @ G / len(G)) < 1e-12


def test_drawn_labels_of_a_likelihood_of_ones_own_give_its_fisher_on_average(poisson, counts):
    model, inputs, _ = counts
    F = fl.exact_fisher(model, inputs, poisson, "monte-carlo", layers="2", draws=4000)["2"]
    expected = fl.exact_fisher(model, inputs, poisson, layers="2")["2"]
    assert 1e-4 < relative(F.dense(), expected.dense()) < 0.1


def test_defaults_of_a_likelihood_of_ones_own(poisson):
    outputs = torch.randn(5, 3, dtype=torch.float64)
    targets = some_targets(poisson, outputs)
    assert poisson.mask(targets) is None
    assert torch.equal(poisson.columns_between(outputs, 1, 3), poisson.columns(outputs)[1:3])
    found = torch.einsum("cn,cnk->nk", poisson.coordinates(outputs, targets), poisson.columns(outputs))
    assert torch.allclose(found, poisson.residual(outputs, targets))
    generator = torch.Generator().manual_seed(0)
    cut = torch.cat([poisson.draw(part, 2, generator) for part in outputs.split([1, 4])], 1)
    assert torch.equal(cut, poisson.draw(outputs, 2, torch.Generator().manual_seed(0)))


def test_a_subclass_with_columns_of_its_own_has_those_cut_into_parts():
    class Halved(Categorical):
        def columns(self, outputs):
            return super().columns(outputs) / 2

    outputs = torch.randn(3, 5)
    part = label_columns(Halved(), "predictive", outputs, None, part=slice(1, 3))
    assert torch.equal(part, Categorical().columns(outputs)[1:3] / 2)


# --- checks and names -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("likelihood", "outputs", "targets", "message"),
    [
        (Categorical(), torch.zeros(2, 3), torch.tensor([0, 3]), "label 3 is out of range.*0 to 2"),
        (Categorical(), torch.zeros(2, 3), torch.tensor([-100, 0]), "label -100 is out of range"),
        (Categorical(), torch.zeros(2, 3), torch.tensor([0.0, 1.0]), "one integer label a sample"),
        (Categorical(), torch.zeros(2, 3), torch.zeros(2, 3).long(), "one integer label a sample"),
        (Categorical(), torch.zeros(2, 1), torch.tensor([0, 0]), "use 'bernoulli'"),
        (Categorical(), torch.zeros(2, 4, 3), torch.tensor([0, 0]), "use 'token-categorical'"),
        (Categorical(), torch.zeros(2), torch.tensor([0, 0]), r"shape \[samples, K\]"),
        (Categorical(), torch.zeros(2, 3), torch.tensor([True, False]), "integer label.*torch.bool"),
        (Bernoulli(), torch.zeros(2, 1), torch.zeros(2), "targets of the outputs' shape"),
        (Bernoulli(), torch.zeros(2, 1), torch.full((2, 1), 1.5), "between 0 and 1"),
        (Bernoulli(), torch.zeros(2), torch.zeros(2), r"shape \[samples, K\]"),
        (Gaussian(), torch.zeros(2, 3), torch.zeros(2, 1), "targets of the outputs' shape"),
        (Gaussian(), torch.zeros(2, 3, 1), torch.zeros(2, 3), "targets of the outputs' shape"),
    ],
)
def test_targets_that_do_not_fit_are_refused(likelihood, outputs, targets, message):
    with pytest.raises(InputError, match=message):
        likelihood.check(outputs, targets)


def test_names():
    assert isinstance(as_likelihood("gaussian"), Gaussian)
    assert as_likelihood("token-categorical").ignore_index == -100
    own = Bernoulli()
    assert as_likelihood(own) is own
    with pytest.raises(InputError, match="did you mean bernoulli"):
        as_likelihood("bernouli")
    with pytest.raises(InputTypeError, match="not int"):
        as_likelihood(3)


def test_kinds():
    assert check_kind("type-2") == "predictive"
    assert check_kind("mc") == "monte-carlo"
    assert check_kind("layerwise") == "layerwise"
    with pytest.raises(InputError, match="did you mean empirical"):
        check_kind("empiric")


@pytest.mark.parametrize("likelihood", [*ALL, TokenCategorical()], ids=lambda one: one.name)
@pytest.mark.parametrize("value", [[0, 1], None, torch.ones(3, 2).numpy()], ids=["list", "none", "array"])
def test_what_is_no_tensor_is_no_target(likelihood, value):
    with pytest.raises(InputTypeError, match="the targets must be a torch tensor, not"):
        likelihood.check(torch.ones(3, 2), value)
    with pytest.raises(InputTypeError, match="the outputs must be a torch tensor, not"):
        likelihood.check(value, torch.ones(3, 2))


@of_any_shape
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_targets_are_refused(likelihood, dtype):
    with pytest.raises(InputError, match=r"needs real targets; got torch\.complex"):
        likelihood.check(torch.ones(3, 2), torch.ones(3, 2, dtype=dtype))


@pytest.mark.parametrize("margin", [20.0, 60.0, 80.0, 160.0])
@pytest.mark.parametrize("sure", [0, 1, 2])
def test_what_a_sure_softmax_leaves_is_right_in_float32(sure, margin):
    """Residuals are no difference of p and 1, and columns end at no floor: p is down to 1e-70 here."""
    outputs = torch.tensor([[0.3, -0.2, 0.5]])
    outputs[0, sure] += margin
    targets = torch.tensor([sure])
    likelihood = Categorical()
    residual = likelihood.residual(outputs, targets)
    found = label_columns(likelihood, "predictive", outputs, None)
    expected = label_columns(likelihood, "predictive", outputs.double(), None)
    if margin < 85:  # p itself is held
        exact = likelihood.residual(outputs.double(), targets)
        torch.testing.assert_close(residual.double(), exact, rtol=1e-4, atol=0)
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-37)
    for k in range(2):
        assert float(found[k, 0, k]) == pytest.approx(float(expected[k, 0, k]), rel=1e-4, abs=1e-37)


@pytest.mark.parametrize("logit", [-80.0, -20.0, 20.0, 80.0])
def test_what_a_sure_bernoulli_leaves_is_right_in_float32(logit):
    outputs, targets = torch.tensor([[logit]]), torch.tensor([[float(logit > 0)]])
    likelihood = Bernoulli()
    exact = likelihood.residual(outputs.double(), targets.double())
    torch.testing.assert_close(likelihood.residual(outputs, targets).double(), exact, rtol=1e-5, atol=0)
    half = torch.full_like(targets, 0.25)
    torch.testing.assert_close(likelihood.residual(outputs, half), torch.sigmoid(outputs) - half)
