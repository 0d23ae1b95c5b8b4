"""A block is one of parameters: models whose modules' calls alone would give another one, or none.

Every block is compared with the gradients of single samples by plain autograd, in float64.
"""

import json
import random
import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from model_cases import Net
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import fisherlab as fl
from fisherlab.approximations import registered
from fisherlab.cli import main
from fisherlab.collect.collector import Collector
from fisherlab.collect.sample_gradients import SampleGradients
from fisherlab.errors import InputError, NotSupportedError, NumericalError
from fisherlab.likelihoods import as_likelihood

N, T, D = 6, 4, 5
BUILT = [name for name, one in registered().items() if one.matrix]
"""Those with an F̂: of the others there is a direction alone."""
torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(not measured|enable_nested_tensor)")
        yield


# --- what is expected ---------------------------------------------------------------------------------


def matrix(module: nn.Module, found: dict[str, Tensor]) -> Tensor:
    """The gradients of a module's weight and bias as [m, d]."""
    if isinstance(module, nn.Embedding):
        return found["weight"].T
    if isinstance(module, (nn.LayerNorm, nn.BatchNorm1d, nn.GroupNorm, nn.RMSNorm)):
        return torch.cat([g.flatten() for g in found.values()])[:, None]
    parts = [found["weight"].flatten(1)] if "weight" in found else []
    return torch.cat([*parts, *([found["bias"][:, None]] if "bias" in found else [])], 1)


def gradients(model: nn.Module, x: Tensor, likelihood: str, name: str) -> Tensor:
    """V [n, c, m, d] of a layer by autograd, sample by sample and column by column."""
    raw = dict(model.named_parameters()).get(name) if not name.endswith(".bias") else None
    module = model if raw is not None else model.get_submodule(name.removesuffix(".bias"))
    own = {n: p for n, p in module.named_parameters(recurse=False) if p.requires_grad}
    own = own if raw is None else {name: raw}
    rows = []
    for sample in x:
        outputs = model(sample[None])
        columns = as_likelihood(likelihood).columns(outputs.detach())
        rows.append([])
        for u in columns:
            found = torch.autograd.grad(outputs, list(own.values()), u, retain_graph=True, allow_unused=True)
            filled = {
                n: torch.zeros_like(p) if g is None else g
                for (n, p), g in zip(own.items(), found, strict=True)
            }
            rows[-1].append(matrix(module, filled) if raw is None else filled[name].reshape(-1, 1))
    return torch.stack([torch.stack(columns) for columns in rows])


def block(model: nn.Module, x: Tensor, likelihood: str, name: str) -> Tensor:
    """F [D, D] in column-vec order."""
    rows = gradients(model, x, likelihood, name).mT.flatten(2)
    return torch.einsum("ncd,nce->de", rows, rows) / len(x)


def agree(found: Tensor, expected: Tensor) -> bool:
    return bool(torch.linalg.norm(found - expected) <= 1e-10 * torch.linalg.norm(expected))


def check(model: nn.Module, x: Tensor, likelihood: str = "gaussian", **options) -> dict:
    """Every block of a model is that of autograd, whatever the method; gives those of `auto`."""
    model = model.double().eval()
    for method in ("per-sample", "gram", "auto"):
        F = fl.exact_fisher(model, (x, None), likelihood, method=method, **options)
        for name, found in F.items():
            assert agree(found.dense(), block(model, x, likelihood, name)), (name, method)
    return F


def kinds(model: nn.Module, x: Tensor, likelihood: str = "gaussian") -> dict[str, str]:
    """How each layer is read."""
    source = Collector(model, fl.find_layers(model), (x, None), as_likelihood(likelihood))

    def kind(view) -> str:
        if view.by_gradients:
            return "gradients"
        if view.expanded is not None:
            return "expanded"
        return "as declared" if view.batch_dim in (None, 0) else f"samples in dimension {view.batch_dim}"

    return {name: kind(view) for name, view in source.layers.items()}


# --- kind 1: parameters that act elsewhere than through their module's call ---------------------------


def inner_and_head(forward: Callable[[Net, Tensor], Tensor]) -> Net:
    """Two layers, to be used in some way of its own."""
    return Net(forward, inner=nn.Linear(D, 4), head=nn.Linear(4, 3))


def lookup() -> Net:
    """A language model whose head is its embedding's weight, by a function."""
    return Net(
        lambda net, x: functional.linear(net.inner(net.table(x)).tanh().mean(1), net.table.weight),
        table=nn.Embedding(7, D),
        inner=nn.Linear(D, D),
    )


class Tied(nn.Module):
    """An auto-encoder whose decoder is the encoder's weight, transposed."""

    def __init__(self, size: int = D, code: int = 3) -> None:
        super().__init__()
        self.enc = nn.Linear(size, code)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self.enc(x).tanh(), self.enc.weight.t())


def normed() -> Net:
    """An output divided by the norm of its weight."""
    return inner_and_head(lambda net, x: net.head(net.inner(x).tanh()) / net.head.weight.norm())


def decayed() -> Net:
    """A convolution whose weight is used a second time, on what it gave."""
    return Net(
        lambda net, x: net.head(functional.conv1d(net.conv(x).tanh(), net.conv.weight, padding=1).mean(2)),
        conv=nn.Conv1d(2, 2, 3, padding=1),
        head=nn.Linear(2, 3),
    )


def grouped() -> Net:
    """A grouped convolution whose bias is added again at the end."""
    conv = nn.Conv1d(4, 6, 3, groups=2)
    return Net(lambda net, x: (net.conv(x).tanh() + net.conv.bias[:, None]).mean(2), conv=conv)


def never_called() -> Net:
    """A layer that holds its weight, and is never called."""
    return inner_and_head(
        lambda net, x: net.head(functional.linear(x, net.inner.weight, net.inner.bias).tanh())
    )


def scale_twice() -> Net:
    """A norm whose scale also weighs the features at the end."""
    return Net(
        lambda net, x: net.head(net.norm(x).tanh() * net.norm.weight),
        norm=nn.LayerNorm(D),
        head=nn.Linear(D, 3),
    )


def hooked(kind: str) -> nn.Module:
    """A network with a hook of the user's that changes what a layer sees or gives."""
    model = nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    if kind == "output":
        model[0].register_forward_hook(lambda module, args, output: output * module.weight.sum())
    elif kind == "input":
        model[0].register_forward_pre_hook(lambda module, args: (args[0] * module.weight.norm(),))
    else:
        model[0].register_full_backward_hook(lambda module, gin, gout: (gin[0],))
    return model


X, SEQUENCES = torch.randn(N, D).double(), torch.randn(N, T, D).double()
IDS, SIGNALS = torch.randint(7, (N, T)), torch.randn(N, 2, 8).double()

ELSEWHERE: dict[str, tuple[Callable[[], nn.Module], Tensor, str]] = {
    "the embedding is the head too": (lookup, IDS, "table"),
    "the decoder is the encoder transposed": (Tied, X, "enc"),
    "the output is divided by the weight's norm": (normed, X, "head"),
    "a convolution's weight is used again": (decayed, SIGNALS, "conv"),
    "a grouped convolution's bias is used again": (grouped, torch.randn(N, 4, 8).double(), "conv"),
    "the module is never called": (never_called, X, "inner"),
    "a norm's scale is used again": (scale_twice, X, "norm"),
    "a hook changes the output": (lambda: hooked("output"), X, "0"),
    "a hook changes the input by the weight": (lambda: hooked("input"), X, "0"),
}


