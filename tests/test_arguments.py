"""Every public function checks what it is given: a wrong value is one sentence that names the argument."""

import inspect
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

import numpy as np
import pytest
import torch
from annotated_types import Ge, Gt, Lt
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fisherlab as fl
from fisherlab.arguments import (
    Count,
    NotNegative,
    OneOf,
    Positive,
    Seed,
    Share,
    check,
    checked,
    described,
    expected_fields,
    expected_of,
)
from fisherlab.errors import FisherlabError, InputError, InputTypeError

MODULES = ("approximations", "datasets", "likelihoods", "metrics", "models", "plots", "traces", "train")
OWN_CHECKS = {  # each says more than an annotation can, before it does anything
    "as_likelihood": "a class in the place of an instance",
    "check_kind": "aliases and near names",
    "check_statistics": "it is a check itself",
}
INTERNAL = {  # stand in `__all__` for other folders, and are called with what has been checked
    *(
        "basis_of",
        "build_from_block",
        "build_operator",
        "check_batches",
        "flip_flop",
        "layer_work",
        "layers_for",
        "registered",
    ),
    *(
        "without_matrix",
        "why_not_built",
        "categorical_slope",
        "color",
        "label",
        "new_figure",
        "number",
        "save",
        "styled",
    ),
    *("names", "cache_dir", "dense_matrices", "check_spectrum", "compared"),
}


def _functions() -> dict[str, Callable[..., Any]]:
    """The public functions, and the methods of what they give, by the name that a user writes."""
    found = {name: getattr(fl, name) for name in fl.__all__}
    for module in MODULES:
        known = getattr(fl, module)
        files = (known.__name__, "fisherlab.divergences")  # whose functions are metrics
        own = [name for name, one in vars(known).items() if getattr(one, "__module__", "") in files]
        names = getattr(known, "__all__", [name for name in own if not name.startswith("_")])
        found |= {f"{module}.{name}": getattr(known, name) for name in names}
    functions = {name: one for name, one in found.items() if isinstance(one, types.FunctionType)}
    functions = {n: one for n, one in functions.items() if one.__module__.startswith("fisherlab")}
    for cls in (fl.Statistics, fl.Comparison):
        for name in ("build", "save", "heatmap", "spectrum", "operators"):
            if name in vars(cls):
                functions[f"{cls.__name__}.{name}"] = vars(cls)[name]
    for cls in (fl.likelihoods.TokenCategorical, fl.approximations.LNGD, fl.approximations.KFAC):
        functions[f"{cls.__name__}.__init__"] = cls.__init__
    functions["Preconditioner.__init__"] = fl.optim.Preconditioner.__init__
    return {
        name: one
        for name, one in functions.items()
        if name.rpartition(".")[2] not in OWN_CHECKS.keys() | INTERNAL
        and list(inspect.signature(one).parameters) not in ([], ["self"])
    }


FUNCTIONS = _functions()
OPTIMIZERS = [getattr(fl.optim, name) for name in fl.optim.__all__ if name != "Preconditioner"]
CASES = [(name, argument) for name, f in FUNCTIONS.items() for argument in expected_of(f)]


# --- values that an annotation does not allow, by rules of their own ----------------------------------------

PLAIN: Mapping[str, st.SearchStrategy[Any]] = {
    "int": st.integers(),
    "float": st.floats().filter(lambda x: x != int(x) if np.isfinite(x) else True),
    "bool": st.booleans(),
    "str": st.text(max_size=300),
    "None": st.none(),
    "bytes": st.binary(max_size=5),
    "object": st.builds(object),
    "class": st.just(nn.Linear),
    "model": st.builds(nn.Linear, st.just(2), st.just(2)),
    "tensor": st.sampled_from([torch.zeros(()), torch.zeros(2, 3), torch.zeros(0)]),
    "odd tensor": st.sampled_from(
        [torch.zeros(2, device="meta"), torch.eye(2).to_sparse(), torch.zeros(1) * 1j]
    ),
    "array": st.just(np.zeros(2)),
    "list of numbers": st.lists(st.integers() | st.floats(), min_size=1, max_size=3),
    "list of texts": st.lists(st.text(max_size=5), min_size=1, max_size=3),
    "dict": st.dictionaries(st.integers(), st.integers(), min_size=1, max_size=3),
    "function": st.just(len),
    "generator": st.builds(torch.Generator),
}
MAY_BE: Mapping[Any, set[str]] = {
    int: {"int"},
    float: {"int", "float", "tensor", "odd tensor"},  # a tensor with one number is one
    bool: {"bool"},
    str: {"str"},
    types.NoneType: {"None"},
    nn.Module: {"model"},
    torch.Generator: {"generator"},
    torch.Tensor: {"tensor", "odd tensor"},
    torch.dtype: set(),
}


