"""Models that return several things: which of them are the outputs."""

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fisherlab as fl
from fisherlab.collect.outputs import Outputs
from fisherlab.errors import InputError, InputTypeError
from fisherlab.representations import represent
from fisherlab.traces import trace

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 0, 1, 2])


@dataclass
class Record:
    hidden: Tensor
    logits: Tensor


Named = namedtuple("Named", ["loss", "scores"])


class Returning(nn.Module):
    """A network of two layers that returns what a function makes of the hidden and the last tensor."""

    def __init__(self, returned) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(3, 4).double(), nn.Linear(4, 3).double()
        self._returned = returned

    def forward(self, x: Tensor) -> Any:
        hidden = torch.tanh(self.first(x))
        return self._returned(hidden, self.last(hidden))


PLAIN = Returning(lambda hidden, out: out)
FORMS = {
    "dict": lambda hidden, out: {"hidden": hidden, "logits": out},
    "dataclass": Record,
    "one tensor beside a loss": lambda hidden, out: Named(out.sum(), out),
    "one tensor beside a state": lambda hidden, out: (out, (hidden, hidden)),
    "list": lambda hidden, out: [out],
}


def blocks(model: nn.Module, **options: Any) -> dict[str, Tensor]:
    return {name: F.dense() for name, F in fl.exact_fisher(model, (X, Y), **options).items()}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return list(found) == list(expected) and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("returned", FORMS.values(), ids=list(FORMS))
@pytest.mark.parametrize("method", ["auto", "per-sample"])
def test_the_blocks_are_those_of_the_plain_network(returned, method):
    assert same(blocks(Returning(returned), method=method), blocks(PLAIN, method=method))


@pytest.mark.parametrize("output", ["b", 1, -1, "1", lambda found: found["b"]])
def test_an_output_is_asked_for(output):
    both = Returning(lambda hidden, out: {"a": hidden, "b": out})
    assert same(blocks(both, output=output), blocks(PLAIN))
    assert same(blocks(both, output="a"), blocks(Returning(lambda hidden, out: hidden), layers="first"))


def test_logits_may_be_passed_over():
    model = Returning(Record)
    hidden = Returning(lambda hidden, out: hidden)
    assert same(blocks(model, output="hidden", layers="first"), blocks(hidden, layers="first"))


def test_every_public_function_takes_it():
    both, data = Returning(lambda hidden, out: (hidden, out)), (X, Y)
    expected = fl.approximate("kfac", PLAIN, data)
    found = fl.approximate("kfac", both, data, output=1)
    for name in expected:
        assert torch.equal(found[name].dense(), expected[name].dense())
    collected = fl.collect_statistics(both, data, approximations="kfac", output=1).build("kfac")
    assert all(torch.equal(collected[name].dense(), expected[name].dense()) for name in expected)
    records = fl.compare(both, data, "kfac", output=1).records
    assert (
        records["relative_error"].tolist()
        == fl.compare(PLAIN, data, "kfac").records["relative_error"].tolist()
    )
    traces = trace(both, data, approximations="kfac", output=1).traces
    assert (
        traces["trace_exact"].tolist()
        == trace(PLAIN, data, approximations="kfac").traces["trace_exact"].tolist()
    )
    assert len(represent(both, data, output=1).moments) == len(represent(PLAIN, data).moments)


def test_the_origin_of_a_comparison_says_what_was_taken():
    comparison = fl.compare(Returning(Record), (X, Y), "kfac", spectra=False)
    assert comparison.about.output == "logits of Record"
    assert "logits of Record" in comparison.caption
    assert comparison.about.provenance("cpu", None)["output"] == "logits of Record"
    assert "output" not in fl.compare(PLAIN, (X, Y), "kfac", spectra=False).about.provenance("cpu", None)


@pytest.mark.parametrize(
    ("returned", "output", "error", "message"),
    [
        (
            {"a": X, "b": X},
            None,
            InputError,
            r"several tensors \(a \[6, 3\], b \[6, 3\]\); say which with output=",
        ),
        ({"a": X, "b": X}, "c", InputError, "output='c' is not in the model's dict; it has a, b"),
        ((X, X), 2, InputError, "output=2 is not in the model's tuple; it has 0, 1"),
        (X, "logits", InputError, "output='logits' names nothing: the model returns a Tensor"),
        ({"loss": X.sum()}, None, InputTypeError, r"the model returns a dict \(loss\), without a tensor"),
        ({"logits": X.sum()}, None, InputError, "logits of dict is a single number"),
        ({"logits": Y}, None, InputTypeError, "logits of dict is a torch.strided tensor of torch.int64"),
        (None, None, InputTypeError, "the model returns None"),
    ],
)
def test_what_gives_no_outputs_is_refused(returned, output, error, message):
    with pytest.raises(error, match=message):
        Outputs(lambda x: returned, output)(X)


@pytest.mark.parametrize("optimizer", [fl.optim.KFAC, fl.optim.LNGD])
def test_an_optimizer_steps_as_with_the_plain_network(optimizer):
    weights = []
    for form, pick in ((PLAIN, lambda out: out), (Returning(Record), lambda out: out.logits)):
        torch.manual_seed(0)
        model = Returning(form._returned)
        steps = optimizer(model, lr=0.1)
        for _ in range(2):
            loss = nn.functional.cross_entropy(pick(model(X)), Y)
            steps.zero_grad()
            loss.backward()
            steps.step()
        weights.append([p.detach().clone() for p in model.parameters()])
    assert all(map(torch.equal, *weights))


def test_an_optimizer_is_told_which_output_labels_are_drawn_from():
    model = Returning(lambda hidden, out: (hidden, out))
    steps = fl.optim.KFAC(model, lr=0.1)
    with pytest.raises(InputError, match=r"several tensors .*; say which with output=.*source='empirical'"):
        model(X)
    del steps
    model = Returning(lambda hidden, out: (hidden, out))
    steps = fl.optim.KFAC(model, lr=0.1, output=1)
    nn.functional.cross_entropy(model(X)[1], Y).backward()
    steps.step()