@pytest.mark.parametrize("case", ELSEWHERE)
def test_a_weight_that_acts_elsewhere_too_has_its_own_block(case):
    made, x, layer = ELSEWHERE[case]
    model = made().double()
    F = check(model, x)
    assert set(F) == set(fl.find_layers(model))
    found = kinds(model, x)
    assert found.pop(layer) == "gradients"
    assert set(found.values()) <= {"as declared"}


def test_the_trace_of_a_tied_auto_encoder():
    torch.manual_seed(0)
    model, x = Tied().double(), torch.randn(7, D).double()
    found = float(fl.exact_fisher(model, (x, None), "gaussian")["enc"].trace())
    expected = gradients(model, x, "gaussian", "enc").square().sum() / 7
    assert found == pytest.approx(float(expected), rel=1e-12)


def test_a_backward_hook_that_changes_nothing_changes_nothing():
    model = hooked("backward")
    check(model, X)
    assert set(kinds(model, X).values()) == {"as declared"}


def test_the_in_projection_of_an_attention_is_used_elsewhere():
    def attentive(net: Net, x: Tensor) -> Tensor:
        h = net.attention(x, x, x, need_weights=False)[0]
        return net.head(functional.linear(h, net.attention.in_proj_weight[:4]).mean(1))

    attention, head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)
    model, x = Net(attentive, attention=attention, head=head).double(), torch.randn(N, T, 4).double()
    F = fl.exact_fisher(model, (x, None), "gaussian")
    assert kinds(model, x) == {
        "attention.q": "gradients",
        **dict.fromkeys(("attention.k", "attention.v", "attention.out_proj", "head"), "as declared"),
    }
    weight, bias = model.attention.in_proj_weight, model.attention.in_proj_bias
    for place, part in enumerate("qkv"):
        rows = slice(4 * place, 4 * place + 4)
        V = []
        for sample in x:
            found = [
                torch.autograd.grad(output, (weight, bias), retain_graph=True)
                for output in model(sample[None])[0]
            ]
            V.append(torch.stack([torch.cat([w[rows], b[rows, None]], 1).T.flatten() for w, b in found]))
        J = torch.stack(V)
        expected = torch.einsum("ncd,nce->de", J, J) / N
        assert agree(F[f"attention.{part}"].dense(), expected)


def test_a_weight_that_only_some_samples_use_twice():
    def sometimes(net: Net, x: Tensor) -> Tensor:
        h = net.inner(x).tanh()
        return net.head(torch.where(x[:, :1] > 0, functional.linear(h, net.inner.weight), h))

    x = torch.cat([-X[:2].abs(), X[:4].abs()])
    model = Net(sometimes, inner=nn.Linear(D, D), head=nn.Linear(D, 3)).double()
    check(model, x)
    assert kinds(model, x)["inner"] == "gradients"


@pytest.mark.parametrize("case", ["the decoder is the encoder transposed", "a norm's scale is used again"])
def test_samples_gradients_do_not_depend_on_the_batches(case):
    made, x, _ = ELSEWHERE[case]
    model = made().double()
    whole = fl.exact_fisher(model, (x, None), "gaussian")
    cut = fl.exact_fisher(model, [(x[:3], None), (x[3:4], None), (x[4:], None)], "gaussian")
    for name in whole:
        assert agree(cut[name].dense(), whole[name].dense())


def test_a_layer_without_inputs_of_its_own_has_no_kronecker_accumulation():
    with pytest.raises(NotSupportedError, match="layer 'enc' is made of the samples' gradients"):
        fl.exact_fisher(Tied().double(), (X, None), "gaussian", method="kronecker")


@pytest.mark.parametrize("kind", ["predictive", "empirical", "monte-carlo"])
def test_every_kind_of_label_goes_through_samples_gradients(kind):
    model = nn.Sequential(Tied(), nn.Linear(D, 3)).double()
    data = X, torch.arange(N) % 3
    expected = fl.exact_fisher(model, data, kind=kind, method="per-sample")
    for method in ("auto", "gram"):
        found = fl.exact_fisher(model, data, kind=kind, method=method)
        for name in expected:
            assert agree(found[name].dense(), expected[name].dense())


def test_what_vmap_cannot_do_is_done_sample_by_sample():
    class Branching(Tied):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if float(x.sum()) > -1e9 else x

    check(Branching(), X)


# --- kind 2: which rows are samples -------------------------------------------------------------------


def encoder(batch_first: bool = False) -> Net:
    """torch's encoder layer with positions first, in a model with samples first."""
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=batch_first, dropout=0.0)
    return Net(
        lambda net, x: net.head(net.layer(x)[:, 0] if batch_first else net.layer(x.transpose(0, 1))[0]),
        layer=layer,
        head=nn.Linear(4, 3),
    )


class PositionsFirst(nn.Module):
    """Hand-written code that works on [T, N, d]."""

    def __init__(self, *, positions_first: bool = True, last: bool = False, frozen: bool = False) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(D), nn.Linear(D, 4)
        self.other, self.head = nn.RMSNorm(4), nn.Linear(4, 3)
        self.inner.weight.requires_grad_(not frozen)
        self.positions_first, self.last = positions_first, last

    def forward(self, x: Tensor) -> Tensor:
        h = self.other(self.inner(self.norm(x.transpose(0, 1) if self.positions_first else x)).tanh())
        h = h if self.positions_first else h.transpose(0, 1)
        return self.head(h[-1] if self.last else h.mean(0))


ORDERS = {
    "as many positions as samples": (N, N),
    "twice as many positions": (N, 2 * N),
    "two samples of two positions": (2, 2),
    "two samples of four positions": (2, 4),
    "odd numbers": (3, 5),
}


@pytest.mark.parametrize("frozen", [False, True], ids=["", "frozen weight"])
@pytest.mark.parametrize("last", [False, True], ids=["mean", "last position"])
@pytest.mark.parametrize("case", ORDERS)
def test_positions_before_samples(case, last, frozen):
    samples, positions = ORDERS[case]
    x = torch.randn(samples, positions, D).double()
    model = PositionsFirst(last=last, frozen=frozen).double()
    check(model, x)
    found = kinds(model, x)
    assert found.pop("head") == "as declared"
    assert set(found.values()) == {"samples in dimension 1"}


@pytest.mark.parametrize(("samples", "positions"), [(4, 4), (4, 8), (2, 4), (5, 3)])
def test_an_encoder_layer_with_positions_first_in_a_model_with_samples_first(samples, positions):
    model, other = encoder().double().eval(), encoder(batch_first=True).double().eval()
    other.load_state_dict(model.state_dict())
    x = torch.randn(samples, positions, 4).double()
    found = fl.exact_fisher(model, (x, None), "gaussian")
    expected = fl.exact_fisher(other, (x, None), "gaussian")
    for name in ("layer.norm1", "layer.norm2", "layer.linear1", "layer.linear2", "head"):
        assert agree(found[name].dense(), block(model, x, "gaussian", name))
    for name in expected:
        assert agree(found[name].dense(), expected[name].dense())
    for method in BUILT:
        both = [
            fl.approximate(method, one, (x, torch.zeros(samples, 3)), "gaussian") for one in (model, other)
        ]
        for name in both[1]:
            assert agree(both[0][name].dense(), both[1][name].dense()), (method, name)


