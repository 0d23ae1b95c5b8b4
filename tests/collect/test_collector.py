"""One pass over data: what each layer is given, and which models are refused."""

import pytest
import torch
from model_cases import Net
from reference import Case, gradients, jacobian, names_of
from torch import Tensor, nn

import fisherlab as fl
from fisherlab.collect.collector import Collector
from fisherlab.collect.layer_batch import LayerBatch, half_of
from fisherlab.errors import InputError, NumericalError
from fisherlab.likelihoods import Categorical, as_likelihood


def collector(case: Case, **options) -> Collector:
    layers = fl.find_layers(case.model)
    return Collector(case.model, layers, case.data, as_likelihood(case.likelihood), **options)


def one_pass(case: Case, kind: str, **options) -> dict[str, list[LayerBatch]]:
    source = collector(case, **options)
    found: dict[str, list[LayerBatch]] = {name: [] for name in source.layers}
    for batches in source.passes({name: frozenset({kind}) for name in source.layers}, "test"):
        for name, batch in batches.items():
            found[name].append(batch)
    return found


def vectors(batch: LayerBatch, kind: str) -> Tensor:
    """vec(V) [c, n, D] in column-vec order."""
    V = batch.g[kind].transpose(-1, -2) @ batch.a
    return V.transpose(-1, -2).flatten(-2)


# --- what a pass gives --------------------------------------------------------------------------------


def test_empirical_gradients_are_the_samples_gradients(trained):
    for layer, (batch,) in one_pass(trained, "empirical").items():
        expected = gradients(trained, names_of(layer, trained.model))
        assert torch.allclose(vectors(batch, "empirical")[0], expected, atol=1e-13)


def test_gradients_of_columns_are_those_of_the_jacobian(trained):
    u = as_likelihood(trained.likelihood).columns(trained.model(trained.inputs).detach())
    for layer, (batch,) in one_pass(trained, "predictive").items():
        J = jacobian(trained.model, trained.inputs, names_of(layer, trained.model))
        expected = torch.einsum("cnk,nkd->cnd", u, J)
        assert torch.allclose(vectors(batch, "predictive"), expected, atol=1e-13)


def test_shapes_with_positions(sequences):
    found = one_pass(sequences, "predictive")
    assert found["0"][0].a.shape == (24, 4, 4)
    assert found["0"][0].g["predictive"].shape == (2, 24, 4, 4)
    assert found["5"][0].a.shape == (24, 1, 4)
    assert torch.equal(found["0"][0].a[..., -1], torch.ones(24, 4, dtype=torch.float64))
    assert collector(sequences).sizes.positions == {"0": 4, "2": 4, "5": 1}


def test_each_kind_has_its_number_of_columns(categorical):
    source = collector(categorical, draws=5)
    expected = {"predictive": 2, "monte-carlo": 5, "drawn": 1, "empirical": 1}
    for kind, count in expected.items():
        assert source.sizes.label_columns_of(kind, "2") == count
        assert len(one_pass(categorical, kind, draws=5)["2"][0].g[kind]) == count
    for kind, count in {"layerwise": 1, "layerwise:6": 6, "layerwise+categorical:3": 3}.items():
        assert source.sizes.label_columns_of(kind, "2") == count
        assert len(one_pass(categorical, kind)["2"][0].g[kind]) == count


def test_several_kinds_in_one_pass_are_those_of_passes_of_their_own(trained):
    kinds = frozenset({"predictive", "empirical", "monte-carlo", "drawn", "layerwise", "layerwise:2"})
    source = collector(trained)
    (together,) = source.passes({"2": kinds}, "test")
    for kind in kinds:
        alone = one_pass(trained, kind)["2"][0].g[kind]
        assert torch.equal(together["2"].g[kind], alone)


def test_batches_are_cut_and_know_where_they_start(trained, monkeypatch):
    whole = one_pass(trained, "predictive")["0"][0]
    monkeypatch.setattr("fisherlab.collect.sizes._MOST_SAMPLES", 16)
    parts = one_pass(trained, "predictive")["0"]
    assert [part.start for part in parts] == [0, 16, 32]
    assert torch.allclose(torch.cat([p.g["predictive"] for p in parts], 1), whole.g["predictive"], atol=1e-14)


