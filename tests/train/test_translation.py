"""Training for translation: BLEU, tokens that count, one matrix for embedding and output, files."""

import csv
import json
import logging
import math
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fisherlab import datasets, find_layers, models
from fisherlab.errors import InputError
from fisherlab.loop.objectives import objective
from fisherlab.loop.samples import Samples
from fisherlab.models.preprocess import IGNORED, next_tokens, text_pairs
from fisherlab.train import TrainConfig, resume, train
from fisherlab.train.run.log import read
from fisherlab.train.task.bleu import bleu
from fisherlab.train.task.translation import Interpreter

pytest.importorskip("sacrebleu")
SMALL = {"model": "transformer-small", "data": "wmt", "samples": 48, "batch": 12, "eval_samples": 8}


@pytest.fixture(autouse=True)
def few_held_out_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fisherlab.datasets.sources.synthetic._OTHER", 50)


def evaluations(run: Path) -> list[dict]:
    return [line for line in read(run) if line["kind"] == "evaluation"]


def held_out(samples: int = 40) -> Samples:
    data = datasets.load("wmt", "test", samples=samples)
    return Samples(text_pairs(data), next_tokens(data), data)


# --- BLEU -----------------------------------------------------------------------------------------


def test_bleu_of_a_beginning_is_its_brevity_penalty() -> None:
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
    assert bleu(["A man runs over the street."], ["A man runs over the street."]).value == pytest.approx(100)
    found = bleu([" ".join(words[:5])], [" ".join(words)])
    assert found.value == pytest.approx(100 * math.exp(1 - 8 / 5))  # every n-gram is right
    assert "case:mixed" in found.signature
    assert "version:" in found.signature


