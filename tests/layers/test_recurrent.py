"""Recurrent networks: torch's own numbers, and the blocks of a network written by hand with Linears."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

import fisherlab as fl
from fisherlab.collect.collector import Collector
from fisherlab.collect.hooks import capture
from fisherlab.layers import spelled_out
from fisherlab.likelihoods import as_likelihood

D, H, N, T = 3, 4, 5, 4
KINDS = {
    "tanh": (nn.RNN, {}),
    "relu": (nn.RNN, {"nonlinearity": "relu"}),
    "gru": (nn.GRU, {}),
    "lstm": (nn.LSTM, {}),
    "projected": (nn.LSTM, {"proj_size": 2}),
}
OPTIONS = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(list(KINDS)),
        "num_layers": st.integers(1, 3),
        "bidirectional": st.booleans(),
        "bias": st.booleans(),
        "batch_first": st.booleans(),
        "packed": st.sampled_from(["", "sorted", "any order"]),
        "states": st.booleans(),
    }
)


class Net(nn.Module):
    """Samples [n, t, d], their lengths where they are packed, and first states made of them, or none."""

    def __init__(self, kind, num_layers, bidirectional, bias, batch_first, packed="", states=False) -> None:
        super().__init__()
        make, more = KINDS[kind]
        own = {
            "num_layers": num_layers,
            "bidirectional": bidirectional,
            "bias": bias,
            "batch_first": batch_first,
        }
        self.rnn = make(D, H, **own, **more)
        self.packed, self.layers, self.lstm = packed, num_layers * (1 + bidirectional), make is nn.LSTM
        self.width = more.get("proj_size", H)
        self.start = nn.Linear(D, self.layers * (self.width + H)) if states else None
        self.head = nn.Linear(self.width * (1 + bidirectional), 3)

    def states(self, x: Tensor):
        if self.start is None:
            return None
        flat = self.start(x.mean(1)).tanh().unflatten(1, (self.layers, -1)).transpose(0, 1)
        h, c = (part.contiguous() for part in flat.split([self.width, H], -1))
        return (h, c) if self.lstm else h

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        first, given = self.rnn.batch_first, self.states(x)
        x = x if first else x.transpose(0, 1)
        if self.packed:
            x = pack_padded_sequence(x, lengths, batch_first=first, enforce_sorted=self.packed == "sorted")
        y, last = self.rnn(x, given)
        if self.packed:
            y, _ = pad_packed_sequence(y, batch_first=first)
        end = last[0] if self.lstm else last
        y = y if first else y.transpose(0, 1)
        return self.head(y.sum(1)) + end.square().sum((0, 2)).unsqueeze(1) * torch.arange(3)


def data_for(packed: str) -> tuple[tuple[Tensor, ...], Tensor]:
    lengths = {"sorted": [4, 4, 3, 2, 1], "any order": [2, 4, 1, 4, 3]}
    x = torch.randn(N, T, D, dtype=torch.float64)
    more = (torch.tensor(lengths[packed]),) if packed else ()
    return (x, *more), torch.randint(3, (N,))


def made(options) -> tuple[Net, tuple[tuple[Tensor, ...], Tensor]]:
    torch.manual_seed(0)
    net = Net(**options).double()
    with torch.no_grad():
        for p in net.parameters():  # larger than torch's own: the gates are to do something
            p.mul_(1.5)
    return net, data_for(options["packed"])


def samples_gradients(model: nn.Module, inputs, targets) -> dict[str, Tensor]:
    """For each layer V [n, m, d] by plain autograd through torch's own module, sample by sample."""
    own, layers = dict(model.named_parameters()), fl.find_layers(model)
    rows: dict[str, list[Tensor]] = {name: [] for name in layers}
    for n in range(len(targets)):
        one = [x[n : n + 1] for x in inputs]
        loss = functional.cross_entropy(model(*one), targets[n : n + 1])
        found = dict(zip(own, torch.autograd.grad(loss, list(own.values()), allow_unused=True), strict=True))
        for name, view in layers.items():
            rows[name].append(view.to_matrix({p: found[p] for p in view.parameters}))
    return {name: torch.stack(one) for name, one in rows.items()}


def block(V: Tensor) -> Tensor:
    flat = V.mT.flatten(1)
    return flat.T @ flat / len(flat)


def numbers(value) -> list[Tensor]:
    if isinstance(value, PackedSequence):
        order = value.sorted_indices
        return [value.data, value.batch_sizes] + ([] if order is None else [order, value.unsorted_indices])
    return [value] if isinstance(value, Tensor) else [t for part in value for t in numbers(part)]


