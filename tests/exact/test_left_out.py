"""Layers that are excluded, and layers that cannot be done: the others are done all the same."""

import io

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import fisherlab as fl
from fisherlab.errors import InputError, MemoryLimitError, NumericalError
from fisherlab.representations import represent
from fisherlab.traces import trace

D, N = 4, 6


class Root(nn.Module):
    """A network whose layer `inner` has no slope for a sample of zeros; `spare` takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.other = nn.Linear(D, 3, bias=False), nn.Linear(D, 3)
        self.head, self.spare = nn.Linear(3, 3), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.other(x).tanh() + self.inner(x).square().sum(1, keepdim=True).sqrt())


def zeros_in(batch: int, count: int = 4) -> list[tuple[Tensor, Tensor]]:
    """Batches of which one has a sample of zeros."""
    x = torch.randn(count, N, D, dtype=torch.float64)
    x[batch, 1] = 0
    return [(own, torch.arange(N) % 3) for own in x]


def net() -> nn.Sequential:
    first = nn.Sequential(nn.Linear(D, 5), nn.Tanh(), nn.Linear(5, 5))
    return nn.Sequential(first, nn.Tanh(), nn.Linear(5, 3)).double()


DATA = torch.randn(N, D, dtype=torch.float64), torch.arange(N) % 3
ANALYSES = {
    "exact_fisher": lambda *args, **options: fl.exact_fisher(*args, **options),
    "approximate": lambda *args, **options: fl.approximate("kfac", *args, **options),
    "nearest": lambda *args, **options: fl.approximate("nearest-kronecker", *args, **options),
    "compare": lambda *args, **options: fl.compare(*args, **options, approximations="kfac").results,
    "collect_statistics": lambda *args, **options: fl.collect_statistics(*args, **options).shapes,
    "represent": lambda *args, **options: dict.fromkeys(represent(*args, **options).moments["layer"]),
    "trace": lambda *args, **options: dict.fromkeys(trace(*args, **options).traces["layer"]),
}


@pytest.mark.parametrize("call", ANALYSES)
def test_every_analysis_leaves_out_what_is_excluded(call):
    for exclude, left in (("2", ["0.0", "0.2"]), (["0.2", "2"], ["0.0"]), ("0", ["2"]), ("0.*", ["2"])):
        assert list(ANALYSES[call](net(), DATA, exclude=exclude)) == left
    with pytest.raises(InputError, match=r"unknown layer '0.7'"):
        ANALYSES[call](net(), DATA, exclude="0.7")


def test_what_is_excluded_does_not_change_the_others():
    model = net()
    everything, some = fl.exact_fisher(model, DATA), fl.exact_fisher(model, DATA, exclude="0.0")
    assert list(some) == ["0.2", "2"]
    for name, block in some.items():
        assert torch.equal(block.dense(), everything[name].dense())
    found = fl.find_layers(model)
    assert list(fl.exact_fisher(model, DATA, layers=found, exclude=["0.*"])) == ["2"]
    assert list(fl.find_layers(model, exclude="0.0").coverage()["covered"]) == [False] * 2 + [True] * 4


def test_nothing_left_is_refused():
    with pytest.raises(InputError, match="leaves out all of the 3 layers"):
        fl.exact_fisher(net(), DATA, exclude="*")
    with pytest.raises(InputError, match=r"unknown layer '2.weight'"):  # which is in a block, with its bias
        fl.exact_fisher(net(), DATA, exclude="2.weight")


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("method", ["auto", "gram", "per-sample"])
def test_a_layer_whose_gradients_are_not_finite_does_not_stop_the_others(batch, method):
    model, data = Root().double(), zeros_in(batch)
    with pytest.warns(UserWarning, match=r"'spare'.* takes no part|'inner'.* not finite") as caught:
        found = fl.exact_fisher(model, data, method=method)
    assert list(found) == ["other", "head"]
    text = "; ".join(str(one.message) for one in caught)
    assert all(text.count(f"layer '{name}'") == 1 for name in ("inner", "spare"))
    expected = fl.exact_fisher(model, data, layers=["other", "head"])
    for name, block in found.items():
        assert torch.allclose(block.dense(), expected[name].dense(), rtol=1e-12, atol=1e-15)


@pytest.mark.filterwarnings("ignore:not measured")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_comparison_lists_the_layers_that_could_not_be_measured(dtype):
    model, data = Root().to(dtype), [(x.to(dtype), y) for x, y in zeros_in(2)]
    c = fl.compare(model, data, ("kfac", "ekfac", "diagonal"))
    assert list(c.results) == ["other", "head"]
    assert c.coupling_matrix.shape == (2, 2)
    assert c.coupling["coupling"].notna().all()
    assert list(c.layers.left_out) == ["spare", "inner"]
    assert "not finite in batch 2" in c.summary()["not_measured"]["inner"]
    rows = c.layers.coverage().set_index("parameter")
    assert not rows.loc["inner.weight", "covered"]
    assert "not finite" in rows.loc["inner.weight", "reason"]


@pytest.mark.filterwarnings("ignore:not measured")
@pytest.mark.parametrize("analysis", [represent, trace])
def test_tables_and_pages_list_the_layers_that_could_not_be_measured(analysis, tmp_path):
    model, data = Root().double(), zeros_in(2)
    found = analysis(model, data, **({"approximations": "kfac"} if analysis is trace else {}))
    assert "spare" in found.left_out
    assert "takes no part" in found.summary()["not_measured"]["spare"]
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(found.table())
    page = found.write_page(tmp_path / "page.html", found.summary(), [], {}).read_text()
    for text in (console.export_text(), page):
        assert "not measured: spare: it takes no part" in text


@pytest.mark.filterwarnings("ignore:not measured")
def test_statistics_say_which_layers_they_lack(tmp_path):
    model, data, path = Root().double(), zeros_in(3), tmp_path / "statistics.safetensors"
    found = fl.collect_statistics(model, data, path=path)
    assert list(found.shapes) == ["other", "head"]
    assert list(fl.collect_statistics(model, data, path=path).shapes) == ["other", "head"]
    again = fl.load_statistics(path)
    assert list(again.left_out) == ["spare", "inner"]
    assert list(fl.compare(model, data, ("kfac", "ekfac"), statistics=again).results) == ["other", "head"]


def test_strict_stops_with_the_list():
    model = Root().double()
    with pytest.raises(InputError, match=r"layer 'spare': it takes no part .*exclude="):
        fl.exact_fisher(model, DATA, strict=True)
    with pytest.raises(NumericalError, match=r"'inner' is not finite in batch 3; .*exclude="):
        fl.compare(model, zeros_in(3), "kfac", strict=True, exclude="spare")
    assert list(fl.exact_fisher(model, DATA, strict=True, exclude=["spare", "inner"])) == ["other", "head"]


def test_where_all_fail_one_error_lists_them():
    class Both(Root):
        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).square().sum(1, keepdim=True).sqrt()

    data = [(x, None) for x, _ in zeros_in(3)]
    match = r"no layer can be measured: .*'spare': it takes no part.*'inner' is not finite in batch 3"
    with pytest.warns(UserWarning, match="'spare'"), pytest.raises(InputError, match=match):
        fl.exact_fisher(Both().double(), data, "gaussian")
    with pytest.raises(NumericalError, match=r"no layer can be measured: .*'inner'"):
        fl.exact_fisher(Both().double(), data, "gaussian", layers="inner")


def test_a_block_that_does_not_fit_is_left_out():
    model = nn.Sequential(nn.Linear(D, 3), nn.Tanh(), nn.Linear(3, 40), nn.Tanh(), nn.Linear(40, 3)).double()
    with pytest.warns(UserWarning, match="layer '4' would need .* block of layer '2' would need"):
        found = fl.exact_fisher(model, DATA, method="per-sample", memory="60kB")
    assert list(found) == ["0"]
    with pytest.raises(MemoryLimitError, match=r"'4' would need .* '2' would need"):
        fl.exact_fisher(model, DATA, method="per-sample", memory="60kB", strict=True)
    with pytest.raises(MemoryLimitError, match="no layer can be measured"):
        fl.exact_fisher(model, DATA, method="per-sample", memory="60kB", layers=["2", "4"])


class Failing(fl.approximations.Diagonal):
    """The diagonal, of layers with three outputs alone."""

    name, formula, source = "failing", "-", "a test"

    def build(self, layer, sums, kind):
        if layer.outputs != 3:
            raise NumericalError("this matrix cannot be factored")
        return super().build(layer, sums, kind)


def test_an_approximation_that_fails_on_a_layer_has_a_row_with_the_reason():
    c = fl.compare(net(), DATA, (Failing(), "kfac"))
    rows = c.records[c.records["target"] == "predictive"].set_index(["layer", "approximation"])
    for layer in ("0.0", "0.2"):
        assert rows.loc[(layer, "failing")].isna()["scaled_error"]
        assert "cannot be factored" in rows.loc[(layer, "failing"), "note"]
        assert rows.loc[(layer, "kfac"), "scaled_error"] > 0
    assert rows.loc[("2", "failing"), "scaled_error"] > 0
    with pytest.warns(UserWarning, match="not measured: layer '0.0': this matrix cannot be factored"):
        assert list(fl.approximate(Failing(), net(), DATA)) == ["2"]


class TwoPass(fl.approximations.EKFAC):
    """EKFAC whose basis cannot be made of layers with five outputs."""

    name, formula, source = "two-pass", "-", "a test"

    def basis(self, layer, sums, kind):
        if layer.outputs != 3:
            raise NumericalError("no eigenvectors")
        return super().basis(layer, sums, kind)


def test_a_basis_that_cannot_be_made_is_the_methods_failure_alone():
    c = fl.compare(net(), DATA, (TwoPass(), "ekfac"))
    rows = c.records[c.records["target"] == "predictive"].set_index(["layer", "approximation"])
    assert "no eigenvectors" in rows.loc[("0.2", "two-pass"), "note"]
    own, known = rows.loc[("2", "two-pass")], rows.loc[("2", "ekfac")]
    assert own["scaled_error"] == pytest.approx(known["scaled_error"], rel=1e-10)


class Normed(nn.Module):
    """A group norm between convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


