"""A sweep: its trials are plain trainings, its best the best of them, and an interruption changes nothing."""

import itertools
import json
import math
import statistics
from pathlib import Path

import optuna
import pandas as pd
import pytest
import torch
from train import nets

from fisherlab.errors import FisherlabError, InputError
from fisherlab.runs.config import read_config
from fisherlab.train import TrainConfig, sweep, train
from fisherlab.train.sweep.config import PAPER_DAMPING, PAPER_LR, SweepConfig
from fisherlab.train.sweep.study import Study

TRAIN = {"model": "train.nets:mlp", "optimizer": "kfac", "epochs": 2, "batch": 16}


class Killed(BaseException):
    pass


def config(train: dict | None = None, **values) -> SweepConfig:
    given = {"lr": (0.003, 0.03), "damping": (0.01, 0.1), **values}
    return SweepConfig(train={**TRAIN, **(train or {})}, **given)


def table(folder: Path, name: str = "trials") -> pd.DataFrame:
    return pd.read_csv(folder / f"{name}.csv").drop(columns="seconds")


@pytest.fixture
def no_picture(monkeypatch) -> None:
    monkeypatch.setattr("fisherlab.plots.save", lambda *arguments: None)


@pytest.fixture
def swept(place, no_picture):
    def run(out: str = "s", train: dict | None = None, **values) -> dict:
        return sweep.run(config(train, **values), place / out)

    return run


def test_trials_are_plain_trainings_and_the_value_is_their_mean(swept, place):
    summary = swept(seeds=(3, 5), jobs=2)
    rows = table(place / "s")
    assert sorted(zip(rows.lr, rows.damping, strict=True)) == [*itertools.product((0.003, 0.03), (0.01, 0.1))]
    row = rows.iloc[2]
    values = [
        train(
            TrainConfig(**TRAIN, lr=float(row.lr), damping=float(row.damping), seed=seed), place / f"t{seed}"
        )["value"]
        for seed in (3, 5)
    ]
    assert row.value == statistics.fmean(values)
    assert row.sd == statistics.stdev(values)
    trainings = table(place / "s", "trainings")
    assert trainings[trainings.trial == row.trial].value.tolist() == values
    assert summary["metric"] == "train_loss"
    assert summary["best"]["value"] == rows.value.min()
    best = rows.loc[rows.value.idxmin()]
    assert (summary["best"]["lr"], summary["best"]["damping"]) == (best.lr, best.damping)


def test_the_best_configuration_trains_to_the_best_value(swept, place):
    summary = swept()
    best = read_config(place / "s" / "best.toml", TrainConfig)
    assert (best.lr, best.damping) == (summary["best"]["lr"], summary["best"]["damping"])
    assert train(best, place / "again")["value"] == summary["best"]["value"]


def test_divergence_is_a_pruned_trial_without_a_value(swept, place):
    summary = swept(train={"optimizer": "sgd"}, lr=(0.1, 1e6), damping=(), seeds=(0, 1))
    rows = table(place / "s").set_index("lr")
    assert rows.outcome.to_dict() == {0.1: "finished", 1e6: "diverged"}
    assert math.isnan(rows.value[1e6])
    assert rows.seeds.to_dict() == {0.1: 2, 1e6: 1}  # no more seeds where one has diverged
    assert "diverged" in rows.note[1e6]
    assert (summary["diverged"], summary["best"]["lr"]) == (1, 0.1)
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(place / "s" / "study.journal"))
    )
    study = optuna.load_study(study_name="sweep", storage=storage)
    states = {trial.params["lr"]: trial.state.name for trial in study.trials}
    assert states == {0.1: "COMPLETE", 1e6: "PRUNED"}
    assert study.best_value == summary["best"]["value"]


def test_where_all_diverge_the_sweep_is_written_and_says_so(swept, place):
    with pytest.raises(FisherlabError, match="every trial has diverged"):
        swept(train={"optimizer": "sgd"}, lr=(1e5, 1e6), damping=())
    assert json.loads((place / "s" / "summary.json").read_text())["best"] is None
    assert not (place / "s" / "best.toml").exists()


