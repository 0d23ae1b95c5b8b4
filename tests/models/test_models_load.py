import pytest
import torch
from model_cases import states_equal
from safetensors.torch import save_file

from fisherlab import models
from fisherlab.comparison.run import compare
from fisherlab.errors import InputError
from fisherlab.models import registry


def test_the_mlp_is_the_papers_network() -> None:
    model, (inputs, targets), likelihood = models.load("mnist-mlp", seed=0)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes == {
        "0.weight": (20, 196),
        "2.weight": (20, 20),
        "4.weight": (20, 20),
        "6.weight": (10, 20),
    }
    assert likelihood == "categorical"
    assert model(inputs).shape == (len(targets), 10)
    assert not model.training


def test_the_mlps_inputs_are_means_of_squares_of_four_pixels() -> None:
    prepared = models.prepare("mnist-mlp", samples=3, trained=False)
    image, squares = prepared.dataset.inputs[1, 0], prepared.inputs[1].reshape(14, 14)
    corners = image[0::2, 0::2] + image[0::2, 1::2] + image[1::2, 0::2] + image[1::2, 1::2]
    torch.testing.assert_close(squares, corners / 4)


def test_the_autoencoder_has_its_inputs_as_targets() -> None:
    model, (inputs, targets), likelihood = models.load("mnist-autoencoder")
    widths = [m.in_features for m in model if isinstance(m, torch.nn.Linear)]
    assert widths == [784, 1000, 500, 250, 30, 250, 500, 1000]
    assert inputs.shape == (500, 784)
    assert torch.equal(inputs, targets)
    assert model(inputs).shape == targets.shape
    assert likelihood == "bernoulli"
    assert isinstance(model[7], torch.nn.Linear), "the code layer is linear"


def test_weights_depend_on_the_seed_alone() -> None:
    first = models.load("mnist-mlp", seed=1).model
    torch.rand(5)
    assert states_equal(first, models.load("mnist-mlp", seed=1).model)
    assert not states_equal(first, models.load("mnist-mlp", seed=2).model)


def test_the_global_random_state_is_untouched(linear, blobs) -> None:
    state = torch.get_rng_state()
    models.prepare("mnist-mlp", samples=10, trained=False)
    models.trained_weights(linear, blobs, seed=0)
    assert torch.equal(state, torch.get_rng_state())


def test_samples_choose_a_subset_by_the_seed() -> None:
    whole = models.load("mnist-mlp").data[0]
    part = models.load("mnist-mlp", samples=7, seed=3).data[0]
    assert part.shape == (7, 196)
    assert all((whole == row).all(1).any() for row in part)
    assert torch.equal(part, models.load("mnist-mlp", samples=7, seed=3).data[0])
    with pytest.raises(InputError, match="samples must be at least 1, not 0"):
        models.load("mnist-mlp", samples=0)


def test_dtype_converts_weights_and_real_data_only() -> None:
    model, (inputs, targets), _ = models.load("mnist-mlp", samples=4, dtype=torch.float64)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert (inputs.dtype, targets.dtype) == (torch.float64, torch.int64)
    reference = models.load("mnist-mlp", samples=4)
    assert torch.equal(model[0].weight, reference.model[0].weight.double())


def test_a_checkpoint_in_double_precision_keeps_all_digits(tmp_path) -> None:
    weights = {
        name: torch.rand_like(tensor, dtype=torch.float64)
        for name, tensor in models.load("mnist-mlp").model.state_dict().items()
    }
    save_file(weights, tmp_path / "w.safetensors", metadata={"step": "12"})
    prepared = models.prepare(
        "mnist-mlp", checkpoint=tmp_path / "w.safetensors", samples=2, dtype=torch.float64
    )
    assert torch.equal(prepared.model[0].weight, weights["0.weight"])
    assert prepared.checkpoint == str(tmp_path / "w.safetensors")
    assert len(prepared.checkpoint_hash) == 64
    assert prepared.step == 12


def test_provenance_of_an_untrained_model() -> None:
    prepared = models.prepare("mnist-autoencoder", samples=2, seed=4)
    assert (prepared.checkpoint, prepared.checkpoint_hash, prepared.step) == ("init", "", 0)
    assert prepared.seed == 4
    assert prepared.dataset.label == "mnist (stand-in: digits)"


def test_prepare_trains_on_all_samples_whatever_part_is_analysed() -> None:
    part = models.prepare("mnist-mlp", samples=20)
    whole = models.prepare("mnist-mlp")
    assert part.checkpoint.startswith("trained: lngd, ")
    assert part.step == whole.step
    assert part.step >= 1000
    assert part.checkpoint_hash == whole.checkpoint_hash
    assert len(part.inputs) == 20
    accuracy = (whole.model(whole.inputs).argmax(1) == whole.targets).double().mean()
    assert accuracy > 0.97


def test_a_wrong_checkpoint_is_refused_before_the_data_are_read(tmp_path, caplog) -> None:
    with pytest.raises(InputError, match="not a file"):
        models.prepare("mnist-mlp", checkpoint=tmp_path / "absent.safetensors")
    assert not caplog.records


def test_unknown_models_are_refused_with_a_suggestion() -> None:
    with pytest.raises(InputError, match="unknown model 'mnist-mpl'; did you mean mnist-mlp"):
        models.load("mnist-mpl")


def test_a_registered_model_can_be_loaded(linear, monkeypatch) -> None:
    monkeypatch.setattr(registry, "_SPECS", dict(registry._SPECS))
    before = models.names()
    models.register(linear)
    assert models.spec("linear") is linear
    assert models.names() == tuple(sorted([*before, "linear"]))
    with pytest.raises(InputError, match="taken"):
        models.register(linear)


def test_results_name_built_in_data():
    model, data, likelihood = models.load("mnist-mlp", samples=20)
    comparison = compare(model, data, "kfac", likelihood, layers="6", spectra=False)
    assert set(comparison.records["dataset"]) == {"mnist (stand-in: digits)"}
    assert "stand-in: digits" in comparison.caption
    assert comparison.about.stand_in


@pytest.mark.parametrize("name", ["mnist-mlp", "cifar-resnet8", "transformer-small", "charlm", "charlstm"])
def test_the_default_device_of_torch_does_not_matter(name):
    expected = models.load(name, samples=3)
    with torch.device("meta"):
        model, data, _ = models.load(name, samples=3)
    assert states_equal(model, expected.model)
    assert torch.equal(data[1], expected.data[1])