def allowed(annotation: Any) -> set[str]:
    """The kinds of values that might be right."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return allowed(annotation.__origin__)
    if origin in (Union, types.UnionType):
        return set().union(*map(allowed, get_args(annotation)))
    kind = origin or annotation
    if kind in MAY_BE:
        return MAY_BE[kind]
    if kind is Callable or "Callable" in str(kind):
        return {"function", "class", "model"}
    if not isinstance(kind, type) or kind is Any:
        return set(PLAIN)
    if kind is type:
        return set()
    if issubclass(kind, Mapping):
        return {"dict"} if object in get_args(annotation) or Any in get_args(annotation) else set()
    if issubclass(kind, np.ndarray):
        return {"array"}
    if kind in (Iterable, Sequence, tuple, list, set, frozenset) or kind.__module__ == "collections.abc":
        entries = allowed(get_args(annotation)[0]) if get_args(annotation) else set(PLAIN)
        found = {"str", "list of texts"} if "str" in entries else set()
        found |= (
            {"list of numbers", "array", "tensor", "odd tensor", "str", "dict"}
            if entries & {"int", "float"}
            else set()
        )
        return found | (set(PLAIN) if "object" in entries else set())
    return set()


def out_of_range(annotation: Any) -> st.SearchStrategy[Any]:
    """Values of the right type beyond the bounds beside it."""
    found: list[st.SearchStrategy[Any]] = []
    for one in get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,):
        numbers = st.integers if getattr(one, "__origin__", None) is int else st.floats
        for bound in getattr(one, "__metadata__", ()):
            if isinstance(bound, Ge):
                found.append(numbers(max_value=bound.ge).filter(lambda x, low=bound.ge: x < low))
            if isinstance(bound, Gt):
                found.append(numbers(max_value=bound.gt))
            if isinstance(bound, Lt):
                found.append(numbers(min_value=bound.lt))
            if isinstance(bound, OneOf):
                found.append(st.text().filter(lambda x, names=bound.names: x not in names))
    return st.one_of(found)


def wrong(annotation: Any) -> st.SearchStrategy[Any]:
    """Values that an annotation does not allow."""
    kinds = PLAIN.keys() - allowed(annotation)
    return out_of_range(annotation) | st.one_of([PLAIN[kind] for kind in sorted(kinds)])


def refused(call: Callable[[], Any], argument: str) -> None:
    """One sentence of fisherlab's own that names the argument."""
    with pytest.raises((InputError, InputTypeError)) as caught:
        call()
    message = str(caught.value)
    assert argument.replace("_", " ") in message.replace("_", " ")
    assert "\n" not in message
    assert len(message) < 400


def test_there_is_something_to_walk():
    assert {"compare", "exact_fisher", "metrics.direction", "models.load", "datasets.load"} < FUNCTIONS.keys()
    assert len(CASES) > 150


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_checks_its_arguments(name):
    chain, function = set(), FUNCTIONS[name]
    while function is not None:
        chain.add(function.__code__.co_name)
        function = getattr(function, "__wrapped__", None)
    assert "with_checks" in chain, f"{name} has no `checked` before it"


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_a_wrong_value_is_one_sentence(name, argument):
    function = FUNCTIONS[name]
    annotation = expected_of(function)[argument]
    if allowed(annotation) == set(PLAIN):
        pytest.skip("any value may be right")

    @settings(max_examples=10, database=None)
    @given(wrong(annotation))
    def walk(value: Any) -> None:
        refused(lambda: function(**{argument: value}), argument)

    walk()


