"""The experiment: records, directions, coupling, waterfall and files."""

import copy
import re

import pandas as pd
import pytest
import torch
from reference import Case, gradients, jacobian, names_of, output_hessians
from torch import nn

import fisherlab as fl
from fisherlab import metrics
from fisherlab.collect.layer_batch import half_of
from fisherlab.comparison import layer as measured_layer
from fisherlab.comparison.measure import Target
from fisherlab.errors import InputError

NAMES = ("kfac", "ekfac", "tkfac", "lngd", "lngd-lr", "nearest-kronecker", "ngplus", "diagonal")

COLUMNS = re.findall(
    r"\w+",
    """
    model dataset checkpoint step seed dtype layer module outputs inputs positions groups approximation
    kind target samples columns method relative_error scaled_error best_scale population_error
    population_error_se gap_to_nearest trace_exact trace_approx trace_ratio diagonal_error damping
    direction_cosine decrease_share preconditioned_condition seconds bytes
    logdet_divergence logdet_divergence_scaled von_neumann_divergence calibration_top calibration_middle
    calibration_tail damped_step_share directions_top directions_middle directions_tail
    root_direction_cosine root_decrease_share note
    """,
)
BANDS = ("directions_top", "directions_middle", "directions_tail")
WHOLE = ("outputs", "inputs", "positions", "groups", "samples", "columns", "bytes", *BANDS)
TEXT = (
    "model",
    "dataset",
    "checkpoint",
    "dtype",
    "layer",
    "module",
    "approximation",
    "kind",
    "target",
    "note",
)
LATE = COLUMNS[COLUMNS.index("bytes") + 1 : COLUMNS.index(BANDS[0])]
MEASURED = [*COLUMNS[COLUMNS.index("relative_error") : COLUMNS.index("seconds")], *LATE]


@pytest.fixture(scope="module")
def comparison(categorical) -> fl.Comparison:
    return fl.compare(categorical.model, categorical.data, NAMES)


@pytest.fixture
def wide() -> Case:
    """Two layers whose Gram form is smaller than their block."""
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    x = torch.randn(10, 12, dtype=torch.float64)
    return Case(model, x, torch.arange(10) % 3, "categorical")


def rows_of(c: fl.Comparison, layer: str, target: str = "predictive") -> pd.DataFrame:
    records = c.records
    rows = records[(records["layer"] == layer) & (records["target"] == target)]
    return rows.set_index("approximation")


# --- records --------------------------------------------------------------------------------------------


def test_records_have_the_columns_of_the_contract(comparison):
    assert list(comparison.records.columns) == COLUMNS
    types = comparison.records.dtypes
    for column in WHOLE:
        assert pd.api.types.is_integer_dtype(types[column]), column
    for column in (*MEASURED, "seconds"):
        assert pd.api.types.is_float_dtype(types[column]), column
    for column in TEXT:
        assert pd.api.types.is_string_dtype(types[column]), column


def test_there_is_a_row_for_every_layer_approximation_and_target(comparison):
    counts = comparison.records.groupby(["layer", "target"])["approximation"].apply(list)
    for layer in ("0", "2", "4"):
        assert counts[layer, "predictive"] == list(NAMES)
        assert counts[layer, "layerwise"] == ["lngd"]


def test_rows_describe_the_layer_and_the_work(comparison):
    row = rows_of(comparison, "0").loc["kfac"]
    described = {
        "model": "Sequential",
        "dtype": "float64",
        "module": "Linear",
        "outputs": 5,
        "inputs": 7,
        "positions": 1,
        "groups": 1,
        "kind": "predictive",
        "samples": 40,
        "columns": 80,
        "method": "kronecker",
    }
    assert {column: row[column] for column in described} == described
    assert row["bytes"] == 8 * (7 * 7 + 5 * 5)


