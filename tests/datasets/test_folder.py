from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fisherlab import datasets
from fisherlab.datasets.sources import folder
from fisherlab.errors import InputError

RNG = np.random.default_rng(0)


def write(path: Path, height: int = 40, width: int = 50) -> np.ndarray:
    """A picture of noise, lossless where the format is; returns its pixels."""
    pixels = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two splits with two classes, files of every kind, and things that are no images."""
    place = tmp_path / "images"
    for name in ("cat/b.png", "cat/a.JPEG", "cat/deep/c.webp", "ant/z.jpg"):
        write(place / "train" / name)
    write(place / "val" / "ant" / "1.png")
    (place / "train" / "notes.txt").write_text("no image")
    (place / "train" / "cat" / "notes.txt").write_text("no image")
    (place / "train" / "empty").mkdir()
    return place


def test_classes_are_folders_and_images_are_sorted(root) -> None:
    data = datasets.load_folder(root, "train", size=16)
    assert data.classes == ("ant", "cat")
    assert data.targets.tolist() == [0, 1, 1, 1]
    assert (data.inputs.shape, data.inputs.dtype) == ((4, 3, 16, 16), torch.float32)
    assert data.targets.dtype == torch.int64
    assert (data.source, data.stand_in, data.split) == (str(root / "train"), "", "train")
    last = datasets.load_folder(root / "train", size=16)
    assert torch.equal(data.inputs, last.inputs)


@pytest.mark.parametrize(("height", "width"), [(256, 256), (256, 512), (301, 256), (256, 257)])
def test_an_image_of_the_right_short_side_is_only_cut(tmp_path, height, width) -> None:
    pixels = write(tmp_path / "c" / "i.png", height, width)
    image = datasets.load_folder(tmp_path).inputs[0]
    top, left = round((height - 224) / 2), round((width - 224) / 2)
    cut = pixels[top : top + 224, left : left + 224].transpose(2, 0, 1)
    assert torch.equal(image, torch.from_numpy(cut).float() / 255)


@pytest.mark.parametrize(("height", "width"), [(30, 60), (900, 300), (7, 7), (1, 5)])
def test_other_sizes_are_scaled(tmp_path, height, width) -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, width).astype(np.uint8)[None, :, None], (height, width, 3))
    (tmp_path / "c").mkdir()
    Image.fromarray(ramp.copy()).save(tmp_path / "c" / "i.png")
    image = datasets.load_folder(tmp_path, size=64).inputs[0]
    assert image.shape == (3, 64, 64)
    assert image.mean().item() == pytest.approx(0.5, abs=0.02)
    assert (image.diff(dim=2) >= 0).all()
    assert image.diff(dim=1).abs().max() < 1e-6


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_every_picture_becomes_colour(tmp_path, mode) -> None:
    (tmp_path / "c").mkdir()
    Image.new("L", (8, 8), 255).convert(mode).save(tmp_path / "c" / "i.png")
    assert torch.equal(datasets.load_folder(tmp_path, size=4).inputs, torch.ones(1, 3, 4, 4))


def test_only_the_chosen_images_are_decoded(root, monkeypatch) -> None:
    whole = datasets.load_folder(root, "train", size=8)
    opened = []
    decode = folder._centre
    monkeypatch.setattr(folder, "_centre", lambda path, size: opened.append(path) or decode(path, size))
    part = datasets.load_folder(root, "train", size=8, samples=2, seed=1)
    assert len(opened) == 2
    assert torch.equal(part.inputs, whole.subset(2, 1).inputs)
    assert torch.equal(part.targets, whole.subset(2, 1).targets)
    assert part.checksum == whole.checksum


def test_the_checksum_depends_on_names_and_sizes(root) -> None:
    before = datasets.load_folder(root, "train", size=8).checksum
    assert before != datasets.load_folder(root, "train", size=9).checksum
    (root / "train" / "cat" / "b.png").rename(root / "train" / "cat" / "b2.png")
    renamed = datasets.load_folder(root, "train", size=8).checksum
    write(root / "train" / "cat" / "b2.png", 41)
    assert len({before, renamed, datasets.load_folder(root, "train", size=8).checksum}) == 3


def test_folders_without_images_are_refused(tmp_path, root) -> None:
    for path, split in ((tmp_path, "nothing"), (root / "train" / "empty", ""), (root, "train/cat/deep")):
        with pytest.raises(InputError, match="holds no folders of images"):
            datasets.load_folder(path, split)
    with pytest.raises(InputError, match="size must be at least 1, not 0"):
        datasets.load_folder(root, "train", size=0)
    with pytest.raises(InputError, match="1 to 4"):
        datasets.load_folder(root, "train", samples=5)


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[: len(b) // 2]])
def test_a_damaged_image_is_named(root, damage) -> None:
    path = root / "train" / "cat" / "a.JPEG"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"a\.JPEG' cannot be read"):
        datasets.load_folder(root, "train", size=8)


@pytest.mark.parametrize("name", ["imagenet", "imagefolder"])
def test_the_registered_sets_search_their_folder_and_the_data_directory(root, tmp_path, name) -> None:
    direct = datasets.load(name, "val", data_dir=root)
    assert (direct.name, direct.inputs.shape, direct.source) == (name, (1, 3, 224, 224), str(root / "val"))
    root.rename(tmp_path / name)
    assert datasets.load(name, "val", data_dir=tmp_path).source == str(tmp_path / name / "val")
    with pytest.raises(InputError, match="holds no folders of images"):
        datasets.load(name, "test", data_dir=tmp_path)


def test_a_data_directory_of_classes_is_the_train_split(root) -> None:
    assert len(datasets.load("imagefolder", data_dir=root / "train", samples=2)) == 2
    with pytest.raises(InputError, match="which are the split 'train'"):
        datasets.load("imagefolder", "val", data_dir=root / "train")


def test_imagenet_has_a_stand_in_and_your_own_images_have_none(tmp_path) -> None:
    data = datasets.load("imagenet", data_dir=tmp_path, samples=2)
    assert (data.label, data.inputs.shape) == ("imagenet (stand-in: synthetic)", (2, 3, 224, 224))
    assert len(data.classes) == 1000
    with pytest.raises(InputError, match=r"imagefolder was not found in .*give its directory"):
        datasets.load("imagefolder", data_dir=tmp_path)
    with pytest.raises(InputError, match="imagenet has no download"):
        datasets.get("imagenet")
