import gzip
import hashlib
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from fisherlab.datasets import registry
from fisherlab.datasets.registry import DataFile, ImageSource


def idx_bytes(values: np.ndarray) -> bytes:
    """The gzip-compressed idx file of a uint8 array."""
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    return gzip.compress(header + values.tobytes())


@dataclass
class SmallSet:
    """A registered image set of a few random images, and the bytes of its files."""

    source: ImageSource
    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    payloads: dict[str, bytes]

    def write(self, place: Path, layout: str = "small", names: tuple[str, ...] = ()) -> None:
        folder = place / layout
        folder.mkdir(parents=True, exist_ok=True)
        for name in names or self.payloads:
            (folder / name).write_bytes(self.payloads[name])


@pytest.fixture(autouse=True)
def _at_home(home: Path) -> None:
    """Nothing here reads or writes a file of the user's."""


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> SmallSet:
    rng = np.random.default_rng(0)
    images = {
        split: rng.integers(0, 256, (n, 28, 28), dtype=np.uint8) for split, n in (("train", 12), ("test", 5))
    }
    labels = {split: rng.integers(0, 10, len(values), dtype=np.uint8) for split, values in images.items()}
    payloads: dict[str, bytes] = {}
    splits = {}
    for split in images:
        payloads[f"{split}-images.gz"] = idx_bytes(images[split])
        payloads[f"{split}-labels.gz"] = idx_bytes(labels[split])
        first, second = (
            DataFile(name, hashlib.sha256(payloads[name]).hexdigest())
            for name in (f"{split}-images.gz", f"{split}-labels.gz")
        )
        splits[split] = (first, second)
    source = ImageSource(
        name="small",
        description="",
        origin="",
        layouts=("small", "Small/raw"),
        mirrors=(),
        splits=splits,
        shape=(28, 28),
        classes=tuple("0123456789"),
    )
    monkeypatch.setitem(registry.SOURCES, "small", source)
    return SmallSet(source, images, labels, payloads)


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format, *args) -> None:
        pass


@pytest.fixture
def served(tmp_path, monkeypatch) -> Iterator[tuple[Path, str]]:
    """A folder served on this machine, with its address."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("FISHERLAB_OFFLINE", "0")
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(QuietHandler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