@pytest.mark.parametrize("sampler", ["grid", "random", "tpe"])
def test_an_interruption_changes_no_number(swept, place, monkeypatch, sampler):
    values = {"sampler": sampler, "trials": 4, "train": {"epochs": 1}}
    swept("whole", **values)
    tell = Study.tell

    def killed_at(stop, after):
        calls = itertools.count(1)

        def told(self, *arguments):
            if next(calls) < stop:
                return tell(self, *arguments)
            if after:
                tell(self, *arguments)
            raise Killed

        return told

    with monkeypatch.context() as patched:
        patched.setattr(Study, "tell", killed_at(2, after=False))
        with pytest.raises(Killed):
            swept("cut", **values)
    with (place / "cut.part" / "study.journal").open("a") as file:
        file.write('{"op_code":')  # a write that did not end
    (place / "cut.part" / "study.journal.lock").symlink_to("study.journal")
    (place / "cut.part" / "study.journal.lock1f2e.rename").symlink_to("study.journal")
    (place / "cut.part" / ".trials.csv.x.part").touch()
    with monkeypatch.context() as patched:
        patched.setattr(Study, "tell", killed_at(1, after=True))
        with pytest.raises(Killed):
            sweep.resume(place / "cut")
    sweep.resume(place / "cut.part")
    pd.testing.assert_frame_equal(table(place / "cut"), table(place / "whole"))
    pd.testing.assert_frame_equal(table(place / "cut", "trainings"), table(place / "whole", "trainings"))
    assert {path.name for path in place.iterdir()} == {"cut", "whole"}
    names = [
        {str(path.relative_to(run)) for path in run.rglob("*")} for run in (place / "cut", place / "whole")
    ]
    assert names[0] == names[1]


def test_trainings_that_were_cut_off_go_on(swept, place, monkeypatch):
    """Two trials at a time: one is in the middle of its training when the sweep ends."""
    values = {"train": {"epochs": 12}, "lr": (0.001, 0.003, 0.01), "damping": (0.1,)}
    swept("whole", **values)

    def killed(self, *arguments):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Study, "tell", killed)
        with pytest.raises(Killed):
            swept("cut", jobs=2, **values)
    sweep.resume(place / "cut", {"jobs": 1})
    pd.testing.assert_frame_equal(table(place / "cut"), table(place / "whole"))


def test_random_points_lie_between_the_least_and_the_largest_value(swept, place):
    summary = swept(sampler="random", trials=5, lr=(1e-3, 1e-1), damping=(0.02, 0.2), train={"epochs": 1})
    rows = table(place / "s")
    assert len(rows) == summary["trials"] == 5
    assert rows.lr.between(1e-3, 1e-1).all()
    assert rows.damping.between(0.02, 0.2).all()
    assert rows.lr.nunique() == rows.damping.nunique() == 5


def test_a_process_that_ends_is_an_error_and_the_sweep_can_go_on(swept, place):
    with pytest.raises(FisherlabError, match=r"process of trial 0 has ended \(exit code 9\)"):
        swept(train={"model": "train.sweep_nets:ending", "optimizer": "sgd"}, damping=())
    assert (place / "s.part" / "config.toml").is_file()


@pytest.mark.parametrize(
    ("model", "kind", "words"),
    [
        ("failing", InputError, r"the model fails on inputs .*\(ZeroDivisionError: in the model\)"),
        ("unsaved", FisherlabError, "ZeroDivisionError: in the saving"),
    ],
)
def test_an_error_in_a_trial_names_it(swept, model, kind, words):
    with pytest.raises(FisherlabError, match=f"trial 0 has failed: {words}") as caught:
        swept(train={"model": f"train.sweep_nets:{model}", "optimizer": "sgd"}, damping=())
    assert caught.type is kind


def test_bad_input_leaves_nothing(swept, place):
    for train_values, words in (
        ({"model": "nowhere:mlp"}, "nowhere"),
        ({"optimizer": "sgd"}, "sgd has no damping"),
        ({"warm_up": 10_000}, "warm-up"),
        ({"options": {"rate": "none"}}, "rate"),
    ):
        with pytest.raises(InputError, match=words):
            swept(train=train_values)
    with pytest.raises(InputError, match="nothing is tested"):
        swept(by="test_loss")
    with pytest.raises(InputError, match="damping"):
        swept(train={"optimizer": "lngd"}, damping=(1e-7,))  # ν₂ below ν₁, which the optimizer refuses
    assert not list(place.glob("s*"))


