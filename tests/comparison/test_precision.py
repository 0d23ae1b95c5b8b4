"""Networks at the edge of a number type: what a comparison says is what float64 says, or nothing, and why."""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

import fisherlab as fl
from fisherlab.comparison.result import Comparison
from fisherlab.records.columns import RECORD_COLUMNS, RECORD_TYPES

METHODS = ("kfac", "ekfac", "lngd")
NUMBERS = [
    name
    for name in RECORD_COLUMNS[RECORD_COLUMNS.index("relative_error") :]
    if "float" in str(RECORD_TYPES.get(name)).lower() and name not in ("seconds", "batch_share")
]
SIZES = (
    "trace_exact",
    "trace_approx",
    "damping",
    "best_scale",
    "trace_ratio",
)  # of any size, and never rounding


def network(head: float = 1.0, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Linear(6, 5, bias), nn.ReLU(), nn.Linear(5, 4, bias), nn.Tanh(), nn.Linear(4, 3, bias)
    )
    with torch.no_grad():
        for parameter in made[4].parameters():
            parameter *= head
    return made


def samples(scale: float = 1.0) -> Tensor:
    return torch.randn(64, 6, generator=torch.Generator().manual_seed(1)) * scale


def compared(model: nn.Module, x: Tensor, y: Tensor, likelihood: str) -> Comparison:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of layers without gradients
        return fl.compare(model, (x, y), METHODS, likelihood, spectra=False)


def wide(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).double()


def check(model: nn.Module, x: Tensor, y: Tensor, likelihood: str = "categorical") -> set[str]:
    """Every number is that of float64, or empty with a note; returns the notes."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    narrow = compared(model, x, y, likelihood).records
    other = y.double() if y.is_floating_point() else y
    reference = compared(wide(model), x.double(), other, likelihood).records
    for (_, own), (_, true) in zip(narrow.iterrows(), reference.iterrows(), strict=True):
        for name in NUMBERS:
            if own[name] != own[name]:
                assert own["note"], (own["layer"], own["approximation"], name)
                continue
            within = 0.1 if name == "population_error_se" else 2e-3
            where = own["layer"], own["approximation"], own["target"], name, own["note"]
            rounding = 0.0 if name in SIZES else 2e-5
            assert own[name] == pytest.approx(true[name], rel=within, abs=rounding), where
    for name, value in model.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])
    return set(narrow["note"])


@pytest.mark.parametrize("factor", [10, 1e3, 1e4, 1e6])
def test_however_large_one_sample_is(factor):
    """Its inputs make up A, and its label is so sure that it has no share of F."""
    model, x = network(10), samples()
    x[0] *= factor
    notes = check(model, x, model(x).argmax(1))
    assert any("loses the others in sums" in note for note in notes) == (factor >= 1e3)


@pytest.mark.parametrize("head", [1, 300, 1e5, 1e8])
def test_however_sure_a_softmax_is(head):
    model, x = network(head), samples()
    check(model, x, model(x).argmax(1))


@pytest.mark.parametrize("head", [300, 1e4])
def test_however_sure_bernoullis_are(head):
    model, x = network(head), samples()
    check(model, x, (model(x) > 0).float(), "bernoulli")


def test_gradients_below_the_smallest_number_are_done_in_float64():
    notes = check(network(1e-25), samples(), torch.randn(64, 3), "gaussian")
    assert any(
        "computed in float64: gradients of weights are zero in float32, or too small for it" in note
        for note in notes
    )


def test_gradients_above_the_largest_number_are_done_in_float64():
    notes = check(network(1e20), samples(), torch.randn(64, 3), "gaussian")
    for layer in "02":
        assert any(
            f"computed in float64: what comes back to layer '{layer}' is not finite" in n for n in notes
        )


@pytest.mark.parametrize("scale", [1e-22, 1e-12])
def test_inputs_of_any_size(scale):
    model, x = network(bias=False), samples(scale)
    check(model, x, torch.randn(64, 3), "gaussian")


def test_a_dead_layer_is_no_noise():
    model = network()
    with torch.no_grad():
        model[0].bias -= 100
    notes = check(model, samples(), torch.randint(3, (64,)))
    assert any("the block is zero" in note for note in notes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_are_done_in_float32(dtype):
    model, x = network().to(dtype), samples().to(dtype)
    notes = check(model, x, torch.randint(3, (64,), generator=torch.Generator().manual_seed(2)))
    assert all(f"computed in float32: {str(dtype)[6:]} holds three digits" in note for note in notes)
    found = compared(model, x, torch.zeros(64, dtype=torch.int64), "categorical")
    assert set(found.records["dtype"]) == {"float32"}
    assert found.dtype == str(dtype)[6:]


def test_ordinary_networks_are_done_once():
    notes = check(network(), samples(), torch.randint(3, (64,), generator=torch.Generator().manual_seed(2)))
    assert not any("computed in" in note for note in notes)


def test_without_a_copy_the_numbers_are_empty_and_the_note_says_why(monkeypatch):
    monkeypatch.setattr("fisherlab.comparison.run.widened", lambda *_: None)
    found = compared(network(1e-25), samples(), torch.randn(64, 3), "gaussian")
    own = found.records[found.records["layer"] == "0"]
    assert own[NUMBERS].isna().all().all()
    assert own["note"].str.contains("are zero in float32, or too small for it").all()
    assert found.records[found.records["layer"] == "4"]["trace_exact"].notna().all()
    assert found.coupling.set_index(["layer", "other"])["coupling"]["0"].isna().all()


@pytest.mark.slow
def test_a_layer_without_numbers_stands_on_the_page(monkeypatch, tmp_path):
    monkeypatch.setattr("fisherlab.comparison.run.widened", lambda *_: None)
    found = compared(network(1e-25), samples(), torch.randn(64, 3), "gaussian")
    assert (
        "are zero in float32, or too small for it"
        in (found.save(tmp_path / "run") / "report.html").read_text()
    )


def test_drawn_labels_are_the_same_in_float64():
    """The generator is that of the run that was given up."""
    model, x = network(1e-25), samples()
    for draws in ({"generator": torch.Generator().manual_seed(5)}, {}):
        records = []
        for one, data in ((model, x), (wide(model), x.double())):
            if draws:
                draws["generator"].manual_seed(5)
            found = fl.compare(
                one, (data, None), ("kfac",), "gaussian", "monte-carlo", spectra=False, **draws
            )
            records.append(found.records[found.records["layer"] == "0"])
        assert "computed in float64" in records[0]["note"].iloc[0]
        assert records[0]["trace_exact"].iloc[0] == pytest.approx(records[1]["trace_exact"].iloc[0], rel=1e-5)


def test_the_record_says_in_which_type_a_layer_was_computed():
    x = samples()
    narrow = compared(network(1e-25), x, torch.randn(64, 3), "gaussian").records
    done_again = narrow["note"].str.contains("computed in float64")
    assert done_again.any()
    assert (narrow["dtype"] == done_again.map({True: "float64", False: "float32"})).all()
    assert (narrow["dtype"][narrow["note"] == ""] == "float32").all()
