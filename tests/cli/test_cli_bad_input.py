import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

SMALL = ("compare", "--model", "small_nets:small")


@pytest.fixture
def refused(refused, place):
    """That of all commands, which also writes nothing."""

    def invoke(*arguments: str) -> str:
        before = _files(place)
        line = refused(*arguments)
        assert _files(place) == before
        return line

    return invoke


def _files(place: Path) -> set[str]:
    return {str(path) for path in place.rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compaer"], "did you mean compare?"),
        (["list", "modls"], "did you mean models?"),
        (["compare"], "missing option '--model'; see"),
        (["compare", "--model"], "'--model' requires an argument"),
        (["compare", "--modle", "x"], "did you mean --model"),
        ([*SMALL, "--nothing-like-it"], "--nothing-like-it"),
        ([*SMALL, "stray"], "stray"),
        (["compare", "--model", "mnist-mpl"], "did you mean mnist-mlp?"),
        (["compare", "--model", "mnist-mlp", "--layers", "fc*"], "unknown layer 'fc*'; known: 0, 2, 4, 6"),
        (["compare", "--model", "mnist-mlp", "--samples", "99999"], "--samples 99999"),
        (["compare", "--model", "mnist-mlp", "--data-dir", "nowhere"], "nowhere"),
        (["compare", "--model", "small_nets:smal"], "'smal'"),
        (["compare", "--model", "no_such_nets:small"], "no_such_nets"),
        ([*SMALL, "--data", "mnits"], "did you mean mnist"),
        ([*SMALL, "--approximations", "kfca"], "did you mean kfac"),
        ([*SMALL, "--approximations", "kfac,kfac"], "more than once"),
        ([*SMALL, "--approximations", ""], "unknown approximation ''"),
        ([*SMALL, "--layers", "10"], "unknown layer '10'"),
        ([*SMALL, "--kind", "predictiv"], "did you mean predictive?"),
        ([*SMALL, "--likelihood", "categoricla"], "did you mean categorical"),
        ([*SMALL, "--bias", "joined"], "did you mean joint"),
        ([*SMALL, "--dtype", "float16"], "did you mean float64"),
        ([*SMALL, "--samples", "many"], "'many'"),
        ([*SMALL, "--samples", "0"], "samples must be at least 1"),
        ([*SMALL, "--samples", "33"], "--samples 33"),
        ([*SMALL, "--draws", "0"], "draws must be at least 1"),
        ([*SMALL, "--seed", "-1"], "seed must be at least 0"),
        ([*SMALL, "--memory", "plenty"], "4GiB"),
        ([*SMALL, "--memory", "1KiB"], "memory limit"),
        ([*SMALL, "--device", "tpu"], "unknown device 'tpu'"),
        ([*SMALL, "--device", "cuda:99"], "cuda:99"),
        ([*SMALL, "--checkpoint", "nowhere.pt"], "nowhere.pt"),
        ([*SMALL, "--out", "small_nets.py"], "is no directory"),
        ([*SMALL, "--out", "small_nets.py/run"], "cannot make the directory"),
        (["compare", "--model", "small_nets:empty"], "empty"),
        (["compare", "--model", "small_nets:nan_inputs"], "not finite"),
        (["compare", "--model", "small_nets:narrow"], "the model fails on inputs [2, 5] torch.float32"),
        (["run", "."], "'.' is a directory; give a file, such as 'config.toml'"),
        (["compare", "--model", "small_nets:nan_weights"], "'0.weight'"),
        (["compare", "--model", "small_nets:wrong_labels"], "out of range"),
        (["run"], "missing argument"),
        (["run", "nowhere.toml"], "nowhere.toml"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(refused, arguments, words):
    assert words in refused(*arguments)


def test_notices_before_an_error_are_dropped(run, refused):
    assert "a notice" in run("compare", "--model", "small_nets:warns", "-v").stderr
    refused("compare", "--model", "mnist-mlp", "--samples", "5000")


def _network(outputs: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, outputs, bias=False))


class _Surprise:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def _other_network(path: Path) -> str:
    torch.save(_network(4).state_dict(), path)
    return "belongs to another network"


def _truncated(path: Path) -> str:
    torch.save(_network().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-200])
    return "damaged"


def _pickled(path: Path) -> str:
    path.write_bytes(pickle.dumps({"0.weight": _Surprise()}))
    return "weights.pt"


def _whole_module(path: Path) -> str:
    torch.save(_network(), path)
    return "will not be executed"


def _not_finite(path: Path) -> str:
    state = _network().state_dict()
    state["2.weight"][0, 0] = torch.nan
    torch.save(state, path)
    return "'2.weight'"


@pytest.mark.parametrize("make", [_other_network, _truncated, _pickled, _whole_module, _not_finite])
def test_bad_checkpoint(refused, make):
    words = make(Path("weights.pt"))
    line = refused(*SMALL, "--checkpoint", "weights.pt")
    assert "weights.pt" in line
    assert words in line


@pytest.mark.parametrize("out", [".", "..", "/"])
def test_the_working_directory_is_never_replaced(refused, place, monkeypatch, out):
    (place / "inside").mkdir()
    monkeypatch.chdir("inside")
    assert "working directory" in refused(*SMALL, "--out", out, "--force")


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_a_directory_with_other_things_is_never_replaced(refused, place, force):
    (place / "thesis").mkdir()
    (place / "thesis" / "chapter.tex").write_text("years of work")
    assert "thesis" in refused(*SMALL, "--out", "thesis", *force)


def test_a_finished_run_is_refused_before_any_work(refused, place, monkeypatch):
    (place / "run").mkdir()
    (place / "run" / "provenance.json").write_text("{}")
    monkeypatch.setattr("fisherlab.models.prepare", lambda *args, **options: pytest.fail("work was done"))
    assert "--force" in refused(*SMALL, "--out", "run")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model = ", "not TOML"),
        ('model = "small_nets:small"', "'command' is missing"),
        ('command = "compar"\nmodel = "small_nets:small"', "did you mean compare?"),
        ('command = "compare"', "'model' is missing"),
        ('command = "compare"\nmodel = "small_nets:small"\nsample = 3', "did you mean samples?"),
        ('command = "compare"\nmodel = "small_nets:small"\nsamples = "3"', "samples must be a whole number"),
        ('command = "compare"\nmodel = "small_nets:small"\nsamples = true', "samples must be a whole number"),
        ('command = "compare"\nmodel = "small_nets:small"\nspectra = 1', "spectra must be True or False"),
        ('command = "compare"\nmodel = "small_nets:small"\nlayers = "0"', "layers must be a list of strings"),
        ('command = "compare"\nmodel = "small_nets:small"\nlayers = [0]', "layers must be a list of strings"),
        ('command = "compare"\nmodel = 3', "model must be a string"),
        ('command = "compare"\nmodel = "small_nets:small"\n[layers]\na = 1', "layers must be a list"),
    ],
)
def test_bad_configuration_file(refused, place, text, words):
    (place / "config.toml").write_text(text)
    line = refused("run", "config.toml")
    assert words in line
    assert "config.toml" in line


def test_configuration_file_that_is_no_text(refused, place):
    (place / "config.toml").write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in refused("run", "config.toml")
