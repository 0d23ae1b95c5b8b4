"""Comparisons of layers of several kinds, and under memory limits of any size."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex
from reference import Case, exact, relative
from torch import nn

import fisherlab as fl
from fisherlab import plots
from fisherlab.comparison import layer as measured_layer
from fisherlab.comparison import passes as experiment
from fisherlab.comparison import run as comparison
from fisherlab.errors import NotSupportedError, NumericalError
from fisherlab.metrics import relative_error
from fisherlab.operators import GroupedOperator
from fisherlab.plots import style

NAMES = ("kfac", "ekfac", "tkfac", "lngd")
BOTH = ("layer 0", "layer 2")
KEY = ["layer", "approximation", "target"]


@pytest.fixture(scope="module")
def normed() -> Case:
    """Two layers that no activation follows directly, and a norm between them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3)).double()
    return Case(model, torch.randn(24, 4).double(), torch.arange(24) % 3, "categorical")


@pytest.fixture
def wide() -> Case:
    """A layer that an activation follows, and a smaller one with none."""
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    return Case(model, torch.randn(10, 12).double(), torch.arange(10) % 3, "categorical")


def compared(case: Case, approximations=NAMES, **options) -> fl.Comparison:
    return fl.compare(case.model, case.data, approximations, case.likelihood, **options)


def measured(c: fl.Comparison) -> pd.DataFrame:
    """The records without what is not a number of the layer."""
    records = c.records.set_index(KEY)
    first, last = (records.columns.get_loc(name) for name in ("relative_error", "preconditioned_condition"))
    return records.iloc[:, first : last + 1].astype(float)


