"""The exactness ladder: identities between the exact blocks and every approximation.

Rung 7 is in operators/, rung 9 in approximations/test_layerwise.py, rung 10 in collect/test_side_effects.py.
"""

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import Net
from reference import (
    Case,
    approximate,
    exact,
    ggn,
    gradients,
    jacobian,
    names_of,
    output_hessians,
    partial_traces,
    rearranged,
    relative,
    seed,
)
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fisherlab as fl
from fisherlab.approximations import NearestKronecker
from fisherlab.metrics import relative_error, scaled_error

KRONECKER = ("kfac", "tkfac", "foof", "lngd", "lngd-lr", "ngplus")
ALL = (*KRONECKER, "diagonal", "ekfac", "tekfac", "nearest-kronecker")


# --- 1: one sample ---------------------------------------------------------------------------------


@settings(max_examples=15)
@given(
    widths=st.lists(st.integers(2, 5), min_size=3, max_size=4),
    likelihood=st.sampled_from(["categorical", "bernoulli", "gaussian"]),
    number=st.integers(0, 10**6),
    bias=st.booleans(),
)
def test_one_sample_makes_every_kronecker_method_exact(widths, likelihood, number, bias):
    torch.manual_seed(number)
    parts = []
    for d, m in itertools.pairwise(widths):
        parts += [nn.Linear(d, m, bias=bias), nn.Tanh()]
    model = nn.Sequential(*parts[:-1]).double()
    x = torch.randn(1, widths[0], dtype=torch.float64)
    F = fl.exact_fisher(model, (x, None), likelihood)
    for name in ("kfac", "ekfac", "tkfac", "tekfac", "nearest-kronecker", "lngd-lr"):
        found = fl.approximate(name, model, (x, None), likelihood)
        for layer in F:
            if name == "lngd-lr":  # its output factor is diagonal
                assert torch.allclose(found[layer].diagonal(), F[layer].diagonal(), rtol=1e-10, atol=0)
            else:
                assert F[layer].difference_norm(found[layer]) <= 1e-10 * F[layer].frobenius_norm()


def test_one_sample_makes_lngd_the_layerwise_fisher(trained):
    one = trained.take(slice(3, 4))
    F = exact(one, kind="layerwise")
    for layer, operator in approximate("lngd", one).items():
        assert relative(operator.dense(), F[layer].dense()) < 1e-10


# --- 2: deep linear networks -----------------------------------------------------------------------


@pytest.fixture
def linear_chain() -> Case:
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(3, 4)).double()
    x = torch.randn(17, 4, dtype=torch.float64)
    return Case(model, x, torch.randn(17, 4, dtype=torch.float64), "gaussian")


@pytest.mark.parametrize("name", ["kfac", "ekfac", "tkfac", "tekfac", "nearest-kronecker"])
def test_a_deep_linear_network_is_exact_for_any_batch(linear_chain, name):
    F = exact(linear_chain)
    for layer, operator in approximate(name, linear_chain).items():
        assert F[layer].difference_norm(operator) < 1e-10 * F[layer].frobenius_norm()


SUM_OVER_POSITIONS = Net(lambda net, x: x.sum(1))


def linear_sequences(end: nn.Module) -> Case:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), end).double()
    x = torch.randn(11, 5, 3, dtype=torch.float64)
    return Case(model, x, model(x).detach(), "gaussian")


@pytest.mark.parametrize("name", ["kfac", "ekfac"])
@pytest.mark.parametrize(
    ("end", "sharing", "other"),
    [(nn.Flatten(), "expand", "reduce"), (SUM_OVER_POSITIONS, "reduce", "expand")],
)
def test_each_sharing_is_exact_in_its_own_setting(name, end, sharing, other):
    case = linear_sequences(end)
    F = exact(case)
    right = approximate(name, case, sharing=sharing)
    wrong = approximate(name, case, sharing=other)
    for layer in F:
        assert relative_error(F[layer], right[layer]) < 1e-10
        assert relative_error(F[layer], wrong[layer]) > 1e-2


