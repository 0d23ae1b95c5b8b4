"""Representation vectors: moments, tests and histograms against scipy, and the isotropy of gradients."""

import copy
import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from model_cases import Net
from pandas.testing import assert_frame_equal
from scipy import stats
from torch import Tensor, nn

import fisherlab as fl
from fisherlab.errors import InputError, NotSupportedError
from fisherlab.records.labels import number
from fisherlab.representations import vectors
from fisherlab.representations.isotropy import Isotropy
from fisherlab.representations.moments import Histograms, Moments
from fisherlab.representations.normality import chi_fit, holm, lilliefors_p, normal_distances


def _rows(
    table: pd.DataFrame, layer: str, vector: str = "output", quantity: str = "coordinate"
) -> pd.DataFrame:
    own = (table["layer"] == layer) & (table["vector"] == vector) & (table["quantity"] == quantity)
    return table[own].reset_index(drop=True)


def _assumption(result, layer: str) -> pd.Series:
    return result.assumption.set_index("layer").loc[layer]


@pytest.fixture(scope="module")
def images():
    """A small convolutional network with activations in place, and its data."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3, stride=2),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(5, 4, 2),
        nn.Flatten(),
        nn.Linear(16, 6),
        nn.ReLU(inplace=True),
        nn.Linear(6, 3),
    ).double()
    return model, (torch.randn(23, 2, 8, 8).double(), torch.arange(23) % 3)


def _by_hand(model: nn.Sequential, x: Tensor) -> dict[tuple[str, str], np.ndarray]:
    """The vectors [r, k] of the layers of `images`."""
    found, h = {}, x
    with torch.no_grad():
        for place, module in enumerate(copy.deepcopy(model)):
            before, h = h, module(h.clone())
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                found[str(place), "input"] = before
                found[str(place), "output"] = h
            elif isinstance(module, (nn.LeakyReLU, nn.ReLU)):
                found[str(place - 1), "activated"] = h
    return {
        key: v.flatten(2).transpose(1, 2).flatten(0, 1).numpy() if v.dim() > 2 else v.numpy()
        for key, v in found.items()
    }


def test_moments_are_those_of_scipy(images):
    result = fl.represent(*images)
    by_hand = _by_hand(images[0], images[1][0])
    kinds = result.layers[["layer", "vector"]].itertuples(index=False)
    assert {tuple(kind) for kind in kinds} == set(by_hand)
    for (layer, vector), values in by_hand.items():
        own = _rows(result.moments, layer, vector)
        lengths = np.linalg.norm(values, axis=1)[:, None]
        for table, x in ((own, values), (_rows(result.moments, layer, vector, "norm"), lengths)):
            assert (table["count"] == len(x)).all()
            np.testing.assert_allclose(table["mean"], x.mean(0), rtol=1e-12, atol=1e-14)
            np.testing.assert_allclose(table["std"], x.std(0), rtol=1e-12)
            np.testing.assert_allclose(table["skewness"], stats.skew(x), rtol=1e-9, atol=1e-11)
            np.testing.assert_allclose(table["excess_kurtosis"], stats.kurtosis(x), rtol=1e-9, atol=1e-11)
            np.testing.assert_array_equal(table["zeros"], (x == 0).mean(0))
            np.testing.assert_allclose(table["minimum"], x.min(0), rtol=1e-14)
            np.testing.assert_allclose(table["maximum"], x.max(0), rtol=1e-14)


def test_moments_keep_their_digits_far_from_zero():
    x = torch.randn(500, 2, dtype=torch.float64)
    near, far = Moments(), Moments()
    for part in x.split(7):
        near.add(part)
        far.add(part + 1e6)
    torch.testing.assert_close(far.excess_kurtosis, near.excess_kurtosis, rtol=0, atol=1e-7)


def test_moments_of_parts_merge_to_those_of_all():
    """The parts have different means, hence centres; one of them is empty."""
    x = torch.randn(90, 3).double() + torch.linspace(0, 20, 90)[:, None].double()
    x[:20, 1] = 0
    whole, merged = Moments(), Moments()
    whole.add(x)
    for part in x.split([0, 31, 7, 52]):
        one = Moments()
        one.add(part)
        merged.merge(one)
    assert merged.count == 90
    for name in ("mean", "std", "skewness", "excess_kurtosis", "minimum", "maximum", "zeros"):
        torch.testing.assert_close(getattr(merged, name), getattr(whole, name), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [1, 5, 23])
def test_batches_do_not_change_the_result(images, size, monkeypatch):
    model, (inputs, targets) = images
    whole = fl.represent(model, (inputs, targets))
    if size == 1:
        monkeypatch.setattr(vectors, "_BATCH_BYTES", 1)
    cut = fl.represent(model, list(zip(inputs.split(size), targets.split(size), strict=True)))
    for name in ("moments", "histograms", "quantiles", "assumption", "layers"):
        assert_frame_equal(getattr(cut, name), getattr(whole, name), rtol=1e-9, atol=1e-9)


def test_histograms_count_every_value(images):
    result = fl.represent(*images)
    by_hand = _by_hand(images[0], images[1][0])
    columns = result.histograms.groupby(["layer", "vector", "quantity", "index"])
    assert {(key[0], key[1]) for key, _ in columns} == set(by_hand)
    for (layer, vector, quantity, index), bins in columns:
        values = by_hand[layer, vector]
        x = np.linalg.norm(values, axis=1) if quantity == "norm" else values[:, index]
        assert bins["count"].sum() == len(x)
        edges = np.append(bins["left"], bins["right"].iloc[-1])
        np.testing.assert_array_equal(bins["right"].iloc[:-1], bins["left"].iloc[1:])
        assert (edges[0], edges[-1]) == pytest.approx((x.min(), x.max()), abs=1e-12)
        cumulative = np.searchsorted(np.sort(x), edges[1:-1])
        assert np.abs(cumulative - bins["count"].cumsum().to_numpy()[:-1]).max() <= 1  # a value on an edge


def test_a_far_value_has_a_bin_of_its_own_and_a_constant_one_a_single_one():
    x = torch.cat([torch.linspace(-1, 1, 400), torch.tensor([1e4])]).double()
    rows = torch.stack([x, torch.full_like(x, 3.0)], 1)
    moments = Moments()
    moments.add(rows)
    histograms = Histograms(moments, torch.arange(2))
    histograms.add(rows)
    left, right, count = histograms.column(0)
    assert (float(left[0]), float(right[-1]), int(count[-1])) == (-1.0, 1e4, 1)
    assert [one.tolist() for one in histograms.column(1)] == [[3.0], [3.0], [401]]


def test_the_coordinates_drawn_stand_at_quantiles_of_the_kurtosis(images):
    moments = _rows(fl.represent(*images).moments, "4", "input")
    chosen = set(moments["index"][moments["chosen"]])
    order = moments.sort_values("excess_kurtosis")["index"].to_list()
    assert chosen == {order[place] for place in (0, 4, 8, 11, 15)}


def test_a_gaussian_network_passes_and_a_heavy_tailed_one_fails():
    torch.manual_seed(2)
    model = nn.Linear(12, 12, bias=False).double()
    nn.init.orthogonal_(model.weight)
    normal = torch.randn(4000, 12).double()
    heavy = (
        torch.distributions.StudentT(torch.tensor(3.0).double()).sample((4000, 12)) @ model.weight.detach()
    )
    passed, failed = (
        fl.represent(model, (x, None), "gaussian").layers.set_index("vector").loc["output"]
        for x in (normal, heavy)
    )
    assert passed["rejected"] == 0
    assert failed["rejected"] == 1
    assert abs(passed["kurtosis_worst"]) < 0.4 < 2 < failed["kurtosis_median"]
    assert passed["norm_freedom"] == pytest.approx(1, abs=0.1)  # ‖x‖² ~ χ² with m degrees of freedom
    assert failed["norm_freedom"] < 0.5
    assert passed["norm_ks_chi"] < 0.04 < failed["norm_ks_chi"]


def test_distances_are_those_of_scipy():
    x = np.random.default_rng(0).gamma(4.0, size=(200, 3))
    distance, squared = normal_distances(x)
    for column, own in enumerate(x.T):
        fitted = stats.norm(own.mean(), own.std(ddof=1))
        assert distance[column] == pytest.approx(stats.kstest(own, fitted.cdf).statistic, abs=1e-12)
        u = np.sort(fitted.cdf(own))
        integral = -200 - np.mean((2 * np.arange(1, 201) - 1) * (np.log(u) + np.log1p(-u[::-1])))
        assert squared[column] == pytest.approx(integral * (1 + 0.75 / 200 + 2.25 / 200**2), rel=1e-9)


def test_all_values_are_tested_where_they_are_few(images):
    model, (inputs, targets) = images
    own = _rows(fl.represent(model, (inputs, targets)).moments, "6")
    x = _by_hand(model, inputs)["6", "output"]
    assert (own["tested"] == 23).all()
    np.testing.assert_allclose(own["ks_distance"], normal_distances(x)[0], rtol=1e-9)


def test_the_distance_of_the_values_tested_is_near_that_of_all():
    """Dvoretzky–Kiefer–Wolfowitz: sup∣F_n − F∣ < √(log(2/α)/2n) with probability 1 − α."""
    x = torch.randn(30_000, 5).double().exp()
    model = nn.Linear(5, 5, bias=False).double()
    nn.init.eye_(model.weight)
    own = _rows(fl.represent(model, (x, None), "gaussian", generator=torch.Generator()).moments, "")
    mean, std = own["mean"].to_numpy(), own["std"].to_numpy()
    u = np.sort(stats.norm.cdf((x.numpy() - mean) / std), axis=0)
    rank = np.arange(1, len(u) + 1)[:, None] / len(u)
    everything = np.maximum(rank - u, u - rank + 1 / len(u)).max(0)
    assert (own["tested"] == 1000).all()
    bound = math.sqrt(math.log(2 / 1e-4) / 2000)
    assert (np.abs(own["ks_distance"] - everything) < bound).all()


@pytest.mark.parametrize("n", [30, 300])
def test_p_values_of_normal_samples_are_uniform(n):
    x = np.random.default_rng(1).normal(2, 3, size=(n, 3000))
    p = lilliefors_p(normal_distances(x)[0], n)
    for level in (0.01, 0.05, 0.1, 0.5):
        assert (p < level).mean() == pytest.approx(level, abs=0.03 if level == 0.5 else 0.012)
    with_known_moments = stats.kstwo.sf(normal_distances(x)[0], n)
    assert (with_known_moments < 0.05).mean() < 0.005  # the plain test would hardly ever reject


def test_holm_adjusts_step_by_step():
    p = np.array([0.04, 0.01, np.nan, 0.02, 0.9])
    np.testing.assert_allclose(holm(p), [0.08, 0.04, np.nan, 0.06, 0.9])


def test_the_chi_fit_finds_degrees_of_freedom_and_scale():
    chi = stats.chi(7, scale=0.3)
    square, fourth = chi.moment(2), chi.moment(4)
    assert chi_fit(square, fourth - square**2) == pytest.approx((7, 0.3))


def _linear(*weights: Tensor) -> nn.Sequential:
    model = nn.Sequential(*(nn.Linear(w.shape[1], w.shape[0], bias=False) for w in weights)).double()
    for module, weight in zip(model, weights, strict=True):
        module.weight.data = weight
    return model


@pytest.mark.parametrize("activation", [nn.Identity, nn.ReLU, nn.Tanh])
def test_orthonormal_columns_after_a_layer_are_consistent_with_sampling(activation):
    """With f = Q φ(s), QᵀQ = I and unit variance M = QᵀQ = I, whatever φ' is: q is taken behind φ."""
    first, last = torch.randn(4, 5).double(), torch.linalg.qr(torch.randn(6, 4).double()).Q
    linear = _linear(first, last)
    model = nn.Sequential(linear[0], activation(), linear[1])
    result = fl.represent(model, (torch.randn(30, 5).double(), None), "gaussian")
    for layer in ("0", "2"):
        own = _assumption(result, layer)
        names = ["isotropy_mean", "isotropy_population", "isotropy_samples", "isotropy_limit"]
        np.testing.assert_allclose(own[names].astype(float), 1, rtol=1e-12)


