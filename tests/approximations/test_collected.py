"""Statistics of a model: building, merging, saving."""

import json

import pytest
import torch
from reference import relative
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import fisherlab as fl
from fisherlab.collect.batches import NamedPair
from fisherlab.datasets import Dataset
from fisherlab.errors import FisherlabError, InputError, MemoryLimitError

NAMES = ("kfac", "ekfac", "tkfac", "tekfac", "lngd", "lngd-lr", "ngplus", "foof", "diagonal")


@pytest.fixture
def statistics(categorical) -> fl.Statistics:
    return fl.collect_statistics(categorical.model, categorical.data, approximations=NAMES)


def collected(case, approximations=("kfac", "tkfac"), **options) -> fl.Statistics:
    return fl.collect_statistics(
        case.model, case.data, case.likelihood, approximations=approximations, **options
    )


def test_all_methods_from_one_collection(statistics, categorical):
    assert statistics.samples == 40
    for name in NAMES:
        alone = fl.approximate(name, categorical.model, categorical.data)
        for layer, operator in statistics.build(name).items():
            assert torch.allclose(operator.dense(), alone[layer].dense(), rtol=1e-12, atol=1e-14)


def test_halves_merge_to_the_whole(categorical):
    even, odd = (collected(categorical.take(slice(start, None, 2))) for start in (0, 1))
    merged = even + odd
    assert merged.samples == 40
    for name in ("kfac", "tkfac"):
        for layer, operator in collected(categorical).build(name).items():
            assert torch.allclose(merged.build(name)[layer].dense(), operator.dense(), rtol=1e-12, atol=1e-14)


def test_merging_unequal_parts_weighs_by_samples(categorical):
    merged = collected(categorical.take(slice(0, 7))) + collected(categorical.take(slice(7, None)))
    for layer, operator in collected(categorical).build("kfac").items():
        assert torch.allclose(merged.build("kfac")[layer].dense(), operator.dense(), rtol=1e-12, atol=1e-14)


def test_a_second_pass_does_not_survive_a_merge_of_two_bases(categorical):
    parts = [collected(categorical.take(part), "ekfac") for part in (slice(0, 20), slice(20, None))]
    merged = parts[0] + parts[1]
    with pytest.raises(
        InputError, match=r"no second pass for ekfac; collect with approximations=\('ekfac',\)"
    ):
        merged.build("ekfac")
    assert merged.build("kfac")["0"].trace() > 0


def test_a_second_pass_survives_in_one_basis(categorical):
    one = collected(categorical, "ekfac")
    twice = one + one
    assert twice.samples == 80
    for layer, operator in one.build("ekfac").items():
        assert torch.allclose(twice.build("ekfac")[layer].dense(), operator.dense(), rtol=1e-12, atol=1e-14)


def test_statistics_that_do_not_belong_together_are_refused(categorical, sequences):
    one = collected(categorical)
    for other in (collected(sequences), collected(categorical, kind="empirical")):
        with pytest.raises(InputError, match="different layers or kinds cannot be merged"):
            _ = one + other


def test_what_was_not_collected_cannot_be_built(categorical):
    statistics = collected(categorical, "foof")
    with pytest.raises(InputError, match="was not collected"):
        statistics.build("kfac")
    with pytest.raises(InputError, match="no second pass for tekfac"):
        statistics.build("tekfac")
    with pytest.raises(InputError, match="made from the exact block"):
        statistics.build("nearest-kronecker")


def test_options_at_building(statistics, sequences):
    positions = collected(sequences, "kfac")
    with pytest.raises(InputError, match="'input-moment-reduced' was not collected"):
        positions.build("kfac", sharing="reduce")
    assert statistics.build("tkfac", positions="exact")["0"].trace() > 0


# --- files ----------------------------------------------------------------------------------------------


def test_files_give_back_the_same_numbers(statistics, tmp_path):
    path = tmp_path / "sums.safetensors"
    statistics.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["sums.safetensors"]
    loaded = fl.load_statistics(path)
    assert loaded.kind == "predictive"
    assert loaded.model == "Sequential"
    assert loaded.shapes == statistics.shapes
    assert loaded.samples == 40
    for name in NAMES:
        for layer, operator in statistics.build(name).items():
            assert torch.equal(loaded.build(name)[layer].dense(), operator.dense())


def test_loaded_statistics_merge(statistics, tmp_path):
    statistics.save(tmp_path / "one")
    twice = fl.load_statistics(tmp_path / "one") + statistics
    assert twice.samples == 80
    for layer, operator in twice.build("ekfac").items():
        assert torch.allclose(operator.dense(), statistics.build("ekfac")[layer].dense(), atol=1e-14)


