"""`fisherlab report` as it is typed, on runs made here."""

import json
import re
import shutil
import tomllib

import pytest


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def made(run, place, store, no_pictures, monkeypatch):
    """Two trainings, two comparisons and a trace, made once."""
    if not any(store.iterdir()):
        monkeypatch.setattr("fisherlab.traces.result.Traces.figures", lambda self: iter(()))
        _make(run)
        for name in "abcdt":
            shutil.copytree(place / name, store / name)
    shutil.copytree(store, place, dirs_exist_ok=True)
    return place


def _make(run):
    small = ("--model", "small_nets:small", "-q")
    for name, rate in (("a", "0.1"), ("b", "0.01")):
        options = ("--optimizer", "adam", "--lr", rate, "--batch", "8", "--epochs", "2")
        run("train", *small, *options, "--out", name, code=0)
    for name, options in (("c", ()), ("d", ("--samples", "16"))):
        run("compare", *small, *options, "--no-spectra", "--out", name, code=0)
    run("trace", "--run", "a", "--out", "t", "-q", code=0)


def body(place, name="p"):
    return (place / name / "report.html").read_text()


def words_of(page):
    return " ".join(re.sub("<[^>]+>", " ", re.sub('data:image[^"]+', "", page)).split())


def test_one_page_from_runs_of_all_commands(run, made):
    result = run("report", "a", "b", "c", "d", "t", "--out", "p", code=0)
    assert "report: p/report.html" in result.stdout
    page = body(made)
    text = words_of(page)
    for name in "abcd":
        assert f"{name} · fisherlab" in text
    assert "train: settings that differ setting a b" in text
    assert "lr 0.1 0.01" in text
    assert "train: how the runs ended" in text
    assert "compare: scaled error, median over the layers approximation c d" in text
    assert "Curves of all trainings" in text
    assert "traces.csv checkpoint layer approximation" in text
    assert page.count("data:image/png;base64,") == 1 + 2  # the curves, and the loss of each training
    assert "prefers-color-scheme: dark" in page
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)


def test_the_directory_is_a_run_that_can_be_repeated(run, made):
    run("report", "a", "--title", "My <runs>", "--out", "p")
    config = tomllib.loads((made / "p" / "config.toml").read_text())
    assert config == {"command": "report", "runs": [str(made / "a")], "title": "My <runs>"}
    assert "<h1>My &lt;runs&gt;</h1>" in body(made)
    assert json.loads((made / "p" / "provenance.json").read_text())["stand_in"] is False
    run("run", "p/config.toml", "--out", "again", code=0)
    assert body(made, "again") == body(made)
    result = run("report", "a", "--json", "--out", "q", "-q")
    assert json.loads(result.stdout)["inputs"]["runs"] == [str(made / "a")]


def test_one_run_has_no_side_by_side(run, made):
    run("report", "c", "--out", "p")
    text = words_of(body(made))
    assert "Side by side" not in text
    assert "Layer 0" in text
    assert "KFAC" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere"),
        (["."], "no finished run of fisherlab"),
        (["a", "./a"], "named twice"),
        (["a", "--out", "a"], "exists already"),
        (["a", "--out", "a", "--force"], "is one of the runs"),
        (["x.part"], "x.part' has not ended"),
        (["x"], "x' has not ended"),
        ([], "missing argument"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(refused, made, arguments, words):
    (made / "x.part").mkdir()
    before = set(made.rglob("*"))
    assert words in refused("report", *arguments)
    assert set(made.rglob("*")) == before


def test_a_run_without_its_table_is_damaged(run, made):
    (made / "c" / "records.csv").unlink()
    result = run("report", "c", "--out", "p", code=2)
    assert "damaged: records.csv cannot be read" in result.stderr
    assert not (made / "p").exists()
    (made / "a" / "log.jsonl").write_text("{[")
    assert "log.jsonl cannot be read" in run("report", "a", "--out", "p").stderr


def test_a_stand_in_has_a_banner(run, made):
    path = made / "a" / "provenance.json"
    origin = json.loads(path.read_text())
    path.write_text(json.dumps(origin | {"stand_in": True, "dataset": "mnist (stand-in: digits)"}))
    run("report", "a", "--out", "p")
    assert 'class="banner"' in body(made)
    assert "mnist (stand-in: digits)" in words_of(body(made))


def test_a_configuration_without_runs_is_refused(run, place):
    (place / "c.toml").write_text('command = "report"\n')
    result = run("run", "c.toml", code=2)
    assert "name at least one finished run" in result.stderr