def test_bleu_without_its_package_is_one_sentence(trained, place, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(InputError, match=r"pip install 'fisherlab\[text\]'") as caught:
        trained(**SMALL, steps=1, epochs=None)
    assert "\n" not in str(caught.value)
    assert not list(place.glob("run*"))
    summary = trained(**SMALL | {"eval_samples": 0}, steps=1, epochs=None)
    assert summary["bleu"] is None
    assert all("bleu" not in line for line in evaluations(place / "run"))


class Knowing(nn.Module):
    """Translates by heart: its memory is the target, a vector a token."""

    def __init__(self, samples: Samples) -> None:
        super().__init__()
        self.anything = nn.Parameter(torch.zeros(()))
        self.output = nn.Identity()
        sources = samples.inputs[0].tolist()
        self._known = {tuple(filter(None, s)): t for s, t in zip(sources, samples.targets, strict=True)}

    def encode(self, source: Tensor) -> Tensor:
        targets = torch.stack([self._known[tuple(filter(None, row))] for row in source.tolist()])
        return 30 * nn.functional.one_hot(targets.clamp(min=0), 200).float()

    def decode(self, target: Tensor, memory: Tensor, padded: Tensor) -> Tensor:
        return memory[:, : target.shape[1]]


def test_a_model_that_knows_the_targets_has_a_bleu_of_100() -> None:
    samples = held_out()
    interpreter = Interpreter.of(Knowing(samples), samples, 7)
    assert interpreter is not None
    found = interpreter.translated(interpreter.every)
    assert found.translations == found.references == samples.dataset.references
    assert found.bleu.value == pytest.approx(100)
    some = interpreter.translated(interpreter.some, beam=3)
    assert some.references == tuple(samples.dataset.references[place] for place in interpreter.some.tolist())
    assert (len(some.translations), some.beam, some.translations) == (7, 3, some.references)
    assert max(map(abs, some.log_probabilities)) < 1e-6


def test_other_models_and_other_data_are_not_translated() -> None:
    samples = held_out(4)
    assert Interpreter.of(nn.Linear(2, 2), samples, 3) is None
    assert Interpreter.of(Knowing(samples), None, 3) is None
    assert Interpreter.of(Knowing(samples), samples, 0) is None


def test_a_run_keeps_bleu_its_signature_and_the_translations(trained, place) -> None:
    summary = trained(**SMALL, optimizer="adam", lr=0.01, epochs=1, evaluate_every=0.5)
    lines = evaluations(place / "run")
    assert [line["step"] for line in lines] == [0, 2, 4]
    assert all(0 <= line["bleu"] <= 100 and line["bleu_sentences"] == 8 for line in lines)
    found = summary["bleu"]
    assert found["signature"] == lines[0]["bleu_signature"]
    assert found["at_evaluations"]["best"] == max(line["bleu"] for line in lines)
    assert found["at_evaluations"]["last"] == lines[-1]["bleu"]
    with (place / "run" / "translations.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == found["sentences"] == 50
    again = bleu([row["translation"] for row in rows], [row["reference"] for row in rows])
    assert again.value == pytest.approx(found["value"])
    assert json.loads((place / "run" / "summary.json").read_text())["bleu"] == found


def test_bleu_goes_on_after_an_interruption(trained, place) -> None:
    settings = {**SMALL, "optimizer": "sgd", "lr": 0.3, "epochs": 1, "checkpoint_every": 1}
    whole = trained("whole", **settings)

    def stop(progress, _):
        if progress.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(TrainConfig(**settings), place / "cut", report=stop)
    assert resume(place / "cut")["bleu"] == whole["bleu"]


# --- tokens ---------------------------------------------------------------------------------------


def test_label_smoothing_of_tokens_leaves_padding_out() -> None:
    own = objective("token-categorical", 0.2)
    outputs = torch.randn(2, 3, 5, dtype=torch.float64)
    targets = torch.tensor([[1, 4, IGNORED], [2, IGNORED, IGNORED]])
    logs = outputs.log_softmax(-1)
    kept = [(0, 0, 1), (0, 1, 4), (1, 0, 2)]
    expected = -sum(0.8 * logs[i, t, y] + 0.2 * logs[i, t].mean() for i, t, y in kept)
    assert float(own.total(outputs, targets, own.smoothing)) == pytest.approx(float(expected))
    assert own.count(targets) == 3


def test_the_loss_is_the_mean_over_tokens_and_perplexity_its_exponential(trained, place) -> None:
    trained(**SMALL | {"batch": 48, "eval_samples": 0}, optimizer="sgd", steps=1, epochs=None)
    data = datasets.load("wmt", samples=48)
    model = models.spec("transformer-small").build_for(data)
    model.load_state_dict(load_file(place / "run" / "checkpoints" / "init.safetensors"))
    logits = model.eval()(*text_pairs(data)).log_softmax(-1)
    counted = data.targets != data.padding
    expected = -float(logits.gather(2, data.targets[..., None])[..., 0][counted].mean().detach())
    first = next(line for line in read(place / "run") if line["kind"] == "step")
    assert first["loss"] == pytest.approx(expected, rel=1e-5)
    line = evaluations(place / "run")[-1]
    assert line["perplexity"] == pytest.approx(math.exp(line["test_loss"]))


@pytest.mark.parametrize("schedule", ["cosine", "polynomial", "step"])
def test_smoothing_and_schedules_serve_text(trained, place, schedule) -> None:
    settings = SMALL | {"eval_samples": 0, "optimizer": "adam", "lr": 0.003, "warm_up": 2}
    summary = trained(**settings, epochs=3, schedule=schedule, label_smoothing=0.1, clip=1.0)
    losses = [line["loss"] for line in read(place / "run") if line["kind"] == "step"]
    assert losses[-1] < losses[0] - 0.3
    rates = [line["lr"] for line in read(place / "run") if line["kind"] == "step"]
    assert rates[0] == pytest.approx(0.0015)
    assert summary["test_loss"] < math.log(200) + 0.5


# --- one matrix -----------------------------------------------------------------------------------

TIED = SMALL | {"model": "transformer-small-tied", "eval_samples": 0, "test_split": "none"}


@pytest.mark.parametrize(
    ("optimizer", "lr"), [("lngd", 0.003), ("kfac", 0.003), ("sgd", 0.1), ("adam", 0.003)]
)
def test_optimizers_train_a_tied_matrix(trained, place, optimizer, lr) -> None:
    options = {"options": {"other_lr": 0.1}} if optimizer in ("lngd", "kfac") else {}
    trained(**TIED, optimizer=optimizer, lr=lr, epochs=3, **options)
    folder = place / "run" / "checkpoints"
    before = load_file(folder / "init.safetensors")
    after = load_file(sorted(folder.glob("step-*"))[-1])
    assert torch.equal(after["output.weight"], after["embedding.weight"])
    assert not torch.equal(after["output.weight"], before["output.weight"])
    losses = [line["loss"] for line in read(place / "run") if line["kind"] == "step"]
    assert sum(losses[-3:]) < sum(losses[:3])


def test_the_tied_matrix_is_one_block_and_the_coverage_says_so() -> None:
    model = models.spec("transformer-small-tied").build()
    assert model.output.weight is model.embedding.weight
    coverage = find_layers(model).coverage().set_index("parameter")
    assert coverage["covered"].all()
    expected = "tied between embedding.weight (Embedding) and output.weight (Linear)"
    assert coverage.loc["embedding.weight", "reason"] == expected
    assert models.spec("transformer-small").build().output.weight.shape == model.output.weight.shape


# --- files ----------------------------------------------------------------------------------------


def test_two_parallel_files_are_trained_on(trained, place, caplog) -> None:
    pytest.importorskip("tokenizers")
    folder = place / "mine"
    folder.mkdir()
    english, german = (
        ["a red dog .", "the blue cat runs ."] * 20,
        ["ein roter Hund .", "die Katze läuft ."] * 20,
    )
    for split, count in (("train", 40), ("valid", 6)):
        (folder / f"{split}.en").write_text("\n".join(english[:count]) + "\n")
        (folder / f"{split}.de").write_text("\n".join(german[:count]) + "\n")
    settings = {"model": "transformer-small", "data": "wmt", "data_dir": str(folder), "batch": 8}
    with caplog.at_level(logging.WARNING, logger="fisherlab"):
        summary = trained(**settings, optimizer="adam", lr=0.003, epochs=8)
    assert "'val' is evaluated in its place" in caplog.text
    assert (summary["dataset"], summary["samples"], summary["test"]) == ("wmt", 40, "wmt, val")
    assert summary["bleu"]["value"] > 90  # the same sentences as in training
    with (place / "run" / "translations.csv").open(newline="") as file:
        assert {row["reference"] for row in csv.DictReader(file)} == set(german[:2])


def test_files_of_different_lengths_are_refused(trained, place) -> None:
    pytest.importorskip("tokenizers")
    for split in ("train", "test"):
        (place / f"{split}.en").write_text("a dog\na cat\n")
        (place / f"{split}.de").write_text("ein Hund\n")
    with pytest.raises(InputError, match="has 2 lines and"):
        trained(model="transformer-small", data="wmt", data_dir=str(place))