def test_positions_and_samples_in_one_dimension():
    class Flat(PositionsFirst):
        def forward(self, x: Tensor) -> Tensor:
            rows = x.transpose(0, 1).reshape(-1, D)  # position by position, the samples of each
            h = self.other(self.inner(self.norm(rows)).tanh())
            return self.head(h.view(x.shape[1], len(x), -1).mean(0))

    model = Flat().double()
    check(model, SEQUENCES)
    found = kinds(model, SEQUENCES)
    assert found.pop("head") == "as declared"
    assert set(found.values()) == {"gradients"}


def test_windows_of_a_sample_are_rows_of_it():
    class Windows(PositionsFirst):
        def forward(self, x: Tensor) -> Tensor:
            rows = x.reshape(len(x) * 2, -1, D)
            h = self.other(self.inner(self.norm(rows)).tanh())
            return self.head(h.reshape(len(x), -1, 4).mean(1))

    model = Windows().double()
    check(model, SEQUENCES)
    assert set(kinds(model, SEQUENCES).values()) == {"as declared"}


def test_biases_of_a_frozen_network_with_positions_first():
    model = PositionsFirst().double()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    F = check(model, SEQUENCES)
    assert list(F) == ["norm.bias", "inner.bias", "head.bias"]


def test_a_model_whose_output_mixes_samples_is_refused():
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=False)
    model = Net(lambda net, x: net.layer(x).mean(1), layer=layer).double()
    with pytest.raises(InputError, match="mixes samples"):
        fl.exact_fisher(model, (torch.randn(4, 4, 4).double(), None), "gaussian")


# --- kind 7: one layer does not stop the others -------------------------------------------------------


class Positions(nn.Module):
    """A learned table of positions, looked up in one of several ways."""

    def __init__(self, ids: str = "[T]", out: int = 3) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(7, D), nn.Embedding(2 * N, D)
        self.norm, self.head = nn.LayerNorm(D), nn.Linear(D, out)
        self.ids = ids

    def places_of(self, x: Tensor) -> Tensor:
        ids = torch.arange(x.shape[1])
        if self.ids == "[1, T]":
            return self.places(ids[None])
        if self.ids == "[n, T]":
            return self.places(ids.expand(x.shape))
        if self.ids == "repeated":
            return self.places(ids // 2)
        if self.ids == "reversed":
            return self.places(ids.flip(0))
        return self.places(ids)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.tokens(x) + self.places_of(x)).tanh().mean(1))


@pytest.mark.parametrize("positions", [N, 2 * N, 2, 3], ids=["T = N", "T = 2N", "T = 2", "T = 3"])
@pytest.mark.parametrize("ids", ["[T]", "[1, T]", "repeated", "reversed"])
def test_a_learned_table_of_positions(ids, positions):
    model, x = Positions(ids).double(), torch.randint(7, (N, positions))
    F = check(model, x)
    assert list(F) == ["tokens", "places", "norm", "head"]
    assert kinds(model, x)["places"] == "expanded"


def test_every_approximation_of_a_table_of_positions_is_that_of_a_table_looked_up_by_sample():
    model, other = Positions("[T]").double(), Positions("[n, T]").double()
    other.load_state_dict(model.state_dict())
    data = torch.randint(7, (8, N)), torch.arange(8) % 3
    for method in BUILT:
        found, expected = (fl.approximate(method, one, data) for one in (model, other))
        assert list(found) == list(expected)
        for name in expected:
            assert agree(found[name].dense(), expected[name].dense()), (method, name)
    names = ("relative_error", "scaled_error", "trace_ratio", "population_error", "direction_cosine")
    tables = [fl.compare(one, data, list(registered()), spectra=False) for one in (model, other)]
    for column in names:
        found, expected = (table.records[column] for table in tables)
        pd.testing.assert_series_equal(found, expected, rtol=1e-7, atol=1e-9)
    assert torch.allclose(tables[0].coupling_matrix, tables[1].coupling_matrix, rtol=1e-10)


@pytest.mark.parametrize("sizes", [[6], [2, 4], [4, 1, 1], [3, 3]])
def test_a_table_of_positions_under_any_batches(sizes):
    model, x = Positions().double(), torch.randint(7, (N, N))
    F = fl.exact_fisher(model, [(part, None) for part in x.split(sizes)], "gaussian")
    assert agree(F["places"].dense(), block(model, x, "gaussian", "places"))


def test_two_tables_that_are_added():
    class Two(Positions):
        def __init__(self) -> None:
            super().__init__()
            self.kinds = nn.Embedding(2, D)

        def places_of(self, x: Tensor) -> Tensor:
            ids = torch.arange(x.shape[1])
            return self.places(ids) + self.kinds((ids % 2)[None])

    model = Two().double()
    check(model, IDS)
    found = kinds(model, IDS)
    assert found["places"] == found["kinds"] == "expanded"


def test_a_table_of_positions_in_code_with_positions_first():
    class First(Positions):
        def forward(self, x: Tensor) -> Tensor:
            h = self.tokens(x.T) + self.places(torch.arange(x.shape[1])[:, None])
            return self.head(self.norm(h).tanh().mean(0))

    model = First().double()
    check(model, IDS)
    assert kinds(model, IDS)["places"] == "expanded"


def relative(net: Net, x: Tensor) -> Tensor:
    """Attention with a learned bias by the (clipped) distance of two positions, as T5 has."""
    places = torch.arange(x.shape[1])
    ids = (places[:, None] - places).clamp(-1, 1) + 1
    scores = x @ x.mT + net.distances(ids).permute(2, 0, 1)[0]
    return net.head((scores.softmax(-1) @ net.inner(x)).mean(1))


@pytest.mark.parametrize("positions", [T, N, 2])
def test_a_table_of_distances_between_positions(positions):
    layers = {"inner": nn.Linear(D, D), "distances": nn.Embedding(3, 1), "head": nn.Linear(D, 3)}
    model, x = Net(relative, **layers).double(), torch.randn(N, positions, D).double()
    F = check(model, x)
    assert list(F) == ["inner", "distances", "head"]


class Queries(nn.Module):
    """Learned queries that go through a linear layer and a norm of their own."""

    def __init__(self, form: str) -> None:
        super().__init__()
        shape = {"[q, d]": (3, D), "[1, q, d]": (1, 3, D), "[1, d]": (1, D), "[d]": (D,)}[form]
        self.queries = nn.Parameter(torch.randn(shape))
        self.norm, self.to_query = nn.LayerNorm(D), nn.Linear(D, D)
        self.keys, self.head = nn.Linear(D, D), nn.Linear(D, 3)

    def forward(self, x: Tensor) -> Tensor:
        q = self.to_query(self.norm(self.queries))
        if self.queries.dim() == 1 or self.queries.shape == (1, D):
            return self.head((x.mean(1) * q).tanh())
        return self.head(((q @ self.keys(x).mT).softmax(-1) @ x).mean(1))


