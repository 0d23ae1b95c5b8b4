"""Traces over checkpoints: against autograd, the trace equalities, and a model left as it was."""

import copy
import re

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import fisherlab as fl
from fisherlab.errors import InputError
from fisherlab.records.labels import number
from fisherlab.traces import Checkpoint, Recorder, Traces, trace
from fisherlab.traces.measure import SETTLED
from fisherlab.traces.result import DIAGNOSTIC_COLUMNS, TRACE_COLUMNS, WHOLE, stage_of


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def network():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3, bias=False)).double()


def samples(count=12):
    return torch.randn(count, 4, dtype=torch.float64), torch.arange(count) % 3


def trained(model, data, steps=3):
    """The weights before and after some steps of gradient descent."""
    inputs, targets = data
    model = copy.deepcopy(model)
    weights = [copy.deepcopy(model.state_dict())]
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        weights.append(copy.deepcopy(model.state_dict()))
    names = ["init", *(f"step-{step}" for step in range(1, steps + 1))]
    return [Checkpoint(name, own, step) for step, (name, own) in enumerate(zip(names, weights, strict=True))]


def trace_by_autograd(model, inputs):
    """(1/N) Σ_n Σ_c p_c ‖∇ log p_c‖² of each layer: the second moment of the score, label by label."""
    found = {"0": 0.0, "2": 0.0}
    for sample in inputs:
        logs = model(sample[None]).log_softmax(-1)[0]
        for value in logs:
            gradients = torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
            squares = [float(gradient.square().sum()) for gradient in gradients]
            weight = float(value.detach().exp()) / len(inputs)
            found["0"] += weight * (squares[0] + squares[1])
            found["2"] += weight * squares[2]
    return found


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(1)
    model, data = network(), samples()
    checkpoints = trained(model, data)
    return model, data, checkpoints, trace(model, data, checkpoints)


def test_exact_traces_are_those_of_autograd_at_every_checkpoint(case):
    model, (inputs, _), checkpoints, found = case
    for checkpoint in checkpoints:
        own = copy.deepcopy(model)
        own.load_state_dict(checkpoint.weights)
        rows = found.traces[found.traces["checkpoint"] == checkpoint.name]
        for layer, expected in trace_by_autograd(own, inputs).items():
            values = rows["trace_exact"][rows["layer"] == layer]
            np.testing.assert_allclose(values, expected, rtol=1e-10)


def test_the_trace_equalities_hold_at_every_checkpoint(case):
    *_, found = case
    rows = found.traces
    exact = rows[rows["approximation"].isin(["ekfac", "tkfac"])]
    np.testing.assert_allclose(exact["trace_ratio"], 1, rtol=1e-10)
    layerwise = found.records[found.records["target"] == "layerwise"]
    assert set(layerwise["approximation"]) == {"lngd"}
    np.testing.assert_allclose(layerwise["trace_ratio"], 1, rtol=1e-10)
    assert (abs(rows["trace_ratio"][rows["approximation"] == "kfac"] - 1) > 1e-6).any()


def test_one_sample_makes_every_kronecker_product_exact():
    inputs, _ = samples(1)
    targets = inputs[:, :3] * 0
    found = trace(network(), (inputs, targets), [], ("kfac", "ekfac"), likelihood="gaussian", layers="2")
    np.testing.assert_allclose(found.traces["trace_ratio"], 1, rtol=1e-10)


def test_the_tables_have_their_columns_and_a_row_each(case):
    _, _, checkpoints, found = case
    assert tuple(found.traces.columns) == TRACE_COLUMNS
    assert tuple(found.diagnostics.columns) == DIAGNOSTIC_COLUMNS
    assert len(found.traces) == len(checkpoints) * 2 * 4
    assert list(found.checkpoints["step"]) == [0, 1, 2, 3]
    np.testing.assert_allclose(
        found.traces["trace_ratio"], found.traces["trace_approx"] / found.traces["trace_exact"], rtol=1e-12
    )


def test_traces_of_stages_add_up(case):
    *_, found = case
    sums = found.traces.groupby(["checkpoint", "approximation"])[["trace_exact", "trace_approx"]].sum()
    whole = found.stages[found.stages["stage"] == WHOLE].set_index(["checkpoint", "approximation"])
    assert set(whole["layers"]) == {2}
    for column in sums:
        np.testing.assert_allclose(whole[column].sort_index(), sums[column].sort_index(), rtol=1e-12)
    ratio = whole["trace_approx"] / whole["trace_exact"]
    np.testing.assert_allclose(whole["trace_ratio"], ratio, rtol=1e-12)


