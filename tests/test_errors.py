"""Arguments that are given wrongly: each is one sentence of a fisherlab error."""

import numpy as np
import pytest
import torch
from torch import nn

import fisherlab as fl
from fisherlab.errors import FisherlabError, InputError, InputTypeError, known_name, unknown
from fisherlab.operators import DenseOperator

DATA = torch.randn(6, 3), torch.arange(6) % 2
NO_NAMES = [1, True, 2.5, None, b"kfac", ["kfac"], {"a": 1}, {"kfac"}, np.array(["kfac", "x"]), torch.ones(2)]


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


@pytest.mark.parametrize("name", NO_NAMES, ids=lambda name: type(name).__name__)
def test_what_is_no_name_is_refused_as_such(name):
    with pytest.raises(InputTypeError, match=rf"the kind is given by name, not as {type(name).__name__}; "):
        known_name("kind", name, ("one", "two"))
    error = unknown("method", name, {"one": 1})
    assert isinstance(error, InputTypeError)
    assert str(error) == f"the method is given by name, not as {type(name).__name__}; known: one."


def test_known_and_unknown_names():
    assert known_name("kind", "one", ("one", "two")) == "one"
    with pytest.raises(InputError, match="unknown kind 'onn'; did you mean one"):
        known_name("kind", "onn", ("one", "two"))
    with pytest.raises(InputError, match="unknown kind '1'; known: one, two"):
        known_name("kind", "1", ("one", "two"))