@pytest.mark.parametrize("form", ["[q, d]", "[1, q, d]", "[1, d]", "[d]"])
@pytest.mark.parametrize("samples", [3, 6])
def test_layers_on_learned_queries(form, samples):
    model, x = Queries(form).double(), torch.randn(samples, T, D).double()
    F = check(model, x)
    assert {"norm", "to_query", "head"} <= set(F)
    found = kinds(model, x)
    assert found["norm"] == "expanded"
    assert found["to_query"] == "as declared"  # what it sees is expanded already


@pytest.mark.parametrize("bias", ["separate", "ignore"])
def test_biases_of_layers_on_learned_queries(bias):
    model = Queries("[q, d]").double()
    F = fl.exact_fisher(model, (SEQUENCES, None), "gaussian", bias=bias)
    expected = block(model, SEQUENCES, "gaussian", "to_query")
    weights = D * D
    assert agree(F["to_query"].dense(), expected[:weights, :weights])
    if bias == "separate":
        assert agree(F["to_query.bias"].dense(), expected[weights:, weights:])


class Experts(nn.Module):
    """Every token goes to one of several experts, which see as many rows as come."""

    def __init__(self, experts: int = 3, tokens: bool = True) -> None:
        super().__init__()
        self.gate = nn.Linear(D, experts)
        self.experts = nn.ModuleList(nn.Linear(D, 4) for _ in range(experts))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, D)
        scores = self.gate(rows).softmax(-1)
        weight, chosen = scores.max(-1)
        out = rows.new_zeros(len(rows), 4)
        for number, expert in enumerate(self.experts):
            places = (chosen == number).nonzero()[:, 0]
            if len(places):
                out = out.index_add(0, places, expert(rows[places]).tanh() * weight[places, None])
        return self.head(out.view(*x.shape[:-1], 4).flatten(1, -2).mean(1) if x.dim() > 2 else out)


@pytest.mark.parametrize("x", [torch.randn(9, T, D).double(), torch.randn(9, D).double()], ids=["tokens", ""])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_experts_that_see_ragged_rows(x, seed):
    torch.manual_seed(seed)
    model = Experts().double()
    F = check(model, x)
    assert {"gate", "head"} <= set(F)


def test_experts_that_see_as_many_rows_as_samples_by_chance():
    torch.manual_seed(59)
    model = Experts().double()
    with torch.no_grad():
        model.gate.bias[1] = -1e3
    x = torch.randn(6, 4, 5).double()
    chosen = model.gate(x).argmax(-1)
    assert (chosen == 0).sum() == 12  # of six samples
    assert (chosen == 0).sum(1).tolist() == [2, 2, 2, 2, 3, 1]
    check(model, x)


def test_an_expert_that_sees_no_rows_is_left_out():
    model = Experts().double()
    with torch.no_grad():
        model.gate.bias[1] = -1e3
    with pytest.warns(UserWarning, match=r"not measured: layer 'experts.1': it takes no part in the forward"):
        F = fl.exact_fisher(model, (SEQUENCES, None), "gaussian")
    assert list(F) == ["gate", "experts.0", "experts.2", "head"]


def test_layers_that_take_no_part_are_left_out_together():
    def sparing(net: Net, x: Tensor) -> Tensor:
        net.aside(x)
        with torch.no_grad():
            shift = net.frozen(x)
        return net.head(net.inner(x).tanh() + shift)

    model = inner_and_head(sparing)
    model.spare, model.aside, model.frozen = nn.Linear(2, 2), nn.Linear(D, 2), nn.Linear(D, 4)
    model = model.double()
    with pytest.warns(UserWarning, match="'spare': .*'aside': it does not reach .*'frozen': ") as caught:
        c = fl.compare(model, (X, torch.arange(N) % 3), ("kfac",))
    assert len([w for w in caught if "not measured" in str(w.message)]) == 1
    assert list(c.results) == ["inner", "head"]
    coverage = c.layers.coverage().set_index("parameter")
    assert not coverage.loc["spare.weight", "covered"]
    assert "takes no part" in coverage.loc["spare.weight", "reason"]
    assert coverage.loc["head.weight", "covered"]
    assert set(c.summary()["not_measured"]) == {"spare", "aside", "frozen"}


def test_no_layer_left_is_refused_with_the_reasons():
    model = Net(lambda net, x: (net.inner(x), x * 2)[1], inner=nn.Linear(D, 3)).double()
    with pytest.raises(InputError, match="no layer can be measured: layer 'inner': it does not reach"):
        fl.exact_fisher(model, (X, None), "gaussian")


