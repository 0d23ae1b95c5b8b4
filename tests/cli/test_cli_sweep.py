"""`fisherlab sweep` as it is typed."""

import json
import tomllib

import pytest

SMALL = ("sweep", "--model", "small_nets:small", "--batch", "8", "--epochs", "1")


def test_a_sweep_prints_its_trials_and_writes_its_files(run, place):
    grid = ("--lr", "0.003,0.03", "--damping", "0.1,0.3")
    result = run(*SMALL, "--optimizer", "kfac", *grid, "--out", "s", code=0)
    assert "kfac on small_nets:small" in result.stdout
    assert result.stdout.count("finished") == 4
    assert "run directory: s" in result.stdout
    assert "4 of 4 done" in result.stderr
    assert {"trials.csv", "best.toml", "sweep.png", "sweep.pdf", "summary.json", "provenance.json"} <= {
        path.name for path in (place / "s").iterdir()
    }
    best = json.loads((place / "s" / "summary.json").read_text())["best"]
    assert result.stdout.splitlines()[4].split()[:3] == [
        *(str(best["trial"]), f"{best['lr']:.4g}", f"{best['damping']:.4g}")
    ]


def test_the_best_configuration_is_taken_by_run_and_train(run, place):
    result = run(*SMALL, "--optimizer", "adam", "--lr", "0.001,0.01", "--json", "-q", "--out", "s", code=0)
    assert not result.stderr
    summary = json.loads(result.stdout)
    assert summary == json.loads((place / "s" / "summary.json").read_text())
    again = run("run", "s/best.toml", "--json", "-q", "--out", "a")
    assert json.loads(again.stdout)["train_loss"] == summary["best"]["value"]
    other = run(
        "train", "--config", "s/best.toml", "--steps", "2", "--seed", "4", "--json", "-q", "--out", "b"
    )
    inputs = json.loads(other.stdout)["inputs"]
    assert (inputs["lr"], inputs["steps"], inputs["seed"]) == (summary["best"]["lr"], 2, 4)
    assert "epochs" not in inputs


def test_run_repeats_a_sweep(run, place):
    run(*SMALL, "--optimizer", "sgd", "--lr", "0.01,0.1", "--seeds", "1,2", "--out", "s")
    result = run("run", "s/config.toml", "--json", "-q", "--out", "t")
    first = json.loads((place / "s" / "summary.json").read_text())
    assert json.loads(result.stdout)["best"] == first["best"]
    config = tomllib.loads((place / "t" / "config.toml").read_text())
    assert (config["command"], config["seeds"], config["train"]["epochs"]) == ("sweep", [1, 2], 1)


def test_an_end_of_the_range_and_divergence_are_said(run):
    result = run(*SMALL, "--optimizer", "sgd", "--lr", "0.0001,0.1,1e7", "--out", "s")
    assert "1 of 3 trials diverged" in result.stdout
    result = run(*SMALL, "--optimizer", "sgd", "--lr", "0.0001,0.001", "--out", "e")
    assert "the best lr is an end of its range" in result.stdout


def test_an_interruption_can_be_continued(run, place, monkeypatch):
    from fisherlab.train.sweep.study import Study

    def interrupted(self, *arguments):
        raise KeyboardInterrupt

    arguments = (*SMALL, "--optimizer", "sgd", "--lr", "0.01,0.1", "--out", "s")
    with monkeypatch.context() as patched:
        patched.setattr(Study, "tell", interrupted)
        result = run(*arguments, code=130)
    assert "the sweep can be continued: fisherlab sweep --resume s" in result.stderr
    run(*arguments, code=2)
    result = run("sweep", "--resume", "s", "--lr", "0.5")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    result = run("sweep", "--resume", "s", "--jobs", "2", code=0)
    assert (place / "s" / "trials.csv").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give --model"),
        (["--model", "mnist-ml"], "did you mean mnist-mlp"),
        ([*SMALL[1:], "--lr", "a,b"], "numbers separated by commas"),
        ([*SMALL[1:], "--lr", "0.1,0.1"], "twice"),
        ([*SMALL[1:], "--optimizer", "adm"], "did you mean adam"),
        ([*SMALL[1:], "--optimizer", "adam", "--damping", "1"], "adam has no damping"),
        ([*SMALL[1:], "--sampler", "tpe"], "give --trials"),
        ([*SMALL[1:], "--by", "test_loss"], "nothing is tested"),
        (["--resume", "s", "--out", "t"], "leave --out and --force out"),
        (["--resume", "s"], "no interrupted run"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_leaves_nothing(refused, place, arguments, words):
    assert words in refused("sweep", *arguments)
    assert not list(place.glob("s*.part"))


def test_help_names_the_options_of_a_training_too(run):
    result = run("sweep", "--help", code=0)
    for option in ("--damping", "--seeds", "--sampler", "--jobs", "--optimizer", "--epochs", "--schedule"):
        assert option in result.stdout
    assert "--checkpoint-every" not in result.stdout