def test_one_output_has_rank_one():
    model = nn.Sequential(
        _linear(torch.randn(8, 5).double())[0], nn.ReLU(), _linear(torch.randn(1, 8).double())[0]
    )
    own = _assumption(fl.represent(model, (torch.randn(30, 5).double(), None), "bernoulli"), "0")
    names = ["isotropy_mean", "isotropy_population", "isotropy_samples", "isotropy_limit"]
    np.testing.assert_allclose(own[names].astype(float), 1 / 8, rtol=1e-12)


def _matrices(model: nn.Sequential, place: int, x: Tensor) -> Tensor:
    """M_n = Jᵀ H J, J the Jacobian of the categorical network in what module `place` gives, by torch.func."""

    def of_sample(h: Tensor) -> Tensor:
        jacobian = torch.func.jacrev(lambda one: model[place + 1 :](one.unsqueeze(0))[0])(h).flatten(1)
        p = torch.softmax(model[place + 1 :](h.unsqueeze(0))[0], 0)
        by_position = jacobian.unflatten(1, (h.shape[0], -1)).permute(2, 0, 1)
        return (by_position.mT @ (torch.diag(p) - torch.outer(p, p)) @ by_position).sum(0)

    with torch.no_grad():
        return torch.stack([of_sample(h) for h in model[: place + 1](x)])