def test_a_layer_to_which_nothing_comes_back_is_named_in_the_note():
    model = nn.Sequential(nn.Linear(D, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    records = fl.compare(model, (X, torch.arange(N) % 3), ("kfac",)).records
    notes = records.groupby("layer")["note"].first()
    assert "no gradient came back to it in the first 6 samples" in notes["0"]
    assert "no gradient" not in notes["2"]


def test_a_layer_that_only_later_samples_reach_is_checked_on_them():
    model = nn.Sequential(Tied(), nn.Linear(D, 3)).double()
    with torch.no_grad():
        model[0].enc.bias.zero_()
    x = torch.cat([torch.zeros(5, D), torch.randn(20, D)]).double()
    gated = Net(lambda net, x: net.inner(x) * (x.abs().sum(1, keepdim=True) > 0), inner=model)
    check(gated, x)
    assert kinds(gated, x)["inner.0.enc"] == "gradients"


@pytest.mark.parametrize("where", ["everywhere", "one block", "on the data"])
def test_reentrant_checkpointing_is_refused_by_name(where):
    def saving(net: Net, x: Tensor) -> Tensor:
        if where == "on the data":
            return net.head(checkpoint(lambda x: net.inner(net.first(x)), x, use_reentrant=True))
        h = checkpoint(net.inner, net.first(x).tanh(), use_reentrant=True)
        return net.head(h) if where == "one block" else checkpoint(net.head, h, use_reentrant=True)

    model = Net(saving, first=nn.Linear(D, D), inner=nn.Linear(D, D), head=nn.Linear(D, 3)).double()
    with pytest.raises(InputError, match="use_reentrant=False"):
        fl.exact_fisher(model, (X, None), "gaussian")


def test_checkpointing_that_is_not_reentrant():
    class Saving(Positions):
        def forward(self, x: Tensor) -> Tensor:
            h = checkpoint(self.places_of, x, use_reentrant=False) + self.tokens(x)
            return checkpoint(lambda h: self.head(self.norm(h).tanh().mean(1)), h, use_reentrant=False)

    check(Saving(), IDS)


# --- a first batch of one sample ----------------------------------------------------------------------


def test_a_first_batch_of_one_sample_is_made_sure_of_by_a_later_one():
    model = nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    F = fl.exact_fisher(model, [(X[:1], None), (X[1:], None)], "gaussian")
    for name, found in F.items():
        assert agree(found.dense(), block(model, X, "gaussian", name))
    alone = fl.exact_fisher(Positions().double(), [(ids[None], None) for ids in IDS], "gaussian")
    assert list(alone) == ["tokens", "places", "norm", "head"]


def test_a_first_batch_of_one_sample_that_a_later_one_does_not_confirm_is_refused():
    model = PositionsFirst().double()
    data = [(SEQUENCES[:1], None), (SEQUENCES[1:], None)]
    with pytest.raises(InputError, match="the first batch has one sample only, and of a later one layer"):
        fl.exact_fisher(model, data, "gaussian", strict=True)


# --- approximations, comparison and command line ------------------------------------------------------


@pytest.mark.parametrize("case", ELSEWHERE)
def test_what_is_made_of_gradients_alone_is_that_of_the_dense_block(case):
    made, x, layer = ELSEWHERE[case]
    model = made().double()
    data = x, torch.zeros_like(model(x))
    F = fl.exact_fisher(model, data, "gaussian", method="per-sample", layers=[layer])[layer]
    built = {}
    for method in BUILT:
        try:
            built[method] = fl.approximate(method, model, data, "gaussian", layers=[layer])[layer]
        except (InputError, KeyError):
            continue
    vector = fl.find_layers(model)[layer].vector
    usable = {"diagonal", "adam", "nearest-kronecker", "kl-kronecker"}
    of_matrices = {"tkfac", "ngplus", "adafactor", "shampoo", "soap"}
    assert set(built) == (usable if vector else usable | of_matrices)
    assert torch.allclose(built["diagonal"].diagonal(), F.diagonal(), rtol=1e-12)
    if not vector and fl.find_layers(model)[layer].groups == 1:
        m, d = F.outputs, F.inputs
        entries = F.dense().view(d, m, d, m)
        A, B = built["tkfac"].factors
        outputs, inputs = entries.diagonal(dim1=0, dim2=2).sum(-1), entries.diagonal(dim1=1, dim2=3).sum(-1)
        assert torch.allclose(
            torch.kron(A, B), torch.kron(inputs, outputs) / F.trace(), rtol=1e-9, atol=1e-15
        )
        error = fl.metrics.relative_error(F, built["nearest-kronecker"])
        assert error <= fl.metrics.scaled_error(F, built["tkfac"])[0] + 1e-12
        empirical = fl.exact_fisher(model, data, "gaussian", "empirical", layers=[layer])[layer].dense()
        entries = empirical.view(d, m, d, m)
        small = entries.diagonal(dim1=0, dim2=2) if m <= d else entries.diagonal(dim1=1, dim2=3)
        factor = built["ngplus"].factors[1 if m <= d else 0]
        assert torch.allclose(factor, small.sum(-1), rtol=1e-9, atol=1e-15)


def test_a_method_that_needs_inputs_leaves_the_layer_out_with_one_warning():
    model = nn.Sequential(Tied(), nn.Linear(D, 3)).double()
    data = X, torch.arange(N) % 3
    for method in ("kfac", "ekfac", "tekfac", "foof", "lngd", "lngd-lr"):
        with pytest.warns(UserWarning, match=f"'0.enc': {method} needs a layer's inputs") as caught:
            assert list(fl.approximate(method, model, data)) == ["1"]
        assert len([w for w in caught if "not measured" in str(w.message)]) == 1
    with pytest.warns(UserWarning, match="tkfac needs"):
        assert list(fl.approximate("tkfac", model, data, positions="independent")) == ["1"]
    assert list(fl.approximate("tkfac", model, data)) == ["0.enc", "1"]


def test_a_comparison_says_why_a_row_is_empty():
    model = nn.Sequential(Tied(), nn.Linear(D, 3)).double()
    x = torch.randn(16, D).double()
    c = fl.compare(model, (x, torch.arange(16) % 3), list(registered()))
    rows = c.records[c.records["layer"] == "0.enc"].set_index("approximation")
    assert set(rows["method"]) == {"per-sample"}
    assert rows.loc[["kfac", "ekfac", "lngd"], "scaled_error"].isna().all()
    own = ["diagonal", "adam", "adafactor", "tkfac", "nearest-kronecker", "ngplus", "shampoo", "soap"]
    assert rows.loc[[*own, "kl-kronecker"], "scaled_error"].notna().all()
    assert rows.loc[["diagonal", "tkfac"], "population_error"].notna().all()
    assert rows.loc["kfac", "note"].startswith(
        "kfac needs a layer's inputs and output gradients; made of the"
    )
    assert rows["note"].str.contains("its module's calls do not give the gradient of its parameters").all()
    F = fl.exact_fisher(model, (x, torch.arange(16) % 3), method="per-sample")["0.enc"]
    assert rows["trace_exact"].dropna().tolist() == pytest.approx([float(F.trace())] * 9)
    coverage = c.layers.coverage().set_index("parameter")
    assert coverage.loc["0.enc.weight", "reason"].startswith("made of the samples' gradients")
    assert bool(coverage.loc["0.enc.weight", "covered"])
    assert torch.isfinite(c.coupling_matrix).all()
    gradient = fl.exact_fisher(model, (x, torch.arange(16) % 3), "categorical", "empirical")["0.enc"]
    assert gradient.trace() > 0


def test_the_layerwise_fisher_leaves_such_a_layer_out():
    model = nn.Sequential(Tied(), nn.Linear(D, 3)).double()
    data = X, torch.arange(N) % 3
    for call in (fl.exact_fisher, fl.compare):
        with pytest.warns(UserWarning, match="'0.enc': it has no layer-wise Fisher"):
            found = call(model, data, kind="layerwise")
        assert list(getattr(found, "results", found)) == ["1"]


def test_a_large_block_made_of_gradients_goes_by_the_gram_form():
    model = nn.Sequential(Tied(30, 20), nn.Linear(30, 3)).double()
    data = torch.randn(N, 30).double(), torch.arange(N) % 3
    plans = []
    c = fl.compare(model, data, ("diagonal", "tkfac"), memory="2MB", on_plan=plans.append)
    assert {plan.layer: plan.method for plan in plans}["0.enc"] == "gram"
    assert "made of the samples' gradients" in str(plans[0])
    expected = fl.compare(model, data, ("diagonal", "tkfac"))
    for column in ("trace_exact", "relative_error", "direction_cosine"):
        found = c.records[column].tolist()
        assert found == pytest.approx(expected.records[column].tolist(), rel=1e-8, nan_ok=True)


def test_a_layer_whose_gradients_do_not_fit_is_left_out():
    model = nn.Sequential(Tied(30, 20), nn.Linear(30, 3)).double()
    data = torch.randn(N, 30).double(), torch.arange(N) % 3
    with pytest.warns(UserWarning, match="'0.enc' would need .* memory limit"):
        c = fl.compare(model, data, ("kfac",), memory="200kB")
    assert list(c.results) == ["1"]


def test_statistics_of_a_layer_made_of_gradients_can_be_saved(tmp_path):
    model = nn.Sequential(Tied(), nn.Linear(D, 3)).double()
    data = X, torch.arange(N) % 3
    path = tmp_path / "statistics.safetensors"
    found = fl.collect_statistics(model, data, approximations=("kfac", "tkfac", "diagonal"), path=path)
    assert list(found.build("kfac")) == ["1"]
    again = fl.load_statistics(path)
    assert again.shapes == found.shapes
    assert torch.equal(again.build("tkfac")["0.enc"].dense(), found.build("tkfac")["0.enc"].dense())
    rows = fl.compare(model, data, ("kfac", "tkfac"), statistics=again).records
    expected = fl.compare(model, data, ("kfac", "tkfac")).records
    assert rows["scaled_error"].tolist() == pytest.approx(expected["scaled_error"].tolist(), nan_ok=True)


def test_an_approximation_for_vectors_is_compared_on_norms():
    class Halved(fl.approximations.Diagonal):
        name = "halved-diagonal"
        formula = source = "half the diagonal"

        def build(self, layer, sums, kind):
            return super().build(layer, sums, kind) * 0.5

    model = nn.Sequential(nn.LayerNorm(D), nn.Linear(D, 3)).double()
    records = fl.compare(model, (X, torch.arange(N) % 3), [Halved(), "kfac"]).records
    rows = records[records["layer"] == "0"].set_index("approximation")
    assert list(rows.index) == ["diagonal", "halved-diagonal"]
    assert rows.loc["halved-diagonal", "trace_ratio"] == pytest.approx(0.5)


def test_nothing_of_the_model_changes():
    model, before = Positions().double().train(), torch.get_rng_state()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    fl.exact_fisher(model, (IDS, None), "gaussian")
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert model(IDS).shape == (N, 3)


MODELS = """
import torch
from torch import nn
from torch.nn import functional


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(7, 5), nn.Embedding(4, 5)
        self.enc, self.head, self.spare = nn.Linear(5, 4), nn.Linear(5, 3), nn.Linear(2, 2)

    def forward(self, x):
        h = self.tokens(x) + self.places(torch.arange(x.shape[1]))
        return self.head(functional.linear(self.enc(h).tanh(), self.enc.weight.T).mean(1))


def build():
    torch.manual_seed(0)
    return Model(), (torch.randint(7, (16, 4)), torch.arange(16) % 3), "categorical"
"""


def test_the_command_line_says_what_was_not_measured(tmp_path, monkeypatch):
    (tmp_path / "odd_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    warnings.simplefilter("default")  # as of a fresh process
    done = CliRunner().invoke(main, ["compare", "--model", "odd_models:build", "--out", "run", "-v"])
    assert done.exit_code == 0, done.output
    assert "plan: layer enc: per-sample" in done.stderr
    assert "made of the samples' gradients" in done.stderr
    assert "not measured: layer 'spare': it takes no part in the forward pass" in done.stderr
    assert "not measured: spare: it takes no part" in " ".join(done.stdout.split())
    coverage = pd.read_csv(tmp_path / "run" / "coverage.csv").set_index("parameter")
    assert not coverage.loc["spare.weight", "covered"]
    assert coverage.loc["spare.weight", "reason"].startswith("it takes no part")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert list(summary["not_measured"]) == ["spare"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "it takes no part in the forward pass" in page
    records = pd.read_csv(tmp_path / "run" / "records.csv")
    rows = records[records["target"] == "predictive"].set_index(["layer", "approximation"])
    assert pd.isna(rows.loc[("enc", "kfac"), "scaled_error"])
    assert rows.loc[("places", "kfac"), "scaled_error"] > 0


# --- rows that are moved about, and other odd calls -----------------------------------------------------


def sorts() -> Net:
    """Rows sorted by a length before a layer, and put back behind it."""

    def forward(net: Net, x: Tensor) -> Tensor:
        order = x[:, 0].round().argsort(stable=True)
        return net.head(net.inner(x[order]).tanh()[order.argsort()])

    return inner_and_head(forward)


def test_rows_that_are_sorted_and_put_back():
    check(sorts(), X)
    assert kinds(sorts().double(), X)["inner"] == "gradients"


def test_rows_that_are_moved_only_among_later_samples_are_refused():
    x = torch.randn(100, D).double()
    x[:70, 0] = 0
    model = sorts().double()
    with pytest.raises(
        InputError, match="layer 'inner' was right for the first samples and is not in batch 0"
    ):
        fl.exact_fisher(model, (x, None), "gaussian", strict=True)
    F = fl.exact_fisher(model, (x, None), "gaussian", method="per-sample")["inner"]
    assert agree(F.dense(), block(model, x, "gaussian", "inner"))


def test_pairs_of_a_sample_one_half_after_the_other():
    def siamese(net: Net, x: Tensor) -> Tensor:
        one, other = net.inner(torch.cat([x, -x])).tanh().chunk(2)
        return net.head(one * other)

    check(inner_and_head(siamese), X)


def test_a_layer_called_sample_by_sample():
    check(inner_and_head(lambda net, x: torch.stack([net.head(net.inner(row).tanh()) for row in x])), X)


def test_an_encoder_that_sees_learned_prototypes_too():
    model = Net(
        lambda net, x: -(net.enc(x)[:, None] - net.enc(net.prototypes)).square().sum(-1),
        enc=nn.Linear(D, 4),
        prototypes=nn.Parameter(torch.randn(3, D)),
    )
    check(model, X)


def test_attention_without_a_batch_is_measured_by_gradients():
    model = Net(
        lambda net, x: net.head(torch.stack([net.attention(s, s, s)[0].mean(0) for s in x])),
        attention=nn.MultiheadAttention(4, 2),
        head=nn.Linear(4, 3),
    ).double()
    x = torch.randn(N, T, 4).double()
    found, expected = (
        fl.exact_fisher(model, (x, None), "gaussian", method=m) for m in ("auto", "per-sample")
    )
    assert list(found) == [*(f"attention.{part}" for part in ("q", "k", "v", "out_proj")), "head"]
    for name in found:
        assert agree(found[name].dense(), expected[name].dense())
    assert agree(found["head"].dense(), block(model, x, "gaussian", "head"))


@pytest.mark.parametrize("made", [Tied, never_called], ids=["tied", "never called"])
def test_samples_in_the_second_dimension_of_the_data(made):
    model = Net(lambda net, x: net.inner(x[0] * x[1]), inner=made()).double()
    x = torch.randn(2, N, D).double()
    found = fl.exact_fisher(model, (x, None), "gaussian", batch_dim=1)
    for name in found:
        expected = block(model.inner, x[0] * x[1], "gaussian", name.removeprefix("inner."))
        assert agree(found[name].dense(), expected)


def test_where_vmap_gives_other_gradients_single_samples_are_taken(monkeypatch):
    right = SampleGradients._sample
    monkeypatch.setattr(
        SampleGradients, "_sample", lambda *given: {name: 2 * V for name, V in right(*given).items()}
    )
    check(Tied(), X)


def test_samples_gradients_come_in_pieces_where_memory_is_short(monkeypatch):
    model = nn.Sequential(Tied(), nn.Linear(D, 4)).double()
    data = X, torch.arange(N) % 4
    expected = {method: fl.approximate(method, model, data) for method in ("tkfac", "diagonal")}
    monkeypatch.setattr("fisherlab.collect.collector._GRADIENT_BYTES", 2_000)
    for method, blocks in expected.items():
        found = fl.approximate(method, model, data)
        for name in blocks:
            assert agree(found[name].dense(), blocks[name].dense())


# --- batches that are unlike the first samples ----------------------------------------------------------


def multiplied(net: Net, x: Tensor) -> Tensor:
    """Any number of positions, which are multiplied at the end."""
    return net.head(net.inner(x).tanh().prod(1))


def lengths() -> Net:
    return inner_and_head(multiplied)


def words() -> Net:
    """Any number of words, looked up in a table."""
    return Net(multiplied, inner=nn.Embedding(7, 4), head=nn.Linear(4, 3))


def pictures() -> Net:
    """Pictures of any size."""
    return Net(
        lambda net, x: net.head(net.inner(x).tanh().mean((2, 3))),
        inner=nn.Conv2d(2, 4, 3, padding=1),
        head=nn.Linear(4, 3),
    )


def chunks(net: Net, x: Tensor) -> Tensor:
    """Rows of one chunk of all samples after those of another; as declared where there is one chunk."""
    h = net.inner(torch.cat(x.split(2, 1))).tanh()
    return net.head(torch.stack(h.chunk(x.shape[1] // 2)).prod(0).prod(1))


def mean_block(model: nn.Module, data: list, name: str) -> Tensor:
    """F of batches of several shapes."""
    parts = [len(x) * block(model, x, "gaussian", name) for x, _ in data]
    return torch.stack(parts).sum(0) / sum(len(x) for x, _ in data)


UNLIKE: dict[str, tuple[Callable[[], nn.Module], list[Tensor]]] = {
    "longer first": (lengths, [torch.randn(3, n, D).double() for n in (5, 1, 2)]),
    "a single position first": (lengths, [torch.randn(3, n, D).double() for n in (1, 5, 2)]),
    "longer later": (lengths, [torch.randn(3, n, D).double() for n in (2, 5, 3)]),
    "words": (words, [torch.randint(7, (3, n)) for n in (2, 5, 1)]),
    "pictures": (pictures, [torch.randn(3, 2, n, n + 1).double() for n in (4, 6, 3)]),
}


@pytest.mark.parametrize("method", ["auto", "gram", "per-sample"])
@pytest.mark.parametrize("case", UNLIKE)
def test_batches_of_other_lengths_or_sizes(case, method):
    made, batches = UNLIKE[case]
    model, data = made().double(), [(x, None) for x in batches]
    F = fl.exact_fisher(model, data, "gaussian", method=method)
    for name in ("inner", "head"):
        assert agree(F[name].dense(), mean_block(model, data, name))


@pytest.mark.parametrize("case", UNLIKE)
def test_a_comparison_on_batches_of_other_lengths_or_sizes(case, monkeypatch):
    made, batches = UNLIKE[case]
    model, data = made().double(), [(x, None) for x in batches]
    small = fl.compare(model, data, ("kfac", "diagonal"), "gaussian").records
    monkeypatch.setattr("fisherlab.exact.plans._Chooser.plan", lambda self, view, memory: self._gram(view, 0))
    large = fl.compare(model, data, ("kfac", "diagonal"), "gaussian").records
    assert set(large["method"]) == {"gram"}
    for column in ("trace_exact", "relative_error"):
        assert large[column].tolist() == pytest.approx(small[column].tolist(), rel=1e-8)
    rows = small[small["approximation"] == "diagonal"].set_index("layer")
    expected = float(mean_block(model, data, "inner").trace())
    assert rows.loc["inner", "trace_exact"] == pytest.approx(expected)


def test_a_generator_of_single_positions_before_longer_ones_is_refused():
    model, data = lengths().double(), [(torch.randn(3, n, D).double(), None) for n in (1, 5)]
    with pytest.raises(InputError, match=r"'inner' has one position .* and 5 in batch 1, .* longest length"):
        fl.exact_fisher(model, iter(data), "gaussian", strict=True)
    for method in ("gram", "per-sample"):
        F = fl.exact_fisher(model, data, "gaussian", method=method)["inner"]
        assert agree(F.dense(), mean_block(model, data, "inner"))


def test_inputs_of_another_shape_are_looked_at_anew():
    model, data = inner_and_head(chunks).double(), [(torch.randn(4, n, D).double(), None) for n in (2, 4)]
    with pytest.raises(InputError, match=r"'inner' was right .* not in batch 1, whose inputs have another"):
        fl.exact_fisher(model, data, "gaussian", strict=True)
    F = fl.exact_fisher(model, data, "gaussian", method="per-sample")["inner"]
    assert agree(F.dense(), mean_block(model, data, "inner"))


class Later(nn.Module):
    """A network that does something of its own to samples whose first input is above 2."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.inner, self.head, self.kind = nn.Linear(D, D), nn.Linear(D, 3), kind
        if kind == "hook":
            self.inner.register_forward_hook(lambda module, args, output: output.clamp(-1, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x).tanh()
        if self.kind == "weight":
            h = h + torch.relu(x[:, :1] - 2) * functional.linear(h, self.inner.weight)
        return self.head(h)


def sets(net: Net, x: Tensor) -> Tensor:
    """Sets of any size, cut by a split: no index tells that the rows move."""
    counts = x[:, 0, 0].long().tolist()
    rows = torch.cat([sample[:count] for sample, count in zip(x, counts, strict=True)])
    return net.head(torch.stack([own.sum(0) for own in net.inner(rows).tanh().split(counts)]))


def quiet_at_first(count: int, rest: int) -> Tensor:
    x = torch.randn(count + rest, D).double() * 0.1
    x[count:, 0] = 4
    return x


def sets_of(*counts: int) -> Tensor:
    x = torch.randn(len(counts), 4, D).double()
    x[:, 0, 0] = torch.tensor(counts).double()
    return x


LATER: dict[str, tuple[Callable[[], nn.Module], list[Tensor], str]] = {
    "a weight, in the same batch": (
        lambda: Later("weight"),
        [quiet_at_first(64, 36)],
        "0: its module's calls",
    ),
    "a weight, in the next batch": (
        lambda: Later("weight"),
        [quiet_at_first(4, 0), quiet_at_first(0, 5)],
        "1: its module's calls",
    ),
    "a weight, of one sample": (lambda: Later("weight"), [quiet_at_first(64, 1)], "0: its module's calls"),
    "a hook": (lambda: Later("hook"), [quiet_at_first(4, 0), quiet_at_first(0, 5) * 9], "1: its module's"),
    "rows of sets": (
        lambda: inner_and_head(sets),
        [sets_of(3, 3, 3, 3, 3), sets_of(4, 2, 4, 2, 3)],
        "1: what comes back to the rows",
    ),
}


@pytest.mark.parametrize("case", LATER)
def test_what_only_later_samples_do_is_refused_in_their_batch(case):
    made, batches, where = LATER[case]
    model, data = made().double().eval(), [(x, None) for x in batches]
    match = f"'inner' was right for the first samples and is not in batch {where}"
    with pytest.raises(InputError, match=match):
        fl.exact_fisher(model, data, "gaussian", strict=True)
    with pytest.warns(UserWarning, match=match) as caught:
        others = fl.exact_fisher(model, data, "gaussian")
    assert list(others) == ["head"]
    assert agree(others["head"].dense(), mean_block(model, data, "head"))
    assert [warning.filename for warning in caught] == [__file__]
    F = fl.exact_fisher(model, data, "gaussian", method="per-sample")["inner"]
    assert agree(F.dense(), mean_block(model, data, "inner"))


def root() -> Net:
    """A norm, which has no slope at zero."""
    return Net(
        lambda net, x: net.head(net.inner(x).square().sum(1, keepdim=True).sqrt().expand(-1, 4)),
        inner=nn.Linear(D, 4, bias=False),
        head=nn.Linear(4, 3),
    )


@pytest.mark.parametrize("method", ["auto", "per-sample"])
@pytest.mark.parametrize("place", [1, 2, 3, 6])
def test_gradients_that_are_not_finite_for_a_later_sample_are_named(place, method):
    x = torch.randn(8, 2, D).double()
    x[place, 1] = 0
    data = [(own, None) for own in x]
    with pytest.raises(NumericalError, match=f"to layer 'inner' is not finite in batch {place}"):
        fl.exact_fisher(root().double(), data, "gaussian", method=method, layers=["inner"])


def test_gradients_that_are_not_finite_for_a_first_sample_leave_the_layer_out():
    x = torch.randn(N, D).double()
    x[0] = 0
    with pytest.warns(UserWarning, match="not measured: layer 'inner': what comes back to it is not finite"):
        assert list(fl.exact_fisher(root().double(), (x, None), "gaussian")) == ["head"]


# --- models of which the first samples tell little ------------------------------------------------------


class Mixing(nn.Module):
    """A network that does what it is told before its first layer, and to its outputs."""

    def __init__(self, before: Callable[[Tensor], Tensor], after: Callable = lambda x, h: h) -> None:
        super().__init__()
        self.inner, self.head, self.before, self.after = nn.Linear(D, 4), nn.Linear(4, 3), before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(x, self.head(self.inner(self.before(x)).tanh()))


class Counting(Mixing):
    """A network that changes with every call."""

    def __init__(self) -> None:
        super().__init__(lambda x: x)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * (2.0 if self.calls % 2 else 1.0)


def drawn_by(draw: Callable[[], float]) -> Mixing:
    """A network that leaves out a part by chance, seldom."""
    return Mixing(lambda x: x, lambda x, h: h if draw() > 0.2 else 0 * h)


ALIKE = torch.cat([X[:1], X])
BLIND: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "centred, the first two samples alike": (lambda: Mixing(lambda x: x - x.mean(0)), ALIKE),
    "centred, all samples alike but the last": (
        lambda: Mixing(lambda x: x - x.mean(0)),
        torch.cat([X[:1].expand(8, -1), X[1:2]]),
    ),
    "centred where there are more than two": (
        lambda: Mixing(lambda x: x - x.mean(0) if len(x) > 2 else x),
        X,
    ),
    "a mean that is zero of the first samples": (
        lambda: Mixing(lambda x: x, lambda x, h: h + torch.relu(x[:, :1] - 3).mean()),
        torch.cat([X.clamp(max=1), X + 4]),
    ),
    "changes with every call": (Counting, X),
    "drawn by torch": (lambda: drawn_by(lambda: float(torch.rand(()))), X),
    "drawn by numpy": (lambda: drawn_by(lambda: float(np.random.rand())), X),  # noqa: NPY002
    "drawn by Python": (lambda: drawn_by(random.random), X),
    "drawn, one sample": (lambda: drawn_by(lambda: float(torch.rand(()))), X[:1]),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", BLIND)
def test_a_model_that_mixes_or_draws_where_the_first_samples_tell_little_is_refused(case, seed):
    made, x = BLIND[case]
    model = made().double()
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)
    with pytest.raises(InputError, match="the model mixes samples, draws random numbers"):
        fl.exact_fisher(model, (x, None), "gaussian")


def test_numbers_that_are_drawn_without_an_effect_change_nothing():
    check(Mixing(lambda x: x + 0 * torch.rand_like(x)), X)


def test_a_model_that_squeezes_a_single_sample_is_measured():
    model = Mixing(lambda x: x, lambda x, h: h.squeeze(0) if len(x) == 1 else h).double()
    F = fl.exact_fisher(model, (X, None), "gaussian")
    expected = fl.exact_fisher(Mixing(lambda x: x).double(), (X, None), "gaussian")
    assert list(F) == list(expected) == ["inner", "head"]


def test_a_first_batch_of_one_sample_and_a_weight_used_elsewhere():
    model = Tied().double()
    F = fl.exact_fisher(model, [(own[None], None) for own in X], "gaussian")["enc"]
    assert agree(F.dense(), block(model, X, "gaussian", "enc"))


class Transposed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mT


HALVES = {
    "vision transformer": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 8, 4, 4),
            nn.Flatten(2),
            Transposed(),
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
            nn.Flatten(),
            nn.Linear(32, 3),
        ),
        torch.randn(40, 2, 8, 8),
    ),
    "language model": (
        lambda: nn.Sequential(
            nn.Embedding(7, 8),
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
            nn.Flatten(),
            nn.Linear(8 * T, 7),
        ),
        torch.randint(7, (40, T)),
    ),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 8, 3),
            nn.GroupNorm(2, 8),
            nn.ReLU(),
            nn.Conv2d(8, 4, 3),
            nn.Flatten(),
            nn.Linear(64, 3),
        ),
        torch.randn(40, 2, 8, 8),
    ),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", HALVES)
def test_networks_in_half_precision_are_read_as_declared(case, dtype):
    made, x = HALVES[case]
    found = kinds(made().to(dtype).eval(), x.to(dtype) if x.is_floating_point() else x)
    assert set(found.values()) == {"as declared"}


def test_positions_and_samples_in_one_dimension_in_half_precision():
    def flat(net: Net, x: Tensor) -> Tensor:
        h = net.inner(x.transpose(0, 1).flatten(0, 1)).tanh()
        return net.head(h.unflatten(0, (x.shape[1], len(x))).sum(0))

    model, x = inner_and_head(flat).bfloat16(), torch.randn(12, 3, D).bfloat16()
    found = fl.exact_fisher(model, (x, None), "gaussian")["inner"].dense().double()
    expected = block(model.double(), x.double(), "gaussian", "inner")
    assert torch.linalg.norm(found - expected) < 0.02 * torch.linalg.norm(expected)


def test_random_numbers_in_half_precision_are_refused():
    model = Mixing(lambda x: functional.dropout(x, 0.5, True)).bfloat16()
    with pytest.raises(InputError, match="draws random numbers"):
        fl.exact_fisher(model, (X.bfloat16(), None), "gaussian")


# --- columns that cannot go backwards together ----------------------------------------------------------


def distances() -> Net:
    """Distances to a table of prototypes: torch's vmap of their slope is wrong for two columns and more."""
    return Net(
        lambda net, x: -torch.cdist(net.inner(x).tanh(), net.table(torch.arange(5))),
        inner=nn.Linear(D, 4),
        table=nn.Embedding(5, 4),
    )


class OneColumn(torch.autograd.Function):
    """The hyperbolic tangent, with a slope in code that looks at the numbers."""

    @staticmethod
    def forward(context, x: Tensor) -> Tensor:
        context.save_for_backward(x.tanh())
        return x.tanh()

    @staticmethod
    def backward(context, g: Tensor) -> Tensor:
        (y,) = context.saved_tensors
        return g * (1 - y * y) if g.norm().item() >= 0 else g


def logged() -> nn.Module:
    model, log = nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, 3)), []
    model[2].register_full_backward_hook(lambda module, gin, gout: log.append(gout[0].norm().item()))
    return model


@pytest.mark.parametrize(
    "made",
    [
        distances,
        logged,
        lambda: Mixing(OneColumn.apply),
        lambda: Mixing(lambda x: x, lambda x, h: OneColumn.apply(h)),
    ],
    ids=["distances", "a hook that logs", "a function at the inputs", "a function at the outputs"],
)
def test_columns_that_cannot_go_backwards_together_go_one_by_one(made):
    check(made(), X)
