import re
from dataclasses import replace

import pytest
import torch

from fisherlab.errors import InputError
from fisherlab.models import Recipe, trained_weights


def test_the_trained_model_classifies(linear, blobs) -> None:
    model = linear.build()
    model.load_state_dict(trained_weights(linear, blobs, seed=0).state)
    assert (model(blobs.inputs).argmax(1) == blobs.targets).all()


def test_the_description_counts_epochs_and_steps(linear, blobs) -> None:
    seen = []
    result = trained_weights(linear, blobs, 0, progress=lambda *step: seen.append(step))
    assert result.description == "trained: lngd, 10 epochs, 30 steps"
    assert result.steps == 30
    assert seen == [(step, 30) for step in range(1, 31)]


@pytest.mark.parametrize(
    ("samples", "epochs"), [(60_000, 5), (1437, 167), (256, 1000), (257, 500), (1, 1000)]
)
def test_small_data_get_more_epochs(samples: int, epochs: int) -> None:
    recipe = Recipe(learning_rate=1.0, warm_up=10, damping=(1e-5, 1.0), batch=256, epochs=5, least_steps=1000)
    assert recipe.epochs_for(samples) == epochs


def test_a_second_call_reads_the_cache(linear, blobs, home) -> None:
    first = trained_weights(linear, blobs, seed=0)
    second = trained_weights(linear, blobs, seed=0)
    assert (first.from_cache, second.from_cache) == (False, True)
    assert first.sha256 == second.sha256
    assert first[1:3] == second[1:3]
    assert all(torch.equal(first.state[name], second.state[name]) for name in first.state)
    (file,) = (home / "trained").iterdir()
    assert re.fullmatch(r"linear-[0-9a-f]{12}\.safetensors", file.name)


def test_training_repeats_to_the_bit(linear, blobs, home) -> None:
    first = trained_weights(linear, blobs, seed=0)
    next((home / "trained").iterdir()).unlink()
    torch.rand(3)
    assert trained_weights(linear, blobs, seed=0).sha256 == first.sha256


def test_every_part_of_the_configuration_has_its_own_file(linear, blobs, home) -> None:
    trained_weights(linear, blobs, seed=0)
    trained_weights(linear, blobs, seed=1)
    trained_weights(linear, replace(blobs, checksum="other"), seed=0)
    trained_weights(linear, blobs.subset(30), seed=0)
    changed = replace(linear, recipe=replace(linear.recipe, learning_rate=0.2))
    trained_weights(changed, blobs, seed=0)
    assert len(list((home / "trained").iterdir())) == 5


@pytest.mark.parametrize("content", [b"", b"damaged", None])
def test_a_damaged_cache_file_is_trained_again(linear, blobs, home, caplog, content) -> None:
    first = trained_weights(linear, blobs, seed=0)
    (file,) = (home / "trained").iterdir()
    file.write_bytes(file.read_bytes()[:-4] if content is None else content)
    with caplog.at_level("WARNING", logger="fisherlab"):
        again = trained_weights(linear, blobs, seed=0)
    assert not again.from_cache
    assert again.sha256 == first.sha256
    assert "trained again" in caplog.text
    assert trained_weights(linear, blobs, seed=0).from_cache


def test_a_cache_that_cannot_be_written_is_only_a_warning(linear, blobs, home, caplog) -> None:
    home.parent.mkdir()
    home.write_text("a file where the cache should be")
    with caplog.at_level("WARNING", logger="fisherlab"):
        result = trained_weights(linear, blobs, seed=0)
    assert result.steps == 30
    assert "could not be cached" in caplog.text


def test_gradients_are_available_under_no_grad(linear, blobs) -> None:
    with torch.no_grad():
        assert trained_weights(linear, blobs, seed=0).steps == 30
        assert not torch.is_grad_enabled()


def test_a_model_without_a_recipe_is_refused(linear, blobs) -> None:
    with pytest.raises(InputError, match="no recipe"):
        trained_weights(replace(linear, recipe=None), blobs, seed=0)