@pytest.mark.parametrize("method", ["auto", "per-sample"])
def test_group_norms_of_channels_last_tensors(method):
    model, x = Normed().double(), torch.randn(5, 3, 4, 4).double()
    expected = fl.exact_fisher(model, (x, None))
    last = x.to(memory_format=torch.channels_last)
    for own in (model, Normed().double().to(memory_format=torch.channels_last)):
        own.load_state_dict(model.state_dict())
        for layers in (None, ["norm"]):  # torch's backward of the norm's parameters alone ends the process
            for name, block in fl.exact_fisher(own, (last, None), method=method, layers=layers).items():
                assert torch.allclose(block.dense(), expected[name].dense(), rtol=1e-10, atol=1e-14)
        assert not own.norm._forward_pre_hooks


class Distances(nn.Module):
    """Distances of positions to each other, whose vmap torch gets wrong for few positions alone."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.keys = nn.Linear(D, 3), nn.Linear(D, 3)

    def forward(self, x: Tensor) -> Tensor:
        keys = self.keys(torch.ones_like(x[0]))  # the same for every sample
        return torch.cdist(self.inner(x), keys).mean(1)[:, :3]


def test_a_vmap_that_errs_for_a_later_shape_is_found():
    model = Distances().double()
    data = [(torch.randn(4, t, D).double(), None) for t in (30, 4)]
    found = fl.exact_fisher(model, data, "gaussian", method="per-sample", layers="inner")["inner"].dense()
    rows = []
    for x, _ in data:
        for one in x:
            for f in model(one[None])[0]:
                g, b = torch.autograd.grad(f, [*model.inner.parameters()], retain_graph=True)
                rows.append(torch.cat([g, b[:, None]], 1).T.flatten())
    J = torch.stack(rows)
    assert torch.allclose(found, J.T @ J / 8, rtol=1e-10)