@settings(max_examples=20, deadline=None)
@given(OPTIONS, st.booleans())
def test_spelled_out_it_gives_what_torch_gives(options, training):
    """Outputs, last states and all gradients; in training mode the same entries are dropped."""
    net, ((x, *lengths), _) = made(options)
    net.rnn.dropout = 0.5 if training else 0.0
    net.train(training)
    x.requires_grad_()
    told = []

    def called() -> tuple[list[Tensor], tuple[Tensor, ...]]:
        torch.manual_seed(1)
        given = x if net.rnn.batch_first else x.transpose(0, 1)
        if net.packed:
            order = net.packed == "sorted"
            given = pack_padded_sequence(
                given, *lengths, batch_first=net.rnn.batch_first, enforce_sorted=order
            )
        result = numbers(net.rnn(given, net.states(x)))
        sums = sum(((k + 1) * t.square()).sum() for k, t in enumerate(result) if t.is_floating_point())
        used = [x, *net.rnn.parameters(), *([] if net.start is None else net.start.parameters())]
        return result, torch.autograd.grad(sums, used)

    expected = called()
    with spelled_out([net.rnn], lambda module, part, *rest: told.append(part)):
        found = called()
    for own, other in zip(expected[0] + list(expected[1]), found[0] + list(found[1]), strict=True):
        assert own.dtype == other.dtype
        torch.testing.assert_close(other, own, rtol=1e-12, atol=1e-12)
    assert sorted(told) == sorted(
        n.removeprefix("weight_") for n, _ in net.rnn.named_parameters() if "weight" in n
    )


@settings(max_examples=8, deadline=None)
@given(OPTIONS)
def test_every_block_is_that_of_autograd(options):
    """Made of a and g, which `kfac` needs, and not of the samples' gradients."""
    net, data = made(options)
    expected = samples_gradients(net, *data)
    found = fl.exact_fisher(net, data, kind="empirical")
    assert set(found) == set(expected) == set(fl.approximate("kfac", net, data, kind="empirical"))
    for name, V in expected.items():
        exact = block(V)
        assert torch.linalg.norm(found[name].dense() - exact) <= 1e-12 * torch.linalg.norm(exact), name


class ByHand(nn.Module):
    """One layer of Linears, from the equations in torch's documentation."""

    def __init__(self, kind: str, source: nn.Module) -> None:
        super().__init__()
        self.kind, m = kind, len(source.weight_ih_l0)
        self.ih, self.hh = nn.Linear(D, m), nn.Linear(getattr(source, "proj_size", 0) or H, m)
        self.hr = nn.Linear(H, source.proj_size, bias=False) if source.proj_size else None
        with torch.no_grad():
            for name in ("ih", "hh"):
                getattr(self, name).weight.copy_(getattr(source, f"weight_{name}_l0"))
                getattr(self, name).bias.copy_(getattr(source, f"bias_{name}_l0"))
            if self.hr is not None:
                self.hr.weight.copy_(source.weight_hr_l0)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), self.hh.in_features)
        c, outputs = x.new_zeros(len(x), H), []
        for t in range(x.shape[1]):
            given, own = self.ih(x[:, t]), self.hh(h)
            if self.kind == "gru":
                (r, z, n), (hr, hz, hn) = given.chunk(3, 1), own.chunk(3, 1)
                z = torch.sigmoid(z + hz)
                h = (1 - z) * torch.tanh(n + torch.sigmoid(r + hr) * hn) + z * h
            elif self.kind in ("lstm", "projected"):
                i, f, g, o = (given + own).chunk(4, 1)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(c)
                h = h if self.hr is None else self.hr(h)
            else:
                h = torch.relu(given + own) if self.kind == "relu" else torch.tanh(given + own)
            outputs.append(h)
        return torch.stack(outputs, 1)


class Classifier(nn.Module):
    def __init__(self, rnn: nn.Module, width: int) -> None:
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.rnn(x)
        return self.head((y[0] if isinstance(y, tuple) else y).sum(1))


