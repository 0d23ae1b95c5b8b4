"""Where the expectation over labels is out of reach, every layer's labels are drawn."""

import pytest
import torch
from reference import Case, exact
from torch import nn

import fisherlab as fl
from fisherlab.collect.collector import Collector
from fisherlab.exact.plans import BlockPlan, make_plans
from fisherlab.likelihoods import as_likelihood

DRAWN = r"one label a sample \(a token\) is drawn"


@pytest.fixture
def many() -> Case:
    """A small layer below an output of 300 classes."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 300)).double()
    return Case(model, torch.randn(20, 2).double(), torch.arange(20), "categorical")


def plans(case: Case, kind: str = "predictive", memory: int = 2**30, **options) -> dict[str, BlockPlan]:
    layers = fl.find_layers(case.model)
    collector = Collector(case.model, layers, case.data, as_likelihood(case.likelihood))
    return make_plans(collector, kind, "auto", memory, 4096, **options)


def test_the_bound_is_on_the_operations_of_the_backward_passes(categorical):
    operations = 4.0 * 40 * 2 * (5 * 7 + 4 * 5 + 3 * 5)
    for plan in plans(categorical, most_operations=operations).values():
        assert (plan.kind, plan.columns, plan.note) == ("predictive", 80, "")
    for plan in plans(categorical, most_operations=0.99 * operations).values():
        assert (plan.kind, plan.columns) == ("drawn", 40)
        assert plan.note == (
            f"the backward passes of 2 label columns a sample would take {operations:.1g} operations; "
            "one label a sample (a token) is drawn"
        )


@pytest.mark.parametrize("kind", ["empirical", "monte-carlo"])
def test_other_labels_have_no_bound(categorical, kind):
    for plan in plans(categorical, kind, most_operations=1.0).values():
        assert (plan.kind, plan.note) == (kind, "")


def test_positions_count_as_operations(sequences):
    operations = 4.0 * 24 * 2 * (4 * 4 * 4 + 4 * 3 * 5 + 3 * 4)
    assert {p.kind for p in plans(sequences, most_operations=operations).values()} == {"predictive"}
    assert {p.kind for p in plans(sequences, most_operations=0.99 * operations).values()} == {"drawn"}


def test_columns_that_do_not_fit_one_samples_backward_are_drawn(many):
    with pytest.warns(UserWarning, match=f"the exact expectation has 299 label columns a sample.*{DRAWN}"):
        F = exact(many, layers="0", memory="500kB")["0"]
    assert {plan.kind for plan in plans(many, memory=2**23).values()} == {"predictive"}
    expected = exact(many, layers="0")["0"]
    assert F.shape == expected.shape
    assert F.trace() != pytest.approx(float(expected.trace()), rel=1e-6)


def test_drawn_blocks_are_unbiased(many):
    expected = exact(many, layers="0")["0"].dense()
    draws = []
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        with pytest.warns(UserWarning, match=DRAWN):
            draws.append(exact(many, layers="0", memory="500kB", generator=generator)["0"].dense())
    values = torch.stack(draws)
    deviation = (values.mean(0) - expected).norm()
    assert deviation < 4 * (values - expected).square().sum((1, 2)).mean().sqrt() / 60**0.5
    assert values.std(0).max() > 0.05 * expected.abs().max()
