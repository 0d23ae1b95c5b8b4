"""A matrix that an embedding and a linear layer share, read as the sum of its uses, beside loops."""

import warnings

import pytest
import torch
from model_cases import Net
from torch import Tensor, nn
from torch.nn import functional

import fisherlab as fl
from fisherlab.collect import hooks, reading, sample_gradients
from fisherlab.collect.collector import Collector
from fisherlab.layers import LayerView
from fisherlab.likelihoods import as_likelihood

N, T, VOCAB, D = 5, 4, 7, 3


@pytest.fixture(autouse=True)
def _as_sums_of_uses(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(reading, "_LARGE_BYTES", 0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="not measured")
        yield


def tied(forward, vocab: int = VOCAB, d: int = D, **modules: nn.Module) -> Net:
    """A network whose head has the matrix of its table of words."""
    net = Net(forward, table=nn.Embedding(vocab, d, **({"padding_idx": 2} if "padded" in modules else {})))
    for name, module in modules.items():
        if name != "padded":
            net.add_module(name, module)
    net.add_module("head", nn.Linear(d, vocab, bias=False))
    net.head.weight = net.table.weight
    return net.double()


def plain(net: Net, x: Tensor) -> Tensor:
    return net.head(net.inner(net.table(x)).tanh().cumsum(1))


def twice(net: Net, x: Tensor) -> Tensor:
    return net.head(torch.tanh(3 * net.table(x) + net.inner(net.table(x.flip(1)))))


def head_twice(net: Net, x: Tensor) -> Tensor:
    hidden = net.inner(net.table(x)).tanh()
    return net.head(hidden) + net.head(hidden.square().cumsum(1))


def two_tables(net: Net, x: Tensor) -> Tensor:
    return net.head(net.inner(net.table(x)).tanh() * net.other(x.roll(1, 1)))


def three_ways() -> Net:
    net = tied(two_tables, inner=nn.Linear(D, D), other=nn.Embedding(VOCAB, D).double())
    net.other.weight = net.table.weight
    return net


def inner(d: int = D) -> nn.Module:
    return nn.Linear(d, d)


MODELS = {
    "as usual": lambda: tied(plain, inner=inner()),
    "called twice": lambda: tied(twice, inner=inner()),
    "head twice": lambda: tied(head_twice, inner=inner()),
    "a word that is padding": lambda: tied(plain, inner=inner(), padded=nn.Identity()),
    "as many words as units": lambda: tied(plain, VOCAB, VOCAB, inner=inner(VOCAB)),
    "fewer words than units": lambda: tied(plain, VOCAB, VOCAB + 2, inner=inner(VOCAB + 2)),
    "two tables": three_ways,
}


def words() -> tuple[Tensor, Tensor]:
    return torch.randint(VOCAB, (N, T)), torch.randint(VOCAB, (N, T))


def by_loop(model: Net, x: Tensor, columns: Tensor) -> Tensor:
    """V [n, c, words, units] of the shared matrix for columns [c, n, T, words], one backward for each."""
    rows = []
    for n in range(len(x)):
        output = model(x[n : n + 1])
        own = [
            torch.autograd.grad(output, model.table.weight, u[n : n + 1], retain_graph=True)[0]
            for u in columns
        ]
        rows.append(torch.stack(own))
    return torch.stack(rows)


def block(model: Net, x: Tensor, y: Tensor, kind: str) -> Tensor:
    """F of the shared matrix, in the order of its rows."""
    columns = fl.likelihoods.label_columns(as_likelihood("token-categorical"), kind, model(x).detach(), y)
    V = by_loop(model, x, columns).flatten(2).flatten(0, 1)
    return V.T @ V / len(x)


def dense(operator: fl.operators.LinearOperator, view: LayerView) -> Tensor:
    """The block in the order of the rows [words, units], whichever way the layer has the matrix."""
    m, d = operator.outputs, operator.inputs
    F = operator.dense().view(d, m, d, m)  # vec takes columns
    words_first = view.to_matrix({"table.weight": torch.empty(view.modules[0].weight.shape)}).stride()[0] > 1
    return (F.permute(1, 0, 3, 2) if words_first else F).reshape(m * d, m * d)


def close(found: Tensor, expected: Tensor) -> bool:
    return float((found - expected).norm() / expected.norm()) < 1e-12


def of_uses(model: Net, data: tuple[Tensor, Tensor]) -> bool:
    collector = Collector(model, fl.find_layers(model), data, as_likelihood("token-categorical"))
    return collector.layers["table"].of_uses


@pytest.mark.parametrize("kind", ["predictive", "empirical"])
@pytest.mark.parametrize("made", MODELS.values(), ids=MODELS)
def test_the_block_is_that_of_a_loop_over_samples_and_labels(made, kind):
    model, (x, y) = made(), words()
    assert of_uses(model, (x, y))
    found = fl.exact_fisher(model, (x, y), "token-categorical", kind, layers="table", method="gram")["table"]
    expected = block(model, x, y, kind)
    order = dense(found, fl.find_layers(model)["table"])
    assert close(order, expected)
    assert close(found.trace(), expected.trace())


@pytest.mark.parametrize("numbers", [0, 2**40], ids=["columns one by one", "columns together"])
def test_columns_come_back_in_any_parts(monkeypatch, numbers):
    monkeypatch.setattr(hooks, "SMALL_PASS", numbers)
    model, (x, y) = MODELS["called twice"](), words()
    found = fl.exact_fisher(model, (x, y), "token-categorical", layers="table", method="gram")["table"]
    assert close(dense(found, fl.find_layers(model)["table"]), block(model, x, y, "predictive"))


def test_batches_of_other_lengths():
    model, (x, y) = MODELS["as usual"](), words()
    batches = [(x[:3], y[:3]), (x[3:, :2], y[3:, :2])]
    options = {"layers": "table", "method": "gram"}
    found = fl.exact_fisher(model, batches, "token-categorical", "empirical", **options)["table"]
    parts = [len(a) * block(model, a, b, "empirical") for a, b in batches]
    assert close(dense(found, fl.find_layers(model)["table"]), sum(parts) / N)


def raw_too(net: Net, x: Tensor) -> Tensor:
    return plain(net, x) + functional.linear(net.table(x), net.table.weight)


def changed(net: Net, x: Tensor) -> Tensor:
    return functional.linear(net.inner(net.table(x)), 2 * net.head.weight)


@pytest.mark.parametrize("forward", [raw_too, changed])
def test_where_calls_do_not_tell_all_the_samples_gradients_are_taken(forward):
    model, (x, y) = tied(forward, inner=inner()), words()
    assert not of_uses(model, (x, y))
    found = fl.exact_fisher(model, (x, y), "token-categorical", layers="table", method="gram")["table"]
    assert close(dense(found, fl.find_layers(model)["table"]), block(model, x, y, "predictive"))


def test_a_use_that_begins_in_a_later_batch_is_found():
    def forward(net: Net, x: Tensor) -> Tensor:
        extra = functional.linear(net.table(x), net.table.weight)
        return plain(net, x) + (extra if bool((x == 0).all(1).any()) else 0 * extra)

    model, (x, y) = tied(forward, inner=inner()), words()
    x = x.clamp(min=1)
    later = x.clone()
    later[0] = 0
    with pytest.raises(fl.FisherlabError, match=r"batch 1.*used elsewhere"):
        fl.exact_fisher(model, [(x, y), (later, y)], "token-categorical", layers="table", method="gram")


def test_a_comparison_has_what_is_made_of_gradients_and_says_why_not_the_rest():
    model, data = MODELS["as usual"](), words()
    options = {"likelihood": "token-categorical", "spectra": False, "memory": "1GiB"}
    methods = ("kfac", "diagonal", "nearest-kronecker")
    rows = fl.compare(model, data, methods, **options).records.query("layer == 'table'")
    rows = rows.set_index("approximation")
    assert rows.loc["kfac", "note"].startswith("kfac needs a layer's inputs and output gradients")
    assert "the sum of its uses by their calls: tied between table" in rows.loc["diagonal", "note"]
    reading._LARGE_BYTES = 2**24  # the same by the samples' gradients
    expected = fl.compare(model, data, methods, **options).records.query("layer == 'table'")
    expected = expected.set_index("approximation")
    for method in ("diagonal", "nearest-kronecker"):
        for column in ("relative_error", "scaled_error", "direction_cosine"):
            assert rows.loc[method, column] == pytest.approx(expected.loc[method, column], rel=1e-9)


def test_a_method_that_cannot_fit_is_empty_and_the_others_are_not():
    model, data = tied(plain, 3000, 4, inner=inner(4)), words()
    options = {"likelihood": "token-categorical", "kind": "empirical", "spectra": False, "layers": "table"}
    rows = fl.compare(model, data, ("diagonal", "nearest-kronecker"), memory="128MiB", **options).records
    rows = rows.set_index("approximation")
    note = "not measured: nearest-kronecker would need 207 MiB, more than the memory limit of 128 MiB"
    assert rows.loc["nearest-kronecker", "note"].startswith(note)
    assert rows.loc["diagonal", "relative_error"] > 0


def test_a_large_look_at_gradients_is_left_out_with_what_it_takes(monkeypatch):
    model, data = tied(raw_too, 2000, 8, inner=inner(8)), words()
    with pytest.raises(
        fl.FisherlabError, match=r"a look at its samples' gradients would need .* larger limit"
    ):
        fl.exact_fisher(model, data, "token-categorical", layers="table", memory="512KiB")


def test_large_gradients_are_taken_one_by_one(monkeypatch):
    model, (x, y) = tied(raw_too, inner=inner()), words()
    monkeypatch.setattr(sample_gradients, "_COMPARED_BYTES", 1)
    monkeypatch.setattr(sample_gradients.SampleGradients, "_together", None)  # which would fail
    monkeypatch.setattr(sample_gradients, "at_most", lambda size, parts: size)
    found = fl.exact_fisher(model, (x, y), "token-categorical", layers="table", method="gram")["table"]
    assert close(dense(found, fl.find_layers(model)["table"]), block(model, x, y, "predictive"))