@pytest.mark.parametrize("end", [nn.Flatten(), SUM_OVER_POSITIONS])
def test_tkfac_with_exact_positions_is_exact_in_both_settings(end):
    case = linear_sequences(end)
    F = exact(case)
    for layer, operator in approximate("tkfac", case).items():
        assert relative_error(F[layer], operator) < 1e-10


# --- 3: labels, batches, subsets -------------------------------------------------------------------


def errors_of_draws(case: Case, draws: int, seeds: range) -> list[dict[str, float]]:
    F = exact(case)
    found = []
    for number in seeds:
        drawn = exact(case, kind="monte-carlo", draws=draws, generator=seed(number))
        found.append({layer: relative_error(F[layer], drawn[layer]) for layer in F})
    return found


def test_monte_carlo_approaches_predictive_like_one_over_the_root_of_k(trained):
    few = errors_of_draws(trained, 50, range(12))
    many = errors_of_draws(trained, 200, range(100, 112))
    for layer in few[0]:
        ratio = sum(e[layer] for e in many) / sum(e[layer] for e in few)
        assert 0.35 < ratio < 0.7


def test_one_drawn_label_is_unbiased(trained):
    F = {layer: operator.dense() for layer, operator in exact(trained).items()}
    repetitions = 200
    total = {layer: torch.zeros_like(block) for layer, block in F.items()}
    spread = dict.fromkeys(F, 0.0)
    for number in range(repetitions):
        drawn = exact(trained, kind="mc", generator=seed(number))
        for layer, operator in drawn.items():
            total[layer] += operator.dense() / repetitions
            spread[layer] += relative(operator.dense(), F[layer]) ** 2 / repetitions
    for layer in F:
        expected = (spread[layer] / repetitions) ** 0.5
        assert relative(total[layer], F[layer]) < 3 * expected