@pytest.mark.parametrize(("layer", "place"), [("0", 1), ("2", 2), ("4", 5), ("6", 6)])
def test_isotropies_are_those_of_jacobians(images, layer, place):
    model, (x, y) = images
    plain = nn.Sequential(*(copy.deepcopy(m) for m in model))
    plain[1], plain[5] = nn.LeakyReLU(0.2), nn.ReLU()
    M = _matrices(plain, place, x)
    m, n = M.shape[1], len(M)
    trace, square = M.diagonal(dim1=1, dim2=2).sum(1), M.square().sum((1, 2))
    own = _assumption(fl.represent(model, (x, y)), layer)
    assert own["isotropy_samples"] == pytest.approx(float((trace**2 / (m * square)).mean()), rel=1e-9)
    mean = M.mean(0)
    assert own["isotropy_mean"] == pytest.approx(
        float(mean.trace() ** 2 / (m * mean.square().sum())), rel=1e-9
    )
    pairs = torch.einsum("nij,kij->nk", M, M)
    apart = ~torch.eye(n, dtype=torch.bool)
    wanted = torch.outer(trace, trace)[apart].sum() / (m * pairs[apart].sum())
    assert own["isotropy_population"] == pytest.approx(float(wanted), rel=1e-9)
    assert own["isotropy_samples"] <= own["isotropy_limit"]