def assert_close(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(found, expected, rtol=1e-9, atol=1e-11)


# --- groups of layers ---------------------------------------------------------------------------------


def test_layers_in_several_passes_have_the_numbers_of_one(categorical, monkeypatch):
    passes = []

    def counted(collector, work, **options):
        passes.append(list(work))
        return gather(collector, work, **options)

    gather = experiment.gather
    monkeypatch.setattr(experiment, "gather", counted)
    together = compared(categorical)
    assert passes == [["0", "2", "4"]]
    passes.clear()
    apart = compared(categorical, memory=60_000)
    assert len(passes) > 1
    assert [name for names in passes for name in names] == ["0", "2", "4"]
    assert set(apart.records["method"]) == set(together.records["method"]) == {"kronecker"}
    assert_close(measured(apart), measured(together))
    pd.testing.assert_frame_equal(apart.directions, together.directions, rtol=1e-9, atol=1e-11)
    pd.testing.assert_frame_equal(apart.waterfall, together.waterfall, rtol=1e-9, atol=1e-11)


def test_draws_do_not_depend_on_the_groups(categorical):
    options = {"kind": "monte-carlo", "draws": 3, "spectra": False}
    assert_close(*(measured(compared(categorical, memory=m, **options)) for m in (60_000, "1GiB")))


def test_operators_are_let_go_under_a_small_limit(categorical):
    c = compared(categorical, memory=60_000)
    with pytest.raises(NotSupportedError, match=r"layer '0' were let go.*use exact_fisher and approximate"):
        c.operators("0")
    with pytest.raises(NotSupportedError, match="let go to stay under the memory limit"):
        c.heatmap("0", "kfac")
    assert list(c.results["0"].spectra) == ["exact", *NAMES]
    alone = compared(categorical, layers="0")
    assert list(alone.operators("0")) == ["exact", *NAMES]
    held = relative_error(alone.operators("0")["exact"], alone.operators("0")["kfac"])
    assert c.records["relative_error"][0] == pytest.approx(held, rel=1e-9)


def test_operators_are_kept_as_far_as_the_limit_reaches(categorical):
    """A quarter of the limit, for the operators and the dense matrices of their pictures."""
    c = compared(categorical, memory=500_000, spectra=False)
    sizes = [16 * len(result.operators) * result.view.size**2 for result in c.results.values()]
    assert 0 < sum(sizes) <= 125_000
    assert not all(sizes)
    assert all(result.operators for result in compared(categorical, spectra=False).results.values())


def test_one_layer_above_its_share_of_the_limit_is_kept_beside_the_small_ones(categorical):
    """Otherwise a network of one large layer and small ones would have no picture of the large one."""
    first = compared(categorical, spectra=False).results["0"]
    needed = 16 * len(first.operators) * first.view.size**2
    c = compared(categorical, memory=3 * needed, spectra=False)
    assert all(result.operators for result in c.results.values())
    few = compared(categorical, memory=needed, spectra=False)
    assert not few.results["0"].operators


# --- the layer-wise Fisher ------------------------------------------------------------------------------


def test_without_an_activation_the_layerwise_fisher_is_a_kronecker_product(normed):
    """E[Σ a aᵀ] ⊗ I has the numbers of the m blocks of the closed form."""
    rows = measured(compared(normed)).xs("layerwise", level="target")
    blocks = measured(compared(normed, kind="layerwise")).xs("layerwise", level="target")
    assert [name for name, _ in rows.index] == ["0", "3"]
    assert rows["population_error_se"].notna().all()
    assert_close(rows, blocks.loc[rows.index])
    F = exact(normed, kind="layerwise")
    a = torch.cat([normed.inputs, torch.ones(24, 1).double()], 1)
    assert relative(F["0"].dense(), torch.kron(a.T @ a / 24, torch.eye(5).double())) < 1e-12


def test_a_layerwise_fisher_above_the_limit_is_an_empty_row_with_a_note(wide):
    small, large = (compared(wide, memory=memory, spectra=False) for memory in (44_050, "1GiB"))
    numbers, expected = measured(small), measured(large)
    row = numbers.loc["0", "lngd", "layerwise"]
    assert row.isna().all()
    assert expected.loc["0", "lngd", "layerwise"].notna().all()
    notes = small.records.set_index(KEY)["note"]
    assert notes["0", "lngd", "layerwise"] == (
        "the layer-wise Fisher would need 97.5 KiB, above a quarter of the memory limit"
    )
    assert numbers.loc["0", "lngd", "predictive"]["relative_error"] > 0
    # that of the last layer is one Kronecker product, and fits
    assert_close(numbers.loc[[("2", "lngd", "layerwise")]], expected.loc[[("2", "lngd", "layerwise")]])


def test_a_layerwise_fisher_of_too_many_operations_is_an_empty_row_with_a_note(wide, monkeypatch):
    monkeypatch.setattr(measured_layer, "_LAYERWISE_OPERATIONS", 1.0)
    c = compared(wide, spectra=False)
    numbers, notes = measured(c), c.records.set_index(KEY)["note"]
    assert numbers.loc["0", "lngd", "layerwise"].isna().all()
    assert "the layer-wise Fisher would take 3e+04 operations" in notes["0", "lngd", "layerwise"]
    assert pd.notna(numbers.loc["2", "lngd", "layerwise"]["relative_error"])


# --- coupling -------------------------------------------------------------------------------------------


def test_layerwise_labels_have_no_coupling(categorical):
    c = compared(categorical, "lngd", kind="layerwise", spectra=False)
    assert len(c.coupling) == 9
    assert c.coupling["coupling"].isna().all()


def test_layers_with_other_labels_have_no_coupling(wide):
    c = compared(wide, memory=60_000, max_columns=10, spectra=False)
    assert [result.kind for result in c.results.values()] == ["monte-carlo", "predictive"]
    table = c.coupling.set_index(["layer", "other"])["coupling"]
    assert pd.isna(table["0", "2"])
    assert pd.isna(table["2", "0"])
    assert table["0", "0"] == pytest.approx(1)
    assert table["2", "2"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"memory": 60_000, "max_columns": 10}, {"layer 0": style.SHADE}), ({}, dict.fromkeys(BOTH, "#ffffff"))],
)
def test_pictures_shade_the_layers_with_drawn_labels(options, expected, wide, tmp_path, monkeypatch):
    c = compared(wide, spectra=False, **options)
    made, draw = [], plots.directions

    def keep(*args, **given):
        made.append(draw(*args, **given))
        return made[0]

    monkeypatch.setattr(plots, "directions", keep)
    c.save(tmp_path / "run")
    faces = {axes.get_title(): to_hex(axes.get_facecolor()) for axes in made[0].axes if axes.get_title()}
    assert faces == expected


# --- other kinds of layers --------------------------------------------------------------------------------