@pytest.mark.parametrize(
    ("layer", "stage"),
    [
        ("0", "0"),
        ("fc", "fc"),
        ("conv1", "conv1"),
        ("stages.0.1.conv1", "stages.0"),
        ("layer1.0.conv2", "layer1"),
        ("encoder.layers.2.linear1", "encoder.layers.2"),
        ("embed.proj", "embed"),
    ],
)
def test_the_stage_of_a_layer(layer, stage):
    assert stage_of(layer) == stage


def test_norms_have_traces_but_no_place_in_stages():
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3)).double()
    found = trace(model, samples(), [], ("kfac",))
    assert set(found.traces["layer"]) == {"0", "1", "2"}
    assert set(found.stages["stage"]) == {"0", "2", WHOLE}


def test_spectra_are_those_of_the_dense_block(case):
    model, data, checkpoints, found = case
    own = copy.deepcopy(model)
    own.load_state_dict(checkpoints[-1].weights)
    rows = found.diagnostics[found.diagnostics["checkpoint"] == checkpoints[-1].name]
    for layer, operator in fl.exact_fisher(own, data).items():
        values = torch.linalg.eigvalsh(operator.dense()).clamp(min=0)
        shares = values / values.sum()
        rank = float(torch.exp(-torch.special.xlogy(shares, shares).sum()))
        damping = 0.1 * float(values.mean())
        row = rows[rows["layer"] == layer].iloc[0]
        assert row["effective_rank"] == pytest.approx(rank, rel=1e-8)
        condition = (float(values[-1]) + damping) / (float(values[0]) + damping)
        assert row["condition"] == pytest.approx(condition, rel=1e-8)


@pytest.mark.parametrize("count", [3, 12])  # 9 columns of a block of size 25, and 36
def test_gram_and_dense_paths_give_one_spectrum(monkeypatch, count):
    model, data = network(), samples(count)
    dense, gram = (
        fl.exact_fisher(model, data, layers="0", method=method)["0"] for method in ("kronecker", "gram")
    )
    for damping in (1e-3, 1.0):
        one, other = fl.metrics.spectrum(dense, damping), fl.metrics.spectrum(gram, damping)
        assert other.effective_rank == pytest.approx(one.effective_rank, rel=1e-8)
        assert other.condition == pytest.approx(one.condition, rel=1e-8)


def test_the_spectrum_of_a_layer_that_is_not_kept_comes_from_its_gram_matrix():
    """Against the singular values of all √(p_c/N) ∇log p_c, which are √λ; their rank is below D = 4,160."""
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3)).double()
    inputs, targets = torch.randn(5, 64).double(), torch.arange(5) % 3
    row = trace(model, (inputs, targets), [], ("diagonal",), layers="0").diagnostics.iloc[0]
    assert row["method"] == "gram"
    logs = model(inputs).log_softmax(-1).flatten()
    roots = (logs.detach().exp() / 5).sqrt()
    rows = [torch.autograd.grad(one, tuple(model[0].parameters()), retain_graph=True) for one in logs]
    jacobian = torch.stack([torch.cat([w.flatten(), b]) for w, b in rows]) * roots[:, None]
    values = torch.linalg.svdvals(jacobian).square()
    shares = values / values.sum()
    rank = float(torch.exp(-torch.special.xlogy(shares, shares).sum()))
    assert row["effective_rank"] == pytest.approx(rank, rel=1e-8)
    damping = 0.1 * float(values.sum()) / 4160
    assert row["condition"] == pytest.approx((float(values[0]) + damping) / damping, rel=1e-8)


def test_a_spectrum_above_the_memory_limit_is_left_out_with_a_note():
    data = torch.randn(200, 20).double(), torch.arange(200) % 20
    found = trace(nn.Linear(20, 20).double(), data, [], ("diagonal",), memory="6MiB").diagnostics.iloc[0]
    assert found[["effective_rank", "condition"]].isna().all()
    assert "no spectrum: directions and spectra would need" in found["note"]