def test_labels_are_drawn_where_columns_are_many(monkeypatch):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 8)).double()
    data = (torch.randn(600, 5).double(), torch.arange(600) % 8)
    exact = fl.represent(model, data).assumption
    monkeypatch.setattr("fisherlab.representations.gradients.MOST_COLUMNS", 3)
    drawn = fl.represent(model, data).assumption
    assert (exact["labels"] == "expected").all()
    assert (drawn["labels"] == "128 drawn").all()
    np.testing.assert_allclose(drawn["isotropy_population"], exact["isotropy_population"], rtol=0.02)
    np.testing.assert_allclose(drawn["isotropy_samples"], exact["isotropy_samples"], rtol=0.06)
    np.testing.assert_array_equal(drawn["isotropy_limit"], exact["isotropy_limit"])


def test_pairs_of_draws_estimate_without_bias():
    """Two draws of rank one a sample: by itself such a matrix has 1/m, or 2/m; M = I is found from pairs."""
    q = torch.randn(2, 20_000, 1, 5, dtype=torch.float64) / 2**0.5
    isotropy = Isotropy(5, 9, 1, drawn=True)
    isotropy.add(q[:1])
    isotropy.add(q[1:])
    isotropy.end_batch()
    assert isotropy.of_population == pytest.approx(1, abs=0.01)