def test_the_header_says_what_is_in_the_file(statistics, tmp_path):
    statistics.save(tmp_path / "sums")
    with safe_open(tmp_path / "sums", "pt") as file:
        header = json.loads(file.metadata()["header"])
    assert header["kind"] == "predictive"
    assert header["about"] == statistics.about
    assert header["about"]["model"] == "Sequential"
    assert (header["about"]["likelihood"], header["about"]["dtype"]) == ("categorical", "float64")
    sizes = [(layer["name"], layer["outputs"], layer["inputs"]) for layer in header["layers"]]
    assert sizes == [("0", 5, 7), ("2", 4, 5), ("4", 3, 5)]
    assert {(layer["samples"], layer["positions"]) for layer in header["layers"]} == {(40, 40)}


@pytest.mark.parametrize("bias", ["separate"])
def test_layer_names_of_any_form_are_saved(categorical, tmp_path, bias):
    statistics = fl.collect_statistics(categorical.model, categorical.data, bias=bias)
    statistics.save(tmp_path / "sums")
    loaded = fl.load_statistics(tmp_path / "sums")
    assert list(loaded.shapes) == ["0", "0.bias", "2", "4", "4.bias"]
    for layer, operator in statistics.build("kfac").items():
        assert torch.equal(loaded.build("kfac")[layer].dense(), operator.dense())


def test_a_failing_write_leaves_the_old_file(statistics, tmp_path, monkeypatch):
    path = tmp_path / "sums"
    statistics.save(path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(FisherlabError, match="disk full"):
        statistics.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["sums"]


def test_files_that_are_missing_damaged_or_foreign_are_refused(statistics, tmp_path):
    with pytest.raises(InputError, match="there is no statistics file"):
        fl.load_statistics(tmp_path / "none")
    text = tmp_path / "text"
    text.write_text("no safetensors")
    foreign = tmp_path / "foreign"
    save_file({"w": torch.zeros(2)}, foreign)
    whole = tmp_path / "whole"
    statistics.save(whole)
    cut = tmp_path / "cut"
    cut.write_bytes(whole.read_bytes()[:-100])
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    for path in (text, cut, empty):
        with pytest.raises(InputError, match="is damaged or no safetensors file"):
            fl.load_statistics(path)
    with pytest.raises(InputError, match="holds no statistics but other tensors"):
        fl.load_statistics(foreign)


@pytest.mark.parametrize("header", ["{", "{}", '{"layers": [["0"]], "kind": "predictive", "about": {}}'])
def test_a_header_that_makes_no_sense_is_refused(statistics, tmp_path, header):
    path = tmp_path / "sums"
    statistics.save(path)
    with safe_open(path, "pt") as file:
        form = file.metadata()["format"]
    save_file({"0|sum|w": torch.zeros(2)}, path, {"format": form, "header": header})
    with pytest.raises(InputError, match="sums' holds statistics of another version of fisherlab"):
        fl.load_statistics(path)


def test_only_labels_that_a_method_needs_count_against_the_memory_limit():
    model = torch.nn.Sequential(torch.nn.Linear(3, 400))
    data = torch.randn(8, 3), torch.arange(8)
    for name in ("lngd", "foof"):
        assert fl.approximate(name, model, data, memory="1MB")["0"].shape == (1600, 1600)
    with pytest.raises(MemoryLimitError, match="399 label columns a sample"):
        fl.approximate("lngd-lr", model, data, memory="1MB")
    with pytest.raises(MemoryLimitError, match="399 label columns a sample"):
        fl.approximate("diagonal", model, data, memory="1MB")


def test_the_padding_that_data_know_of_counts_for_no_function():
    """Every function takes the valid positions of a pair from the data that know them, as `compare` does."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 6, 3, generator=generator, dtype=torch.float64)
    y = torch.randint(2, (5, 6), generator=generator)
    lengths = torch.tensor([6, 2, 4, 1, 3])
    valid = torch.arange(6) < lengths.unsqueeze(1)
    x, y = x * valid.unsqueeze(2), y.where(valid, -100)
    dataset = Dataset("padded", x, y, "train", "", stand_in="", source="this test", classes=())
    pair = NamedPair(x, y, dataset, {"*": lambda inputs: inputs.abs().sum(2) > 0})
    arguments = {"likelihood": "token-categorical", "kind": "empirical"}
    found = fl.approximate("kfac", model, pair, **arguments)
    exact = fl.exact_fisher(model, pair, **arguments)
    built = fl.collect_statistics(model, pair, **arguments, approximations="kfac").build("kfac")
    compared = fl.compare(model, pair, "kfac", **arguments)
    as_plain = fl.approximate("kfac", model, tuple(pair), **arguments)
    assert compared.results
    for name in compared.results:
        own = compared.operators(name)
        assert relative(found[name].dense(), own["kfac"].dense()) < 1e-13
        assert relative(built[name].dense(), own["kfac"].dense()) < 1e-13
        assert relative(exact[name].dense(), own["exact"].dense()) < 1e-12
        assert relative(as_plain[name].dense(), own["kfac"].dense()) > 0.1
