"""`Preconditioner`: D in the place of the gradient; and what `diagnostics` shows."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from optim.cases import METHODS, assert_close, assert_same, backward, batches, network, train, weights

import fisherlab as fl
from fisherlab import approximations
from fisherlab.damping import Clip, Constant, Pi, Shift
from fisherlab.errors import InputError, InputTypeError
from fisherlab.optim import EKFAC, KFAC, LNGD, Preconditioner

PLAIN = {"weight_decay": 0.0, "statistics_every": 2, "inverse_every": 3, "kl_clip": None}
COLUMNS = [
    "layer",
    "rate",
    "trace_input",
    "trace_output",
    "damping_input",
    "damping_output",
    "condition",
    "direction_norm",
    "gradient_norm",
]


def preconditioned(model, preconditioner, optimizer, data) -> dict[str, torch.Tensor]:
    for batch in data:
        optimizer.zero_grad()
        backward(model, batch)
        preconditioner.step()
        optimizer.step()
    return weights(model)


@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer"])
@pytest.mark.parametrize("method", ["lngd", "kfac", "ekfac", "tkfac", "ngplus"])
def test_with_sgd_it_is_the_optimizer(method, name):
    """At a constant rate b ← τ b + α D, W ← W − lr b is m ← τ m − lr α D, W ← W + m with m = −lr b."""
    data = batches(name, 4)
    # where an eigenspace has several dimensions, EKFAC's basis goes by rounding: it has one basis here
    options = PLAIN | ({"inverse_every": 9} if method == "ekfac" else {})
    for rate in ("fixed", "layerwise"):
        model, usual = network(name), network(name)
        preconditioner = Preconditioner(model, method, rate=rate, **options)
        sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.8)
        found = preconditioned(model, preconditioner, sgd, data)
        optimizer = METHODS[method](usual, lr=0.05, momentum=0.8, rate=rate, **options)
        assert_close(found, train(usual, optimizer, data))


def test_other_gradients_stay():
    model, [batch] = network("cnn"), batches("cnn")
    preconditioner = Preconditioner(model, "kfac")
    backward(model, batch)
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    preconditioner.step()
    after = {name: p.grad for name, p in model.named_parameters()}
    assert {name for name in before if torch.equal(before[name], after[name])} == {"1.weight", "1.bias"}


def test_weights_stay():
    model, [batch] = network("mlp"), batches("mlp")
    before = weights(model)
    preconditioner = Preconditioner(model, "ekfac")
    backward(model, batch)
    preconditioner.step()
    assert_same(weights(model), before)


def test_the_gradient_is_scaled_for_a_loss_that_is_a_sum():
    """D is that of the mean: both reductions leave the same gradients in layers."""
    model, other = network("mlp"), network("mlp")
    [(x, y)] = batches("mlp")
    one, two = Preconditioner(model, "kfac"), Preconditioner(other, "kfac", loss_reduction="sum")
    torch.nn.functional.cross_entropy(model(x), y).backward()
    torch.nn.functional.cross_entropy(other(x), y, reduction="sum").backward()
    one.step()
    two.step()
    gradients = [{name: p.grad for name, p in m.named_parameters()} for m in (model, other)]
    assert_close(*gradients)


def test_its_state_goes_on_to_the_bit():
    data = batches("mlp", 5)
    model = network("mlp")
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    preconditioner = Preconditioner(model, "ekfac", **PLAIN)
    preconditioned(model, preconditioner, adam, data[:2])
    again = network("mlp")
    again.load_state_dict(model.state_dict())
    other, adam_again = Preconditioner(again, "ekfac", **PLAIN), torch.optim.Adam(again.parameters(), lr=0.01)
    other.load_state_dict(preconditioner.state_dict())
    adam_again.load_state_dict(deepcopy(adam.state_dict()))
    found = preconditioned(again, other, adam_again, data[2:])
    assert_same(found, preconditioned(model, preconditioner, adam, data[2:]))


class Third(approximations.Approximation):
    """Of a third party: the diagonal and a half more."""

    name, formula, source = "third", "1.5 diag F", "this test"
    statistics = approximations.create("diagonal").statistics

    def build(self, layer, sums, kind):
        return approximations.create("diagonal").build(layer, sums, kind) * 1.5


ROOTS = ("shampoo", "soap", "adafactor")  # their optimizers take F̂^{-1/2}
DAMPINGS = {"kfac": Pi(0.03), "tkfac": Pi(0.03), "lngd": Clip(), "lngd-lr": Clip()}
KNOWN = sorted(approximations.registered())


@pytest.mark.parametrize("network_name", ["mlp", "grouped", "sequences"])
@pytest.mark.parametrize("name", [*KNOWN, "third"])
def test_every_approximation_preconditions_or_is_refused(name, network_name, monkeypatch):
    """D = (F̂ + damping)⁻¹ ∇h, or its root, with the very operator of `approximate`."""
    monkeypatch.setattr(approximations.base, "_REGISTRY", approximations.registered())
    fl.register_approximation(Third)
    model, [batch] = network(network_name), batches(network_name)
    if not approximations.registered()[name].matrix:
        with pytest.raises(InputError, match=f"{name} is a direction without a matrix .* diagonal, ekfac, "):
            Preconditioner(model, name)
        return
    if approximations.registered()[name].from_exact:
        with pytest.raises(InputError, match=f"{name} is made from the exact .* diagonal, ekfac, .* third"):
            Preconditioner(model, name)
        return
    source = {} if name in ("lngd", "ngplus") else {"source": "empirical"}
    options = {"positions": "independent"} if name == "tkfac" else {}
    operators = fl.approximate(name, network(network_name), batch, kind="empirical", **options)
    preconditioner = Preconditioner(model, name, **source)
    backward(model, batch)
    before = {n: p.grad.clone() for n, p in model.named_parameters()}
    preconditioner.step()
    after = {n: p.grad for n, p in model.named_parameters()}
    for layer, view in fl.find_layers(model).items():
        damping = DAMPINGS.get(name, Constant(1e-8 if name in ROOTS else 0.03))
        if name == "ngplus":
            damping = Shift(*((0, 0.03) if view.group.outputs <= view.group.inputs else (0.03, 0)))
        gradient, found = (view.to_matrix({p: one[p] for p in view.parameters}) for one in (before, after))
        power = -0.5 if name in ROOTS else -1.0
        expected = operators[layer].power(power, damping).apply(gradient)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_gradients_of_batches_are_not_of_training():
    method = approximations.create("shampoo", gradients="batch:4")
    with pytest.raises(InputError, match="with gradients='batch:4' is made of whole passes"):
        fl.optim.NaturalGradient(network("mlp"), method)


def test_a_root_has_no_kl_clip():
    with pytest.raises(InputError, match="with root=2 give kl_clip=None"):
        fl.optim.KFAC(network("mlp"), root=2)


def test_what_it_refuses():
    with pytest.raises(InputError, match="unknown method 'kfca'; did you mean kfac"):
        Preconditioner(network("mlp"), "kfca")
    with pytest.raises(InputTypeError, match=r"model must be a torch\.nn\.Module, not a generator"):
        Preconditioner(network("mlp").parameters(), "kfac")
    with pytest.raises(InputError, match="without a backward pass"):
        Preconditioner(network("mlp"), "kfac").step()


# --- diagnostics ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_row_a_layer(method):
    model = network("grouped")
    optimizer = METHODS[method](model)
    empty = optimizer.diagnostics()
    assert list(empty.columns) == COLUMNS
    assert empty.drop(columns="layer").isna().all(axis=None)
    train(model, optimizer, batches("grouped", 2))
    rows = optimizer.diagnostics()
    assert list(rows.layer) == ["0", "2", "6"]
    assert (rows.rate > 0).all()
    assert (rows.condition >= 1 - 1e-9).all()
    assert (rows[["trace_input", "damping_input", "direction_norm", "gradient_norm"]] >= 0).all(axis=None)
    if ("layerwise" not in method and not method.startswith("lngd")) or method == "lngd-sample":
        assert (rows.rate == 1).all()


def test_the_numbers_of_lngd_by_hand():
    """One layer without an activation: Φ = m E[a aᵀ], Ψ = I/m."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3, bias=False).double()
    x, y = torch.randn(8, 4, dtype=torch.float64), torch.arange(8) % 3
    W = model.weight.detach().clone()
    optimizer = LNGD(
        model, momentum=0.0, weight_decay=0.0, damping={"input": (1e-5, 0.3), "output": (0.5, 0.6)}
    )
    backward(model, (x, y))
    gradient = model.weight.grad.clone()
    optimizer.step()
    [row] = optimizer.diagnostics().to_dict("records")
    phi = 3 * x.T @ x / 8
    eigenvalues = torch.linalg.eigvalsh(phi) + 0.3
    D = gradient @ torch.linalg.inv(phi + 0.3 * torch.eye(4, dtype=x.dtype)) / (1 / 3 + 0.5)
    assert row["trace_input"] == pytest.approx(float(phi.trace()))
    assert row["trace_output"] == pytest.approx(1.0)
    assert (row["damping_input"], row["damping_output"]) == pytest.approx((0.3, 0.5))
    assert row["condition"] == pytest.approx(float(eigenvalues[-1] / eigenvalues[0]))
    assert row["direction_norm"] == pytest.approx(float(D.norm()))
    assert row["gradient_norm"] == pytest.approx(float(gradient.norm()))
    torch.testing.assert_close(model.weight.detach(), W - 0.1 * row["rate"] * D)