def test_large_samples_make_small_batches(categorical, monkeypatch):
    needs = {"0": frozenset({"predictive"})}
    source = collector(categorical)
    own = 8 * (2 * 7 + 5 * 2) + source.sizes.pass_bytes(1)  # a twice, g of two columns, and a pass
    monkeypatch.setattr("fisherlab.collect.sizes._BATCH_BYTES", 40 * own)
    assert source.sizes.samples(needs) == 40
    assert source.sizes.samples(needs, own // 8) == 20
    assert source.sizes.samples(needs, in_parts=True) == 40 * own // (own - 8 * 5)
    assert source.sizes.samples(needs, 10_000 * own) == 1


@pytest.mark.parametrize("kind", ["predictive", "monte-carlo"])
def test_columns_one_by_one_are_columns_together(sequences, kind, monkeypatch):
    together = one_pass(sequences, kind, draws=3)
    monkeypatch.setattr("fisherlab.collect.hooks.SMALL_PASS", 0)
    for layer, (batch,) in one_pass(sequences, kind, draws=3).items():
        assert torch.allclose(batch.g[kind], together[layer][0].g[kind], atol=1e-14)


def test_parts_of_a_batch_are_the_batch(sequences, monkeypatch):
    monkeypatch.setattr("fisherlab.collect.hooks.SMALL_PASS", 0)
    whole = one_pass(sequences, "predictive")
    source = collector(sequences)
    needs = {name: frozenset({"predictive"}) for name in source.layers}
    (parts,) = source.passes_in_parts(needs, "test")
    fresh, *columns = parts
    assert [batch.fresh for part in (fresh, *columns) for batch in part.values()] == [True] * 3 + [False] * 6
    for name, batch in fresh.items():
        assert not batch.g
        assert torch.equal(batch.a, whole[name][0].a)
        g = torch.cat([part[name].g["predictive"] for part in columns])
        assert torch.equal(g, whole[name][0].g["predictive"])
        assert torch.equal(columns[-1][name].a, batch.a)


def test_halves_and_heads_go_by_the_index_in_the_data():
    a = torch.arange(5.0).reshape(5, 1, 1)
    batch = LayerBatch(3, a, {"predictive": torch.arange(10.0).reshape(2, 5, 1, 1)})
    half = half_of(3, 5)
    for number in (0, 1):
        assert batch.half(number).a.flatten().tolist() == a.flatten()[half == number].tolist()
        assert (
            batch.half(number).g["predictive"][1].flatten().tolist()
            == (a.flatten()[half == number] + 5).tolist()
        )
    assert batch.head(5).a.flatten().tolist() == [0, 1]
    assert batch.head(2).a.numel() == 0


def test_halves_share_every_pair_and_have_no_period():
    half = half_of(0, 20_000)
    pairs = half.reshape(-1, 2)
    assert (pairs.sum(1) == 1).all()
    for period in (2, 4, 8, 10):
        shares = [float(half[place::period].double().mean()) for place in range(period)]
        assert max(abs(share - 0.5) for share in shares) < 0.05
    cut = torch.cat([half_of(0, 8191), half_of(8191, 4), half_of(8195, 11805)])
    assert torch.equal(cut, half)


def test_inputs_are_brought_to_the_dtype_of_the_model(categorical):
    single = Case(categorical.model, categorical.inputs.float(), categorical.targets, "categorical")
    assert one_pass(single, "predictive")["0"][0].a.dtype == torch.float64


def test_integer_inputs_stay_integers():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 2))
    x = torch.randint(5, (7, 2))
    F = fl.exact_fisher(model, (x, torch.arange(7) % 2))
    counts = torch.nn.functional.one_hot(x, 5).double()
    assert list(F) == ["0", "2"]
    a = one_pass(Case(model, x, torch.arange(7) % 2, "categorical"), "predictive")["0"][0].a
    assert torch.equal(a.dense().double(), counts)


def test_a_module_called_by_keyword_is_seen():
    model, x = Net(lambda net, x: net.inner(input=x), inner=nn.Linear(3, 2)), torch.randn(4, 3)
    expected = fl.exact_fisher(nn.Sequential(model.inner), (x, None))["0"]
    assert torch.equal(fl.exact_fisher(model, (x, None))["inner"].dense(), expected.dense())


