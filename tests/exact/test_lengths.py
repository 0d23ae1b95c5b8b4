"""Batches whose samples have other lengths, and so other numbers of label columns."""

import pytest
import torch
from torch import nn

import fisherlab as fl
from fisherlab.metrics import relative_error

LENGTHS = (4, 7, 5)


@pytest.fixture
def network():
    torch.manual_seed(0)
    layers = nn.Embedding(5, 3), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5)
    return nn.Sequential(*layers).double()


@pytest.fixture
def data():
    torch.manual_seed(1)
    return [(torch.randint(0, 5, (2, T)), torch.randint(0, 5, (2, T))) for T in LENGTHS]


@pytest.mark.parametrize("method", ["auto", "per-sample", "gram"])
@pytest.mark.parametrize("kind", ["predictive", "empirical"])
def test_blocks_are_the_mean_over_batches(network, data, kind, method):
    found = fl.exact_fisher(network, data, kind=kind, likelihood="token-categorical", method=method)
    single = [
        fl.exact_fisher(network, [batch], kind=kind, likelihood="token-categorical", method="per-sample")
        for batch in data
    ]
    for name, block in found.items():
        expected = sum(one[name].dense() for one in single) / len(single)
        torch.testing.assert_close(block.dense(), expected, rtol=1e-12, atol=1e-14)


def test_a_comparison_reads_them():
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Embedding(5, 6), nn.Linear(6, 300), nn.Tanh(), nn.Linear(300, 5)).double()
    data = [(torch.randint(0, 5, (2, T)), torch.randint(0, 5, (2, T))) for T in LENGTHS]
    options = {"likelihood": "token-categorical"}
    found = fl.compare(wide, data, ["kfac", "ekfac"], **options)
    exact = fl.exact_fisher(wide, data, method="per-sample", layers=["1", "3"], **options)
    for name in ("kfac", "ekfac"):
        approximations = fl.approximate(name, wide, data, layers=["1", "3"], **options)
        for layer, approximation in approximations.items():
            rows = found.records.query(f"layer == '{layer}' and approximation == '{name}'")
            expected = relative_error(exact[layer], approximation)
            assert float(rows["relative_error"].iloc[0]) == pytest.approx(expected, rel=1e-8)