def test_the_model_is_unchanged(images):
    model, data = copy.deepcopy(images[0]), images[1]
    model.train()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    fl.represent(model, data)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert model[6].weight.grad is None


def test_the_default_device_of_torch_does_not_matter(images):
    model, data = images
    whole = fl.represent(model, data)
    with torch.device("meta"):
        found = fl.represent(model, data)
    for name in ("moments", "histograms", "quantiles", "assumption", "layers"):
        assert_frame_equal(getattr(found, name), getattr(whole, name))


def test_attention_embeddings_and_masks():
    def forward(net: Net, x: Tensor) -> Tensor:
        h = net.embedding(x)
        h = h + net.attention(h, h, h, key_padding_mask=x == 0, need_weights=False)[0]
        return net.output(h).masked_fill((x == 0).unsqueeze(-1), 0.0)

    torch.manual_seed(4)
    model = Net(
        forward,
        embedding=nn.Embedding(9, 4, padding_idx=0),
        attention=nn.MultiheadAttention(4, 2, batch_first=True),
        output=nn.Linear(4, 9),
    ).double()
    x = torch.randint(1, 9, (12, 5))
    x[:4, 3:] = 0
    masks = {"attention*": lambda inputs: inputs != 0, "output": lambda inputs: inputs != 0}
    layers = fl.find_layers(model, masks=masks)
    result = fl.represent(model, (x, x.masked_fill(x == 0, -100)), "token-categorical", layers)
    counts = result.moments.groupby(["layer", "vector"])["count"].unique()
    assert set(counts.index) == {
        ("embedding", "output"),
        *((name, v) for name in ("attention.q", "attention.k", "attention.v") for v in ("input", "output")),
        *((name, v) for name in ("attention.out_proj", "output") for v in ("input", "output")),
    }
    assert all(list(count) == [52] for count in counts)
    own = _rows(result.moments, "embedding")
    np.testing.assert_allclose(own["mean"], model.embedding.weight[x[x != 0]].mean(0).detach(), rtol=1e-12)
    assert result.assumption["isotropy_population"].notna().all()


def test_dead_units_are_counted_and_not_tested():
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    model[0].bias.data[:] = torch.tensor([-100.0, 0.0, -100.0])
    result = fl.represent(model, (torch.randn(40, 4).double(), torch.arange(40) % 2))
    own = _rows(result.moments, "0", "activated")
    assert own["ks_p"].isna().to_list() == own["skewness"].isna().to_list() == [True, False, True]
    assert own["zeros"].to_list()[::2] == [1, 1]
    summary = result.summary()["layers"]["0"]["vectors"]["activated"]
    assert summary["constant"] == 2
    model[0].bias.data[1] = -100.0
    silent = fl.represent(model, (torch.randn(40, 4).double(), torch.arange(40) % 2))
    assert _rows(silent.histograms, "0", "activated", "norm")["count"].to_list() == [40]
    assert silent.summary()["layers"]["0"]["vectors"]["activated"]["rejected"] is None


