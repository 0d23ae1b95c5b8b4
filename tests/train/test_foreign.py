"""Optimizers by their import names: what they are given, what is refused, and Muon's matrices."""

import json
import logging
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from train import nets

from fisherlab.errors import InputError, InputTypeError
from fisherlab.train import TrainConfig, resume, sweep
from fisherlab.train.matrices import MatricesBesideAdamW, split
from fisherlab.train.optimizers import all_options, create, named_optimizer
from fisherlab.train.sweep.config import SweepConfig
from fisherlab.train.sweep.trials import _trained

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch before 2.9")
SOAP = "pytorch_optimizer:SOAP"


def made(name: str, model: nn.Module, inputs: torch.Tensor, **options) -> torch.optim.Optimizer:
    return create(name, model, options, likelihood="categorical", seed=0, inputs=inputs[:2])


# --- which matrices ------------------------------------------------------------------------------


class Attention(nn.Module):
    """Positions beside an embedding, a layer that is used without a call, a tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 7, bias=False)  # the last one called is the first one named
        self.embedding = nn.Embedding(7, 4)
        self.position = nn.Parameter(torch.zeros(6, 4))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.inner = nn.Linear(4, 4)
        self.head.weight = self.embedding.weight

    def forward(self, text):
        x = self.embedding(text) + self.position
        return self.head(self.inner(x + self.attention(x, x, x, need_weights=False)[0]))


def test_hidden_matrices_are_neither_embeddings_nor_first_nor_last():
    text = torch.zeros(2, 6, dtype=torch.long)
    matrices, others = split(Attention(), text, "Muon")
    assert matrices == ["attention.in_proj_weight", "attention.out_proj.weight", "inner.weight"]
    assert {"position", "head.weight", "inner.bias"} <= set(others)
    filters, _, _ = nets.filters()
    assert split(filters, torch.zeros(2, 2, 8, 8), "Muon")[0] == ["3.weight"]
    frozen, (inputs, _), _ = nets.deep()
    frozen[0].requires_grad_(False)
    assert split(frozen, inputs, "Muon") == (["2.weight"], ["2.bias", "4.weight", "4.bias"])
    with pytest.raises(InputError, match=r"Muon takes .* hidden layers, and the model has none"):
        split(nets.mlp()[0], nets.vectors()[0], "Muon")


def test_layers_that_are_called_in_evaluation_by_no_module_of_their_own():
    block = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    model = nn.Sequential(nn.Linear(4, 4), block, nn.Linear(4, 2))
    expected = ["1.self_attn.in_proj_weight", "1.self_attn.out_proj.weight", "1.linear1.weight"]
    assert split(model, torch.zeros(2, 3, 4), "Muon")[0] == [*expected, "1.linear2.weight"]


def test_the_look_leaves_the_model_as_it_was():
    model, (inputs, _), _ = nets.filters()
    model[1].eval()
    before, modes = deepcopy(model.state_dict()), [module.training for module in model.modules()]
    split(model, inputs, "Muon")
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_layers_of_charlm():
    from fisherlab import models

    model, (inputs, _), _ = models.load("charlm", samples=2)
    matrices, others = split(model, inputs, "Muon")
    own = {key for key, p in model.named_parameters() if p.dim() == 2}
    assert set(matrices) == {key for key in own if "blocks" in key}
    assert own - set(matrices) <= set(others)


# --- steps ---------------------------------------------------------------------------------------


def gradients(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> None:
    model.zero_grad()
    cross_entropy(model(inputs), targets).backward()


@needs_muon
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_steps_are_those_of_muon_on_the_filters_and_adamw_on_the_rest(layout):
    model, (inputs, targets), _ = nets.filters()
    model = model.to(memory_format=layout)
    other = deepcopy(model)
    optimizer = made("torch.optim.Muon", model, inputs, lr=0.02, weight_decay=0.1, ns_steps=4, other_lr=0.003)
    matrix = nn.Parameter(other[3].weight.detach().flatten(1).clone())
    rest = [p for p in other.parameters() if p is not other[3].weight]
    pair = (
        torch.optim.Muon([matrix], lr=0.02, weight_decay=0.1, ns_steps=4),
        torch.optim.AdamW(rest, lr=0.003, weight_decay=0.1),
    )
    for _ in range(3):
        gradients(model, inputs, targets)
        gradients(other, inputs, targets)
        optimizer.step()
        matrix.grad = other[3].weight.grad.flatten(1)
        for one in pair:
            one.step()
        other[3].weight.data.copy_(matrix.data.view(3, 4, 3, 3))
        assert model[3].weight.grad.shape == (3, 4, 3, 3)
        for one, its in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(one, its, rtol=0, atol=0)


def test_groups_are_those_of_both_before_and_after_loading():
    model, (inputs, targets), _ = nets.deep()
    optimizer = made("train.outside:OfMatrices", model, inputs, lr=0.1)
    assert isinstance(optimizer, MatricesBesideAdamW)
    gradients(model, inputs, targets)
    optimizer.step()
    optimizer.load_state_dict(deepcopy(optimizer.state_dict()))
    found = [p for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, found)) == sorted(map(id, model.parameters()))
    before = deepcopy(model.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    moved = [key for key, value in model.state_dict().items() if not torch.equal(before[key], value)]
    assert moved == ["2.weight"]


def test_a_failed_step_leaves_filters_in_their_shape():
    model, (inputs, targets), _ = nets.filters()
    optimizer = made("train.outside:OfMatrices", model, inputs, lr=0.1)
    gradients(model, inputs, targets)
    optimizer.parts[0].step = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        optimizer.step()
    assert model[3].weight.shape == model[3].weight.grad.shape == (3, 4, 3, 3)


def test_one_of_all_parameters_takes_its_own_steps():
    model, (inputs, targets), _ = nets.images()
    other = deepcopy(model)
    import pytorch_optimizer

    pair = (made(SOAP, model, inputs, lr=0.01), pytorch_optimizer.SOAP(other.parameters(), lr=0.01))
    for _ in range(3):
        for network, optimizer in zip((model, other), pair, strict=True):
            gradients(network, inputs, targets)
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


# --- what it is told -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        (
            "train.outside:Plain",
            {"sgin": True},
            "unknown option of train.outside:Plain 'sgin'; did you mean sign",
        ),
        ("train.outside:HandsOn", {"nope": 1}, "known: dampening, .*extra, .*nesterov, weight_decay"),
        ("train.outside:Plain", {"other_lr": 0.1}, "unknown option"),
        ("train.outside:OfMatrices", {"other_lr": 0.0}, "other_lr must be finite and above 0"),
        ("train.outside.Nothing", {}, "unknown optimizer of train.outside 'Nothing'"),
        ("train.missing:Plain", {}, "the module 'train.missing' cannot be imported"),
        ("train.outside:function", {}, "is a function, not a class that derives from torch.optim.Optimizer"),
        ("torch.nn:Linear", {}, "is the class Linear, not a class"),
        ("torch.optim.Optimizer", {}, "is the base of optimizers"),
        (":Plain", {}, "not of the form package.module:optimizer"),
    ],
)
def test_refused_before_anything_is_loaded(name, given, message):
    with pytest.raises(InputError, match=message):
        all_options(name, given)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("train.outside:Plain", {"sign": 1}, "sign must be True or False, not 1"),
        ("train.outside:Plain", {"power": "x"}, "power must be a number, not 'x'"),
        (SOAP, {"betas": 0.9}, "betas must be a tuple of"),
        (SOAP, {"data_format": "nchw"}, "must be 'channels_first' or 'channels_last', not 'nchw'"),
        ("adam", {"amsgrad": "yes"}, "amsgrad must be True or False, not 'yes'"),
    ],
)
def test_another_type_is_refused(name, given, message):
    with pytest.raises(InputTypeError, match=message):
        all_options(name, given)


def test_numbers_as_they_are_written():
    assert all_options("train.outside:Plain", {"lr": 0.5, "power": 2})["lr"] == 0.5  # its default is 1
    assert all_options(SOAP, {"betas": [0.9, 0.99]})["betas"] == (0.9, 0.99)  # as config.toml gives it back
    assert all_options("train.outside:OfMatrices", {})["other_lr"] is None
    assert all_options("train.outside:HandsOn", {"nesterov": True})["extra"] == 1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("torch.optim:LBFGS", {}, "needs a closure"),
        ("torch.optim.SparseAdam", {}, "cannot take a plain step"),
        ("train.outside:WithoutDefault", {"lr": 0.1}, "has no default for width; give --set width=VALUE"),
        ("train.outside:WithoutDefault", {"width": 1}, "has no default for lr; give --lr X"),
        ("train.outside:WithoutRate", {}, "keeps no learning rate"),
        ("train.outside:Strange", {}, "cannot be resumed: the state holds a object"),
        ("train.outside:Averaged", {}, "other weights in evaluation"),
        ("sgd", {"lr": -1.0}, "sgd refuses its options"),
    ],
)
def test_refused_in_one_sentence(name, options, message):
    model, (inputs, _), _ = nets.mlp()
    with pytest.raises(InputError, match=message) as caught:
        made(name, model, inputs, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["__init__", "step"])
@pytest.mark.parametrize("dimensions", [(1, 2), (1,)])
def test_one_that_ends_the_process_is_refused(method, dimensions):
    def ends(*arguments, **options):
        raise SystemExit(3)

    kind = type("Ending", (torch.optim.SGD,), {method: ends})
    chosen = replace(named_optimizer("torch.optim.SGD"), make=kind)
    assert not chosen.takes_matrices_only({"lr": 0.1})
    with pytest.raises(InputError, match=r"(refuses a list of parameters|take a plain step).*SystemExit: 3"):
        chosen.check_steps(dimensions, {"lr": 0.1}, torch.device("cpu"))


def test_an_older_pytorch_says_which_has_it(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(InputError, match=r"PyTorch has torch.optim.Muon from version 2.9, and this is"):
        named_optimizer("torch.optim.Muon")


def test_the_trial_draws_nothing_and_warns_of_what_is_forgotten(caplog):
    model, (inputs, _), _ = nets.mlp()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with caplog.at_level(logging.WARNING, "fisherlab"):
        for name in ("train.outside:Noisy", SOAP, "adam", "sgd"):
            made(name, model, inputs)
        assert not caplog.records
        made("train.outside:Forgetful", model, inputs)
    assert "does not keep all" in caplog.text
    assert torch.equal(torch.get_rng_state(), before)


# --- runs ----------------------------------------------------------------------------------------


@needs_muon
def test_the_record_says_what_each_group_got(trained, place):
    trained(optimizer="torch.optim.Muon", model="train.nets:deep", lr=0.02, options={"other_lr": 0.003})
    found = json.loads((place / "run" / "summary.json").read_text())["optimizer"]
    assert found["class"].startswith("torch.optim.")
    assert (found["class"].endswith(".Muon"), found["package"]) == (True, "torch")
    assert found["version"] == torch.__version__ or found["version"] == torch.__version__.partition("+")[0]
    muon, adamw = found["groups"]
    assert (muon["optimizer"], muon["lr"], muon["parameters"]) == ("Muon", 0.02, ["2.weight"])
    assert (adamw["optimizer"], adamw["lr"], len(adamw["parameters"])) == ("AdamW", 0.003, 5)


def test_both_learning_rates_follow_the_schedule(trained, monkeypatch):
    rates = []
    step = MatricesBesideAdamW.step

    def noted(self, closure=None):
        rates.append([group["lr"] for group in self.param_groups])
        return step(self)

    monkeypatch.setattr(MatricesBesideAdamW, "step", noted)
    given = {"optimizer": "train.outside:OfMatrices", "lr": 0.1, "options": {"other_lr": 0.01}}
    trained(**given, model="train.nets:deep", schedule="polynomial", power=1.0, epochs=1)
    factors = torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2]).double()
    torch.testing.assert_close(
        torch.tensor(rates).double(), factors.outer(torch.tensor([0.1, 0.01]).double())
    )


def test_a_class_of_fisherlab_is_given_the_model(trained):
    assert (
        trained(optimizer="train.outside:Natural", lr=0.03, options={"rate": "fixed"})["outcome"]
        == "finished"
    )


def test_resumed_with_the_same_options_said_again(place, trained):
    class Killed(BaseException):
        pass

    def kill(progress, steps):
        if progress.step == 2:
            raise Killed

    from fisherlab.train import train

    given = {"optimizer": SOAP, "options": {"betas": (0.9, 0.99)}}
    config = TrainConfig(model="train.nets:mlp", epochs=1, batch=16, checkpoint_every=1, **given)
    with pytest.raises(Killed):
        train(config, place / "cut", report=kill)
    with pytest.raises(InputError, match="options is"):
        resume(place / "cut", {**given, "options": {"betas": (0.8, 0.99)}})
    assert resume(place / "cut", given)["outcome"] == "finished"


def test_a_sweep_of_an_import_name(place, monkeypatch):
    def here(trials, at_once, done):
        for trial in trials:
            assert all(map(_trained, trial.configs, trial.folders))
            done(trial)

    monkeypatch.setattr("fisherlab.plots.save", lambda *arguments: None)
    monkeypatch.setattr("fisherlab.train.sweep.sweeping.train_trials", here)
    train = {
        "model": "train.nets:deep",
        "optimizer": "train.outside:WithoutDefault",
        "epochs": 1,
        "batch": 16,
    }
    config = SweepConfig(train={**train, "options": {"width": 2}}, lr=(0.01, 0.1))
    assert sweep.run(config, place / "s")["best"]["lr"] in (0.01, 0.1)
    names = {path.name for path in (place / "s").rglob("*")}
    assert not any(":" in name or "outside" in name for name in names)