def test_groups_whose_blocks_are_small_have_a_spectrum():
    blocks = torch.randn(600, 3, 8).double()
    F = fl.operators.joined([fl.operators.DenseOperator(b.mT @ b, 2, 4) for b in blocks])
    values = torch.linalg.svdvals(blocks).square().flatten()
    shares = values / values.sum()
    found = fl.metrics.spectrum(F, 0.5)
    rank = float(torch.exp(-torch.special.xlogy(shares, shares).sum()))
    assert found.effective_rank == pytest.approx(rank, rel=1e-10)
    assert found.condition == pytest.approx((float(values.max()) + 0.5) / 0.5, rel=1e-10)


def test_without_spectra_their_columns_are_empty(case):
    model, data, checkpoints, _ = case
    found = trace(model, data, checkpoints[:1], ("kfac",), spectra=False)
    assert found.diagnostics[["effective_rank", "condition"]].isna().all(axis=None)
    assert "spectra" not in [name for name, *_ in found.figures()]


def test_the_quartiles_are_those_over_the_layers(case):
    *_, found = case
    own = found.main[(found.main["checkpoint"] == "step-2") & (found.main["approximation"] == "kfac")]
    row = found.spread[
        (found.spread["checkpoint"] == "step-2")
        & (found.spread["approximation"] == "kfac")
        & (found.spread["metric"] == "scaled_error")
    ].iloc[0]
    expected = np.quantile(own["scaled_error"], [0.25, 0.5, 0.75])
    np.testing.assert_allclose(row[["low", "median", "high"]].astype(float), expected, rtol=1e-12)


def test_the_same_labels_are_drawn_at_every_checkpoint(case):
    model, data, checkpoints, _ = case
    same = [Checkpoint(name, checkpoints[1].weights, step) for step, name in enumerate("ab")]
    found = trace(model, data, same, ("kfac",), kind="monte-carlo", spectra=False).traces
    one, other = (found[found["checkpoint"] == name] for name in "ab")
    np.testing.assert_array_equal(one["trace_exact"], other["trace_exact"])
    another = trace(model, data, same, ("kfac",), kind="monte-carlo", spectra=False, seed=5).traces
    assert (another["trace_exact"].to_numpy() != found["trace_exact"].to_numpy()).any()


def test_the_model_is_left_as_it_was(case):
    model, data, checkpoints, _ = case
    before = copy.deepcopy(model.state_dict())
    model.train()
    state = torch.random.get_rng_state()
    trace(model, data, checkpoints[:2], ("kfac",), spectra=False)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_batch_norms_without_data_get_the_moments_of_the_samples():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3)).double()
    inputs, targets = samples(40)
    inputs = 30 * inputs + 100
    state = torch.random.get_rng_state()
    found = trace(
        model, (inputs, targets), [Checkpoint("init", model.state_dict(), 0)], ("kfac",), layers="3"
    )
    assert torch.equal(state, torch.random.get_rng_state())
    assert int(model[1].num_batches_tracked) == 0
    assert SETTLED in found.diagnostics["note"].iloc[0]
    own = copy.deepcopy(model).eval()
    hidden = model[0](inputs)
    own[1].running_mean, own[1].running_var = hidden.mean(0).detach(), hidden.var(0).detach()
    exact = float(fl.exact_fisher(own, (inputs, targets), layers="3")["3"].trace())
    np.testing.assert_allclose(found.traces["trace_exact"], exact, rtol=1e-8)


def test_weights_from_files_are_checked(case, tmp_path):
    model, data, checkpoints, found = case
    path = tmp_path / "w.safetensors"
    save_file(checkpoints[2].weights, path)
    again = trace(model, data, [Checkpoint("w", path)], ("kfac",), spectra=False).traces
    expected = found.traces[
        (found.traces["checkpoint"] == "step-2") & (found.traces["approximation"] == "kfac")
    ]
    np.testing.assert_array_equal(again["trace_exact"], expected["trace_exact"])
    with pytest.raises(InputError, match="damaged: its sha256"):
        trace(model, data, [Checkpoint("w", path, 1, "0" * 64)], ("kfac",))
    with pytest.raises(InputError, match="another network"):
        trace(nn.Linear(4, 3).double(), data, [Checkpoint("w", path)], ("kfac",))
    with pytest.raises(InputError, match="called 'w'"):
        trace(model, data, [Checkpoint("w", path), Checkpoint("w", path)])