def test_an_activation_that_is_named_but_not_there_has_no_gradient():
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.ReLU(), nn.Linear(3, 2)).double()
    x = torch.randn(20, 4).double()
    layers = fl.find_layers(model, activations={"0": "relu"})
    result = fl.represent(model, (x, None), layers=layers)
    assert result.names == ["0", "3"]  # a norm has no vector
    own = _rows(result.moments, "0", "activated")
    np.testing.assert_allclose(own["mean"], model[0](x).relu().mean(0).detach(), rtol=1e-12)
    assert math.isnan(_assumption(result, "0")["isotropy_mean"])
    assert "not in the graph" in _assumption(result, "0")["note"]
    alone = fl.represent(model, (x, None), layers=layers.select(["0"]))
    assert alone.assumption["isotropy_samples"].isna().all()


def test_an_activation_out_of_reach_is_refused_by_name():
    hidden = Net(lambda net, x: torch.jit.script(_scripted)(x))
    model = nn.Sequential(nn.Linear(4, 3), hidden, nn.Linear(3, 2))
    with pytest.raises(NotSupportedError, match=r"'0'.*activations="):
        fl.represent(model, (torch.randn(9, 4), None))


def _scripted(x: Tensor) -> Tensor:
    return torch.relu(x)


def test_bad_input_is_one_sentence(images):
    model, (inputs, targets) = images
    with pytest.raises(InputError, match="unknown layer 'conv'"):
        fl.represent(model, (inputs, targets), layers="conv")
    with pytest.raises(InputError, match="can be read only once"):
        fl.represent(model, ((inputs, targets) for _ in range(1)))
    norm = nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 2))
    with pytest.raises(InputError, match="no representation vector"):
        fl.represent(norm, (torch.randn(9, 3), None), layers="0")
    hidden = fl.find_layers(nn.Linear(3, 2), masks={"*": lambda x: torch.zeros(len(x), 1, dtype=torch.bool)})
    with pytest.raises(InputError, match="leaves no position"):
        fl.represent(hidden[""].modules[0], (torch.randn(9, 3), None), layers=hidden)


def test_one_sample_is_not_enough_to_test(images):
    model, (inputs, targets) = images
    result = fl.represent(model, (inputs[:1], targets[:1]))
    assert result.moments["ks_p"].isna().all()
    assert result.assumption["isotropy_population"].isna().all()
    assert result.assumption["isotropy_samples"].notna().all()


def test_a_saved_result_has_the_files_of_the_contract(images, tmp_path, monkeypatch):
    drawn = []

    def save(figure, path):
        drawn.append(path.name)
        path.with_suffix(".png").touch()

    monkeypatch.setattr("fisherlab.plots.workers.save", save)
    result = fl.represent(*images, layers="4")
    folder = result.save(tmp_path / "run")
    names = {path.name for path in folder.iterdir()}
    assert names >= {"histograms.csv", "histograms-input.csv", "histograms-activated.csv", "moments.csv"}
    assert names >= {"assumption.csv", "layers.csv", "summary.json", "provenance.json"}
    assert drawn == ["normality", "assumption", "histogram-4", "histogram-4-activated"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert re.findall(r'src="(.*?)\.png"', page) == drawn
    assert f">{100 * result.layers['zeros'].iloc[2]:.1f} %</td>" in page
    for table, column in ((result.layers, "norm_ks_chi"), (result.assumption, "isotropy_samples")):
        assert all(f">{number(value)}</td>" in page for value in table[column])
    bins = pd.read_csv(folder / "histograms.csv")
    assert list(bins) == ["layer", "quantity", "index", "left", "right", "count"]
    assert set(bins.groupby(["quantity", "index"])["count"].sum()) == {23}
    with pytest.raises(InputError, match="exists already; choose another, or delete it"):
        result.save(folder)
    with pytest.raises(InputError, match="unknown vector 'activate'; did you mean activated"):
        result.histogram("4", "activate")