CALLS = {
    "kind": lambda name: fl.exact_fisher(model(), DATA, kind=name),
    "bias": lambda name: fl.exact_fisher(model(), DATA, bias=name),
    "method": lambda name: fl.exact_fisher(model(), DATA, method=name),
    "likelihood": lambda name: fl.exact_fisher(model(), DATA, likelihood=name),
    "approximation": lambda name: fl.approximate(name, model(), DATA),
    "vec": lambda name: DenseOperator(torch.eye(2), 2, 1).dense(name),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", [1, False, None, ["kfac"]], ids=["number", "bool", "none", "list"])
def test_names_of_public_functions(call, name):
    with pytest.raises(FisherlabError) as caught:
        CALLS[call](name)
    assert isinstance(caught.value, TypeError)


def test_an_activation_and_a_preconditioner_by_another_thing_than_a_name():
    with pytest.raises(InputTypeError, match=r"activations must be a mapping of strings to strings or None"):
        fl.find_layers(model(), activations={"0": 3})
    with pytest.raises(InputTypeError, match="method must be a string, not None"):
        fl.optim.Preconditioner(model(), None)


def test_a_class_in_the_place_of_a_likelihood():
    with pytest.raises(InputTypeError, match="or a Likelihood, not the class Gaussian"):
        fl.exact_fisher(model(), DATA, likelihood=fl.likelihoods.Gaussian)


@pytest.mark.parametrize("index", ["0", 1.5, None, True])
def test_an_ignored_index_that_is_no_whole_number(index):
    with pytest.raises(InputTypeError, match="ignore_index must be a whole number"):
        fl.likelihoods.TokenCategorical(ignore_index=index)


# --- numbers, paths and objects -----------------------------------------------------------------------


NUMBERS = {
    "draws": lambda n: fl.exact_fisher(model(), DATA, kind="monte-carlo", draws=n),
    "max_columns": lambda n: fl.exact_fisher(model(), DATA, max_columns=n),
    "max_columns is": lambda n: fl.compare(model(), DATA, max_columns=n),
    "batch_dim": lambda n: fl.exact_fisher(model(), DATA, batch_dim=n),
    "seed": lambda n: fl.models.load("mnist-mlp", samples=4, seed=n),
}


@pytest.mark.parametrize("call", NUMBERS)
@pytest.mark.parametrize("value", ["x", 1.5, True, None], ids=["text", "fraction", "bool", "none"])
def test_whole_numbers_of_public_functions(call, value):
    with pytest.raises(InputTypeError, match=f"{call.removesuffix(' is')} must be a whole number, not "):
        NUMBERS[call](value)


def test_a_number_of_samples_that_is_none():
    data = fl.models.load("mnist-mlp", samples=4).data.dataset
    for value in ("x", 1.5, True):
        with pytest.raises(InputTypeError, match="samples must be a whole number"):
            data.subset(value)


def test_a_dimension_that_the_data_do_not_have():
    with pytest.raises(InputError, match=r"without a dimension 7 that counts samples; .* another batch_dim"):
        fl.exact_fisher(model(), DATA, batch_dim=7)


def test_a_generator_that_is_none():
    with pytest.raises(InputTypeError, match=r"a torch.Generator or None, not 3; .*manual_seed"):
        fl.exact_fisher(model(), DATA, kind="monte-carlo", generator=3)


@pytest.mark.parametrize("value", [3, None, 2.5], ids=["number", "none", "fraction"])
@pytest.mark.parametrize("call", [fl.compare, fl.collect_statistics])
def test_approximations_that_are_no_names(call, value):
    with pytest.raises(
        InputTypeError,
        match="approximations must be strings or Approximations, a string or ",
    ):
        call(model(), DATA, approximations=value)


PATHS = {
    "path": fl.load_statistics,
    "path is": lambda path: fl.collect_statistics(model(), DATA, path=path or 3),
    "checkpoint": lambda path: fl.models.load("mnist-mlp", samples=4, checkpoint=path or 3),
    "data_dir": lambda path: fl.models.load("mnist-mlp", samples=4, data_dir=path or 3),
}


@pytest.mark.parametrize("call", PATHS)
@pytest.mark.parametrize("value", [None, 3, ["a"]], ids=["none", "number", "list"])
def test_paths_that_are_none(call, value):
    with pytest.raises(
        InputTypeError, match=f"{call.removesuffix(' is')} must be a string(,| or) a path.*, not "
    ):
        PATHS[call](value)


def test_statistics_that_are_none(tmp_path):
    statistics = fl.collect_statistics(model(), DATA)
    with pytest.raises(InputTypeError, match="path must be a string or a path, not None"):
        statistics.save(None)
    for call in (lambda: statistics + 3, lambda: fl.compare(model(), DATA, statistics="kept.safetensors")):
        with pytest.raises(
            InputTypeError,
            match=r"no statistics but int|must be a Statistics or None",
        ):
            call()


def test_models_and_their_dtype_by_another_thing_than_a_name():
    with pytest.raises(InputTypeError, match="name must be a string, not 3"):
        fl.models.load(3)
    for dtype in ("float64", 3, torch.int64):
        with pytest.raises(
            InputTypeError,
            match=r"dtype (must be a torch.dtype|is one of real numbers)",
        ):
            fl.models.load("mnist-mlp", samples=4, dtype=dtype)


@pytest.mark.parametrize("call", [fl.exact_fisher, fl.compare, fl.collect_statistics])
def test_layers_of_another_model(call):
    own = model()
    assert call(own, DATA, layers=fl.find_layers(own))
    with pytest.raises(InputError, match=r"'0' was found on another model; give layers=find_layers\(model\)"):
        call(model(), DATA, layers=fl.find_layers(own))
    with pytest.raises(InputError, match="'0' was found on another model"):  # whose weights have other names
        call(nn.Sequential(own), DATA, layers=fl.find_layers(own))
    with pytest.raises(InputTypeError, match=r"model must be a torch.nn.Module, not 3"):
        call(3, DATA, layers=fl.find_layers(own))


class Pairs(nn.Sequential):
    def forward(self, x):
        if len(x) < 2:
            raise ValueError("no single samples")
        return super().forward(x)


class Squeezed(nn.Sequential):
    def forward(self, x):
        return super().forward(x).squeeze(0)


@pytest.mark.parametrize("kind", [Pairs, Squeezed])
def test_a_model_that_fails_for_single_samples(kind):
    pairs = kind(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    assert list(fl.exact_fisher(pairs, DATA)) == ["0", "2"]
    with pytest.raises(InputError, match=r"cannot be called with one sample alone .* use another method"):
        fl.exact_fisher(pairs, DATA, method="per-sample")
