"""The options of an analysis: once in `fisherlab.exact.options`, and shown wherever they are taken."""

import inspect
import pydoc
import subprocess
import sys

import pytest
import torch
from torch import nn

import fisherlab as fl
from fisherlab.exact.options import (
    DEFAULTS,
    AnalysisOptions,
    ReadingOptions,
    TraceOptions,
    completed,
    options_of,
)

TAKERS = {
    fl.exact_fisher: AnalysisOptions,
    fl.approximate: AnalysisOptions,
    fl.collect_statistics: AnalysisOptions,
    fl.compare: AnalysisOptions,
    fl.traces.trace: TraceOptions,
    fl.represent: ReadingOptions,
}
DATA = torch.randn(4, 3), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize("function", TAKERS, ids=lambda function: function.__name__)
def test_every_option_is_shown_with_its_default_and_its_meaning(function):
    shown, text = inspect.signature(function).parameters, pydoc.getdoc(function)
    for name, option in options_of(TAKERS[function]).items():
        assert (shown[name].kind, shown[name].default) == (inspect.Parameter.KEYWORD_ONLY, option.default)
        assert shown[name].annotation is not inspect.Parameter.empty
        assert f"\n    {name}: {option.meaning}" in text
    assert ("options" in shown) == ("**options" in text) == (function is fl.approximate)


@pytest.mark.parametrize("function", TAKERS, ids=lambda function: function.__name__)
def test_an_unknown_option_is_refused(function):
    first = ("kfac",) if function is fl.approximate else ()
    with pytest.raises(
        (TypeError, fl.FisherlabError), match=r"unexpected keyword .*'biass'|no option 'biass'"
    ):
        function(*first, nn.Linear(3, 2), DATA, biass="joint")


def test_options_that_are_not_given_have_their_defaults():
    assert completed(AnalysisOptions, {"draws": 3}, "f") == {**DEFAULTS, "draws": 3}
    assert set(options_of(TraceOptions)) | set(options_of(ReadingOptions)) == set(DEFAULTS)


@pytest.mark.parametrize(("bias", "inputs"), [("joint", 4), ("ignore", 3)])
def test_options_reach_the_work(bias, inputs):
    model = nn.Linear(3, 2)
    assert fl.exact_fisher(model, DATA, bias=bias)[""].inputs == inputs
    assert fl.approximate("kfac", model, DATA, bias=bias)[""].inputs == inputs
    assert fl.collect_statistics(model, DATA, bias=bias).shapes[""].inputs == inputs
    assert fl.compare(model, DATA, "kfac", bias=bias).results[""].view.inputs == inputs


def test_options_need_no_torch():
    code = "import sys, fisherlab.exact.options; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_statistics_stand_beside_the_sums_they_hold():
    from fisherlab.statistics import Statistics

    assert Statistics is fl.Statistics is fl.statistics.Statistics
