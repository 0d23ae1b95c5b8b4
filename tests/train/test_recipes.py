"""Recipes: those of the paper by optimizer, and those measured here."""

import math
import re
from pathlib import Path

import pytest
import torch

from fisherlab.errors import InputError
from fisherlab.loop.schedules import Schedule
from fisherlab.train.config import TrainConfig
from fisherlab.train.recipes import RECIPES, with_recipe

SOAP = "pytorch_optimizer:SOAP"
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "training.md"


def made(recipe: str, **given) -> TrainConfig:
    return TrainConfig(**with_recipe(recipe, given))


@pytest.mark.parametrize(
    ("optimizer", "epochs", "schedule", "warm_up", "every"),
    [
        ("sgd", 80, "cosine", 5, None),
        ("adam", 80, "polynomial", 5, None),
        ("kfac", 50, "polynomial", 5, 500),
        ("lngd", 50, "polynomial", None, 500),
        ("lngd-sample", 50, "polynomial", None, 500),
    ],
)
def test_imagenet_is_the_protocol_of_the_paper(optimizer, epochs, schedule, warm_up, every):
    config = made("paper-imagenet", optimizer=optimizer)
    assert (config.model, config.data, config.batch) == ("resnet50", "imagenet", 256)
    assert (config.epochs, config.schedule, config.warm_up_epochs) == (epochs, schedule, warm_up)
    assert (config.statistics_every, config.inverse_every) == (every, every)
    assert config.weight_decay == 0.004
    assert config.options == ({} if every is None else {"decay": 0.95, "kl_clip": math.inf})
    assert config.momentum == (None if optimizer == "adam" else 0.9)


def test_wmt_has_the_schedules_of_imagenet_and_no_length():
    for optimizer in ("sgd", "adam", "kfac", "lngd"):
        wmt, imagenet = (made(name, optimizer=optimizer) for name in ("paper-wmt", "paper-imagenet"))
        assert (wmt.schedule, wmt.warm_up_epochs) == (imagenet.schedule, imagenet.warm_up_epochs)
        assert (wmt.data, wmt.epochs, wmt.statistics_every) == ("wmt", None, None)


def test_the_cosine_of_sgd_ends_where_the_papers_does():
    """lr_t = 0.001 + 0.5 (lr_0 − 0.001)(1 + cos(2 · 0.47 · π · t / max_epoch)) at t = 40 and 80 of 80."""
    schedule = Schedule(made("paper-imagenet", optimizer="sgd").schedule, 8000, 100)
    assert schedule.rate(4000, 1.0) == pytest.approx(0.001 + 0.5 * 0.999 * (1 + 0.0941083133), rel=1e-9)
    assert schedule.rate(8000, 1.0) == pytest.approx(0.001 + 0.5 * 0.999 * (1 - 0.9822872507), rel=1e-8)


def test_tuned_rates_are_the_measured_ones():
    rows = re.findall(r"^\| mnist-mlp \| ([a-z-]+) \| ([\d.]+) \|", RESULTS.read_text("utf-8"), re.MULTILINE)
    assert len(rows) >= 9
    for optimizer, lr in rows:
        config = made("tuned", optimizer={"soap": SOAP}.get(optimizer, optimizer))
        assert config.lr == float(lr)
        assert (config.warm_up, config.epochs, config.batch) == (118, 5, 256)
        assert config.damping == ((1e-5, 1.0) if optimizer.startswith("lngd") else None)


def test_tuned_leaves_muon_and_soap_what_is_their_own():
    for name in ("torch.optim.Muon", "muon") if hasattr(torch.optim, "Muon") else ():
        muon = made("tuned", optimizer=name)
        assert (muon.lr, muon.momentum, muon.options) == (0.03, 0.95, {"adjust_lr_fn": "match_rms_adamw"})
    soap = made("tuned", optimizer=SOAP, options={"precondition_frequency": 5})
    assert (soap.lr, soap.momentum, soap.options) == (0.03, None, {"precondition_frequency": 5})
    assert soap.resolved().weight_decay == 0.0


def test_tuned_knows_what_has_been_measured_and_nothing_else():
    with pytest.raises(InputError, match=r"measured on mnist-mlp only.*fisherlab sweep"):
        with_recipe("tuned", {"model": "cifar-cnn"})
    with pytest.raises(InputError, match="not with adamw"):
        with_recipe("tuned", {"optimizer": "adamw"})


@pytest.mark.parametrize("recipe", RECIPES)
def test_options_overrule_a_recipe(recipe):
    config = made(recipe, batch=7, steps=3, warm_up=2, options={"decay": 0.5})
    assert (config.batch, config.steps, config.warm_up) == (7, 3, 2)
    assert (config.epochs, config.warm_up_epochs) == (None, None)
    assert config.options == {"decay": 0.5, "kl_clip": math.inf}