@pytest.mark.parametrize(
    ("optimizer", "argument"),
    [(cls, name) for cls in OPTIMIZERS for name in expected_fields(cls.__init__.options)],
)
def test_a_wrong_option_of_an_optimizer_is_one_sentence(optimizer, argument):
    annotation = expected_fields(optimizer.__init__.options)[argument]
    if allowed(annotation) == set(PLAIN):
        pytest.skip("any value may be right")

    @settings(max_examples=10, database=None)
    @given(wrong(annotation))
    def walk(value: Any) -> None:
        given_values = {"model": nn.Linear(2, 2), argument: value}
        refused(lambda: optimizer(**given_values), argument)

    walk()


# --- the words ------------------------------------------------------------------------------------------


@checked
def sample(
    count: Count = 1,
    rate: Positive | None = None,
    share: Share = 0.0,
    names: Iterable[str] | str = (),
    bounds: tuple[float, float] = (0, 1),
    dampings: Sequence[NotNegative] = (),
    mode: Annotated[str, OneOf(("fast", "exact"))] = "fast",
    seed: Annotated[Seed, "give a whole number"] = 0,
    table: Mapping[str, int] = types.MappingProxyType({}),
    **others: int,
) -> tuple[Any, ...]:
    return count, rate, others


SENTENCES = [
    ({"count": 1.5}, InputTypeError, "count must be a whole number, not 1.5"),
    ({"count": True}, InputTypeError, "count must be a whole number, not True"),
    ({"count": 0}, InputError, "count must be at least 1, not 0"),
    ({"count": torch.zeros(2)}, InputTypeError, "count must be a whole number, not a torch.Tensor"),
    ({"rate": "x"}, InputTypeError, "rate must be a number or None, not 'x'"),
    ({"rate": float("nan")}, InputError, "rate must be finite and above 0, not nan"),
    ({"share": 1}, InputError, "share must be at least 0 and below 1, not 1"),
    ({"names": 3}, InputTypeError, "names must be strings or a string, not 3"),
    ({"names": ["a", 3]}, InputTypeError, "names must be strings or a string, not ['a', 3]"),
    ({"bounds": (1, 2, 3)}, InputTypeError, "bounds must be a tuple of a number and a number, not (1, 2, 3)"),
    (
        {"dampings": [1, -1]},
        InputError,
        "dampings must be a list of numbers, each finite and at least 0, not [1, -1]",
    ),
    ({"mode": "fats"}, InputError, "unknown mode 'fats'; did you mean fast?"),
    ({"mode": 3}, InputTypeError, "mode must be a string, not 3"),
    (
        {"seed": -1},
        InputError,
        "seed must be at least 0 and below 9223372036854775808, not -1; give a whole number",
    ),
    (
        {"table": {"a": "b"}},
        InputTypeError,
        "table must be a mapping of strings to whole numbers, not {'a': 'b'}",
    ),
    (
        {"count": "x" * 10_000},
        InputTypeError,
        "count must be a whole number, not 'xxxxxxxxxxxx...xxxxxxxxxxxxx'",
    ),
]


@pytest.mark.parametrize(("values", "error", "sentence"), SENTENCES)
def test_sentences(values, error, sentence):
    with pytest.raises(error) as caught:
        sample(**values)
    assert str(caught.value) == sentence


def test_what_is_right_goes_through_unchanged():
    names = iter(["a", "b"])
    sample(2, 0.5, names=names)
    assert list(names) == ["a", "b"]  # nothing was taken out
    assert sample(np.int64(3), np.float32(0.5), other="anything")[2] == {"other": "anything"}
    assert sample(1, torch.tensor(0.5))[1] == torch.tensor(0.5)


def test_what_python_refuses_it_refuses_in_its_own_words():
    with pytest.raises(TypeError, match="multiple values") as caught:
        sample(1, count=2)
    assert not isinstance(caught.value, FisherlabError)


def test_the_signature_stays():
    assert next(iter(inspect.signature(sample).parameters)) == "count"
    assert inspect.signature(fl.exact_fisher).parameters["draws"].annotation is int


def test_descriptions():
    assert described(int | None) == "a whole number or None"
    assert described(nn.Module) == "a torch.nn.Module"
    assert described(dict[str, float]) == "a mapping of strings to numbers"
    check("anything", object(), Any)