def test_a_norm_has_a_row_of_its_diagonal_alone(normed):
    c = compared(normed, (*NAMES, "nearest-kronecker"))
    records = c.records[c.records["layer"] == "1"]
    assert records["approximation"].tolist() == ["diagonal"]
    row = records.iloc[0]
    F = exact(normed, method="per-sample")["1"].dense()
    assert F.shape == (10, 10)
    off = F - torch.diag(F.diagonal())
    assert row["relative_error"] == pytest.approx(float(off.norm() / F.norm()), rel=1e-10)
    assert row["diagonal_error"] == pytest.approx(0, abs=1e-12)
    assert row["population_error"] > 0
    assert (row["module"], row["outputs"], row["inputs"], row["target"]) == ("LayerNorm", 10, 1, "predictive")
    assert list(c.operators("1")) == ["exact", "diagonal"]
    assert relative(c.operators("1")["exact"].dense(), F) < 1e-12
    assert set(c.waterfall["layer"]) == {"0", "3"}
    assert "diagonal" not in set(c.records[c.records["layer"] != "1"]["approximation"])


def test_the_diagonal_of_a_norm_is_the_same_when_it_is_asked_for(normed):
    numbers = [measured(compared(normed, names, layers="1")) for names in ("kfac", ("diagonal", "kfac"))]
    assert_close(*numbers)


def test_a_norm_takes_part_in_the_coupling(normed):
    table = compared(normed, spectra=False).coupling.set_index(["layer", "other"])["coupling"]
    assert table["1", "1"] == pytest.approx(1)
    assert 0 < table["0", "1"] < 1


def test_groups_are_one_record_with_their_number():
    model = nn.Sequential(nn.Conv2d(4, 6, 2, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)).double()
    case = Case(model, torch.randn(8, 4, 3, 3).double(), torch.arange(8) % 3, "categorical")
    c = compared(case, spectra=False)
    rows = c.records[c.records["layer"] == "0"]
    assert set(rows["groups"]) == {2}
    assert (set(rows["outputs"]), set(rows["inputs"]), set(rows["positions"])) == ({6}, {9}, {4})
    F, kfac = (c.operators("0")[name] for name in ("exact", "kfac"))
    assert isinstance(F, GroupedOperator)
    assert isinstance(kfac, GroupedOperator)
    error = relative(kfac.dense(), F.dense())
    assert rows.set_index("approximation")["relative_error"]["kfac"] == pytest.approx(error, rel=1e-9)


# --- drawn labels -----------------------------------------------------------------------------------------


def test_labels_are_drawn_where_the_expectation_takes_too_long(categorical, monkeypatch):
    monkeypatch.setattr(comparison, "_MOST_OPERATIONS", 1.0)
    c = compared(categorical, spectra=False)
    main = c.records[c.records["target"] != "layerwise"]
    assert set(main["target"]) == set(c.records["kind"]) == {"monte-carlo"}
    assert set(main["columns"]) == {40}
    assert main["note"].str.contains("one label a sample (a token) is drawn", regex=False).all()
    # the approximations are made of the same draws
    ekfac = main[main["approximation"] == "ekfac"]
    assert ekfac["trace_ratio"].tolist() == pytest.approx([1, 1, 1], rel=1e-12)


@pytest.mark.parametrize(
    ("fits", "column", "note"),
    [
        (1, "population_error", "no population error: of half the samples it fails"),
        (3, "population_error_se", "no standard error: without some samples it fails"),
    ],
)
@pytest.mark.parametrize("base", [fl.approximations.KFAC, fl.approximations.KLKronecker])
def test_what_fails_without_some_samples_has_all_other_numbers(base, fits, column, note, categorical):
    calls = []

    def fails_later(make):
        def made(*arguments):
            calls.append(0)
            if len(calls) > fits:
                raise NumericalError("it fails")
            return make(*arguments)

        return made

    layer = compared(categorical, ["kfac"]).records["layer"].iloc[0]
    expected = compared(categorical, [base()], layers=layer).records.iloc[0]
    method = base()
    for name in ("build", "from_block"):
        setattr(method, name, fails_later(getattr(method, name)))
    row = compared(categorical, [method], layers=layer).records.iloc[0]
    assert note in row["note"]
    empty = {"population_error_se", column}
    for name in ("relative_error", "logdet_divergence", "decrease_share", "population_error", *empty):
        assert np.isnan(row[name]) if name in empty else row[name] == pytest.approx(expected[name])
