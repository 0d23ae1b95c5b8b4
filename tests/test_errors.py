"""Names that are given wrongly: each is one sentence of a fisherlab error."""

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
    with pytest.raises(InputTypeError, match="the activation is given by name, not as int"):
        fl.find_layers(model(), activations={"0": 3})
    with pytest.raises(InputTypeError, match="the method is given by name, not as NoneType"):
        fl.optim.Preconditioner(model(), None)


def test_a_class_in_the_place_of_a_likelihood():
    with pytest.raises(InputTypeError, match=r"the class Gaussian; give an instance, Gaussian\(\)"):
        fl.exact_fisher(model(), DATA, likelihood=fl.likelihoods.Gaussian)


@pytest.mark.parametrize("index", ["0", 1.5, None, True])
def test_an_ignored_index_that_is_no_whole_number(index):
    with pytest.raises(InputTypeError, match="ignore_index is a whole number"):
        fl.likelihoods.TokenCategorical(ignore_index=index)
