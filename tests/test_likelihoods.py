"""Roots of the output Hessian, draws, coordinates and the checks of targets."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import NLL, output_hessians
from torch import Tensor
from torch.func import grad, vmap

from fisherlab.errors import InputError, InputTypeError
from fisherlab.likelihoods import (
    Bernoulli,
    Categorical,
    Gaussian,
    Likelihood,
    as_likelihood,
    check_kind,
    label_columns,
)

ALL = (Categorical(), Bernoulli(), Gaussian())
by_name = pytest.mark.parametrize("likelihood", ALL, ids=lambda one: one.name)

outputs_of = st.integers(2, 7).flatmap(
    lambda k: st.lists(st.lists(st.floats(-60, 60, width=32), min_size=k, max_size=k), min_size=1, max_size=4)
)


def some_targets(likelihood: Likelihood, outputs: Tensor) -> Tensor:
    return likelihood.draw(outputs, 1, torch.Generator().manual_seed(0))[0]


# --- columns ------------------------------------------------------------------------------------------


@by_name
@settings(max_examples=25, deadline=None)
@given(values=outputs_of)
def test_columns_are_a_root_of_the_hessian(likelihood, values):
    outputs = torch.tensor(values, dtype=torch.float64)
    u = likelihood.columns(outputs)
    found = torch.einsum("cnk,cnl->nkl", u, u)
    expected = output_hessians(likelihood.name, outputs, some_targets(likelihood, outputs))
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-14)
    assert u.shape == (likelihood.count(outputs), *outputs.shape)


@by_name
@settings(max_examples=25, deadline=None)
@given(values=outputs_of)
def test_columns_are_finite_and_right_in_float32(likelihood, values):
    single = torch.tensor(values, dtype=torch.float32)
    u = likelihood.columns(single)
    assert u.dtype == torch.float32
    assert torch.isfinite(u).all()
    assert torch.allclose(u.double(), likelihood.columns(single.double()), rtol=2e-4, atol=1e-6)


@settings(max_examples=25, deadline=None)
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


# --- residuals and coordinates --------------------------------------------------------------------------


@by_name
@settings(max_examples=25, deadline=None)
@given(values=outputs_of)
def test_residuals_are_gradients(likelihood, values):
    outputs = torch.tensor(values, dtype=torch.float64)
    targets = some_targets(likelihood, outputs)
    expected = vmap(grad(NLL[likelihood.name]))(outputs, targets)
    assert torch.allclose(likelihood.residual(outputs, targets), expected, rtol=1e-9, atol=1e-12)


@by_name
@settings(max_examples=25, deadline=None)
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


# --- checks and names -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("likelihood", "outputs", "targets", "message"),
    [
        (Categorical(), torch.zeros(2, 3), torch.tensor([0, 3]), "label 3 is out of range.*0 to 2"),
        (Categorical(), torch.zeros(2, 3), torch.tensor([-100, 0]), "label -100 is out of range"),
        (Categorical(), torch.zeros(2, 3), torch.tensor([0.0, 1.0]), "one integer label a sample"),
        (Categorical(), torch.zeros(2, 3), torch.zeros(2, 3).long(), "one integer label a sample"),
        (Categorical(), torch.zeros(2, 1), torch.tensor([0, 0]), "use 'bernoulli'"),
        (Categorical(), torch.zeros(2, 4, 3), torch.tensor([0, 0]), r"shape \[samples, K\]"),
        (Bernoulli(), torch.zeros(2, 1), torch.zeros(2), "targets of the outputs' shape"),
        (Bernoulli(), torch.zeros(2, 1), torch.full((2, 1), 1.5), "between 0 and 1"),
        (Bernoulli(), torch.zeros(2), torch.zeros(2), r"shape \[samples, K\]"),
        (Gaussian(), torch.zeros(2, 3), torch.zeros(2, 1), "targets of the outputs' shape"),
        (Gaussian(), torch.zeros(2, 3, 1), torch.zeros(2, 3, 1), r"shape \[samples, K\]"),
    ],
)
def test_targets_that_do_not_fit_are_refused(likelihood, outputs, targets, message):
    with pytest.raises(InputError, match=message):
        likelihood.check(outputs, targets)


def test_names():
    assert isinstance(as_likelihood("gaussian"), Gaussian)
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
