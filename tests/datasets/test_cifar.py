import hashlib
import io
import os
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fisherlab import datasets
from fisherlab.datasets import registry
from fisherlab.datasets.source import DataFile
from fisherlab.datasets.sources import cifar
from fisherlab.errors import FisherlabError, InputError

FORMS = {"binary": cifar.BINARY, "pickled": cifar.PICKLED, "mosaics": cifar.MOSAICS}
PARTS = (*cifar.BATCHES, "test")
COUNT = 6  # images a batch, a mosaic of 2 x 3


def picture(pixels: np.ndarray, columns: int, kind: str = "WEBP") -> bytes:
    """Images uint8 [n, 3, 32, 32] as one picture of tiles."""
    rows = [np.concatenate(list(row), axis=2) for row in np.split(pixels, len(pixels) // columns)]
    buffer = io.BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95}
    Image.fromarray(np.concatenate(rows, axis=1).transpose(1, 2, 0)).save(buffer, kind, **options)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


class TinyCifar:
    """CIFAR-10 with six images a batch, and the bytes of its files in every form."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.pixels = {part: rng.integers(0, 256, (COUNT, 3, 32, 32), dtype=np.uint8) for part in PARTS}
        self.labels = {part: rng.integers(0, 10, COUNT, dtype=np.uint8) for part in PARTS}
        self.payloads = {
            "binary": self.one_a_batch(cifar.BINARY, self.binary),
            "pickled": self.one_a_batch(cifar.PICKLED, self.pickled),
            "mosaics": self.mosaics(),
        }

    def one_a_batch(self, form: cifar.Form, make: Callable[[str], bytes]) -> dict[str, bytes]:
        return {form.files[part][0].name: make(part) for part in PARTS}

    def binary(self, part: str) -> bytes:
        rows = self.pixels[part].reshape(COUNT, -1)
        return np.concatenate([self.labels[part][:, None], rows], axis=1).tobytes()

    def pickled(self, part: str) -> bytes:
        rows = self.pixels[part].reshape(COUNT, -1)
        return pickle.dumps({b"data": rows, b"labels": self.labels[part].tolist()}, protocol=4)

    def mosaics(self) -> dict[str, bytes]:
        files = [picture(image[None], 1, "JPEG") for image in self.pixels["test"]]
        npz = io.BytesIO()
        np.savez(
            npz,
            jpeg=np.frombuffer(b"".join(files), np.uint8),
            offset=np.cumsum([0, *map(len, files)]),
            label=self.labels["test"],
        )
        return {
            **{f"train_{part}.webp": picture(self.pixels[part], 3) for part in cifar.BATCHES},
            "train_labels.npy": npy(np.concatenate([self.labels[part] for part in cifar.BATCHES])),
            "test_0_999.webp": picture(self.pixels["test"], 3),
            "test_0_999_labels.npy": npy(self.labels["test"]),
            "test_jpeg.npz": npz.getvalue(),
        }

    def source(self) -> cifar.CifarSource:
        """The set with the sums of these files."""
        forms = []
        for name, form in FORMS.items():
            sums = {
                file: hashlib.sha256(payload).hexdigest() for file, payload in self.payloads[name].items()
            }
            files = {
                part: tuple(DataFile(file.name, sums[file.name]) for file in used)
                for part, used in form.files.items()
            }
            forms.append(replace(form, files=files))
        return replace(cifar.CIFAR10, name="tiny", forms=tuple(forms), mirrors=())

    def write(self, place: Path, form: str, layout: int = 0) -> Path:
        folder = place / FORMS[form].layouts[layout]
        folder.mkdir(parents=True, exist_ok=True)
        for name, payload in self.payloads[form].items():
            (folder / name).write_bytes(payload)
        return folder

    def expected(self, parts: tuple[str, ...]) -> tuple[torch.Tensor, list[int]]:
        pixels = np.concatenate([self.pixels[part] for part in parts])
        labels = np.concatenate([self.labels[part] for part in parts])
        return torch.from_numpy(pixels).float() / 255, labels.tolist()


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> TinyCifar:
    made = TinyCifar()
    monkeypatch.setitem(registry.SOURCES, "tiny", made.source())
    return made


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("split", "parts"),
    [
        ("train", cifar.BATCHES),
        ("train-1-4", ("1", "2", "3", "4")),
        ("held-out", ("5",)),
        ("test-1000", ("test",)),
    ],
)
def test_every_form_gives_the_same_images(tiny, tmp_path, form, split, parts) -> None:
    folder = tiny.write(tmp_path / "data", form)
    images, labels = tiny.expected(parts)
    for _ in range(2):  # the second time what was slow to decode comes from the cache
        data = datasets.load("tiny", split, data_dir=tmp_path / "data")
        torch.testing.assert_close(data.inputs, images, rtol=0, atol=1e-7)
        assert data.targets.tolist() == labels
        assert (data.stand_in, data.source, data.label) == ("", str(folder), "tiny")
    assert data.checksum == cifar.joined_sum(*(cifar.CIFAR10.sums[part] for part in cifar.SPLITS[split]))


@pytest.mark.parametrize("form", ["binary", "pickled"])
def test_the_official_test_set_and_its_first_thousand(tiny, tmp_path, form, monkeypatch) -> None:
    monkeypatch.setattr(cifar, "_THOUSAND", 4)
    tiny.write(tmp_path, form, layout=1)
    images, labels = tiny.expected(("test",))
    assert torch.equal(datasets.load("tiny", "test", data_dir=tmp_path).inputs, images)
    assert datasets.load("tiny", "test-1000", data_dir=tmp_path).targets.tolist() == labels[:4]


def test_the_recompressed_test_set_says_so_and_is_near_the_images(tiny, tmp_path) -> None:
    smooth = np.linspace(0, 200, 32).astype(np.uint8)
    tiny.pixels["test"][:] = smooth
    tiny.payloads["mosaics"] = tiny.mosaics()
    registry.SOURCES["tiny"] = tiny.source()
    tiny.write(tmp_path, "mosaics")
    data = datasets.load("tiny", "test-jpeg", data_dir=tmp_path)
    assert data.label == "tiny (test set, JPEG-recompressed)"
    assert data.targets.tolist() == tiny.labels["test"].tolist()
    torch.testing.assert_close(data.inputs, tiny.expected(("test",))[0], rtol=0, atol=0.05)


@pytest.mark.parametrize("form", FORMS)
def test_samples_are_those_of_the_subset(tiny, tmp_path, form) -> None:
    tiny.write(tmp_path, form)
    whole = datasets.load("tiny", data_dir=tmp_path)
    for samples, seed in ((1, 0), (7, 1), (30, 2)):
        part = datasets.load("tiny", data_dir=tmp_path, samples=samples, seed=seed)
        assert torch.equal(part.inputs, whole.subset(samples, seed).inputs)
        assert torch.equal(part.targets, whole.subset(samples, seed).targets)


@pytest.mark.parametrize("form", FORMS)
def test_a_damaged_file_is_refused_and_reported(tiny, tmp_path, form) -> None:
    folder = tiny.write(tmp_path, form)
    datasets.load("tiny", data_dir=tmp_path)
    name = next(name for name in tiny.payloads[form] if "3" in name)
    (folder / name).write_bytes(tiny.payloads[form][name][:-1])
    with pytest.raises(InputError, match=rf"{name}' is damaged: its sha256 is"):
        datasets.load("tiny", data_dir=tmp_path)
    rows = {row.file: row.status for row in datasets.verify(tmp_path) if row.dataset == "tiny"}
    assert set(rows) == set(tiny.payloads[form])
    assert [file for file, status in rows.items() if status != "ok"] == [name]


def test_a_damaged_array_in_the_cache_is_made_again(tiny, tmp_path, home) -> None:
    tiny.write(tmp_path, "mosaics")
    first = datasets.load("tiny", "held-out", data_dir=tmp_path)
    (kept,) = (home / "decoded").iterdir()
    for damage in (kept.read_bytes()[:-5], b""):
        kept.write_bytes(damage)
        assert torch.equal(datasets.load("tiny", "held-out", data_dir=tmp_path).inputs, first.inputs)


def test_a_split_that_is_not_there_beside_others_is_no_stand_in(tiny, tmp_path) -> None:
    tiny.write(tmp_path, "mosaics")
    with pytest.raises(InputError, match=r"'test' of tiny was not found, only train, .*held-out.*data get"):
        datasets.load("tiny", "test", data_dir=tmp_path)


def test_where_nothing_is_there_synthetic_images_stand_in(tiny, caplog) -> None:
    with caplog.at_level("WARNING", logger="fisherlab"):
        data = datasets.load("tiny", samples=3)
    assert "stand-in: synthetic" in caplog.text
    assert (data.label, data.inputs.shape) == ("tiny (stand-in: synthetic)", (3, 3, 32, 32))
    statuses = {row.status for row in datasets.verify() if row.dataset == "tiny"}
    assert statuses == {"missing"}


def archive(tiny: TinyCifar, **others: bytes) -> bytes:
    """The official archive of the tiny set, with a member that leads out of the folder."""
    buffer = io.BytesIO()
    members = {f"cifar-10-batches-bin/{name}": data for name, data in tiny.payloads["binary"].items()}
    with tarfile.open(fileobj=buffer, mode="w:gz") as opened:
        for name, payload in (members | {"../outside.bin": b"x"} | others).items():
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            opened.addfile(info, io.BytesIO(payload))
    return buffer.getvalue()


def publish(tiny: TinyCifar, monkeypatch, served, payload: bytes) -> None:
    folder, address = served
    (folder / "tiny.tar.gz").write_bytes(payload)
    file = DataFile("tiny.tar.gz", md5=hashlib.md5(payload, usedforsecurity=False).hexdigest())
    source = replace(tiny.source(), archive=file, mirrors=(address,))
    monkeypatch.setitem(registry.SOURCES, "tiny", source)


def test_load_downloads_the_archive_and_keeps_only_known_members(tiny, monkeypatch, served, home) -> None:
    publish(tiny, monkeypatch, served, archive(tiny))
    assert torch.equal(datasets.load("tiny").inputs, tiny.expected(cifar.BATCHES)[0])
    kept = [path for path in home.rglob("*") if path.is_file()]
    assert sorted(path.name for path in kept) == sorted(tiny.payloads["binary"])
    assert {path.parent for path in kept} == {home / "cifar-10-batches-bin"}
    assert not list(home.parent.rglob("outside.bin"))


def test_get_leaves_right_files_and_replaces_damaged_ones(tiny, monkeypatch, served, home) -> None:
    publish(tiny, monkeypatch, served, archive(tiny))
    paths = datasets.get("tiny")
    (served[0] / "tiny.tar.gz").rename(served[0] / "away")
    assert datasets.get("tiny") == paths
    (served[0] / "away").rename(served[0] / "tiny.tar.gz")
    paths[2].write_bytes(b"damaged")
    datasets.get("tiny")
    assert {path.name: path.read_bytes() for path in paths} == tiny.payloads["binary"]


def test_a_member_that_is_not_the_published_file_is_refused(tiny, monkeypatch, served) -> None:
    changed = {"cifar-10-batches-bin/data_batch_4.bin": b"another"}
    publish(tiny, monkeypatch, served, archive(tiny, **changed))
    with pytest.raises(FisherlabError, match=r"data_batch_4\.bin in the downloaded archive"):
        datasets.get("tiny")


PLACE = Path(os.environ.get("FISHERLAB_DATA", "/nowhere"))


@pytest.mark.skipif(not (PLACE / "cifar10").is_dir(), reason="FISHERLAB_DATA holds no cifar10")
def test_the_decoded_mosaics_are_the_official_records() -> None:
    folder = PLACE / "cifar10"
    records = cifar.decode_mosaics(
        "5", [(folder / name).read_bytes() for name in ("train_5.webp", "train_labels.npy")]
    )
    found = hashlib.md5(records.tobytes(), usedforsecurity=False).hexdigest()
    assert found == cifar.BINARY.files["5"][0].md5
    thousand = datasets.load("cifar10", "test-1000", data_dir=PLACE)
    assert thousand.targets.bincount().tolist() == [103, 89, 100, 103, 90, 86, 112, 102, 106, 109]
    recompressed = datasets.load("cifar10", "test-jpeg", data_dir=PLACE)
    assert torch.equal(recompressed.targets[:1000], thousand.targets)
    error = (recompressed.inputs[:1000] - thousand.inputs).square().mean()
    assert -10 * error.log10() == pytest.approx(30, abs=2)
