"""The reference checks itself: its gradients, its separation of samples, and its steps on a 1 × 1 network."""

from dataclasses import replace
from itertools import pairwise
from math import sqrt

import numpy as np
import pytest
import torch
from optim.networks import Affine, Linear, Network, Record, from_torch
from optim.reference import METHODS, Options, balance, trajectory
from torch import nn

KINDS = ("mlp", "mlp-gaussian", "cnn", "cnn-affine")
PLAIN = Options(momentum=0.0, weight_decay=0.0)
X, TARGET, WEIGHT = np.array([[2.0], [-0.5]]), np.array([[0.3], [1.0]]), 0.7


class ScaleShift(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.rand(channels) + 0.5) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight[:, None, None] + self.bias[:, None, None]


def modules(kind: str) -> nn.Sequential:
    if kind == "mlp":
        return nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 3, bias=False))
    if kind == "mlp-gaussian":
        return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 4, bias=False))
    norm = [ScaleShift(3)] if kind == "cnn-affine" else []
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, stride=2),
        *norm,
        nn.ReLU(),
        nn.Conv2d(3, 3, 3, padding=1, bias=False),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(3, 3),
    )


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(kind: str) -> nn.Sequential:
    return modules(kind).double()


@pytest.fixture
def network(model: nn.Sequential, kind: str) -> Network:
    return from_torch(model, "gaussian" if kind == "mlp-gaussian" else "categorical")


def batch_of(kind: str, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(n, 4) if kind.startswith("mlp") else (n, 2, 5, 5))
    return x, draw.normal(size=(n, 4)) if kind == "mlp-gaussian" else draw.integers(3, size=n)


@pytest.fixture
def batch(kind: str) -> tuple[np.ndarray, np.ndarray]:
    return batch_of(kind, 5)


def test_outputs_are_those_of_the_converted_network(model, network, batch):
    np.testing.assert_allclose(network.forward(batch[0]), model(torch.tensor(batch[0])).detach(), atol=1e-12)


def test_gradients_equal_finite_differences(network, batch):
    gradients = {name: V.mean(0) for name, V in network.backward(*batch).items()}
    for name, layer in network.parameters.items():
        numerical = np.zeros_like(layer.W)
        for index in np.ndindex(layer.W.shape):
            values = []
            for change in (1e-6, -1e-6):
                layer.W[index] += change
                values.append(network.losses(*batch).mean())
                layer.W[index] -= change
            numerical[index] = (values[0] - values[1]) / 2e-6
        np.testing.assert_allclose(gradients[name], numerical, atol=1e-6, err_msg=name)