def test_a_resumed_sweep_must_be_the_same(swept, place, monkeypatch):
    def killed(self, *arguments):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Study, "tell", killed)
        with pytest.raises(Killed):
            swept()
    for given, words in (
        ({"lr": (0.1,)}, r"lr is \[0.003, 0.03\] there, not \[0.1\]"),
        ({"train": {"batch": 8}}, "batch is 16 there, not 8"),
        ({"seeds": (1,)}, "seeds"),
        ({"trials": 2}, "trials is 4 there, not 2"),
    ):
        with pytest.raises(InputError, match=words):
            sweep.resume(place / "s", given)
    zeros = torch.zeros(70, 6), torch.zeros(70, dtype=torch.int64)
    with monkeypatch.context() as patched:
        patched.setattr(nets, "vectors", lambda: zeros)
        with pytest.raises(InputError, match="data have changed"):
            sweep.resume(place / "s")
    sweep.resume(place / "s", {"lr": (0.03, 0.003), "train": {"batch": 16}, "jobs": 2})
    with pytest.raises(InputError, match="has ended"):
        sweep.resume(place / "s")


def test_no_weights_are_kept_and_paths_are_final(swept, place):
    swept(lr=(0.01,), damping=(0.1,))
    assert not list((place / "s").rglob("*.safetensors"))
    folder = place / "s" / "trials" / "0000" / "seed-0"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["directory"] == str(folder)
    assert (folder / "log.jsonl").is_file()


def test_files_are_those_of_the_contract(place):
    sweep.run(config(lr=(0.01,), damping=(0.1,)), place / "s")
    names = {path.name for path in (place / "s").iterdir()}
    tables = {"trials.csv", "trainings.csv", "summary.json", "provenance.json"}
    assert names == tables | {
        *("config.toml", "best.toml", "study.journal", "trials", "sweep.png", "sweep.pdf")
    }
    stored = json.loads((place / "s" / "provenance.json").read_text())
    assert stored["checksum"]
    assert stored["checkpoint"] == {"name": "initial weights", "sha256": None, "step": 0}


def test_the_default_grids_are_those_of_the_paper():
    kfac = TrainConfig(**TRAIN).resolved()
    planned = SweepConfig(train=TRAIN).planned(kfac)
    assert (planned.lr, planned.damping, planned.trials) == (PAPER_LR, PAPER_DAMPING, 90)
    assert (PAPER_LR[0], PAPER_LR[-1], PAPER_DAMPING[:2], PAPER_DAMPING[-1]) == (1e-4, 3, (1e-6, 1e-4), 0.3)
    for optimizer in ("sgd", "lngd"):
        base = TrainConfig(**{**TRAIN, "optimizer": optimizer}).resolved()
        assert SweepConfig(train={**TRAIN, "optimizer": optimizer}).planned(base).damping == ()


def test_the_damping_of_lngd_is_its_second_one():
    base = TrainConfig(**{**TRAIN, "optimizer": "lngd", "damping": (1e-4, 0.5)}).resolved()
    planned = config({"optimizer": "lngd"}, damping=(1.0, 0.1)).planned(base)
    assert planned.point({"lr": 0.2, "damping": 0.1}, 7).damping == (1e-4, 0.1)
    assert planned.point({"lr": 0.2, "damping": 0.1}, 7).seed == 7


def test_a_planned_sweep_survives_its_file():
    planned = config().planned(TrainConfig(**TRAIN).resolved())
    assert SweepConfig.from_toml(planned.to_toml()) == planned
    assert planned.planned(planned.base().resolved()) == planned


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"lr": (0.1, 0.1)}, "twice"),
        ({"lr": (-0.1,)}, "above 0"),
        ({"damping": (math.inf,)}, "above 0"),
        ({"lr": ()}, "lr must be of at least 1 entries"),
        ({"seeds": ()}, "seeds must be of at least 1 entries"),
        ({"seeds": (-1,)}, "seeds must be"),
        ({"sampler": "tpe"}, "give --trials"),
        ({"sampler": "gird"}, "did you mean grid"),
        ({"by": "loss"}, "test_loss"),
        ({"trials": 0}, "trials must be at least 1"),
        ({"jobs": 0}, "jobs must be at least 1"),
        ({"train": {"lr": 0.1}}, "lr is the sweep's own"),
    ],
    ids=str,
)
def test_values_out_of_range(values, words):
    with pytest.raises(InputError, match=words):
        config(**values)