def test_numbers_are_those_of_the_metrics(comparison, categorical):
    F = fl.exact_fisher(categorical.model, categorical.data)
    for layer in F:
        h = gradients(categorical, names_of(layer, categorical.model)).mean(0)
        gradient = h.reshape(F[layer].inputs, F[layer].outputs).T
        damping = 0.1 * float(F[layer].trace()) / F[layer].shape[0]
        nearest = fl.approximate("nearest-kronecker", categorical.model, categorical.data, layers=layer)[
            layer
        ]
        least = metrics.scaled_error(F[layer], nearest).error
        for name in NAMES:
            row = rows_of(comparison, layer).loc[name]
            own = fl.approximate(name, categorical.model, categorical.data, layers=layer)[layer]
            error, scale = metrics.scaled_error(F[layer], own)
            found = metrics.direction(F[layer], own, gradient, damping)
            expected = {
                "relative_error": metrics.relative_error(F[layer], own),
                "scaled_error": error,
                "best_scale": scale,
                "gap_to_nearest": error / least - 1,
                "trace_exact": float(F[layer].trace()),
                "trace_approx": float(own.trace()),
                "trace_ratio": metrics.trace_ratio(F[layer], own),
                "diagonal_error": metrics.diagonal_error(F[layer], own),
                "damping": damping,
                "direction_cosine": found.cosine,
                "decrease_share": found.decrease_share,
                "preconditioned_condition": metrics.preconditioned_condition(
                    F[layer], metrics.trace_matched(F[layer], own), damping
                ),
            }
            for column, value in expected.items():
                assert row[column] == pytest.approx(value, rel=1e-8, abs=1e-10), (layer, name, column)


def test_the_layerwise_rows_compare_with_the_layerwise_fisher(comparison, categorical):
    F = fl.exact_fisher(categorical.model, categorical.data, kind="layerwise")
    found = fl.approximate("lngd", categorical.model, categorical.data)
    for layer in F:
        row = rows_of(comparison, layer, "layerwise").loc["lngd"]
        assert row["relative_error"] == pytest.approx(
            metrics.relative_error(F[layer], found[layer]), abs=1e-10
        )
        assert row["trace_ratio"] == pytest.approx(1)
        assert row["kind"] == "predictive"


def test_empty_cells_have_a_note(comparison, sequences, wide):
    gram = fl.compare(wide.model, wide.data, NAMES, memory=44_050)
    without = fl.compare(wide.model, (wide.inputs, None), ("kfac", "lngd"))
    few = fl.compare(wide.model, wide.take(slice(0, 5)).data, ("kfac",), spectra=False)
    positions = fl.compare(sequences.model, sequences.data, ("kfac", "lngd"))
    for c in (comparison, gram, without, few, positions):
        records = c.records
        empty = records[records[list(MEASURED)].isna().any(axis=1)]
        quiet = empty[empty["note"] == ""]
        columns = [column for column in MEASURED if quiet[column].isna().any()]
        assert quiet.empty, (list(quiet["approximation"]), columns)


def test_notes_say_why(wide):
    without = rows_of(fl.compare(wide.model, (wide.inputs, None), "kfac"), "0").loc["kfac"]
    assert "no targets: directions are empty" in without["note"]
    assert pd.isna(without["direction_cosine"])
    few = rows_of(fl.compare(wide.model, wide.take(slice(0, 5)).data, "kfac"), "0").loc["kfac"]
    assert "at least 8 samples" in few["note"]
    assert pd.isna(few["population_error"])


def test_a_block_that_is_a_kronecker_product_has_no_gap():
    """The last layer's block is A ⊗ I under a Gaussian: both errors are rounding, and so is their ratio."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(20, 4).double(), torch.randn(20, 3).double()
    rows = rows_of(fl.compare(model, (x, y), ("kfac", "ekfac", "tkfac"), "gaussian"), "2")
    assert (rows["relative_error"] < 1e-12).all()
    for gap, note in zip(rows["gap_to_nearest"], rows["note"], strict=True):
        assert abs(gap) < 1e-6 or (pd.isna(gap) and note)


def test_a_dead_layer_is_empty_with_a_note_and_does_not_stop_the_rest():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    c = fl.compare(
        model, (torch.randn(12, 3).double(), torch.arange(12) % 2), ("kfac", "ekfac", "tkfac", "lngd")
    )
    dead, living = rows_of(c, "0"), rows_of(c, "2")
    assert dead["relative_error"].isna().all()
    assert dead["note"].str.contains("zero").all()
    assert living["relative_error"].notna().all()


def test_an_adapter_that_begins_at_zero_hides_the_one_before_it_and_nothing_else():
    """Low-rank adapters B A x with B = 0: the gradient of A is zero, in Gram form as in any other."""
    A, B = nn.Linear(700, 6, bias=False), nn.Linear(6, 4, bias=False)
    nn.init.zeros_(B.weight)
    data = torch.randn(5, 700).double(), torch.arange(5) % 4
    c = fl.compare(nn.Sequential(A, B).double(), data, ("kfac", "lngd"), spectra=False)
    hidden, living = (rows_of(c, name).query("target == 'predictive'") for name in "01")
    assert hidden["method"].eq("gram").all()
    assert hidden["relative_error"].isna().all()
    assert hidden["note"].str.contains("the block is zero").all()
    assert living["relative_error"].notna().all()


# --- population error --------------------------------------------------------------------------------------


def test_a_single_sample_that_is_kept_leaves_the_other_half_empty():
    """A sample's layer-wise columns, one a unit and position, are more than is kept of any but the first."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    data = torch.randn(8, 1, 42, 42).double(), torch.arange(8) % 4
    c = fl.compare(model.double(), data, ("kfac", "lngd"), spectra=False)
    assert c.records["population_error"].notna().all()
    assert c.records["population_error_se"].isna().all()
    assert c.records["note"].str.contains("no standard error: no terms of single samples are kept").all()


