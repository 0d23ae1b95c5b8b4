import sys
from types import SimpleNamespace

import pytest
import torch
from model_cases import image_set, states_equal
from torch import nn

from fisherlab import models
from fisherlab.errors import InputError


def classifier() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1000))


def made(name: str, **options: object) -> nn.Module:
    """A library's constructor; `options` must ask for no pretrained weights."""
    assert options in ({"weights": None}, {"pretrained": False})
    if name == "broken":
        raise RuntimeError("no such\nsize")
    return classifier()


@pytest.fixture(autouse=True)
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries with the models "resnet50" and "broken", and random images for data."""
    known = ["resnet50", "broken"]
    vision = SimpleNamespace(get_model=made)
    vision.list_models = lambda module: known if module is vision else [*known, "fasterrcnn"]
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(models=vision))
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=made, list_models=lambda: known))
    data = {"imagenet": (3, 40, 40), "cifar10": (3, 32, 32)}
    monkeypatch.setattr(
        "fisherlab.datasets.load",
        lambda name, samples, seed, **_: image_set(name, data[name]).subset(samples, seed),
    )


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_librarys_model_takes_imagenet(library: str) -> None:
    prepared = models.prepare(f"{library}:resnet50")
    assert prepared.inputs.shape == (4, 3, 40, 40)
    assert prepared.inputs.min() < 0, "standardised"
    assert prepared.model(prepared.inputs).shape == (4, 1000)
    assert not prepared.model.training
    assert (prepared.name, prepared.likelihood) == (f"{library}:resnet50", "categorical")
    assert prepared.dataset.name == "imagenet"
    assert prepared.checkpoint == "init"


def test_another_data_set_may_be_named() -> None:
    assert models.prepare("timm:resnet50", data="cifar10", samples=3).inputs.shape == (3, 3, 32, 32)


def test_weights_come_from_a_checkpoint(tmp_path) -> None:
    weights = classifier()
    torch.save(weights.state_dict(), tmp_path / "w.pt")
    loaded = models.load("torchvision:resnet50", checkpoint=tmp_path / "w.pt").model
    assert states_equal(loaded, weights)


def test_initial_weights_are_seeded() -> None:
    state = torch.get_rng_state()
    first = models.load("timm:resnet50", seed=1).model
    assert torch.equal(state, torch.get_rng_state())
    assert states_equal(first, models.load("timm:resnet50", seed=1).model)
    assert not states_equal(first, models.load("timm:resnet50", seed=2).model)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("timm:resnet5", "unknown timm model 'resnet5'; did you mean resnet50"),
        ("torchvision:fasterrcnn", "unknown torchvision model 'fasterrcnn'; torchvision's list_models"),
        ("timm:", "unknown timm model ''"),
        ("timm:hf-hub:some/model", "unknown timm model 'hf-hub:some/model'"),
        ("timm:broken", "'timm:broken' cannot be made: RuntimeError: no such size"),
    ],
)
def test_models_that_a_library_cannot_make_are_refused(name: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        models.prepare(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_missing_library_is_named_with_the_command(library, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=f"needs {library}; run: pip install {library}$"):
        models.prepare(f"{library}:resnet50")
