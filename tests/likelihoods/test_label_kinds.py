"""Kinds of labels as values: their text is what sums, records and messages say."""

import json
import pickle

import pytest

from fisherlab.approximations import LNGD
from fisherlab.errors import InputError, InputTypeError
from fisherlab.likelihoods.labels import KINDS, LabelKind, check_kind
from fisherlab.statistics import Statistic, moments


@pytest.mark.parametrize(
    ("text", "layerwise", "categorical", "draws"),
    [
        ("predictive", False, False, 0),
        ("drawn", False, False, 0),
        ("layerwise", True, False, 0),
        ("layerwise:3", True, False, 3),
        ("layerwise+categorical", True, True, 0),
        ("layerwise+categorical:12", True, True, 12),
        ("layerwise-columns", True, False, 0),
    ],
)
def test_a_kind_is_read_from_its_text_and_equal_to_it(text, layerwise, categorical, draws):
    kind = LabelKind(text)
    assert (kind.layerwise, kind.categorical, kind.draws) == (layerwise, categorical, draws)
    assert (str(kind), f"{kind}", repr(kind), json.dumps(kind)) == (text, text, repr(text), json.dumps(text))
    assert type(str(kind)) is str
    assert {text: 1}[kind] == 1
    assert vars(pickle.loads(pickle.dumps(kind))) == vars(LabelKind(kind)) == vars(kind)


def test_layer_wise_kinds_are_made_from_draws():
    assert [LabelKind.sampled(), LabelKind.sampled(4), LabelKind.sampled(4, categorical=True)] == [
        "layerwise",
        "layerwise:4",
        "layerwise+categorical:4",
    ]
    assert LNGD(sampling=4, last="categorical").label_kind("predictive") == "layerwise+categorical:4"


def test_which_columns_and_which_fisher_belong_to_a_kind():
    columns = {kind: kind.with_columns for kind in KINDS}
    assert columns.pop("layerwise") == "layerwise-columns"
    assert all(kind == own for kind, own in columns.items())
    assert LabelKind("drawn").target == "monte-carlo"
    assert all(kind.target == kind for kind in KINDS)


def test_texts_are_read_at_the_door():
    assert isinstance(check_kind("type-2"), LabelKind)
    assert isinstance(Statistic("own", moments.output_moment, "layerwise:2").kind, LabelKind)


def test_what_is_no_kind_is_refused():
    with pytest.raises(InputTypeError, match="a kind of labels is a string, not int"):
        LabelKind(4)
    with pytest.raises(InputError, match="a whole number k of draws"):
        LabelKind("layerwise:many")
    assert LabelKind("own:many").draws == 0
