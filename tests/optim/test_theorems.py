"""The two theorems of the LNGD paper (Liu et al. 2024, appendices C and D), checked by experiment in float64.

Theorem 1 is about LNGD's own rates. Theorem 2 is about another method: its Ψ is a full Gram matrix, not the
diagonal of eq. 5. It is checked for that Ψ; LNGD's own rate is measured in benchmarks/training.py.
"""

from itertools import pairwise

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import assume, given, settings
from torch import Tensor, nn

from fisherlab import optim
from fisherlab.figures.quadratic import Quadratic
from fisherlab.figures.two_layers import TwoLayers

LAYERWISE = {"momentum": 0.0, "weight_decay": 0.0, "rate": "layerwise", "rate_damping": 0.0, "kl_clip": None}


# --- theorem 1 ------------------------------------------------------------------------------------


def one_step(
    kind: type[optim.LNGD] | type[optim.KFAC], widths: list[int], activation: type[nn.Module], samples: int
) -> tuple[Quadratic, Tensor]:
    """The model of a first step, and the optimizer's rates [layers].

    D_l is what the weights moved by, over the rate; the slopes come from the gradients of the single samples,
    by automatic differentiation of the loss, without the optimizer's part in them.
    """
    linear = [nn.Linear(d, m, bias=False) for d, m in pairwise(widths)]
    model = nn.Sequential(*[part for layer in linear for part in (layer, activation())][:-1]).double()
    x = torch.randn(samples, widths[0], dtype=torch.float64)
    y = torch.randint(widths[-1], (samples,))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = kind(model, 1.0, **LAYERWISE)
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    rates = torch.tensor(optimizer.diagnostics()["rate"].to_numpy(dtype=float))

    def loss(weights: dict[str, Tensor], one: Tensor, label: Tensor) -> Tensor:
        return nn.functional.cross_entropy(torch.func.functional_call(model, weights, one), label)

    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(before, x, y)
    slopes = [
        (gradients[name] * (before[name] - p.detach()) / rate).flatten(1).sum(1)
        for rate, (name, p) in zip(rates, model.named_parameters(), strict=True)
    ]
    return Quadratic(torch.stack(slopes, 1)), rates


@settings(max_examples=40)
@given(
    kind=st.sampled_from([optim.LNGD, optim.KFAC, optim.EKFAC, optim.TKFAC, optim.NGPlus]),
    widths=st.lists(st.integers(2, 7), min_size=3, max_size=5),
    activation=st.sampled_from([nn.Tanh, nn.ReLU]),
    samples=st.integers(1, 12),
    seed=st.integers(0, 2**16),
)
def test_layerwise_rates_are_never_worse_than_the_best_single_rate(
    kind, widths, activation, samples, seed
) -> None:
    """Σ_l x_l²/y_l ≥ (Σ_l x_l)²/Σ_l y_l, for the rates that the optimizer took and not only on paper."""
    torch.manual_seed(seed)
    quadratic, rates = one_step(kind, widths, activation, samples)
    assume(bool((rates.isfinite() & (rates != 0)).all()))  # 0/0 where a layer's gradient is zero
    reached = quadratic.block_diagonal(rates)
    slack = 1e-9 * reached.abs()
    assert reached <= quadratic.block_diagonal(quadratic.best_single) + slack
    for layer in range(len(rates)):  # and no other layer-wise rates are better
        for factor in (0.9, 1.1):
            other = rates.clone()
            other[layer] *= factor
            assert reached <= quadratic.block_diagonal(other) + slack


def test_they_are_better_where_layers_differ() -> None:
    quadratic, rates = one_step(optim.LNGD, [6, 5, 4, 3], nn.Tanh, 10)
    best = quadratic.block_diagonal(quadratic.best_single)
    assert quadratic.block_diagonal(rates) < 1.01 * best < 0


@pytest.mark.parametrize("layers", [3, 4, 5])
def test_with_the_products_of_layers_the_theorem_does_not_hold(layers: int) -> None:
    """On one sample α_l ⟨D_l, ∇_l⟩ = 1 for each of L layers: the full model says L²/2 − L, a rise from L = 3.

    The best single rate reaches −1/2 in it. So lr=1 can be too long although every layer's own rate is best.
    """
    quadratic, rates = one_step(optim.LNGD, [4] * (layers + 1), nn.Tanh, 1)
    torch.testing.assert_close(quadratic.full(rates), torch.tensor(layers**2 / 2 - layers).double())
    single = torch.ones_like(rates) / quadratic.slopes.sum()
    torch.testing.assert_close(quadratic.full(single), torch.tensor(-0.5).double())


# --- theorem 2 ------------------------------------------------------------------------------------


# To first order v moves by −α (X Φ⁺ Xᵀ ∘ S Ψ⁺ Sᵀ)(v − y). Where the rows of S are independent (width ≥ n) the
# second factor is I, and with it the product is the diagonal of leverages x_nᵀ Φ⁺ x_n: all 1 where the inputs
# are independent too. Then ‖y − v‖² shrinks by (1 − α)² a step, up to the activations that switch: few in a
# wide network, which leaves the bound (1 − α)^k its room.


def leverages(network: TwoLayers) -> Tensor:
    return (network.X @ torch.linalg.pinv(network.X)).diagonal()


def bound(rate: float, steps: int) -> Tensor:
    return (1 - rate) ** torch.arange(steps + 1).double()


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.5, 0.8])
@pytest.mark.parametrize("inputs", [12, 20])
@pytest.mark.parametrize("seed", range(3))
def test_errors_stay_below_the_bound_of_theorem_2(alpha: float, inputs: int, seed: int) -> None:
    """‖y − v_k‖² ≤ (1 − α)^k ‖y − v_0‖² for independent inputs and a wide first layer."""
    errors = TwoLayers(12, inputs, 1024, seed).errors(alpha, 15)
    assert (errors <= errors[0] * bound(alpha, 15) * (1 + 1e-9)).all()


def test_a_wide_network_comes_close_to_the_linear_rate() -> None:
    """The share left after a step goes to (1 − α)² as the width grows."""
    shares = []
    for width in (64, 512, 4096):
        errors = TwoLayers(12, 16, width, 0).errors(0.5, 5)
        shares.append(float((errors[1:] / errors[:-1]).max()))
    assert shares[0] > shares[1] > shares[2]
    assert 0.25 < shares[2] < 0.27


@pytest.mark.parametrize("inputs", [5, 12, 20])
def test_the_outputs_move_by_their_leverages(inputs: int) -> None:
    """J vec(D) = leverage ∘ (v − y), to rounding: Ψ and Φ together are no more than this."""
    network = TwoLayers(12, inputs, 64, 0)
    W = network.W
    moved = torch.einsum("nr,nd,rd->n", network.signals(W), network.X, network.direction(W))
    torch.testing.assert_close(moved, leverages(network) * network.residual(W))


def test_with_dependent_inputs_the_least_leverage_takes_the_place_of_one() -> None:
    """With fewer inputs than samples the theorem's bound fails, and that with α times the least holds."""
    network = TwoLayers(12, 6, 4096, 0)
    least = float(leverages(network).min())
    errors = network.errors(0.5, 15)
    assert (errors[1:] > errors[0] * bound(0.5, 15)[1:]).any()
    assert (errors <= errors[0] * bound(0.5 * least, 15) * (1 + 1e-9)).all()


def test_the_width_is_needed() -> None:
    """Half as many units as samples: the rows of S depend on each other, and the bound fails."""
    errors = TwoLayers(12, 16, 6, 0).errors(0.5, 15)
    assert (errors > errors[0] * bound(0.5, 15)).any()