def test_per_sample_gradients_are_those_of_each_sample_alone(network, batch):
    x, y = batch
    together = network.backward(x, y)
    alone = [network.backward(x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
    for name, V in together.items():
        np.testing.assert_allclose(V, np.concatenate([one[name] for one in alone]), atol=1e-12)


def test_records_multiply_to_gradients_and_pre_activations(network, batch):
    for name, record in network.records(*batch).items():
        W = network.layers[name].W
        for n in range(len(record.a)):
            V = sum(np.outer(g, a) for g, a in zip(record.g[n], record.a[n], strict=True))
            np.testing.assert_allclose(record.V[n], V, atol=1e-12)
            np.testing.assert_allclose(record.s[n], record.a[n] @ W.T, atol=1e-12)


@pytest.mark.parametrize("kind", ["mlp", "cnn", "cnn-affine"])
def test_slopes(kind, network, batch):
    records = network.records(*batch, last="categorical")
    first, last = records["0"], list(records.values())[-1]
    p = np.exp(last.s) / np.exp(last.s).sum(-1, keepdims=True)
    np.testing.assert_allclose(last.slope**2, p - p**2)
    np.testing.assert_array_equal(first.slope, np.ones_like(first.s) if kind == "cnn-affine" else first.s > 0)
    np.testing.assert_array_equal(list(network.records(*batch).values())[-1].slope, 1)


def tiny() -> Network:
    """f = w x, loss ½(y − f)²: g_n = w x_n − y_n, V_n = g_n x_n."""
    return Network({"0": Linear(np.array([[WEIGHT]]), bias=False)}, "gaussian")


def tiny_moments(w: float = WEIGHT) -> tuple[np.ndarray, np.ndarray]:
    g = w * X[:, 0] - TARGET[:, 0]
    return X[:, 0], g


def test_two_steps_of_lngd_by_hand():
    """Φ = E[a²] and Ψ = 1 stay, so λ_Φ = λ_Ψ = 0.01; momentum and decay join in the second step."""
    inverse = 1 / ((np.mean(X**2) + 0.01) * 1.01)
    w, m = WEIGHT, 0.0
    expected = []
    for _ in range(2):
        a, g = tiny_moments(w)
        gradient = np.mean(g * a)
        D = gradient * inverse
        rate = D * gradient / (np.mean((D * g * a) ** 2) + 1e-3)
        m = 0.9 * m - 0.1 * rate * D
        w = w + m - 0.1 * 0.004 * w
        expected.append(w)
    steps = trajectory(tiny(), [(X, TARGET)] * 2, "lngd")
    np.testing.assert_allclose([W["0"].item() for W in steps], expected, rtol=1e-12)


def tiny_denominator(method: str) -> float:
    """Gradient over D of a 1 × 1 layer, λ = 0.03, from the formulas of the methods."""
    a, g = tiny_moments()
    A, B, F, root = np.mean(a**2), np.mean(g**2), np.mean(a**2 * g**2), sqrt(0.03)
    pi = sqrt(A / B)
    return {
        "lngd": (A + 0.01) * 1.01,
        "lngd-sample": (A + 0.01) * 1.01,
        "lngd-lr": (F + 0.01) * 1.01,
        "kfac": (A + pi * root) * (B + root / pi),
        "tkfac": (F + sqrt(F) * root) * (1 + root / sqrt(F)),
        "ekfac": F + 0.03,
        "ngplus": F + 0.03,
    }[method]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("momentum_on", ["update", "gradient"])
def test_one_step_of_every_method_by_hand(method, momentum_on):
    a, g = tiny_moments()
    options = replace(PLAIN, rate="fixed", momentum_on=momentum_on)
    (after,) = trajectory(tiny(), [(X, TARGET)], method, options)
    np.testing.assert_allclose(
        after["0"].item(), WEIGHT - 0.1 * np.mean(a * g) / tiny_denominator(method), rtol=1e-12
    )


def test_coupled_decay_is_in_the_direction_and_not_in_the_rate():
    a, g = tiny_moments()
    gradient = np.mean(a * g)
    D = (gradient + 0.5 * WEIGHT) / tiny_denominator("lngd")
    rate = D * gradient / (np.mean((D * a * g) ** 2) + 1e-3)
    options = replace(PLAIN, weight_decay=0.5, weight_decay_mode="coupled")
    (after,) = trajectory(tiny(), [(X, TARGET)], "lngd", options)
    np.testing.assert_allclose(after["0"].item(), WEIGHT - 0.1 * rate * D, rtol=1e-12)


def test_averages_start_at_the_first_statistic_and_keep_most_of_the_old():
    """The second batch is thrice the first: E[a²] goes to 0.95 + 0.05 · 9 of itself."""
    (_, y), A = (X, TARGET), np.mean(X**2)
    first, second = trajectory(tiny(), [(X, y), (3 * X, y)], "lngd", replace(PLAIN, rate="fixed"))
    w = first["0"].item()
    gradient = np.mean(3 * X[:, 0] * (3 * w * X[:, 0] - y[:, 0]))
    expected = w - 0.1 * gradient / ((A * (0.95 + 0.05 * 9) + 0.01) * 1.01)
    np.testing.assert_allclose(second["0"].item(), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("statistics_every", "inverse_every", "weights"),
    [
        (1, 1, (0.0, 0.0, 1.0)),
        (1, 2, (0.0, 0.0, 1.0)),
        (1, 9, (0.95**2, 0.95 * 0.05, 0.05)),
        (9, 1, (1.0, 0.0, 0.0)),
    ],
)
def test_scales_of_ekfac_restart_with_the_basis_only(statistics_every, inverse_every, weights):
    """S is the third batch's alone after a new basis at step 2, an average where the first stands."""
    options = replace(PLAIN, statistics_every=statistics_every, inverse_every=inverse_every)
    batches = [(c * X, TARGET) for c in (1.0, 2.0, 3.0)]
    path = [WEIGHT, *(W["0"].item() for W in trajectory(tiny(), batches, "ekfac", options))]
    V = [x[:, 0] * (w * x[:, 0] - y[:, 0]) for w, (x, y) in zip(path, batches, strict=False)]
    S = sum(share * np.mean(v**2) for share, v in zip(weights, V, strict=True))
    np.testing.assert_allclose(path[3], path[2] - 0.1 * V[2].mean() / (S + 0.03), rtol=1e-12)


def test_drawn_labels_make_the_statistics_and_never_the_gradient():
    a, g = tiny_moments()
    drawn = a[:, None] * WEIGHT + 2.0  # g = −2 for every sample
    options = replace(PLAIN, drawn=[drawn])
    (after,) = trajectory(tiny(), [(X, TARGET)], "ekfac", options)
    expected = WEIGHT - 0.1 * np.mean(a * g) / (4 * np.mean(a**2) + 0.03)
    np.testing.assert_allclose(after["0"].item(), expected, rtol=1e-12)


def damped_block(method: str, record: Record) -> np.ndarray:
    """The damped approximation, dense, in the column order of vec; λ = 0.03, sums term by term."""
    n, T = record.g.shape[:2]
    rows = [(i, t) for i in range(n) for t in range(T)]
    w = record.slope if method in ("lngd", "lngd-sample") else record.g
    weigh = (lambda v: 1.0) if method in ("kfac", "ekfac") else (lambda v: v @ v)
    A = sum(weigh(w[r]) * np.outer(record.a[r], record.a[r]) for r in rows) / n
    B = sum(weigh(record.a[r]) * np.outer(w[r], w[r]) for r in rows) / n
    eye_A, eye_B, total, root = np.eye(len(A)), np.eye(len(B)), np.trace(A), sqrt(0.03)
    if method.startswith("lngd"):
        Psi = np.diag(np.diag(B)) / total
        clip = [min(max(np.trace(M) / len(M), 1e-5), 1e-2) for M in (A, Psi)]
        return np.kron(A + clip[0] * eye_A, Psi + clip[1] * eye_B)
    if method == "ngplus":
        m, d = record.V.shape[1:]
        left = np.kron(eye_A, sum(V @ V.T for V in record.V) / n)
        right = np.kron(sum(V.T @ V for V in record.V) / n, eye_B)
        return (left if m <= d else right) + 0.03 * np.eye(m * d)
    B = B / (total if method == "tkfac" else T)
    if method == "ekfac":
        U = np.kron(np.linalg.eigh(A)[1], np.linalg.eigh(B)[1])
        S = sum((U.T @ V.flatten("F")) ** 2 for V in record.V) / n
        return U @ np.diag(S + 0.03) @ U.T
    pi = sqrt(total / len(A) / (np.trace(B) / len(B)))
    return np.kron(A + pi * root * eye_A, B + root / pi * eye_B)


@pytest.mark.parametrize("method", METHODS)
def test_directions_solve_the_dense_system(network, batch, method):
    for record in network.records(*batch).values():
        rule = METHODS[method](PLAIN)
        rule.update(record)
        rule.invert(record)
        G = np.random.default_rng(1).normal(size=record.V.shape[1:])
        D = np.linalg.solve(damped_block(method, record), G.flatten("F")).reshape(G.shape, order="F")
        np.testing.assert_allclose(rule.direction(G), D, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_a_sum_over_the_batch_gives_the_steps_of_the_mean(kind, network, batch, method):
    mean, total = (
        trajectory(network, [batch, batch_of(kind, 3, seed=1)], method, Options(loss_reduction=reduction))
        for reduction in ("mean", "sum")
    )
    for one, other in zip(mean, total, strict=True):
        assert all(np.allclose(one[name], other[name], rtol=1e-10) for name in one)


def test_momentum_of_affine_parameters_is_sgds():
    """Torch's SGD with momentum, at its own rate, with no decay."""
    layers = {"0": Linear(np.eye(2), bias=False), "1": Affine(np.array([[1.0, 2.0], [0.5, -0.5]]))}
    network = Network(layers, "gaussian")
    x, y = np.random.default_rng(0).normal(size=(2, 4, 2))
    weights = [network.weights, *trajectory(network, [(x, y)] * 3, "kfac", Options(other_lr=0.05))]
    parameter = torch.nn.Parameter(torch.tensor(weights[0]["1"]))
    sgd = torch.optim.SGD([parameter], lr=0.05, momentum=0.9)
    for before, after in pairwise(weights):
        residual = before["1"][0] * (x @ before["0"].T) + before["1"][1] - y
        parameter.grad = torch.tensor(np.stack([residual * (x @ before["0"].T), residual]).mean(1))
        sgd.step()
        np.testing.assert_allclose(after["1"], parameter.detach(), atol=1e-12)


def test_a_capped_rate_and_a_schedule_scale_the_step():
    def change(**options: object) -> float:
        return trajectory(tiny(), [(X, TARGET)], "lngd", replace(PLAIN, **options))[0]["0"].item() - WEIGHT

    fixed = change(rate="fixed")
    np.testing.assert_allclose(change(max_rate=1e-3), 1e-3 * fixed, rtol=1e-9)
    np.testing.assert_allclose(change(rate="fixed", schedule=[0.25]), 0.25 * fixed, rtol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_a_dead_layer_takes_no_step_and_gives_numbers(method):
    """Inputs and slopes are all zero: nothing but decay moves the weights."""
    network = from_torch(modules("mlp").double(), "categorical")
    after = trajectory(network, [(np.zeros((2, 4)), np.array([0, 1]))], method, PLAIN)[0]
    np.testing.assert_array_equal(after["0"], network.weights["0"])
    assert np.isfinite(after["2"]).all()


def test_balance_of_damping_at_zero_traces():
    one, zero = np.eye(2), np.zeros((3, 3))
    assert [balance(zero, one), balance(one, zero), balance(zero, zero)] == [1e-2, 1e2, 1.0]
    assert balance(9e8 * one, one) == pytest.approx(3e4)
