"""SGD, sign and Muon: directions without a matrix, beside the steps of the methods that have one."""

import math

import pytest
import torch
from torch import nn

import fisherlab as fl
from fisherlab.approximations import create
from fisherlab.errors import InputError

DIRECTIONS = ("sgd", "sign", "muon")
EPS = torch.finfo(torch.float64).eps


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 6, 2, groups=2), nn.Flatten(), nn.Linear(24, 3)
    ).double()
    return model, (torch.randn(30, 2, 5, 5, dtype=torch.float64), torch.arange(30) % 3)


def test_muon_is_the_polar_factor():
    M = torch.randn(3, 4, 6, dtype=torch.float64)
    step = create("muon").step(M, EPS)
    assert torch.allclose(step @ step.mT, torch.eye(4, dtype=torch.float64).expand(3, 4, 4), atol=1e-12)
    assert ((step * M).sum((1, 2)) - torch.linalg.svdvals(M).sum(1)).abs().max() < 1e-12
    low = torch.randn(4, 2, dtype=torch.float64) @ torch.randn(2, 6, dtype=torch.float64)
    values = torch.linalg.svdvals(create("muon").step(low, EPS))  # nothing is made up outside the range
    assert values[:2] == pytest.approx(1, abs=1e-12)
    assert values[2:].abs().max() < 1e-12
    assert create("muon").step(torch.zeros(2, 3), EPS).abs().max() == 0


def test_their_rows_have_directions_alone(case):
    model, data = case
    targets = {}
    found = fl.compare(model, data, ["kfac", *DIRECTIONS], on_target=targets.__setitem__)
    rows = found.records.set_index(["layer", "approximation"])
    for layer, target in targets.items():
        groups = 2 if layer == "2" else 1
        F, λ = target.exact.dense(), target.damping
        X = F + λ * torch.eye(len(F), dtype=F.dtype)
        g = target.gradient.mT.flatten()
        best = torch.linalg.solve(X, g)
        for name in DIRECTIONS:
            row = rows.loc[layer, name]
            step = create(name).step(target.gradient.unflatten(0, (groups, -1)), EPS)
            step = step.flatten(0, 1).mT.flatten()
            share = float((step @ g) ** 2 / (step @ X @ step) / (g @ best))
            assert row["decrease_share"] == pytest.approx(share, rel=1e-9)
            cosine = float(step @ best / step.norm() / best.norm())
            assert row["direction_cosine"] == pytest.approx(cosine, rel=1e-9)
            assert math.isnan(row["relative_error"])
            assert math.isnan(row["root_decrease_share"])
            assert "a direction without a matrix" in row["note"]
    sweep = found.directions
    assert (sweep.groupby(["layer", "approximation"]).size() == 6).all()
    found.table()


def test_root_steps_are_those_of_the_root(case):
    model, data = case
    targets = {}
    found = fl.compare(model, data, ["shampoo", "soap", "adam"], on_target=targets.__setitem__)
    rows = found.records.set_index(["layer", "approximation"])
    for layer, target in targets.items():
        F, λ = target.exact.dense(), target.damping
        X, g = F + λ * torch.eye(len(F), dtype=F.dtype), target.gradient.mT.flatten()
        for name in ("shampoo", "soap", "adam"):
            Y = fl.approximate(name, model, data, layers=layer)[layer].dense()
            values, U = torch.linalg.eigh(Y * (F.trace() / Y.trace()))
            step = U @ ((U.T @ g) / (values + λ).sqrt())
            share = float((step @ g) ** 2 / (step @ X @ step) / (g @ torch.linalg.solve(X, g)))
            assert rows.loc[layer, name]["root_decrease_share"] == pytest.approx(share, rel=1e-8)


@pytest.mark.parametrize("groups", [1, 2])
def test_float32_models_have_the_steps_of_float64(groups):
    """The gradients of a softmax's logits sum to zero, but in float32 not exactly."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 6, 1, groups=groups, bias=False), nn.Tanh(), nn.Flatten(), nn.Linear(6, 3)
    ).double()
    x = torch.randn(40, 4, 1, 1)
    x[:, ::2] = x[:, 1::2]  # inputs that lie together: the first layer's gradients have a kernel too
    y = torch.arange(40) % 3
    wide = fl.compare(model, (x.double(), y), ["muon"]).records.set_index("layer")
    narrow = fl.compare(model.float(), (x, y), ["muon"]).records.set_index("layer")
    for column in ("direction_cosine", "decrease_share", "damped_step_share"):
        for layer in wide.index:
            assert narrow.loc[layer, column] == pytest.approx(wide.loc[layer, column], rel=1e-3)


def test_without_targets_they_have_nothing(case):
    model, (x, _) = case
    row = fl.compare(model, (x, None), ["sgd"], layers="4").records.iloc[0]
    assert math.isnan(row["decrease_share"])
    assert "no targets: directions are empty" in row["note"]


@pytest.mark.parametrize("name", DIRECTIONS)
def test_they_have_no_matrix(case, name):
    model, data = case
    with pytest.raises(InputError, match=f"{name} is a direction without a matrix F̂: `compare` measures"):
        fl.approximate(name, model, data)
    with pytest.raises(InputError, match="a direction without a matrix"):
        fl.optim.Preconditioner(model, name)
