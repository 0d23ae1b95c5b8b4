"""The joint step of all layers, against the dense Fisher of the whole network."""

from dataclasses import replace

import pytest
import torch
from reference import Case, gradients, jacobian, names_of, output_hessians
from torch import nn

import fisherlab as fl
from fisherlab import metrics
from fisherlab.comparison import passes
from fisherlab.comparison.joint import JointModel, LayerParts, StepPart, step_part
from fisherlab.comparison.measure import ROW_DAMPING
from fisherlab.errors import NumericalError
from fisherlab.operators import GramOperator, joined

NAMES = ("kfac", "diagonal", "lngd")


def whole_fisher(case: Case, layers: list[str]) -> torch.Tensor:
    """F of the parameters of these layers, side by side."""
    J = torch.cat([jacobian(case.model, case.inputs, names_of(one, case.model)) for one in layers], 2)
    H = output_hessians(case.likelihood, case.model(case.inputs), case.targets)
    return torch.einsum("nkd,nkl,nle->de", J, H, J) / len(J)


def joint_share(case: Case, compared: fl.Comparison, name: str, F: torch.Tensor) -> float:
    """By dense matrices."""
    steps, slopes, dampings = [], [], []
    for layer in compared.results:
        operators = compared.operators(layer)
        exact, matched = operators["exact"], metrics.trace_matched(operators["exact"], operators[name])
        damping = ROW_DAMPING * metrics.mean_eigenvalue(exact)
        slope = gradients(case, names_of(layer, case.model)).mean(0)
        steps.append(torch.linalg.solve(matched.dense() + damping * torch.eye(len(slope)).double(), slope))
        slopes.append(slope)
        dampings.append(torch.full_like(slope, damping))
    step, slope, damped = torch.cat(steps), torch.cat(slopes), F + torch.cat(dampings).diag()
    best = slope @ torch.linalg.solve(damped, slope)
    return float((step @ slope) ** 2 / (step @ damped @ step) / best)


@pytest.fixture(scope="module")
def compared(categorical) -> fl.Comparison:
    return fl.compare(categorical.model, categorical.data, NAMES, spectra=False)


def main_rows(c: fl.Comparison, name: str):
    return c.records[(c.records["approximation"] == name) & (c.records["target"] == "predictive")]


@pytest.mark.parametrize("name", NAMES)
def test_the_share_is_that_of_dense_matrices(name, compared, categorical):
    F = whole_fisher(categorical, list(compared.results))
    found = main_rows(compared, name)["damped_step_share"]
    assert found.tolist() == pytest.approx([joint_share(categorical, compared, name, F)] * 3, rel=1e-9)
    assert found.iloc[0] < main_rows(compared, name)["decrease_share"].max()


def test_of_one_layer_it_is_its_decrease_share(categorical):
    one = fl.compare(categorical.model, categorical.data, NAMES, layers="2", spectra=False)
    for name in NAMES:
        row = main_rows(one, name).iloc[0]
        assert row["damped_step_share"] == pytest.approx(row["decrease_share"], rel=1e-9)


def test_it_is_of_all_samples_or_empty(categorical, monkeypatch):
    monkeypatch.setattr(passes, "_COUPLING_COLUMNS", 16)
    few = fl.compare(categorical.model, categorical.data, NAMES, spectra=False)
    samples = 16 // (categorical.model(categorical.inputs).shape[1] - 1)
    rows = main_rows(few, "kfac")
    assert rows["damped_step_share"].isna().all()
    assert rows["note"].str.contains(f"--samples {samples} or fewer").all()
    part = categorical.take(slice(samples))
    found = fl.compare(part.model, part.data, NAMES, spectra=False)
    F = whole_fisher(part, list(found.results))
    share = main_rows(found, "kfac")["damped_step_share"]
    assert share.tolist() == pytest.approx([joint_share(part, found, "kfac", F)] * 3, rel=1e-9)


def test_the_exact_joint_step_has_all_of_the_decrease_and_no_other_more():
    generator = torch.Generator().manual_seed(0)
    sizes, dampings, columns = (5, 7), (0.1, 0.3), 4
    J = [torch.randn(columns, k, generator=generator, dtype=torch.float64) for k in sizes]
    slope = [torch.randn(k, generator=generator, dtype=torch.float64) for k in sizes]
    damping = torch.cat([torch.full((k,), d) for k, d in zip(sizes, dampings, strict=True)]).double()
    F = torch.cat(J, 1).T @ torch.cat(J, 1) + damping.diag()
    exact = torch.linalg.solve(F, torch.cat(slope)).split(sizes)
    other = [torch.randn(k, generator=generator, dtype=torch.float64) for k in sizes]

    def part(layer, step):
        return StepPart(J[layer] @ step, float(step @ slope[layer]), float(step @ step))

    parts = {
        str(one): LayerParts(
            dampings[one],
            J[one] @ J[one].T,
            part(one, slope[one]),
            {"exact": part(one, exact[one]), "other": part(one, other[one])},
        )
        for one in (0, 1)
    }
    share, layers = JointModel(parts).share("exact")
    assert (share, layers) == (pytest.approx(1, rel=1e-12), 2)
    assert 0 <= JointModel(parts).share("other")[0] < 1
    alone = {"0": parts["0"], "1": replace(parts["1"], steps={})}
    assert JointModel(alone).share("other")[1] == 1
    flat = replace(parts["0"], gradient=StepPart(torch.zeros(columns).double(), 0.0, 0.0))
    with pytest.raises(NumericalError, match="gradient is zero"):
        JointModel({"0": flat}).share("other")


def test_groups_add_up():
    generator = torch.Generator().manual_seed(1)
    blocks = [
        GramOperator(
            torch.randn(6, 2, 3, generator=generator, dtype=torch.float64),
            torch.randn(2, 6, 2, 4, generator=generator, dtype=torch.float64),
        )
        for _ in range(2)
    ]
    F = joined(blocks)
    step, slope = torch.randn(2, 8, 3, generator=generator, dtype=torch.float64)
    found = step_part(F, step, slope)
    images = [block.rows(own).flatten() / 6**0.5 for block, own in zip(blocks, step.split(4), strict=True)]
    torch.testing.assert_close(found.image, images[0] + images[1])
    assert found.gain == pytest.approx(float((step * slope).sum()))
    assert found.square == pytest.approx(float(step.square().sum()))


def test_norms_are_left_out_and_missing_targets_leave_it_empty():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(20, 4).double(), torch.arange(20) % 3
    records = fl.compare(model, (x, y), ("kfac", "diagonal"), spectra=False).records
    norm = records[records["layer"] == "1"].iloc[0]
    assert "joint step: norms are left out" in norm["note"]
    assert records["damped_step_share"].isna().tolist() == (records["layer"] == "1").tolist()
    without = fl.compare(model, (x, None), "kfac", spectra=False).records
    assert without["damped_step_share"].isna().all()
    assert without["note"].str.contains("no targets").all()


def test_the_joint_step_of_one_layer_is_its_own_however_many_samples():
    torch.manual_seed(0)
    x, y = torch.randn(600, 4).double(), torch.arange(600) % 3
    records = fl.compare(nn.Linear(4, 3).double(), (x, y), ("kfac", "sgd"), spectra=False).records
    assert records["decrease_share"].between(0, 1).all()
    assert records["damped_step_share"].tolist() == records["decrease_share"].tolist()