def twins(kind: str) -> tuple[Classifier, Classifier, dict[str, str]]:
    """Torch's module, the same by hand, and the layers' names there by those here."""
    torch.manual_seed(0)
    make, more = KINDS[kind]
    width = more.get("proj_size", H)
    model = Classifier(make(D, H, batch_first=True, **more), width).double()
    other = Classifier(ByHand(kind, model.rnn).double(), width).double()
    other.head.load_state_dict(model.head.state_dict())
    return model, other, {f"rnn.{part}_l0": f"rnn.{part}" for part in ("ih", "hh", "hr")} | {"head": "head"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_approximation_is_that_of_a_network_written_by_hand(kind):
    """And the exact block, of expected labels."""
    model, other, names = twins(kind)
    data = torch.randn(6, T, D, dtype=torch.float64), torch.randint(3, (6,))
    pairs = [[fl.exact_fisher(one, data) for one in (model, other)]]
    for method in ("kfac", "ekfac", "tkfac", "lngd"):
        pairs.append([fl.approximate(method, one, data) for one in (model, other)])
    for found, expected in pairs:
        assert found.keys() >= {"rnn.ih_l0", "rnn.hh_l0", "head"}
        for name, own in found.items():
            a, b = own.dense(), expected[names[name]].dense()
            assert torch.linalg.norm(a - b) < 1e-12 * torch.linalg.norm(b), name


OPTIMIZERS = {
    "lngd": (fl.optim.LNGD, {}),
    "lngd-lr": (fl.optim.LNGD, {"source": "predictive"}),
    "kfac": (fl.optim.KFAC, {"source": "empirical", "rate": "layerwise"}),
    "ekfac": (fl.optim.EKFAC, {}),
    "tkfac": (fl.optim.TKFAC, {}),
    "ngplus": (fl.optim.NGPlus, {}),
}


@pytest.mark.parametrize(("name", "kind"), zip(OPTIMIZERS, ["gru", "projected"] * 3, strict=True))
def test_every_optimizer_goes_the_way_of_a_network_written_by_hand(kind, name):
    """Its losses, of which some fall; and a state that is saved and loaded goes on as before."""
    make, options = OPTIMIZERS[name]
    torch.manual_seed(3)
    x, y = torch.randn(12, T, D, dtype=torch.float64), torch.randint(3, (12,))

    def trained(model: nn.Module, optimizer, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return losses

    model, other, _ = twins(kind)
    found = []
    for one in (model, other):
        optimizer = make(one, lr=0.03, statistics_every=2, inverse_every=2, **options)
        found.append(trained(one, optimizer, 5))
    assert found[0] == pytest.approx(found[1], rel=1e-8)
    assert min(found[0]) < found[0][0]
    again = copy.deepcopy(model)
    optimizer = make(model, lr=0.03, **options)
    trained(model, optimizer, 2)
    again.load_state_dict(model.state_dict())
    second = make(again, lr=0.03, **options)
    second.load_state_dict(optimizer.state_dict())
    assert trained(model, optimizer, 3) == pytest.approx(trained(again, second, 3), rel=1e-12)


def test_products_of_samples_with_a_direction():
    """Also of sequences of unlike lengths."""
    options = {"kind": "gru", "num_layers": 2, "bidirectional": True, "bias": True, "batch_first": False}
    net, ((x, lengths), y) = made({**options, "packed": "any order"})
    expected = samples_gradients(net, (x, lengths), y)
    layers = fl.find_layers(net)
    with capture(layers) as seen:
        loss = functional.cross_entropy(net(x, lengths), y, reduction="sum")
    for name, view in layers.items():
        D_ = torch.randn(view.outputs, view.inputs, dtype=torch.float64)
        [call] = seen[name]
        [g] = torch.autograd.grad(loss, [call.edge], retain_graph=True)
        torch.testing.assert_close(view.products(call, g, D_, N), (expected[name] * D_).sum((1, 2)))


def test_the_factors_are_those_of_the_steps_that_a_sample_has():
    """A packed sequence gives KFAC the sums, and the mean number of positions, of its own steps alone."""
    options = {"kind": "lstm", "num_layers": 1, "bidirectional": False, "bias": True, "batch_first": True}
    net, ((x, lengths), y) = made({**options, "packed": "any order"})
    rows = torch.cat([x[n, : lengths[n]] for n in range(N)])
    a = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
    A = fl.approximate("kfac", net, ((x, lengths), y), kind="empirical")["rnn.ih_l0"].A
    expected = a.T @ a
    assert torch.allclose(A / A[-1, -1], expected / expected[-1, -1], rtol=1e-12)
    statistics = fl.collect_statistics(net, ((x, lengths), y), kind="empirical")
    assert statistics.sums["rnn.hh_l0"].positions == int(lengths.sum())


@pytest.mark.parametrize("size", [1, 2, 5])
def test_batches_of_unlike_lengths_add_up(size):
    options = {"kind": "lstm", "num_layers": 1, "bidirectional": True, "bias": True, "batch_first": True}
    net, ((x, lengths), y) = made({**options, "packed": "any order"})
    whole = fl.approximate("kfac", net, ((x, lengths), y))
    parts = [((x[n : n + size], lengths[n : n + size]), y[n : n + size]) for n in range(0, N, size)]
    for name, found in fl.approximate("kfac", net, parts).items():
        assert torch.allclose(found.dense(), whole[name].dense(), rtol=1e-10, atol=1e-14), name


def test_a_pass_is_as_large_as_all_its_projections():
    model, _, _ = twins("projected")
    data = torch.randn(6, T, D, dtype=torch.float64), torch.randint(3, (6,))
    sizes = Collector(model, fl.find_layers(model), data, as_likelihood("categorical")).sizes
    assert sizes.activations == T * (2 * 4 * H + 2) + 3
    assert sizes.positions == {"rnn.ih_l0": T, "rnn.hh_l0": T, "rnn.hr_l0": T, "head": 1}


CELLS = {"tanh": nn.RNNCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}


class Unrolled(nn.Module):
    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state, outputs = None, []
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(outputs, 1)


@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_that_is_called_for_each_step_is_the_module(kind):
    torch.manual_seed(0)
    module = Classifier(KINDS[kind][0](D, H, batch_first=True), H).double()
    cell = Classifier(Unrolled(CELLS[kind](D, H)), H).double()
    weights = {
        f"rnn.cell.{n.removeprefix('rnn.').removesuffix('_l0')}": p for n, p in module.named_parameters()
    }
    cell.load_state_dict({n: p for n, p in weights.items() if "head" not in n}, strict=False)
    cell.head.load_state_dict(module.head.state_dict())
    data = torch.randn(6, T, D, dtype=torch.float64), torch.randint(3, (6,))
    names = {"rnn.cell.ih": "rnn.ih_l0", "rnn.cell.hh": "rnn.hh_l0", "head": "head"}
    found, expected = (fl.exact_fisher(one, data) for one in (cell, module))
    assert list(found) == list(names)
    for name, F in found.items():
        b = expected[names[name]].dense()
        assert torch.linalg.norm(F.dense() - b) < 1e-12 * torch.linalg.norm(b)


def test_names_and_coverage():
    model = nn.Sequential(nn.LSTM(D, H, 2, bidirectional=True, proj_size=2))
    layers = fl.find_layers(model)
    ways = [
        f"{kind}_l{layer}{way}" for layer in (0, 1) for way in ("", "_reverse") for kind in ("ih", "hh", "hr")
    ]
    assert list(layers) == [f"0.{name}" for name in ways]
    assert layers.coverage()["covered"].all()
    assert {v.family for v in layers.values()} == {"LSTM"}
    assert [(layers[n].outputs, layers[n].inputs) for n in ("0.ih_l0", "0.hh_l0", "0.hr_l0", "0.ih_l1")] == [
        (4 * H, D + 1),
        (4 * H, 2 + 1),
        (2, H),
        (4 * H, 4 + 1),
    ]
    cell = fl.find_layers(nn.Sequential(nn.GRUCell(D, H)), bias="separate")
    assert list(cell) == ["0.ih", "0.ih.bias", "0.hh", "0.hh.bias"]


def test_a_part_alone_and_a_frozen_part():
    """The hidden block without gradients to the input's, and the other way round."""
    model, _, _ = twins("lstm")
    data = torch.randn(6, T, D, dtype=torch.float64), torch.randint(3, (6,))
    expected = {name: block(V) for name, V in samples_gradients(model, (data[0],), data[1]).items()}
    for part in ("ih", "hh"):
        own = copy.deepcopy(model)
        for name, p in own.rnn.named_parameters():
            p.requires_grad_(part in name)
        found = fl.exact_fisher(own, data, kind="empirical")
        assert list(found) == [f"rnn.{part}_l0", "head"]
        for name, F in found.items():
            assert torch.allclose(F.dense(), expected[name], rtol=1e-10, atol=1e-14)


def test_nothing_is_left_behind():
    model, _, _ = twins("projected")
    model.rnn.dropout = 0.25
    before, flat = dict(vars(model.rnn)), list(model.rnn._flat_weights)
    data = torch.randn(6, T, D, dtype=torch.float64), torch.randint(3, (6,))
    fl.compare(model, data, ("kfac",))
    assert vars(model.rnn) == before
    assert model.rnn.training
    assert all(own is other for own, other in zip(flat, model.rnn._flat_weights, strict=True))
    model.eval()
    expected = model(data[0])
    assert torch.equal(pickle.loads(pickle.dumps(copy.deepcopy(model)))(data[0]), expected)


def test_dropout_between_layers():
    """An analysis is without it, of a model in training mode too; a training goes on with it."""
    torch.manual_seed(0)
    model = Classifier(nn.LSTM(D, H, 2, batch_first=True, dropout=0.5), H).double().train()
    data = torch.randn(6, T, D, dtype=torch.float64), torch.randint(3, (6,))
    found = fl.exact_fisher(model, data, kind="empirical")
    assert model.rnn.training
    assert model.rnn.dropout == 0.5
    for name, V in samples_gradients(copy.deepcopy(model).eval(), data[:1], data[1]).items():
        assert torch.allclose(found[name].dense(), block(V), rtol=1e-10, atol=1e-15)
    optimizer = fl.optim.LNGD(model, lr=0.01)
    losses = []
    for _ in range(3):
        found = []
        for one in (copy.deepcopy(model), model):  # the copy without the optimizer's hooks: torch's own
            torch.manual_seed(5)
            found.append(functional.cross_entropy(one(data[0]), data[1]))
        torch.testing.assert_close(*found)
        optimizer.zero_grad()
        found[1].backward()
        optimizer.step()
        losses.append(found[1].item())
    assert losses[2] < losses[0]


def test_weights_that_two_networks_share():
    """One block each, summed over both; each part has the same name in both."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"up": nn.GRU(H, H, batch_first=True), "down": nn.GRU(H, H, batch_first=True)})
    for name, p in model["up"].named_parameters():
        setattr(model["down"], name, p)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts, self.head = model, nn.Linear(H, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.parts["down"](self.parts["up"](x)[0].square())[0].sum(1))

    net = Twice().double()
    data = torch.randn(6, T, H, dtype=torch.float64), torch.randint(3, (6,))
    expected = samples_gradients(net, data[:1], data[1])
    assert list(expected) == ["parts.up.ih_l0", "parts.up.hh_l0", "head"]
    assert list(fl.approximate("kfac", net, data)) == list(expected)
    for name, F in fl.exact_fisher(net, data, kind="empirical").items():
        assert torch.allclose(F.dense(), block(expected[name]), rtol=1e-10, atol=1e-15)


class Checkpointed(nn.Module):
    def __init__(self, rnn: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.rnn, self.head = rnn, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.rnn, x, use_reentrant=False)[0].sum(1))


@pytest.mark.parametrize("kind", ["relu", "gru", "lstm"])
def test_inside_activation_checkpointing(kind):
    """Where its own forward is run again for what was saved, the block is made of the samples' gradients."""
    model, _, _ = twins(kind)
    data = torch.randn(6, T, D, dtype=torch.float64), torch.randint(3, (6,))
    expected = {name: block(V) for name, V in samples_gradients(model, data[:1], data[1]).items()}
    found = fl.exact_fisher(Checkpointed(model.rnn, model.head), data, kind="empirical")
    assert set(found) == set(expected)
    for name, F in found.items():
        assert torch.allclose(F.dense(), expected[name], rtol=1e-10, atol=1e-15)


def test_one_sequence_alone_runs_unseen():
    rnn, told = nn.GRU(D, H), []
    x = torch.randn(T, D)
    expected = rnn(x)
    with spelled_out([rnn], lambda *what: told.append(what)):
        assert all(torch.equal(*pair) for pair in zip(rnn(x), expected, strict=True))
    assert not told


def test_wrong_arguments_are_refused_as_torch_refuses_them():
    rnn = nn.LSTM(D, H)
    with spelled_out([rnn], lambda *what: None):
        with pytest.raises(RuntimeError, match=r"input\.size"):
            rnn(torch.zeros(T, N, D + 1))
        with pytest.raises(RuntimeError, match=r"Expected hidden\[0\] size"):
            rnn(torch.zeros(T, N, D), (torch.zeros(1, N + 1, H), torch.zeros(1, N, H)))


def test_why_no_activation_follows():
    model, _, _ = twins("lstm")
    data = torch.randn(6, T, D, dtype=torch.float64), torch.randint(3, (6,))
    table = fl.compare(model, data, ("lngd",)).layers.coverage().set_index("parameter")
    assert table["activation"]["rnn.weight_hh_l0"] == "identity"
    assert "followed by" in table["reason"]["rnn.weight_hh_l0"]


def test_what_a_hook_does_in_training_mode_alone_is_no_part_of_an_analysis():
    torch.manual_seed(0)
    model = Classifier(nn.GRU(D, H, batch_first=True), H).double().eval()
    data = torch.randn(6, T, D, dtype=torch.float64), torch.randint(3, (6,))
    plain = fl.exact_fisher(model, data)
    model.rnn.register_forward_hook(lambda net, _, out: (2 * out[0], out[1]) if net.training else out)
    for name, F in fl.exact_fisher(model, data).items():
        assert torch.equal(F.dense(), plain[name].dense())