def test_the_condition_of_kfac_and_ekfac_is_that_of_the_damped_matrix():
    torch.manual_seed(0)
    x, y = torch.randn(8, 4, dtype=torch.float64), torch.arange(8) % 3
    for make in (KFAC, EKFAC):
        torch.manual_seed(1)
        model = torch.nn.Linear(4, 3, bias=False).double()
        g = torch.softmax(model(x), -1).detach() - torch.nn.functional.one_hot(y, 3)
        optimizer = make(model, damping=0.1, source="empirical")
        backward(model, (x, y))
        optimizer.step()
        [row] = optimizer.diagnostics().to_dict("records")
        A, B = x.T @ x / 8, g.T @ g / 8
        if make is KFAC:
            pi = float((A.trace() / 4) / (B.trace() / 3)) ** 0.5
            shifts = pi * 0.1**0.5, 0.1**0.5 / pi
            both = [torch.linalg.eigvalsh(F) + s for F, s in zip((A, B), shifts, strict=True)]
            expected = float(np.prod([v[-1] / v[0] for v in both]))
            assert (row["damping_input"], row["damping_output"]) == pytest.approx(shifts)
        else:
            U_A, U_B = (torch.linalg.eigh(F).eigenvectors for F in (A, B))
            S = (g @ U_B).square().T @ (x @ U_A).square() / 8 + 0.1
            expected = float(S.max() / S.min())
        assert row["condition"] == pytest.approx(expected)


def test_looking_changes_nothing():
    data = batches("mlp", 4)
    model, usual = network("mlp"), network("mlp")
    optimizer = EKFAC(model, **PLAIN)
    for batch in data:
        optimizer.diagnostics()
        train(model, optimizer, [batch])
    assert_same(weights(model), train(usual, EKFAC(usual, **PLAIN), data))
