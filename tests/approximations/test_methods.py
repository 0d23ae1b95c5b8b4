"""Each approximation's formula from per-sample gradients, with several positions."""

import pytest
import torch
from reference import Case, approximate, relative
from torch import Tensor, nn

import fisherlab as fl
from fisherlab.collect.collector import Collector
from fisherlab.likelihoods import as_likelihood


def samples(case: Case, kind: str) -> dict[str, tuple[Tensor, Tensor]]:
    """(a, g) of every layer."""
    layers = fl.find_layers(case.model)
    source = Collector(case.model, layers, case.data, as_likelihood(case.likelihood))
    (batches,) = source.passes({name: frozenset({kind}) for name in layers}, "")
    return {name: (batch.a, batch.g[kind]) for name, batch in batches.items()}


@pytest.mark.parametrize("kind", ["predictive", "empirical"])
def test_kfac(any_case, kind):
    expand, reduce = (approximate("kfac", any_case, kind=kind, sharing=s) for s in ("expand", "reduce"))
    for layer, (a, g) in samples(any_case, kind).items():
        n, t = a.shape[:2]
        A, B = expand[layer].factors
        assert relative(A, torch.einsum("nti,ntk->ik", a, a) / n) < 1e-12
        assert relative(B, torch.einsum("cntj,cntl->jl", g, g) / (n * t)) < 1e-12
        A, B = reduce[layer].factors
        assert relative(A, torch.einsum("ni,nk->ik", a.mean(1), a.mean(1)) / n) < 1e-12
        assert relative(B, torch.einsum("cnj,cnl->jl", g.sum(2), g.sum(2)) / n) < 1e-12


@pytest.mark.parametrize(("name", "option"), [("ekfac", "sharing"), ("tekfac", "positions")])
def test_rescaled_methods_keep_the_diagonal_in_their_basis(any_case, name, option):
    for value in {"sharing": ("expand", "reduce"), "positions": ("exact", "independent")}[option]:
        found = approximate(name, any_case, **{option: value})
        basis = approximate({"ekfac": "kfac", "tekfac": "tkfac"}[name], any_case, **{option: value})
        F = fl.exact_fisher(any_case.model, any_case.data)
        for layer, operator in found.items():
            U = torch.kron(operator.U_A, operator.U_B)
            for factor, vectors in zip(basis[layer].factors, (operator.U_A, operator.U_B), strict=True):
                rotated = vectors.T @ factor @ vectors
                assert (rotated - torch.diag(rotated.diagonal())).abs().max() < 1e-12 * factor.norm()
            expected = (U.T @ F[layer].dense() @ U).diagonal()
            assert relative(operator.S.T.flatten(), expected) < 1e-10


def test_tkfac_with_independent_positions(any_case):
    found = approximate("tkfac", any_case, positions="independent")
    for layer, (a, g) in samples(any_case, "predictive").items():
        n = len(a)
        inputs = torch.einsum("cntj,nti,ntk->ik", g.square(), a, a) / n
        outputs = torch.einsum("nti,cntj,cntl->jl", a.square(), g, g) / n
        P, Q = found[layer].factors
        assert relative(P, inputs) < 1e-12
        assert relative(Q, outputs / outputs.trace()) < 1e-12


def test_lngd_lr(any_case):
    found = approximate("lngd-lr", any_case, kind="empirical")
    for layer, (a, g) in samples(any_case, "empirical").items():
        Phi, Psi = found[layer].factors
        assert relative(Phi, torch.einsum("cntj,nti,ntk->ik", g.square(), a, a) / len(a)) < 1e-12
        diagonal = torch.einsum("nti,cntj->j", a.square(), g.square()) / len(a)
        assert relative(Psi, torch.diag(diagonal / Phi.trace())) < 1e-12


def test_diagonal_is_that_of_the_fisher(any_case):
    F = fl.exact_fisher(any_case.model, any_case.data)
    for layer, operator in approximate("diagonal", any_case).items():
        assert relative(operator.dense(), torch.diag(F[layer].diagonal())) < 1e-12


def test_foof(any_case):
    for layer, operator in approximate("foof", any_case).items():
        a, _ = samples(any_case, "predictive")[layer]
        A = torch.einsum("nti,ntk->ik", a, a) / len(a)
        assert relative(operator.dense(), torch.kron(A, torch.eye(operator.outputs).double())) < 1e-12


@pytest.mark.parametrize("kind", ["predictive", "monte-carlo", "empirical"])
def test_ngplus_takes_the_smaller_side_and_the_datas_labels(any_case, kind):
    found = approximate("ngplus", any_case, kind=kind)
    for layer, (a, g) in samples(any_case, "empirical").items():
        V = g[0].transpose(1, 2) @ a
        m, d = V.shape[1:]
        if m <= d:
            expected = torch.kron(torch.eye(d).double(), (V @ V.mT).mean(0))
        else:
            expected = torch.kron((V.mT @ V).mean(0), torch.eye(m).double())
        assert relative(found[layer].dense(), expected) < 1e-12


def test_ngplus_on_a_layer_with_more_outputs_than_inputs():
    model = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    case = Case(model, torch.randn(9, 2).double(), torch.arange(9) % 3, "categorical")
    operator = approximate("ngplus", case)["0"]
    a, g = samples(case, "empirical")["0"]
    V = g[0].transpose(1, 2) @ a
    assert relative(operator.dense(), torch.kron((V.mT @ V).mean(0), torch.eye(5).double())) < 1e-12


def test_dead_units_give_no_nan():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    case = Case(model, torch.randn(8, 3).double(), torch.arange(8) % 2, "categorical")
    for name in ("lngd", "lngd-lr", "tkfac"):
        operator = approximate(name, case)["0"]
        assert operator.trace() == 0
        assert torch.allclose(operator.factors[1], torch.eye(4).double() / 4)
    for name in ("kfac", "ekfac", "tekfac", "nearest-kronecker", "diagonal"):
        assert torch.equal(approximate(name, case)["0"].dense(), torch.zeros(16, 16).double())


@pytest.mark.parametrize("sampling", ["expected", 3])
def test_named_activations_reach_lngd(categorical, sampling):
    plain = approximate("lngd", categorical, sampling=sampling)
    same = approximate("lngd", categorical, sampling=sampling, activations={"0": "tanh"})
    other = approximate("lngd", categorical, sampling=sampling, activations={"0": "identity"})
    assert relative(same["0"].dense(), plain["0"].dense()) < 1e-12
    assert relative(other["0"].dense(), plain["0"].dense()) > 0.1
    assert torch.equal(other["2"].dense(), plain["2"].dense())
