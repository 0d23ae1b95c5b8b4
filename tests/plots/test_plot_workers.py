"""Figures written by helpers: the same bytes as without them, whatever happens to a helper."""

import pytest

from fisherlab.plots import new_figure, save, workers


def figures(count):
    for number in range(count):
        figure = new_figure(3.0, 1.0, caption=f"figure {number}")
        figure.subplots().plot([0, number, 1])
        yield f"picture-{number}", figure


@pytest.fixture
def expected(tmp_path):
    for name, figure in figures(7):
        save(figure, tmp_path / "expected" / name)
    return {path.name: path.read_bytes() for path in (tmp_path / "expected").iterdir()}


def written(folder):
    with workers.saver(7) as write:
        for name, figure in figures(7):
            write(figure, folder / name)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_helpers_write_the_same_files(tmp_path, expected, monkeypatch):
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda pid: range(3), raising=False)
    sent = []
    send = workers._Helper.send
    monkeypatch.setattr(workers._Helper, "send", lambda *args: (sent.append(args[2]), send(*args)))
    assert written(tmp_path / "found") == expected
    assert sent


def test_a_helper_that_dies_loses_nothing(tmp_path, expected, monkeypatch):
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda pid: range(2), raising=False)
    send = workers._Helper.send

    def killed(self, figure, path):
        self._process.kill()
        send(self, figure, path)

    monkeypatch.setattr(workers._Helper, "send", killed)
    assert written(tmp_path / "found") == expected


def test_few_figures_or_one_core_need_no_helper(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_Helper", None)
    with workers.saver(workers.MANY - 1) as write:
        for name, figure in figures(1):
            write(figure, tmp_path / name)
    assert (tmp_path / "picture-0.pdf").is_file()
