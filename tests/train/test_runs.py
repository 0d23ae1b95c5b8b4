"""What a run does: steps, evaluations, log, divergence, provenance."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from train import nets

from fisherlab.errors import InputError, NotSupportedError
from fisherlab.traces.recorder import Recorder
from fisherlab.train import DivergedError, TrainConfig, train
from fisherlab.train.optimizers import named_optimizers
from fisherlab.train.run.log import Log, read


def lines(run: Path, kind: str) -> list[dict]:
    return [line for line in read(run) if line["kind"] == kind]


def last_weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(sorted((run / "checkpoints").glob("step-*"))[-1])


@pytest.mark.parametrize("name", sorted(named_optimizers()))
def test_every_optimizer_trains_by_its_name(trained, place, name):
    summary = trained(optimizer=name, model="train.nets:deep", epochs=1)
    assert (summary["outcome"], summary["step"]) == ("finished", 5)
    before = load_file(place / "run" / "checkpoints" / "init.safetensors")
    assert any(not torch.equal(before[key], value) for key, value in last_weights(place / "run").items())


@pytest.mark.parametrize("name", ["lngd", "kfac", "adam"])
def test_training_learns(trained, name):
    settings = {"lngd": {"lr": 0.3, "max_rate": 1.0}, "kfac": {"lr": 0.1}, "adam": {"lr": 0.02}}[name]
    options = {"options": {"max_rate": settings.pop("max_rate")}} if "max_rate" in settings else {}
    assert trained(optimizer=name, epochs=15, **settings, **options)["train_loss"] < 0.6 < math.log(3)


def test_the_steps_are_those_of_a_plain_loop(trained, place):
    trained(optimizer="adam", lr=0.01, epochs=2, precision="64", schedule="polynomial", clip=0.5)
    torch.manual_seed(0)
    model, (inputs, targets), _ = nets.mlp()
    init = load_file(place / "run" / "checkpoints" / "init.safetensors")
    model.double().load_state_dict(init)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for epoch in range(2):
        order = torch.randperm(70, generator=generator)
        for at in range(5):
            chosen = order[16 * at : 16 * at + 16]
            optimizer.param_groups[0]["lr"] = 0.01 * (1 - (5 * epoch + at) / 10) ** 2
            loss = torch.nn.functional.cross_entropy(model(inputs[chosen].double()), targets[chosen])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            losses.append(float(loss.detach()))
    found = lines(place / "run", "step")
    assert [line["loss"] for line in found] == pytest.approx(losses, rel=1e-12)
    assert [line["lr"] for line in found] == pytest.approx([0.01 * (1 - s / 10) ** 2 for s in range(10)])
    for name, value in last_weights(place / "run").items():
        torch.testing.assert_close(value, model.state_dict()[name].data, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("model", ["mlp", "tokens"])
@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_accumulation_gives_the_steps_of_the_whole_batch(trained, place, model, name):
    common = {"model": f"train.nets:{model}", "optimizer": name, "lr": 0.01, "precision": "64"}
    trained("one", **common, batch=10)
    trained("five", **common, batch=10, accumulation=5)
    for key, value in last_weights(place / "one").items():
        torch.testing.assert_close(last_weights(place / "five")[key], value, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("model", "metric"),
    [
        ("mlp", "accuracy"),
        ("tokens", "perplexity"),
        ("pixels", "reconstruction_error"),
        ("numbers", "squared_error"),
    ],
)
def test_evaluations_are_logged_with_the_metric_of_the_likelihood(place, monkeypatch, model, metric):
    """The training samples take the part of a test set here."""
    from dataclasses import replace

    from fisherlab.train.run import training

    prepare = training.prepare
    monkeypatch.setattr(training, "prepare", lambda *a: replace(task := prepare(*a), test=task.train))
    config = TrainConfig(model=f"train.nets:{model}", optimizer="adam", epochs=3, batch=32)
    summary = train(config, place / "run")
    found = lines(place / "run", "evaluation")
    assert [round(line["epoch"]) for line in found] == [0, 1, 2, 3]
    assert summary["metric"] == metric
    assert found[-1][metric] == summary["value"]
    better = max if metric == "accuracy" else min
    assert summary["best"] == better(line[metric] for line in found)
    if metric == "perplexity":
        assert found[-1][metric] == pytest.approx(math.exp(found[-1]["test_loss"]))
    if metric == "squared_error":
        assert found[-1][metric] == pytest.approx(2 * found[-1]["test_loss"])


def test_layers_are_logged_for_our_own_optimizers(trained, place):
    trained(optimizer="lngd", diagnostics_every=3)
    found = lines(place / "run", "layers")
    assert [line["step"] for line in found] == [3, 6, 9]
    assert {row["layer"] for row in found[0]["layers"]} == {"0", "2"}
    assert all(row["rate"] > 0 for line in found for row in line["layers"])
    trained("other", optimizer="adam", diagnostics_every=3)
    assert not lines(place / "other", "layers")


@pytest.mark.parametrize("every", [None, 4])
@pytest.mark.parametrize("widest", [7, 8])
def test_wide_networks_log_rates_without_condition_numbers(trained, place, monkeypatch, widest, every):
    """The widest matrix has 8 rows; lines come every third step and at evaluations, or where asked for."""
    monkeypatch.setattr("fisherlab.train.run.trainer._WIDEST_DIAGNOSED", widest)
    monkeypatch.setattr("fisherlab.train.run.trainer._LAYERS_EVERY", 3)
    trained(optimizer="lngd", diagnostics_every=every)
    found = lines(place / "run", "layers")
    assert [line["step"] for line in found] == ([4, 8] if every else [3, 5, 6, 9, 10])
    rows = [row for line in found for row in line["layers"]]
    assert all(row["rate"] > 0 and row["trace_input"] > 0 for row in rows)
    assert {"condition" in row for row in rows} == {widest == 8 or every is not None}
    recorded = Recorder.from_log(found)
    assert recorded.frame["condition"].isna().all() == (widest == 7 and every is None)
    assert recorded.figure(caption="").axes


def test_seconds_grow_and_leave_evaluations_out(trained, place, monkeypatch):
    import time

    from fisherlab.train.run.trainer import Trainer

    evaluate = Trainer._evaluate
    monkeypatch.setattr(Trainer, "_evaluate", lambda self, log: (time.sleep(0.3), evaluate(self, log))[1])
    summary = trained(optimizer="sgd", epochs=3)
    seconds = [line["seconds"] for line in lines(place / "run", "step")]
    assert seconds == sorted(seconds)
    assert 0 < summary["seconds"] < 0.9


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optimizer": "sgd", "lr": 1e4}, "more than 10 times the first one|the loss is (nan|inf)"),
        ({"optimizer": "sgd", "lr": 1e30}, "the loss is (nan|inf)|more than 10 times"),
        ({"optimizer": "lngd", "lr": 1e25, "max_rate": None}, "diverged"),
    ],
    ids=["large", "not finite", "lngd"],
)
def test_divergence_ends_the_run_with_a_checkpoint(place, settings, words):
    settings = {key: value for key, value in settings.items() if value is not None}
    with pytest.raises(DivergedError, match=words) as caught:
        train(TrainConfig(model="train.nets:mlp", epochs=20, batch=16, **settings), place / "run")
    assert "lower the learning rate" in str(caught.value)
    assert str(place / "run") in str(caught.value)
    summary = json.loads((place / "run" / "summary.json").read_text())
    assert summary["outcome"] == "diverged"
    assert summary["step"] < summary["steps"]
    for path in summary["checkpoints"]:
        assert all(value.isfinite().all() for value in load_file(place / "run" / path).values())


def test_provenance_and_configuration_are_those_of_the_contract(trained, place):
    summary = trained(optimizer="kfac")
    found = json.loads((place / "run" / "provenance.json").read_text())
    keys = "versions, git, device, threads, seed, dataset, stand_in, checksum, checkpoint, seconds"
    assert set(found) == set(keys.split(", "))
    assert found["checkpoint"]["step"] == summary["step"] == 10
    assert summary == json.loads((place / "run" / "summary.json").read_text())
    assert summary["inputs"]["lr"] == 0.03
    assert summary["inputs"]["inverse_every"] == 10


def test_the_random_state_of_the_caller_stays(trained):
    torch.manual_seed(8)
    expected = torch.rand(3)
    torch.manual_seed(8)
    trained(model="train.nets:with_dropout", optimizer="sgd")
    assert torch.equal(torch.rand(3), expected)


def test_seeds_make_runs_what_they_are(trained, place):
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        trained(out, seed=seed, model="train.nets:with_dropout", optimizer="adam")
    a, b, c = (last_weights(place / out) for out in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], c[key]) for key in a)


def test_mixed_precision_keeps_weights_in_float32(trained, place):
    summary = trained(model="train.nets:images", optimizer="lngd", precision="bf16-mixed", epochs=1)
    assert summary["outcome"] == "finished"
    assert {value.dtype for value in last_weights(place / "run").values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optimizer": "lngdd"}, "did you mean lngd"),
        ({"optimizer": "adam", "momentum": 0.5}, "unknown option of adam 'momentum'"),
        ({"optimizer": "lngd", "options": {"rates": "fixed"}}, "did you mean rate"),
        ({"optimizer": "sgd", "lr": -1.0}, "sgd refuses its options"),
        ({"augment": ("flip",)}, "no images"),
        ({"augment": ("rotate",)}, "unknown augmentation"),
        ({"accumulation": 17}, "at least 17"),
        ({"model": "train.nets:bad_labels"}, "labels are 0 to 2"),
        ({"model": "train.nets:numbers", "label_smoothing": 0.1}, "label smoothing is for classes"),
        ({"test_split": "test"}, "no test split"),
        ({"warm_up": 1000}, "warm-up takes 1000 steps"),
        ({"model": "no-such"}, "unknown model"),
        ({"precision": "16"}, "unknown precision '16'; known: 32, 64"),
    ],
    ids=str,
)
def test_bad_input_is_one_sentence_and_leaves_nothing(trained, place, settings, words):
    with pytest.raises(InputError, match=words):
        trained(**settings)
    assert not list(place.glob("run*"))


def test_a_likelihood_without_a_loss_is_refused():
    from fisherlab.likelihoods import Gaussian
    from fisherlab.loop.objectives import objective

    class Own(Gaussian):
        name = "own"

    with pytest.raises(NotSupportedError, match="no loss for the likelihood 'own'"):
        objective(Own())


def test_memory_stays_flat(place, processes):
    settings = {"model": "train.nets:images", "optimizer": "lngd", "epochs": 80, "batch": 16}
    settings |= {"augment": ("crop", "flip"), "accumulation": 2, "checkpoint_every": 20}
    answers = processes.Queue()
    process = processes.Process(target=nets.memory_of_steps, args=(str(place), settings, (100, 400), answers))
    process.start()
    early, late = answers.get(timeout=120)
    process.join()
    assert late - early < 4 * 2**20


def test_the_log_drops_later_steps_and_cut_lines(place):
    whole = [{"kind": "step", "step": step, "loss": float("nan")} for step in range(5)]
    log = Log(place, 0)
    for line in whole:
        log.write(line)
    log.close()
    with (place / "log.jsonl").open("a") as file:
        file.write('{"kind": "step", "st')
    Log(place, 2).close()
    assert [(line["step"], line["loss"]) for line in read(place)] == [(0, None), (1, None), (2, None)]


@pytest.mark.parametrize(("batch", "said"), [(70, False), (71, True), (256, True)])
def test_a_batch_above_the_data_is_all_of_them_and_said(place, caplog, batch, said):
    with caplog.at_level("INFO", logger="fisherlab"):
        summary = train(TrainConfig(model="train.nets:mlp", epochs=2, batch=batch), place / "run")
    assert summary["steps"] == 2
    assert ("takes all 70 samples" in caplog.text) == said