def test_draws_follow_the_generator(categorical):
    drawn = [
        exact(categorical, kind="monte-carlo", generator=seed(number))["0"].dense() for number in (5, 5, 6)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.allclose(drawn[0], drawn[2])


@pytest.mark.parametrize("kind", ["predictive", "empirical", "layerwise"])
def test_repeating_every_sample_leaves_the_fisher_as_it_is(trained, kind):
    twice = trained.take(torch.arange(40).repeat(2))
    F = exact(trained, kind=kind)
    for layer, operator in exact(twice, kind=kind).items():
        assert relative(operator.dense(), F[layer].dense()) < 1e-12


def test_a_subset_of_layers_has_the_blocks_of_the_whole(trained):
    F = exact(trained)
    some = exact(trained, layers=("0", "4"))
    assert list(some) == ["0", "4"]
    for layer, operator in some.items():
        assert relative(operator.dense(), F[layer].dense()) < 1e-13


def test_frozen_parameters_do_not_change_the_other_blocks(trained):
    F = exact(trained)
    frozen = copy.deepcopy(trained.model)
    for parameter in frozen[2].parameters():
        parameter.requires_grad_(False)
    some = fl.exact_fisher(frozen, trained.data, trained.likelihood)
    assert list(some) == ["0", "4"]
    for layer, operator in some.items():
        assert relative(operator.dense(), F[layer].dense()) < 1e-13


# --- 8: batches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("sizes", [(5,) * 8, (16, 16, 8), (39, 1)])
def test_batches_do_not_matter(trained, name, sizes):
    whole = approximate(name, trained)
    batches = trained.batches(*sizes)
    parts = fl.approximate(name, trained.model, batches, trained.likelihood)
    for layer, operator in parts.items():
        assert relative(operator.dense(), whole[layer].dense()) < 1e-10


@pytest.mark.parametrize("name", ["kfac", "tkfac", "diagonal", "lngd", "lngd-lr", "ngplus", "foof"])
def test_batches_of_sequences_do_not_matter(sequences, name):
    whole = approximate(name, sequences)
    parts = fl.approximate(name, sequences.model, sequences.batches(7, 7, 7, 3))
    for layer, operator in parts.items():
        assert relative(operator.dense(), whole[layer].dense()) < 1e-12


@pytest.mark.parametrize("method", ["per-sample", "kronecker", "gram"])
@pytest.mark.parametrize("kind", ["predictive", "empirical"])
def test_exact_blocks_of_batches_in_another_order(trained, method, kind):
    whole = exact(trained, kind=kind)
    shuffled = trained.take(torch.randperm(40))
    loader = DataLoader(TensorDataset(*shuffled.data), batch_size=16)
    parts = fl.exact_fisher(trained.model, loader, trained.likelihood, kind, method=method)
    for layer, operator in parts.items():
        assert relative(operator.dense(), whole[layer].dense()) < 1e-12


@pytest.mark.parametrize(
    ("name", "options"),
    [("ekfac", {"kind": "monte-carlo"}), ("kfac", {"kind": "mc", "draws": 3}), ("lngd", {"sampling": 2})],
)
def test_draws_do_not_depend_on_how_much_fits_into_a_batch(trained, monkeypatch, name, options):
    whole = approximate(name, trained, **options)
    monkeypatch.setattr("fisherlab.collect.sizes._MOST_SAMPLES", 7)
    parts = approximate(name, trained, **options)
    for layer, operator in parts.items():
        assert relative(operator.dense(), whole[layer].dense()) < 1e-12


def test_two_passes_cut_differently_see_the_same_labels(trained, monkeypatch):
    cuts = itertools.cycle((7, 40))
    monkeypatch.setattr("fisherlab.collect.sizes.PassSizes.samples", lambda *_: next(cuts))
    statistics = fl.collect_statistics(
        trained.model, trained.data, trained.likelihood, "monte-carlo", approximations=("tkfac", "ekfac")
    )
    second = statistics.build("ekfac")
    for layer, operator in statistics.build("tkfac").items():
        assert second[layer].trace() == pytest.approx(float(operator.trace()), rel=1e-12)


# --- 4: against the generalised Gauss-Newton ---------------------------------------------------------


@pytest.mark.parametrize("method", ["per-sample", "kronecker", "gram", "auto"])
def test_predictive_is_the_generalised_gauss_newton(trained, method):
    F = exact(trained, method=method)
    assert list(F) == ["0", "2", "4"]
    for layer, operator in F.items():
        expected = ggn(trained, names_of(layer, trained.model))
        assert relative(operator.dense(), expected) < 1e-12


@pytest.mark.parametrize("method", ["per-sample", "gram", "auto"])
def test_predictive_is_the_generalised_gauss_newton_of_sequences(sequences, method):
    for layer, operator in exact(sequences, method=method).items():
        expected = ggn(sequences, names_of(layer, sequences.model))
        assert relative(operator.dense(), expected) < 1e-12


@pytest.mark.parametrize("method", ["per-sample", "kronecker", "gram"])
def test_empirical_is_made_of_the_samples_gradients(trained, method):
    for layer, operator in exact(trained, kind="empirical", method=method).items():
        rows = gradients(trained, names_of(layer, trained.model))
        assert relative(operator.dense(), rows.T @ rows / len(rows)) < 1e-12


@pytest.mark.parametrize("method", ["per-sample", "gram"])
def test_monte_carlo_is_one_matrix_by_all_methods(trained, method):
    F = exact(trained, kind="monte-carlo", draws=3, method="kronecker")
    for layer, operator in exact(trained, kind="monte-carlo", draws=3, method=method).items():
        assert relative(operator.dense(), F[layer].dense()) < 1e-12


@pytest.mark.parametrize("method", ["per-sample", "kronecker", "gram"])
def test_modes_of_the_bias(trained, method):
    model = trained.model
    ignored = exact(trained, bias="ignore", method=method)
    separate = exact(trained, bias="separate", method=method)
    assert list(ignored) == ["0", "2", "4"]
    assert list(separate) == ["0", "0.bias", "2", "4", "4.bias"]
    for layer in ignored:
        expected = ggn(trained, names_of(layer, model, "ignore"))
        assert relative(ignored[layer].dense(), expected) < 1e-12
        assert relative(separate[layer].dense(), expected) < 1e-12
    for layer in ("0", "4"):
        joint = ggn(trained, names_of(layer, model))
        outputs = model.get_submodule(layer).out_features
        assert relative(separate[f"{layer}.bias"].dense(), joint[-outputs:, -outputs:]) < 1e-12


def test_row_order_is_the_order_of_the_flat_parameters(trained):
    F = exact(trained, layers="2")["2"]
    J = jacobian(trained.model, trained.inputs, ("2.weight",))
    rows = J.unflatten(-1, (5, 4)).transpose(-1, -2).flatten(-2)
    outputs = trained.model(trained.inputs).detach()
    H = output_hessians(trained.likelihood, outputs, trained.targets)
    expected = torch.einsum("nkd,nkl,nle->de", rows, H, rows) / len(rows)
    assert relative(F.dense(vec="row"), expected) < 1e-12


# --- 5: traces ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["predictive", "empirical", "monte-carlo"])
@pytest.mark.parametrize("name", ["ekfac", "tkfac", "tekfac", "diagonal", "lngd-lr"])
def test_traces_are_those_of_the_fisher(any_case, name, kind):
    F = exact(any_case, kind=kind)
    for layer, operator in approximate(name, any_case, kind=kind).items():
        if name == "lngd-lr" and any_case.inputs.dim() == 3 and layer != "5":
            continue  # drops the products of different positions
        assert operator.trace() == pytest.approx(float(F[layer].trace()), rel=1e-12)


def test_traces_of_lngd_are_those_of_the_layerwise_fisher(any_case):
    F = exact(any_case, kind="layerwise")
    for layer, operator in approximate("lngd", any_case).items():
        assert operator.trace() == pytest.approx(float(F[layer].trace()), rel=1e-12)
        assert operator.factors[1].trace() == pytest.approx(1.0, rel=1e-12)


def test_partial_traces_of_the_fisher_are_the_factors_of_tkfac(any_case):
    F = exact(any_case)
    for layer, operator in approximate("tkfac", any_case).items():
        P, Q = operator.factors
        over_outputs, over_inputs = partial_traces(F[layer])
        assert relative(P * Q.trace(), over_outputs) < 1e-12
        assert relative(Q * P.trace(), over_inputs) < 1e-12
        assert Q.trace() == pytest.approx(1.0)


def test_partial_traces_of_the_layerwise_fisher_are_those_of_lngd(any_case):
    F = exact(any_case, kind="layerwise")
    for layer, operator in approximate("lngd", any_case).items():
        P, Q = operator.factors
        over_outputs, over_inputs = partial_traces(F[layer])
        assert relative(P, over_outputs) < 1e-12
        assert relative(Q * P.trace(), over_inputs) < 1e-12


# --- 6: orders ---------------------------------------------------------------------------------------


def factored_never(case: Case) -> tuple[str, ...]:
    """The layers whose block is no Kronecker product: under a Gaussian the last one's is A ⊗ I."""
    return ("0", "2") if case.likelihood == "gaussian" else ("0", "2", "4")


@pytest.mark.parametrize(("better", "worse"), [("ekfac", "kfac"), ("tekfac", "tkfac")])
def test_the_best_diagonal_is_never_worse(trained, better, worse):
    F = exact(trained)
    high, low = approximate(better, trained), approximate(worse, trained)
    for layer in factored_never(trained):
        assert relative_error(F[layer], high[layer]) < 0.999 * relative_error(F[layer], low[layer])


@pytest.mark.parametrize("name", KRONECKER)
def test_the_nearest_kronecker_product_is_never_worse(trained, name):
    F = exact(trained)
    nearest, other = approximate("nearest-kronecker", trained), approximate(name, trained)
    for layer in factored_never(trained):
        assert relative_error(F[layer], nearest[layer]) < 0.999 * scaled_error(F[layer], other[layer]).error


@pytest.mark.parametrize("method", ["kronecker", "gram", "per-sample"])
def test_the_nearest_kronecker_product_is_the_leading_singular_pair(trained, method):
    for operator in exact(trained, method=method).values():
        nearest = NearestKronecker().from_block(operator)
        R = rearranged(operator.dense(), operator.outputs, operator.inputs)
        values = torch.linalg.svdvals(R)
        least = values[1:].square().sum().sqrt() / values.square().sum().sqrt()
        assert relative_error(operator, nearest) == pytest.approx(float(least), rel=1e-9)
        assert nearest.frobenius_norm() == pytest.approx(float(values[0]), rel=1e-9)