def test_progress_is_reported(categorical):
    seen = []
    fl.exact_fisher(
        categorical.model,
        categorical.batches(16, 16, 8),
        progress=lambda what, done, total: seen.append((what, done, total)),
    )
    assert seen == [("statistics", done, 40) for done in (16, 32, 40)]


def test_analysis_works_where_gradients_are_off(categorical):
    expected = fl.exact_fisher(categorical.model, categorical.data)["0"].dense()
    with torch.no_grad():
        found = fl.exact_fisher(categorical.model, categorical.data)["0"].dense()
    with torch.inference_mode():
        inference = fl.exact_fisher(categorical.model, categorical.data)["0"].dense()
    assert torch.equal(found, expected)
    assert torch.equal(inference, expected)


# --- refused models -------------------------------------------------------------------------------------

X, Y = torch.randn(6, 3), torch.arange(6) % 2


def three_layers(forward) -> Net:
    return Net(forward, one=nn.Linear(3, 3), two=nn.Linear(3, 2), spare=nn.Linear(3, 3))


def refuses(model: nn.Module, error: type[Exception], message: str, data=(X, Y), **options) -> None:
    with pytest.raises(error, match=message):
        fl.exact_fisher(model, data, **options)


def test_a_model_that_returns_several_tensors_is_refused():
    model = three_layers(lambda net, x: (net.two(net.one(net.spare(x))), x))
    refuses(model, InputError, r"the model returns several tensors \(0 \[.*, 1 \[.*; say which with output=")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (X[:, :2], r"the model fails on inputs \[2, 2\] torch.float32 \(RuntimeError: mat1 and mat2"),
        (X.long(), r"inputs \[2, 3\] torch.int64"),
        ((X, X), r"inputs \[2, 3\] torch.float32, \[2, 3\] torch.float32 \(TypeError: .*check that the data"),
        ({"z": X}, "unexpected keyword argument 'z'"),
    ],
)
def test_inputs_that_the_model_cannot_take_are_refused(inputs, message):
    with pytest.raises(InputError, match=message) as caught:
        fl.exact_fisher(nn.Linear(3, 2), (inputs, Y))
    assert isinstance(caught.value.__cause__, (RuntimeError, TypeError))


def test_a_compiled_model_is_refused():
    compiled = nn.Linear(3, 2)
    compiled.compile()
    for model in (torch.compile(nn.Linear(3, 2)), compiled):
        refuses(model, InputError, "the model is compiled, which hides its layers; give it without")


def spare_aside(net: Net, x: Tensor) -> Tensor:
    net.spare(x)
    return net.two(net.one(x))


@pytest.mark.parametrize("method", ["auto", "per-sample"])
@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda net, x: net.two(net.one(x)), "takes no part in the forward pass of the first 6"),
        (spare_aside, "does not reach the model's"),
    ],
    ids=["not called", "aside"],
)
def test_a_layer_that_has_no_gradient_is_left_out_by_name(forward, reason, method):
    model = three_layers(forward)
    with pytest.warns(UserWarning, match=f"not measured: layer 'spare': it {reason}"):
        F = fl.exact_fisher(model, (X, Y), method=method)
    assert list(F) == ["one", "two"]
    refuses(model, InputError, f"no layer can be measured: layer 'spare': it {reason}", layers=["spare"])


def test_the_calls_of_a_layer_are_its_positions():
    model = three_layers(lambda net, x: net.two(net.one(net.one(net.spare(x)).tanh())))
    case = Case(model.double(), torch.randn(6, 3).double(), Y, "categorical")
    for layer, (batch,) in one_pass(case, "empirical").items():
        assert batch.a.shape[1] == (2 if layer == "one" else 1)
        expected = gradients(case, names_of(layer, case.model))
        assert torch.allclose(vectors(batch, "empirical")[0], expected, atol=1e-13)
    inner = case.model.spare(case.inputs)
    calls = torch.stack([inner, case.model.one(inner).tanh()], 1)
    assert torch.allclose(one_pass(case, "empirical")["one"][0].a[..., :3], calls)


CENTRED = Net(lambda net, x: x - x.mean(0))
"""Batch norm in training mode, for ever."""
RANDOM = Net(lambda net, x: x + torch.randn_like(x))


