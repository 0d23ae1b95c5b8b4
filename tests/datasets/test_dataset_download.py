import time
from dataclasses import replace

import pytest

from fisherlab import datasets
from fisherlab.datasets import download, registry
from fisherlab.errors import FisherlabError, InputError


def use_mirrors(monkeypatch, small, *mirrors: str) -> None:
    monkeypatch.setitem(registry.SOURCES, "small", replace(small.source, mirrors=mirrors))


def test_load_downloads_what_is_missing_into_the_cache(small, home, served, monkeypatch) -> None:
    folder, address = served
    small.write(folder)
    use_mirrors(monkeypatch, small, address + "small/")
    data = datasets.load("small")
    assert data.targets.tolist() == small.labels["train"].tolist()
    assert data.source == str(home / "small")
    assert sorted(p.name for p in (home / "small").iterdir()) == [
        "train-images.gz",
        "train-labels.gz",
    ]


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_no_download_where_it_is_forbidden(small, home, served, monkeypatch, how) -> None:
    folder, address = served
    small.write(folder)
    use_mirrors(monkeypatch, small, address + "small/")
    if how == "variable":
        monkeypatch.setenv("FISHERLAB_OFFLINE", "1")
    with pytest.raises(InputError, match="data get small"):
        datasets.load("small", download=how == "variable")
    assert not home.exists()


def test_the_second_mirror_serves_when_the_first_is_wrong(small, home, served, monkeypatch) -> None:
    folder, address = served
    small.write(folder, "good")
    (folder / "bad").mkdir()
    for name in small.payloads:
        (folder / "bad" / name).write_bytes(b"another file")
    use_mirrors(monkeypatch, small, address + "absent/", address + "bad/", address + "good/")
    paths = datasets.get("small")
    assert {path.name: path.read_bytes() for path in paths} == small.payloads
    assert sorted(path.name for path in (home / "small").iterdir()) == sorted(small.payloads)


def test_get_replaces_a_damaged_file(small, home, served, monkeypatch) -> None:
    folder, address = served
    small.write(folder)
    small.write(home)
    (home / "small" / "test-labels.gz").write_bytes(b"damaged")
    use_mirrors(monkeypatch, small, address + "small/")
    datasets.get("small")
    statuses = {row.status for row in datasets.verify() if row.dataset == "small"}
    assert statuses == {"ok"}


def test_get_names_every_mirror_that_failed(small, served, monkeypatch) -> None:
    _, address = served
    mirrors = (address + "one/", address + "two/")
    use_mirrors(monkeypatch, small, *mirrors)
    with pytest.raises(FisherlabError) as caught:
        datasets.get("small")
    assert all(mirror in str(caught.value) for mirror in mirrors)


def test_get_refuses_an_unknown_name() -> None:
    with pytest.raises(InputError, match="unknown data set"):
        datasets.get("small-set")


def test_mirrors_that_never_answer_cost_a_bounded_time(small, monkeypatch) -> None:
    monkeypatch.setattr(download, "_PROBE_SECONDS", 0.2)
    monkeypatch.setattr(download, "_ask", lambda *_: time.sleep(5))
    source = replace(small.source, mirrors=("http://a/", "http://b/", "http://c/"))
    start = time.perf_counter()
    assert download.reachable(source, source.files[0]) == []
    assert time.perf_counter() - start < 1
