"""The built-in models through `prepare`, on small data in place of their own."""

from typing import Any

import pytest
import torch
from model_cases import image_set, states_equal, text_set, translation_set
from safetensors.torch import save_file
from torch import nn

from fisherlab import models
from fisherlab.errors import InputError
from fisherlab.layers import find_layers
from fisherlab.models.loading import settle_norms

SMALL = {
    "cifar10": lambda: image_set("cifar10", (3, 32, 32)),
    "imagenet": lambda: image_set("imagenet", (3, 40, 40)),
    "mnist": lambda: image_set("mnist", (1, 28, 28)),
    "characters": text_set,
    "multi30k": translation_set,
}
DATA = {
    "cifar-cnn": "cifar10",
    "cifar-resnet8": "cifar10",
    "cifar-resnet18": "cifar10",
    "cifar-resnet20": "cifar10",
    "vit-tiny": "cifar10",
    "resnet50": "imagenet",
    "charlm": "characters",
    "charlstm": "characters",
    "transformer-small": "multi30k",
}
TEXT = ("charlm", "charlstm", "transformer-small")


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Small data under every name; returns what was asked of `datasets.load`."""
    calls = []

    def load(name: str, **options: Any):
        calls.append({"name": name, **options})
        data = SMALL[name]()
        return data if options["samples"] is None else data.subset(options["samples"], options["seed"])

    monkeypatch.setattr("fisherlab.datasets.load", load)
    return calls


def call(prepared: models.Prepared) -> torch.Tensor:
    inputs = prepared.inputs
    return prepared.model(*inputs) if isinstance(inputs, tuple) else prepared.model(inputs)


@pytest.mark.parametrize("name", DATA)
def test_a_model_fits_its_data(name: str, asked) -> None:
    prepared = models.prepare(name, samples=2, seed=5)
    with torch.no_grad():
        outputs = call(prepared)
    assert outputs.shape[:-1] == prepared.targets.shape
    assert outputs.isfinite().all()
    assert prepared.targets.max() < outputs.shape[-1]
    norms = any(isinstance(module, nn.BatchNorm2d) for module in prepared.model.modules())
    settled = ", batch norms settled on the samples" if norms else ""
    assert prepared.checkpoint == "init" + settled
    assert not prepared.model.training
    assert prepared.likelihood == ("token-categorical" if name in TEXT else "categorical")
    assert asked == [{"name": DATA[name], "data_dir": None, "samples": 2, "seed": 5}]


@pytest.mark.parametrize("name", DATA)
def test_an_analysis_by_default_is_small(name: str, asked) -> None:
    expected = {"resnet50": 4, "charlm": 32, "charlstm": 32, "transformer-small": 32}.get(name, 64)
    with pytest.raises(InputError, match=f"samples={expected}") if expected > 12 else torch.no_grad():
        models.prepare(name)
    assert asked[0]["samples"] == expected


def test_training_on_the_spot_takes_all_data(asked, monkeypatch) -> None:
    monkeypatch.setattr(
        "fisherlab.models.loading.trained_weights", lambda spec, data, *_: pytest.fail(str(len(data)))
    )
    with pytest.raises(pytest.fail.Exception, match="12"):
        models.prepare("mnist-mlp", samples=3)
    assert asked[0]["samples"] is None
    models.prepare("mnist-mlp", samples=3, trained=False)
    assert asked[1]["samples"] == 3


@pytest.mark.parametrize("name", TEXT)
def test_the_vocabulary_is_that_of_the_data(name: str) -> None:
    prepared = models.prepare(name, samples=2, dtype=torch.float64)
    assert call(prepared).shape[-1] == len(prepared.dataset.vocabulary)
    assert {parameter.dtype for parameter in prepared.model.parameters()} == {torch.float64}
    assert call(prepared).dtype == torch.float64
    assert prepared.targets.dtype == torch.int64


@pytest.mark.parametrize("name", TEXT)
def test_layers_have_the_same_names_whatever_the_data(name: str) -> None:
    prepared = models.prepare(name, samples=2)
    default = dict(models.spec(name).build().named_parameters())
    assert list(default) == [parameter for parameter, _ in prepared.model.named_parameters()]


@pytest.mark.parametrize("name", TEXT)
def test_weights_of_another_vocabulary_are_refused(name: str, tmp_path) -> None:
    state = models.spec(name).build().state_dict()
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="another network"):
        models.prepare(name, checkpoint=tmp_path / "w.safetensors", samples=2)
    own = models.prepare(name, samples=2, seed=1).model
    save_file(own.state_dict(), tmp_path / "own.safetensors")
    assert states_equal(models.load(name, checkpoint=tmp_path / "own.safetensors", samples=2).model, own)


@pytest.mark.parametrize("name", ["cifar-cnn", "vit-tiny", *TEXT])
def test_weights_depend_on_the_seed_alone(name: str) -> None:
    state = torch.get_rng_state()
    first = models.load(name, seed=1, samples=2).model
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(5)
    assert states_equal(first, models.load(name, seed=1, samples=2).model)
    assert not states_equal(first, models.load(name, seed=2, samples=2).model)


def test_masks_go_with_the_data() -> None:
    prepared = models.prepare("transformer-small", samples=4)
    assert prepared.masks == models.spec("transformer-small").masks
    assert prepared.data.masks is prepared.masks
    source, target = prepared.data[0]
    assert torch.equal(prepared.masks["encoder*"]((source, target)), source != 0)
    assert not models.prepare("cifar-cnn", samples=2).data.masks


def test_every_parameter_of_every_model_has_a_layer() -> None:
    for name in models.names():
        coverage = find_layers(models.spec(name).build()).coverage()
        assert coverage["covered"].all(), name


def test_batch_norms_are_settled_on_the_samples():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3)).eval()
    inputs = torch.randn(20, 3, 5, 5) * 3 + 1
    assert settle_norms(model, inputs)
    outputs = model(inputs).transpose(0, 1).flatten(1)
    assert torch.allclose(outputs.mean(1), torch.zeros(4), atol=1e-5)
    assert torch.allclose(outputs.var(1), torch.ones(4), atol=1e-3)
    assert model[1].momentum == 0.3
    assert not any(module.training for module in model.modules())
    assert not settle_norms(nn.Linear(3, 2), torch.randn(2, 3))
