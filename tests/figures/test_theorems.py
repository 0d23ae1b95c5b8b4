"""What the figures of the theorems are made of."""

import pytest
import torch
from torch import nn

from fisherlab.figures.quadratic import Quadratic, steps
from fisherlab.figures.two_layers import TwoLayers


@pytest.fixture
def taken() -> list[tuple[Quadratic, torch.Tensor]]:
    model = nn.Sequential(
        nn.Linear(6, 5, bias=False),
        nn.Tanh(),
        nn.Linear(5, 4, bias=False),
        nn.Tanh(),
        nn.Linear(4, 3, bias=False),
    ).double()
    x, y = torch.randn(40, 6, dtype=torch.float64), torch.randint(3, (40,))
    return list(steps(model, x, y, lr=0.1, batch=16, count=12, seed=0))


def test_lngd_takes_the_rates_of_eq_12(taken) -> None:
    """The slopes come from automatic differentiation of single samples, the rates from the optimizer."""
    for quadratic, rates in taken:
        torch.testing.assert_close(rates, quadratic.best_rates)


def test_layerwise_rates_reach_at_least_what_the_best_single_rate_does(taken) -> None:
    gains = [
        float(quadratic.block_diagonal(rates) / quadratic.block_diagonal(quadratic.best_single))
        for quadratic, rates in taken
    ]
    assert min(gains) >= 1 - 1e-9
    assert max(gains) > 1.01


def test_both_models_by_hand() -> None:
    """Two samples, two layers: ½ mean (Σ α x)² − mean Σ α x, without and with the products of layers."""
    slopes = torch.tensor([[1.0, 2.0], [3.0, -1.0]]).double()
    rates = torch.tensor([0.5, 0.25]).double()
    assert float(Quadratic(slopes).full(rates)) == pytest.approx(
        0.5 * (1.0**2 + 1.25**2) / 2 - (1.0 + 1.25) / 2
    )
    expected = 0.5 * (0.25 * 5 + 0.0625 * 2.5) - (0.5 * 2 + 0.25 * 0.5)
    assert float(Quadratic(slopes).block_diagonal(rates)) == pytest.approx(expected)


@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_the_theorems_method_stays_below_its_bound(alpha: float) -> None:
    errors = TwoLayers(12, 16, 1024, seed=0).errors(alpha, 15)
    assert (errors <= errors[0] * (1 - alpha) ** torch.arange(16).double() * (1 + 1e-9)).all()


def test_without_width_it_does_not() -> None:
    errors = TwoLayers(12, 16, 6, seed=0).errors(0.5, 15)
    assert (errors > errors[0] * 0.5 ** torch.arange(16).double()).any()


def test_lngd_starts_from_the_same_network() -> None:
    network = TwoLayers(6, 8, 64, seed=1)
    assert float(network.lngd_errors(0.1, 1, "fixed")[0]) == pytest.approx(float(network.errors(0.1, 1)[0]))
