"""Rung 9 of the exactness ladder: layer-wise sampling, its Fisher, and LNGD."""

import pytest
import torch
from reference import approximate, exact, layerwise, names_of, partial_traces, relative, seed

from fisherlab.metrics import relative_error


def test_layerwise_fisher_from_the_network_cut_after_the_activation(any_case):
    model = any_case.model
    ends = {"0": 2, "2": 4, "4": 5, "5": 6}
    for layer, operator in exact(any_case, kind="layerwise").items():
        up_to = model[: ends[layer]]
        expected = layerwise(up_to, any_case.inputs, names_of(layer, model))
        assert relative(operator.dense(), expected) < 1e-12


def test_draws_of_lngd_approach_the_closed_form_like_one_over_the_root_of_k(any_case):
    expected = approximate("lngd", any_case)

    def error(draws: int, seeds: range) -> float:
        total = 0.0
        for number in seeds:
            drawn = approximate("lngd", any_case, sampling=draws, generator=seed(number))
            total += sum(relative_error(expected[layer], drawn[layer]) for layer in expected)
        return total / len(seeds)

    few, many = error(20, range(12)), error(80, range(50, 62))
    assert 0.38 < many / few < 0.65


def test_draws_of_lngd_are_unbiased(any_case):
    expected = approximate("lngd", any_case)
    repetitions = 60
    mean = {layer: torch.zeros_like(operator.factors[0]) for layer, operator in expected.items()}
    spread = dict.fromkeys(expected, 0.0)
    for number in range(repetitions):
        drawn = approximate("lngd", any_case, sampling=4, generator=seed(number))
        for layer, operator in drawn.items():
            mean[layer] += operator.factors[0] / repetitions
            spread[layer] += relative(operator.factors[0], expected[layer].factors[0]) ** 2 / repetitions
    for layer, factor in mean.items():
        bound = 3 * (spread[layer] / repetitions) ** 0.5
        assert relative(factor, expected[layer].factors[0]) < bound


def test_the_categorical_diagonal_at_the_last_layer(categorical):
    p = torch.softmax(categorical.model(categorical.inputs).detach(), 1)
    plain = approximate("lngd", categorical)
    last = approximate("lngd", categorical, last="categorical")
    a = categorical.model[:4](categorical.inputs).detach()
    a = torch.cat([a, torch.ones(40, 1, dtype=a.dtype)], 1)
    weights = p * (1 - p)
    A = torch.einsum("nj,ni,nk->ik", weights, a, a) / 40
    B = torch.einsum("nj,n->j", weights, a.square().sum(1)) / 40
    assert relative(last["4"].factors[0], A) < 1e-12
    assert relative(last["4"].factors[1], torch.diag(B / B.sum())) < 1e-12
    assert relative(last["0"].dense(), plain["0"].dense()) < 1e-14


# --- other methods beside the layer-wise Fisher ---------------------------------------------------


def test_tkfac_of_the_layerwise_fisher_has_its_partial_traces(any_case):
    F = exact(any_case, kind="layerwise")
    for layer, operator in approximate("tkfac", any_case, kind="layerwise").items():
        P, Q = operator.factors
        over_outputs, over_inputs = partial_traces(F[layer])
        assert relative(P, over_outputs) < 1e-12
        assert relative(Q * P.trace(), over_inputs) < 1e-12


def test_kfac_of_the_layerwise_fisher_has_a_diagonal_output_factor(any_case):
    for operator in approximate("kfac", any_case, kind="layerwise").values():
        B = operator.factors[1]
        assert torch.equal(B, torch.diag(B.diagonal()))


@pytest.mark.parametrize(("better", "worse"), [("ekfac", "kfac"), ("tekfac", "tkfac")])
def test_the_best_diagonal_of_the_layerwise_fisher_is_never_worse(any_case, better, worse):
    F = exact(any_case, kind="layerwise")
    high, low = (approximate(name, any_case, kind="layerwise") for name in (better, worse))
    for layer in F:
        assert relative_error(F[layer], high[layer]) <= relative_error(F[layer], low[layer]) + 1e-12
        basis = torch.kron(high[layer].U_A, high[layer].U_B)
        expected = (basis.T @ F[layer].dense() @ basis).diagonal()
        assert relative(high[layer].S.T.flatten(), expected) < 1e-10