def test_save_writes_tables_and_pictures(case, tmp_path):
    *_, found = case
    folder = found.save(tmp_path / "t")
    names = {path.name for path in folder.iterdir()}
    assert {"traces.csv", "diagnostics.csv", "stages.csv", "summary.json", "provenance.json"} <= names
    pictures = ("traces", "trace-ratio", "stages", "quality", "spectra")
    assert {f"{name}.{end}" for name in pictures for end in ("png", "pdf")} <= names
    read = pd.read_csv(folder / "traces.csv", dtype={"layer": str})
    pd.testing.assert_frame_equal(read, found.traces, check_dtype=False)
    with pytest.raises(InputError, match="exists already"):
        found.save(tmp_path / "t")


def test_the_page_has_the_numbers_of_the_tables(case, tmp_path, monkeypatch):
    *_, found = case
    monkeypatch.setattr("fisherlab.plots.workers.save", lambda figure, path: path.with_suffix(".png").touch())
    page = (found.save(tmp_path / "t") / "report.html").read_text(encoding="utf-8")
    assert len(re.findall("<img ", page)) == len(list(found.figures()))
    whole = found.stages[found.stages["stage"] == WHOLE]
    assert all(f">{number(value)}</td>" in page for value in whole["trace_ratio"])
    ends = [found.main[found.main["checkpoint"] == name] for name in ("init", "step-3")]
    for column in ("trace_approx", "decrease_share", "effective_rank", "condition"):
        for one, other in zip(*(own[column] for own in ends), strict=True):
            assert f">{number(one)} → {number(other)}</td>" in page


def test_the_page_of_one_checkpoint_without_spectra(tmp_path, monkeypatch):
    monkeypatch.setattr("fisherlab.plots.workers.save", lambda figure, path: path.with_suffix(".png").touch())
    found = trace(network(), samples(), [], ("kfac",), spectra=False)
    page = (found.save(tmp_path / "t") / "report.html").read_text(encoding="utf-8")
    assert "The spectrum of F" not in page
    assert f">{number(found.traces['trace_exact'].iloc[0])}</td>" in page
    assert "→" not in page


def test_the_caption_says_what_was_measured(case):
    *_, found = case
    for words in ("model: Sequential", "init to step-3 (4)", "seed: unknown", "device: cpu", "12 samples"):
        assert words in found.caption


@pytest.fixture
def recorded():
    inputs, targets = samples(30)
    model = network()
    optimizer = fl.optim.KFAC(model, statistics_every=1, inverse_every=1)
    recorder, rows = Recorder(), []
    for step in range(1, 4):
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        recorder.record(step, optimizer)
        rows.append(optimizer.diagnostics())
    return recorder, rows


def test_a_recorder_keeps_what_the_optimizer_says(recorded):
    recorder, rows = recorded
    assert list(recorder.frame["step"]) == [1, 1, 2, 2, 3, 3]
    together = pd.concat(rows, ignore_index=True)
    for column in ("layer", "trace_input", "trace_output", "condition", "gradient_norm"):
        assert list(recorder.frame[column]) == list(together[column])


def test_a_recorder_reads_the_lines_of_a_log(recorded):
    recorder, rows = recorded
    lines = [{"kind": "step", "step": 1, "loss": 1.0}]
    lines += [
        {"kind": "layers", "step": step, "layers": own.to_dict("records")}
        for step, own in enumerate(rows, start=1)
    ]
    pd.testing.assert_frame_equal(Recorder.from_log(lines).frame, recorder.frame)


def test_a_recorder_saves_a_table_and_a_picture(recorded, tmp_path):
    recorder, _ = recorded
    paths = recorder.save(tmp_path / "new" / "live", caption="a caption")
    assert [path.name for path in paths] == ["live.csv", "live.png", "live.pdf"]
    pd.testing.assert_frame_equal(pd.read_csv(paths[0], dtype={"layer": str}), recorder.frame)
    with pytest.raises(InputError, match="no rows"):
        Recorder().save(tmp_path / "empty")
    assert not (tmp_path / "empty.csv").exists()


def test_public_names():
    assert fl.traces.Traces is Traces
    with pytest.raises(AttributeError, match="nothing"):
        _ = fl.traces.nothing