@pytest.mark.parametrize("mixing", [CENTRED, RANDOM], ids=["centred", "random"])
def test_a_model_that_mixes_samples_is_refused(mixing):
    model = nn.Sequential(nn.Linear(3, 3), mixing, nn.Linear(3, 2))
    refuses(model, InputError, "layer '2' sees do not each belong to one sample: the model mixes samples")


def test_mixing_after_the_last_layer_is_refused():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2), CENTRED)
    refuses(model, InputError, "mixes samples")


def limited(net: Net, x: torch.Tensor) -> torch.Tensor:
    """No longer as a whole than 6: few samples do not act on each other, and nothing of it comes back."""
    return x * (6 / x.detach().norm()).clamp(max=1)


def first_forty(net: Net, x: torch.Tensor) -> torch.Tensor:
    """By a choice, as of a mixture of experts with a capacity."""
    return x * (torch.arange(len(x)) < 40).view(-1, 1)


@pytest.mark.parametrize("act", [limited, first_forty])
@pytest.mark.parametrize("samples", [64, 100])
def test_samples_that_act_on_each_other_only_when_they_are_many_are_found(act, samples):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), Net(act), nn.Linear(3, 2)).double()
    data = torch.randn(samples, 3).double(), torch.randint(2, (samples,))
    with pytest.raises(InputError, match="mixes samples"):
        fl.exact_fisher(model, data)
    few = tuple(part[:6] for part in data)
    assert len(fl.exact_fisher(model, few)) == 2


def test_another_dimension_of_samples_is_found():
    inner, x = nn.Linear(3, 2).double(), torch.randn(6, 4, 3).double()
    first = Net(lambda net, x: net.inner(x.transpose(0, 1)).mean(0), inner=inner)
    second = Net(lambda net, x: net.inner(x).mean(1), inner=inner)
    found, expected = (fl.exact_fisher(model, (x, Y))["inner"].dense() for model in (first, second))
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-15)


def test_one_sample_needs_no_check_of_rows():
    F = fl.exact_fisher(nn.Sequential(nn.Linear(3, 2)), (X[:1], Y[:1]))
    assert F["0"].trace() > 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused_by_name(bad):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    with torch.no_grad():
        model[1].bias[0] = bad
    refuses(model, InputError, r"parameter '1\.bias' holds values that are not finite")


def test_an_overflow_is_found_by_layer_and_batch():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.fill_(1e30)
        model[1].weight.fill_(1e30)
    x = torch.cat([torch.zeros(4, 3), torch.ones(2, 3)])
    data = [(x[:4], Y[:4]), (x[4:], Y[4:])]
    refuses(model, NumericalError, "layer '1' gives values that are not finite in batch 1", data=data)


def test_an_overflow_outside_the_layers_is_found():
    model = nn.Sequential(nn.Linear(3, 2), Net(lambda net, x: torch.exp(x * 1e6)))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    refuses(model, NumericalError, "the model's output is not finite in batch 0", data=(X.abs() + 1, Y))


def test_labels_are_checked_in_every_batch():
    model = nn.Sequential(nn.Linear(3, 2))
    data = [(X[:4], Y[:4]), (X[4:], Y[4:] + 5)]
    refuses(model, InputError, "is out of range: the model has 2 outputs", data=data)


def test_outputs_of_another_shape_are_refused():
    model = nn.Sequential(nn.Linear(3, 2))
    refuses(model, InputError, r"outputs of shape \[samples, K\]", data=(torch.randn(6, 4, 3), Y))


def test_outputs_of_another_shape_are_refused_without_targets():
    model = nn.Sequential(nn.Linear(3, 2))
    refuses(model, InputError, r"outputs of shape \[samples, K\]", data=(torch.randn(6, 4, 3), None))


def test_a_likelihood_of_ones_own():
    class Halved(Categorical):
        """Half the categorical's Hessian."""

        name = "halved"

        def columns(self, outputs):
            return super().columns(outputs) / 2**0.5

    model = nn.Sequential(nn.Linear(3, 2))
    F = fl.exact_fisher(model, (X, Y), Halved())["0"]
    expected = fl.exact_fisher(model, (X, Y))["0"]
    assert torch.allclose(2 * F.dense(), expected.dense())