def test_population_errors_come_from_the_two_halves(comparison, categorical):
    row = rows_of(comparison, "2").loc["kfac"]
    half = half_of(0, 40)
    parts = [categorical.take(half == h) for h in (0, 1)]
    J = jacobian(categorical.model, categorical.inputs, ("2.weight",))
    H = output_hessians("categorical", categorical.model(categorical.inputs), categorical.targets)
    F_n = torch.einsum("nkd,nkl,nle->nde", J, H, J)
    products = torch.einsum("nde,mde->nm", F_n, F_n)
    norm = (products.sum() - products.trace()) / (40 * 39)
    fits = [fl.approximate("kfac", part.model, part.data)["2"].dense() for part in parts]
    cross = sum((F_n[half == h].mean(0) * fits[1 - h]).sum() for h in (0, 1)) / 2
    own = sum(fit.square().sum() for fit in fits) / 2
    expected = ((norm - 2 * cross + own) / norm).sqrt()
    assert row["population_error"] == pytest.approx(float(expected), rel=1e-9)
    assert row["population_error_se"] > 0


# --- directions, coupling, waterfall ------------------------------------------------------------------------


def test_directions_are_a_sweep_over_dampings(comparison):
    table = comparison.directions
    directions = ["direction_cosine", "decrease_share", "root_direction_cosine", "root_decrease_share"]
    assert list(table.columns) == ["layer", "approximation", "damping", *directions]
    sizes = table.groupby(["layer", "approximation"]).size()
    assert (sizes == 6).all()
    assert len(sizes) == 3 * len(NAMES)
    assert table["decrease_share"].between(0, 1 + 1e-9).all()
    own = table[(table["layer"] == "2") & (table["approximation"] == "kfac")]
    row = rows_of(comparison, "2").loc["kfac"]
    unit = row["trace_exact"] / 20
    assert list(own["damping"] / unit) == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1, 10])
    assert own["direction_cosine"].iloc[3] == pytest.approx(row["direction_cosine"])


def test_coupling_is_the_norm_of_the_blocks_off_the_diagonal(comparison, categorical):
    H = output_hessians("categorical", categorical.model(categorical.inputs), categorical.targets)
    J = {
        layer: jacobian(categorical.model, categorical.inputs, names_of(layer, categorical.model))
        for layer in ("0", "2", "4")
    }

    def squared(one: str, two: str) -> float:
        block = torch.einsum("nkd,nkl,nle->de", J[one], H, J[two]) / 40
        return float(block.square().sum())

    table = comparison.coupling.set_index(["layer", "other"])["coupling"]
    assert len(table) == 9
    for (one, two), value in table.items():
        scale = (squared(one, one) * squared(two, two)) ** 0.5
        assert value == pytest.approx(squared(one, two) / scale, rel=1e-9)
        assert value == pytest.approx(table[two, one], rel=1e-12)
    assert all(table[layer, layer] == pytest.approx(1) for layer in J)


def test_the_waterfall_has_the_scaled_errors_of_its_steps(comparison, categorical):
    table = comparison.waterfall
    assert list(table.columns) == ["layer", "step", "scaled_error"]
    for layer, steps in table.groupby("layer"):
        assert list(steps["step"]) == ["nearest-kronecker", "kfac", "lngd-lr", "lngd"]
        rows = rows_of(comparison, layer)
        for step, error in zip(steps["step"], steps["scaled_error"], strict=True):
            assert error == pytest.approx(rows.loc[step, "scaled_error"])
    alone = fl.compare(categorical.model, categorical.data, "foof", spectra=False)
    assert set(alone.records["approximation"]) == {"foof"}
    pd.testing.assert_frame_equal(alone.waterfall, table)


