"""What counts as data, and what is refused."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fisherlab as fl
from fisherlab.collect.batches import Batches
from fisherlab.collect.outputs import Outputs
from fisherlab.errors import InputError, InputTypeError

X = torch.arange(22.0).reshape(11, 2)
Y = torch.arange(11)


def joined(batches: Batches, most: int = 100):
    parts = list(batches.batches(most))
    return torch.cat([x for x, _ in parts]), [len(x) for x, _ in parts]


@given(st.integers(1, 15))
def test_batches_are_cut_to_at_most_so_many_samples(most):
    parts = list(Batches((X, Y)).batches(most))
    assert all(len(x) <= most and len(x) == len(y) for x, y in parts)
    assert torch.equal(torch.cat([x for x, _ in parts]), X)
    assert torch.equal(torch.cat([y for _, y in parts]), Y)


@pytest.mark.parametrize(
    "data",
    [
        (X, Y),
        [X, Y],
        (X, None),
        X,
        [(X[:6], Y[:6]), (X[6:], Y[6:])],
        [X[:4], X[4:8], X[8:]],
        [(X[:4],), [X[4:]]],
        DataLoader(TensorDataset(X, Y), batch_size=4),
        DataLoader(TensorDataset(X), batch_size=3),
    ],
    ids=["pair", "list pair", "no targets", "tensor", "batches", "inputs", "singles", "loader", "one"],
)
def test_forms_of_data(data):
    batches = Batches(data)
    for _ in range(2):
        x, sizes = joined(batches)
        assert torch.equal(x, X)
        assert sum(sizes) == 11
    assert batches.count() == 11
    assert torch.equal(batches.first(3)[0], X[:3])


def test_a_pair_of_two_batches_of_two_tensors_is_read_as_batches():
    """A list of two (x, y) pairs is two batches; a list of two tensors is one pair."""
    assert joined(Batches([(X[:5], Y[:5]), (X[5:], Y[5:])]))[1] == [5, 6]
    assert joined(Batches([X, Y]))[1] == [11]


@pytest.mark.parametrize("form", [tuple, list, dict])
@pytest.mark.parametrize("targets", [Y, None], ids=["targets", "none"])
def test_several_inputs_are_cut_alike(form, targets):
    other = torch.arange(11).flip(0)
    inputs = {"x": X, "other": other} if form is dict else form([X, other])
    whole = Batches((inputs, targets))
    assert whole.samples == whole.count() == 11
    for batches in (whole, Batches([(inputs, targets)])):
        parts = list(batches.batches(4))
        assert [batches.size(part) for part, _ in parts] == [4, 4, 3]
        assert {type(part) for part, _ in parts} == {dict if form is dict else tuple}
        names = ("x", "other") if form is dict else (0, 1)
        for name, values in zip(names, (X, other), strict=True):
            assert torch.equal(torch.cat([part[name] for part, _ in parts]), values)
        assert all((y is None) == (targets is None) for _, y in parts)


def test_a_dictionary_alone_is_inputs_without_targets():
    for data in ({"x": X}, [{"x": X[:6]}, {"x": X[6:]}]):
        parts = list(Batches(data).batches(100))
        assert torch.equal(torch.cat([part["x"] for part, _ in parts]), X)
        assert all(y is None for _, y in parts)


def test_another_dimension_can_count_samples():
    x = torch.arange(30.0).reshape(3, 5, 2)
    parts = list(Batches((x, torch.arange(5)), 1).batches(2))
    assert [part.shape[1] for part, _ in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([part for part, _ in parts], 1), x)
    assert [y.tolist() for _, y in parts] == [[0, 1], [2, 3], [4]]


# --- generators and passes --------------------------------------------------------------------------------


def test_a_generator_gives_its_look_back():
    batches = Batches(x for x in X.split(4))
    assert torch.equal(batches.first(2)[0], X[:2])
    assert batches.count() is None
    assert torch.equal(joined(batches)[0], X)
    assert batches.samples == 11


def test_a_generator_that_draws_its_batches_gives_different_ones(categorical):
    seen = []

    def read():
        for _ in range(3):
            seen.append(torch.randn(8, 6, dtype=torch.float64))
            yield seen[-1]

    fl.exact_fisher(categorical.model, read())
    assert len(seen) == 3
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_a_second_pass_over_a_generator_is_refused():
    batches = Batches(x for x in X.split(4))
    batches.first(2)
    joined(batches)
    with pytest.raises(InputError, match=r"read only once.*DataLoader"):
        joined(batches)


def test_a_two_pass_method_on_a_generator_is_refused(categorical):
    def read():
        yield from categorical.batches(20, 20)

    fl.approximate("kfac", categorical.model, read())
    with pytest.raises(InputError, match="read only once"):
        fl.approximate("ekfac", categorical.model, read())


def test_a_shuffling_loader_is_found_out(categorical):
    loader = DataLoader(
        TensorDataset(*categorical.data), batch_size=8, shuffle=True, generator=torch.Generator()
    )
    fl.approximate("kfac", categorical.model, loader)
    with pytest.raises(InputError, match=r"differ between two passes.*shuffling"):
        fl.approximate("ekfac", categorical.model, loader)


def test_a_loader_that_shuffles_by_the_global_state_gives_both_passes_one_order(categorical):
    loader = DataLoader(TensorDataset(*categorical.data), batch_size=8, shuffle=True)
    expected = fl.approximate("ekfac", categorical.model, categorical.data)
    for layer, operator in fl.approximate("ekfac", categorical.model, loader).items():
        assert torch.allclose(operator.dense(), expected[layer].dense(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("call", [fl.exact_fisher, fl.compare, fl.collect_statistics])
def test_reading_a_loader_leaves_the_random_state(categorical, call):
    loader = DataLoader(TensorDataset(*categorical.data), batch_size=16)
    before = torch.get_rng_state()
    call(categorical.model, loader)
    assert torch.equal(torch.get_rng_state(), before)


class Changing:
    """Batches that differ from pass to pass."""

    def __init__(self, *passes) -> None:
        self.passes = list(passes)

    def __iter__(self):
        return iter(self.passes.pop(0))


@pytest.mark.parametrize(
    "second",
    [[X[:4], X[4:] + 1], [X[:4]], [X[:4], X[4:], X[:1]], [(X[:4], Y[:4]), (X[4:], Y[4:])]],
    ids=["values", "fewer", "more", "targets"],
)
def test_passes_that_differ_are_found_out(second):
    batches = Batches(Changing([X[:4], X[4:]], second))
    joined(batches)
    with pytest.raises(InputError, match="differ between two passes"):
        joined(batches)


@pytest.mark.parametrize("form", [tuple, dict])
def test_a_second_input_that_changes_is_found_out(form):
    def batch(other):
        return ({"x": X, "y": other} if form is dict else (X, other)), Y

    batches = Batches(Changing([batch(X)], [batch(X.flip(0))]))
    list(batches.batches(100))
    with pytest.raises(InputError, match=r"differ between two passes \(batch 0\)"):
        list(batches.batches(100))
    assert Batches(batch(X)).fingerprint() != Batches(batch(X.flip(0))).fingerprint()


def test_labels_that_change_are_found_out():
    first, second = [(X, Y)], [(X, Y.flip(0))]
    batches = Batches(Changing(first, second))
    joined(batches)
    with pytest.raises(InputError, match=r"differ between two passes \(batch 0\)"):
        joined(batches)


# --- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [X[:0], (X[:0], Y[:0]), [], [X[:0]], iter([])], ids=["x", "pair", "list", "batch", "iterator"]
)
def test_empty_data_are_refused(categorical, data):
    with pytest.raises(InputError, match="the data set is empty"):
        fl.exact_fisher(categorical.model, data)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["inputs", "targets"])
def test_values_that_are_not_finite_are_refused(bad, where):
    x, y = X.clone(), Y.double()
    (x if where == "inputs" else y)[7] = bad
    batches = Batches([(x[:4], y[:4]), (x[4:], y[4:])])
    with pytest.raises(InputError, match=f"the {where} of batch 1 hold values that are not finite"):
        joined(batches)


def test_inputs_and_targets_must_be_as_many():
    with pytest.raises(InputError, match="has 11 inputs and 5 targets"):
        Batches((X, Y[:5]))
    with pytest.raises(InputError, match="a scalar as targets"):
        Batches((X, torch.tensor(3)))


@pytest.mark.parametrize("inputs", [(X, Y[:5]), {"x": X, "other": Y[:5]}])
def test_several_inputs_must_have_as_many_samples(inputs):
    with pytest.raises(InputError, match="the inputs of batch 0 have 11 and 5 samples"):
        Batches((inputs, Y))


def test_a_second_input_that_is_not_finite_is_refused():
    with pytest.raises(InputError, match="the inputs of batch 0 hold values that are not finite"):
        Batches(((X, X / 0), Y))


@pytest.mark.parametrize("data", [3, None, object()])
def test_things_that_are_no_data_are_refused(data):
    with pytest.raises(InputTypeError, match="data must be a pair"):
        Batches(data)


@pytest.mark.parametrize("batch", [{"x": [1, 2]}, {}, (X, Y, Y), "text", (X, [1, 2])])
def test_batches_of_another_form_are_refused(batch):
    with pytest.raises(InputTypeError, match="batch 0 of the data is a"):
        joined(Batches([batch]))


# --- empty batches ----------------------------------------------------------------------------------------

EMPTY = (X[:0], Y[:0])
HOLES = {
    "first": [EMPTY, (X[:6], Y[:6]), (X[6:], Y[6:])],
    "middle": [(X[:6], Y[:6]), EMPTY, EMPTY, (X[6:], Y[6:])],
    "last": [(X[:6], Y[:6]), (X[6:], Y[6:]), EMPTY],
    "flat": [(torch.empty(0), Y[:0]), (X, Y)],
}


@pytest.mark.parametrize("form", [list, iter], ids=["list", "generator"])
@pytest.mark.parametrize("place", HOLES)
def test_an_empty_batch_is_passed_over(place, form):
    batches = Batches(form(HOLES[place]))
    assert torch.equal(batches.first(3)[0], X[:3])
    x, sizes = joined(batches)
    assert torch.equal(x, X)
    assert 0 not in sizes
    assert batches.samples == batches.count() == 11
    if form is list:
        assert torch.equal(joined(batches)[0], X)


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_an_empty_batch_changes_no_number(categorical, place):
    x, y = categorical.data
    batches = [(x[:5], y[:5]), (x[5:], y[5:])]
    batches.insert({"first": 0, "middle": 1, "last": 2}[place], (x[:0], y[:0]))
    expected = fl.approximate("ekfac", categorical.model, categorical.data)
    for layer, operator in fl.approximate("ekfac", categorical.model, batches).items():
        torch.testing.assert_close(operator.dense(), expected[layer].dense(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("data", [[EMPTY, EMPTY], iter([EMPTY, EMPTY]), {"x": X[:0]}])
def test_data_of_empty_batches_alone_are_empty(categorical, data):
    with pytest.raises(InputError, match="the data set is empty"):
        fl.exact_fisher(categorical.model, data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((torch.zeros(5, 0), Y[:5]), r"the inputs of batch 0 have shape \[5, 0\], which holds no numbers"),
        ([(X, Y), (torch.zeros(5, 0), Y[:5])], r"the inputs of batch 1 have shape \[5, 0\]"),
        ((X, torch.zeros(11, 0)), r"the targets of batch 0 have shape \[11, 0\]"),
        (((X, torch.zeros(11, 3, 0)), Y), r"the inputs of batch 0 have shape \[11, 3, 0\]"),
        (torch.tensor(3.0), r"have shape \[\], without a dimension 0 that counts samples"),
        ([X, X, torch.tensor(3.0)], "the inputs of batch 2 have shape"),
    ],
)
def test_inputs_without_numbers_or_samples_are_refused(data, message):
    with pytest.raises(InputError, match=message):
        joined(Batches(data))


@pytest.mark.parametrize(("dim", "error"), [(2, InputError), (-3, InputError), ("0", InputTypeError)])
def test_a_dimension_of_samples_that_does_not_exist(dim, error):
    with pytest.raises(error, match=r"counts samples|batch_dim must be a whole number"):
        joined(Batches((X, Y), dim))


# --- other forms ------------------------------------------------------------------------------------------

FORMS = {
    "text": ("data.npz", "not a str; load the file first"),
    "path": (Path("data.npz"), "not a (Posix|Windows)Path; load the file first"),
    "array": (X.numpy(), r"not a ndarray; convert arrays with torch\.from_numpy\(x\)"),
    "table": (pd.DataFrame({"x": [1.0]}), r"not a DataFrame; convert arrays with torch\.from_numpy"),
    "model": (nn.Sequential(nn.Linear(2, 2)), "not a Sequential"),
    "data set": (TensorDataset(X, Y), r"iterable of such batches \(a DataLoader\), not a TensorDataset"),
    "pair of arrays": (
        (X.numpy(), Y.numpy()),
        r"not a tuple \(ndarray, ndarray\); convert arrays with torch\.from_numpy\(x\)",
    ),
    "half a pair": ((X, Y.tolist()), r"not a tuple \(Tensor, list\)"),
    "other half": ([None, Y], r"not a list \(None, Tensor\)"),
    "array after a tensor": (
        (X, Y.numpy()),
        r"not a tuple \(Tensor, ndarray\); convert arrays with torch\.from_numpy",
    ),
    "triple of arrays": (
        (X.numpy(),) * 3,
        r"not a tuple \(ndarray, ndarray, ndarray\); convert arrays with torch\.from",
    ),
    "batch of arrays": ([(X.numpy(), Y.numpy())], r"is a tuple \(ndarray, ndarray\); .*torch\.from_numpy"),
    "array of targets": ([(X, Y.numpy())], r"is a tuple \(Tensor, ndarray\); .*torch\.from_numpy"),
    "dict of arrays": ({"x": X.numpy()}, r"is a dict \(x: ndarray\); .*torch\.from_numpy"),
    "dict of lists": (
        [{"x": X}, {"x": [1, 2], "z": 3}],
        r"batch 1 of the data is a dict \(x: list, z: int\)",
    ),
    "weights": (
        [(X, Y, Y)],
        r"is a tuple \(Tensor, Tensor, Tensor\); .*\(\(x1, x2\), targets\), .*weights not",
    ),
    "weights of all": ((X, X, X), r"not a tuple \(Tensor, Tensor, Tensor\); .*targets\), batches as a list"),
    "lists": ([[[1.0, 2.0]] * 6] * 2, r"batch 0 of the data is a list \(list, list, list, list, …\)"),
    "no inputs": ([(X, Y), (None, Y)], r"batch 1 of the data is a tuple \(None, Tensor\)"),
    "none": ([None], "batch 0 of the data is None"),
    "generator of none": (iter([None]), "batch 0 of the data is None"),
    "sparse": ((X.to_sparse(), Y), r"the inputs of batch 0 are a sparse tensor; .*x\.to_dense\(\)"),
    "sparse later": ([(X, Y), (X.to_sparse(), Y)], "the inputs of batch 1 are a sparse tensor"),
    "meta": ((X.to("meta"), Y), "the inputs of batch 0 are on the meta device"),
    "meta targets": ([(X, Y.to("meta"))], "the targets of batch 0 are on the meta device"),
}


@pytest.mark.parametrize("form", FORMS)
def test_other_forms_of_data_are_named_with_the_way_out(form):
    data, message = FORMS[form]
    with pytest.raises(InputTypeError, match=message):
        joined(Batches(data))


@pytest.mark.filterwarnings("ignore::UserWarning")  # these kinds of tensors are no longer made so
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.nested.nested_tensor([X, X[:4]]), "a nested tensor; pad it"),
        (lambda: torch.nested.nested_tensor([X, X[:4]], layout=torch.jagged), "a nested tensor; pad it"),
        (lambda: torch.quantize_per_tensor(X, 0.1, 0, torch.qint8), r"a quantized tensor; give x\.dequant"),
    ],
    ids=["nested", "jagged", "quantized"],
)
def test_tensors_without_plain_numbers_are_refused(make, message):
    for data in (make(), [(make(), Y)]):
        with pytest.raises(InputTypeError, match=f"the inputs of batch 0 are {message}"):
            joined(Batches(data))


@pytest.mark.parametrize("data", [[X, Y, Y.double()], [X, X, X.long()], [(X, Y), (X[None], Y[:1])]])
def test_batches_of_several_forms_are_refused(data):
    """A triple (inputs, targets, weights) would be three batches of inputs."""
    with pytest.raises(InputError, match=r"the inputs of batch \d have other dimensions .*pair"):
        joined(Batches(data))


def test_complex_inputs_are_looked_at():
    x = torch.complex(X, X)
    assert torch.equal(joined(Batches((x.conj(), Y)))[0], x.conj())
    with pytest.raises(InputError, match="the inputs of batch 0 hold values that are not finite"):
        Batches((x / 0, Y))


# --- the model --------------------------------------------------------------------------------------------


class Failing(nn.Module):
    """Raises an error for batches larger than those that it takes."""

    def __init__(self, error: BaseException, good: int = 0) -> None:
        super().__init__()
        self.error, self.good = error, good
        self.layer = nn.Linear(2, 3)

    def forward(self, x):
        if len(x) <= self.good:
            return self.layer(x)
        raise self.error


ERRORS = [
    ValueError("x"),
    KeyError("x"),
    AttributeError("x"),
    AssertionError(),
    NotImplementedError("x\nsecond line"),
    StopIteration("x"),
    ZeroDivisionError("x"),
    Exception("x"),
    np.linalg.LinAlgError("x"),
    OSError(2, "x"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_any_exception_of_the_model_is_one_sentence(error):
    with pytest.raises(InputError, match=f"the model fails on inputs .*{type(error).__name__}") as caught:
        fl.exact_fisher(Failing(error), (X, None), "gaussian")
    assert caught.value.__cause__ is error
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=type(error).__name__):
        fl.approximate("kfac", Failing(error, 2), [(X[:2],), (X[2:],)], "gaussian")
    with pytest.raises(InputError, match=type(error).__name__):
        fl.exact_fisher(Failing(error, 2), [(X[:2],), (X[2:],)], "gaussian", method="per-sample")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), MemoryError("x"), InputTypeError("x")])
def test_what_is_no_failure_of_the_model_passes(error):
    with pytest.raises(type(error)) as caught:
        Outputs(Failing(error))(X)
    assert caught.value is error


def test_one_number_for_all_samples_is_refused():
    with pytest.raises(InputError, match="the model returns a single number; wrap it"):
        Outputs(torch.sum)(X)


@pytest.mark.parametrize("outputs", [torch.long, torch.complex64, torch.bool, "sparse"])
def test_outputs_that_are_no_dense_real_numbers_are_refused(outputs):
    def model(x):
        return x.to_sparse() if outputs == "sparse" else x.to(outputs)

    with pytest.raises(InputTypeError, match=r"the model returns a .*; wrap it"):
        Outputs(model)(X)


@pytest.mark.parametrize("part", [0, 1, slice(None)], ids=["first", "last", "all"])
def test_a_model_on_the_meta_device_is_refused(part):
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    model[part].to("meta")
    for call in (fl.exact_fisher, fl.compare, fl.collect_statistics):
        with pytest.raises(InputError, match="tensors on the meta device, which holds no numbers"):
            call(model, (X, Y % 2))
