import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fisherlab import datasets
from fisherlab.errors import InputError


@pytest.mark.parametrize("layout", ["small", "Small/raw"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_images_and_labels_are_those_of_the_files(small, tmp_path, layout, split) -> None:
    small.write(tmp_path / "data", layout)
    data = datasets.load("small", split, data_dir=tmp_path / "data")
    expected = torch.from_numpy(small.images[split].astype(np.float32) / 255).unsqueeze(1)
    torch.testing.assert_close(data.inputs, expected, rtol=0, atol=1e-7)
    assert data.targets.tolist() == small.labels[split].tolist()
    assert (data.inputs.dtype, data.targets.dtype) == (torch.float32, torch.int64)
    assert (data.name, data.split, data.stand_in) == ("small", split, "")
    assert data.source == str(tmp_path / "data" / layout)


def test_samples_are_those_of_the_subset(small, tmp_path) -> None:
    small.write(tmp_path)
    for name, count in (("small", 7), ("mnist", 9)):
        part = datasets.load(name, data_dir=tmp_path, samples=count, seed=3)
        whole = datasets.load(name, data_dir=tmp_path).subset(count, seed=3)
        assert torch.equal(part.inputs, whole.inputs)
        assert torch.equal(part.targets, whole.targets)
        assert (part.checksum, part.label) == (whole.checksum, whole.label)
    with pytest.raises(InputError, match="1 to 12"):
        datasets.load("small", data_dir=tmp_path, samples=13)


def test_the_checksum_joins_the_published_sums_of_the_split(small, tmp_path) -> None:
    small.write(tmp_path)
    sums = [
        hashlib.sha256(small.payloads[name]).hexdigest() for name in ("train-images.gz", "train-labels.gz")
    ]
    expected = hashlib.sha256("".join(sums).encode()).hexdigest()
    assert datasets.load("small", data_dir=tmp_path).checksum == expected
    assert datasets.load("small", "test", data_dir=tmp_path).checksum != expected


def test_places_are_searched_in_order(small, home, tmp_path, monkeypatch) -> None:
    given, variable = tmp_path / "given", tmp_path / "variable"
    monkeypatch.setenv("FISHERLAB_DATA", str(variable))
    small.write(home)
    variable.mkdir()
    given.mkdir()
    assert datasets.load("small", data_dir=given).source == str(home / "small")
    small.write(variable)
    assert datasets.load("small", data_dir=given).source == str(variable / "small")
    small.write(given)
    assert datasets.load("small", data_dir=given).source == str(given / "small")


def test_a_split_may_lie_in_two_places(small, home, tmp_path) -> None:
    small.write(tmp_path / "a", names=("train-images.gz",))
    small.write(home, names=("train-labels.gz",))
    source = datasets.load("small", data_dir=tmp_path / "a").source
    assert source == f"{tmp_path / 'a' / 'small'}, {home / 'small'}"


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b"", lambda b: b[:-1] + b"\xff"])
def test_a_damaged_file_is_an_error_though_a_good_one_comes_later(small, home, tmp_path, damage) -> None:
    small.write(home)
    small.write(tmp_path / "data")
    path = tmp_path / "data" / "small" / "train-labels.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"train-labels.gz.*delete it.*data get small") as caught:
        datasets.load("small", data_dir=tmp_path / "data")
    assert "\n" not in str(caught.value)


def test_a_damaged_mnist_file_is_not_replaced_by_the_stand_in(home) -> None:
    path = home / "mnist" / "train-images-idx3-ubyte.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not gzip")
    path.with_name("train-labels-idx1-ubyte.gz").write_bytes(b"")
    with pytest.raises(InputError, match="damaged"):
        datasets.load("mnist")


def test_a_data_directory_that_does_not_exist_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        datasets.load("mnist", data_dir=tmp_path / "nothing")


def test_a_set_without_a_stand_in_says_how_to_get_it() -> None:
    with pytest.raises(InputError, match="fisherlab data get fashion-mnist"):
        datasets.load("fashion-mnist")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match="unknown data set 'mnits'; did you mean mnist"):
        datasets.load("mnits")
    with pytest.raises(InputError, match="unknown split"):
        datasets.load("mnist", "validation")


def test_the_stand_in_is_labelled_and_logged(caplog) -> None:
    with caplog.at_level("WARNING", logger="fisherlab"):
        data = datasets.load("mnist")
    assert "stand-in: digits" in caplog.text
    assert data.label == "mnist (stand-in: digits)"
    assert (data.stand_in, data.source) == ("digits", "scikit-learn")


def test_the_stand_in_has_the_shape_of_mnist() -> None:
    data = datasets.load("mnist")
    assert data.inputs.shape == (1437, 1, 28, 28)
    assert (data.inputs.dtype, data.targets.dtype) == (torch.float32, torch.int64)
    assert data.inputs.min() >= 0
    assert data.inputs.max() <= 1
    assert data.inputs.max() > 0.9
    assert data.targets.unique().tolist() == list(range(10))


def test_the_splits_of_the_stand_in_share_no_image_and_cover_all() -> None:
    from sklearn.datasets import load_digits

    train, test = datasets.load("mnist"), datasets.load("mnist", "test")
    means = torch.cat([train.inputs, test.inputs]).mean((1, 2, 3)).sort().values
    bundled = torch.from_numpy(load_digits().images).float() / 16
    resampled = torch.nn.functional.interpolate(bundled.unsqueeze(1), (28, 28), mode="bilinear")
    torch.testing.assert_close(means, resampled.mean((1, 2, 3)).sort().values)
    assert len(train) == int(0.8 * 1797)
    assert train.checksum != test.checksum


def test_verify_tells_ok_damaged_and_missing_apart(small, home) -> None:
    small.write(home, names=("train-images.gz", "train-labels.gz", "test-images.gz"))
    (home / "small" / "train-labels.gz").write_bytes(b"damaged")
    rows = {row.file: row for row in datasets.verify() if row.dataset == "small"}
    assert {file: row.status for file, row in rows.items()} == {
        "train-images.gz": "ok",
        "train-labels.gz": "damaged",
        "test-images.gz": "ok",
        "test-labels.gz": "missing",
    }
    assert rows["train-labels.gz"].sha256 == hashlib.sha256(b"damaged").hexdigest()
    assert rows["train-images.gz"].place == str(home / "small")
    assert (rows["test-labels.gz"].place, rows["test-labels.gz"].sha256) == ("", "")


def test_importing_loads_nothing_heavy() -> None:
    code = (
        "import sys, fisherlab.datasets, fisherlab.models;"
        "heavy = ('sklearn', 'pooch', 'requests', 'safetensors', 'PIL', 'tokenizers');"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


real = pytest.mark.skipif(
    not (Path(os.environ.get("FISHERLAB_DATA", "/nowhere")) / "mnist").is_dir(),
    reason="FISHERLAB_DATA holds no mnist",
)
REAL_PLACE = os.environ.get("FISHERLAB_DATA", "")


@real
def test_the_real_mnist_has_its_published_statistics() -> None:
    start = time.process_time()
    data = datasets.load("mnist", data_dir=REAL_PLACE)
    assert time.process_time() - start < 2
    assert not data.stand_in
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert data.targets.bincount().tolist() == counts
    assert data.inputs.mean().item() == pytest.approx(0.1307, abs=1e-4)
    assert data.inputs.std().item() == pytest.approx(0.3081, abs=1e-4)