# --- other ways of computing -------------------------------------------------------------------------------


def test_the_gram_form_gives_the_same_numbers(wide):
    dense = fl.compare(wide.model, wide.data, NAMES).records
    gram = fl.compare(wide.model, wide.data, NAMES, memory=44_050).records
    assert set(dense["method"]) == {"kronecker"}
    assert set(gram["method"]) == {"gram"}
    main = dense["target"] == "predictive"
    few = {"damped_step_share"}  # for which so small a limit keeps too few samples
    for column in set(MEASURED) - {"preconditioned_condition"} - few:
        one, two = dense[column][main], gram[gram["target"] == "predictive"][column]
        assert one.notna().tolist() == two.notna().tolist(), column
        assert two.dropna().tolist() == pytest.approx(one.dropna().tolist(), rel=1e-8, abs=1e-8), column


def test_batches_give_the_same_numbers(categorical):
    whole = fl.compare(categorical.model, categorical.data, NAMES).records
    parts = fl.compare(categorical.model, categorical.batches(7, 20, 13), NAMES).records
    for column in MEASURED:
        assert parts[column].tolist() == pytest.approx(
            whole[column].tolist(), rel=1e-7, abs=1e-9, nan_ok=True
        ), column


def test_float32_gives_nearly_the_numbers_of_float64(comparison, categorical):
    single = copy.deepcopy(categorical.model).float()
    records = fl.compare(single, categorical.data, NAMES).records
    assert set(records["dtype"]) == {"float32"}
    for column in MEASURED:
        one, two = comparison.records[column], records[column]
        assert one.notna().tolist() == two.notna().tolist(), column
        assert two.dropna().tolist() == pytest.approx(one.dropna().tolist(), rel=2e-3, abs=2e-4), column


@pytest.mark.parametrize("kind", ["empirical", "monte-carlo", "layerwise"])
def test_other_targets(categorical, kind):
    c = fl.compare(categorical.model, categorical.data, ("kfac", "ekfac", "lngd"), kind=kind)
    F = fl.exact_fisher(categorical.model, categorical.data, kind=kind)
    assert set(c.records["target"]) == {kind, "layerwise"}
    assert set(c.records["kind"]) == {kind}
    for layer in F:
        rows = rows_of(c, layer, kind)
        assert rows.loc["kfac", "trace_exact"] == pytest.approx(float(F[layer].trace()))
        assert rows.loc["ekfac", "trace_ratio"] == pytest.approx(1)
        assert rows.loc["ekfac", "relative_error"] <= rows.loc["kfac", "relative_error"] + 1e-12
    assert len(c.records) == (9 if kind == "layerwise" else 12)


def test_a_target_without_labels_of_its_own_needs_no_targets(categorical):
    c = fl.compare(categorical.model, (categorical.inputs, None), ("kfac", "lngd"))
    assert c.records["relative_error"].notna().all()
    assert c.directions.empty
    with pytest.raises(InputError, match="ngplus needs targets"):
        fl.compare(categorical.model, (categorical.inputs, None), ("kfac", "ngplus"))


def test_layers_and_options(categorical):
    c = fl.compare(
        categorical.model, categorical.data, "kfac", layers=("0", "4"), bias="separate", spectra=False
    )
    assert list(c.results) == ["0", "4"]
    c = fl.compare(categorical.model, categorical.data, "kfac", bias="separate", spectra=False)
    assert list(c.results) == ["0", "0.bias", "2", "4", "4.bias"]


def test_plans_are_told(wide):
    told = []
    fl.compare(wide.model, wide.data, "kfac", memory=44_050, spectra=False, on_plan=told.append)
    assert [(plan.layer, plan.method) for plan in told] == [("0", "gram"), ("2", "gram")]


def test_blocks_are_handed_out_while_they_are_held(categorical, monkeypatch):
    monkeypatch.setattr(measured_layer, "_LARGEST_DRAWN", 0)
    found = {}

    def take(name: str, target: Target) -> None:
        found[name] = target.exact.dense(), target.gradient

    c = fl.compare(categorical.model, categorical.data, "kfac", spectra=False, on_target=take)
    assert not any(result.operators for result in c.results.values())
    expected = fl.exact_fisher(categorical.model, categorical.data)
    assert list(found) == list(expected)
    for name, (block, gradient) in found.items():
        torch.testing.assert_close(block, expected[name].dense())
        assert gradient.shape == (expected[name].outputs, expected[name].inputs)
