"""The exactness ladder for every kind of layer: identities and orders between F and its approximations."""

import itertools

import pytest
import torch
from layers_zoo import ONE_BASIS, SAMPLES, ZOO, finished, numbers, seen, tokens, zoo
from model_cases import Net
from reference import seed
from torch import Tensor, nn
from zoo_reference import Case, blocks_of, distance, exact_block, factored, gradient_matrices, groups_of

import fisherlab as fl
from fisherlab import metrics
from fisherlab.operators import LinearOperator

KRONECKER = ("kfac", "tkfac", "foof", "lngd", "lngd-lr", "ngplus")
EXACT_TRACE = ("ekfac", "tkfac", "tekfac", "diagonal")


def layers_of(case: Case) -> list[str]:
    return [block.name for block in factored(case)]


def both(case: Case, name: str, **options) -> list[tuple[str, LinearOperator, LinearOperator]]:
    """(layer, F, F̂) of every layer with factors."""
    layers = layers_of(case)
    F, found = case.exact(layers=layers), case.approximate(name, layers=layers, **options)
    return [(layer, F[layer], found[layer]) for layer in F]


# --- 1: one sample, one position ----------------------------------------------------------------------

ONE_POSITION = {
    "conv2d whole": ["0", "3"],
    "conv2d grouped whole": ["0", "3"],
    "embedding one": ["0", "2"],
    "batch norm 1d": ["0", "3"],
    "two inputs": ["left", "head"],
}


@pytest.mark.parametrize("name", ONE_POSITION)
def test_one_sample_makes_every_kronecker_method_exact(name):
    one, layers = zoo(name).take(slice(3, 4)), ONE_POSITION[name]
    F = one.exact(layers=layers)
    for method in ("kfac", "ekfac", "tkfac", "tekfac", "nearest-kronecker"):
        for layer, operator in one.approximate(method, layers=layers).items():
            assert distance(operator.dense(), F[layer].dense()) < 1e-10, (method, layer)
    F = one.exact(kind="layerwise", layers=layers)
    for layer, operator in one.approximate("lngd", layers=layers).items():
        assert distance(operator.dense(), F[layer].dense()) < 1e-10


# --- 2: linear networks under a Gaussian ----------------------------------------------------------------


def total(channels: int) -> Net:
    """The sum over positions, the channels first or last."""
    return Net(lambda net, x: x.movedim(channels, -1).flatten(1, -2).sum(1))


def twice() -> Net:
    """One layer called on both halves of its input."""
    return Net(lambda net, x: torch.cat([net.layer(x[:, :2]), net.layer(x[:, 2:])], 1), layer=nn.Linear(2, 3))


def linear(*layers: nn.Module, inputs: Tensor) -> Case:
    return finished(nn.Sequential(*layers), inputs, likelihood="gaussian", targets=torch.zeros(SAMPLES))


LAST = {
    **{
        f"conv2d {mode}": (
            lambda mode=mode: nn.Conv2d(2, 3, 2, padding=1, stride=2, padding_mode=mode),
            (2, 3, 4),
        )
        for mode in ("zeros", "reflect", "replicate", "circular")
    },
    "conv2d grouped": (lambda: nn.Conv2d(4, 4, 2, groups=2, dilation=2), (4, 4, 3)),
    "conv1d same": (lambda: nn.Conv1d(2, 3, 3, padding="same"), (2, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 2, 2, bias=False), (2, 2, 3, 2)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(2, 3, 3, stride=2, padding=1, output_padding=1), (2, 3)),
    "transposed 2d": (lambda: nn.ConvTranspose2d(4, 2, 2, groups=2, dilation=2), (4, 2, 2)),
    "transposed 3d": (lambda: nn.ConvTranspose3d(1, 2, 2), (1, 2, 1, 2)),
    "linear": (lambda: nn.Linear(3, 2), (4, 3)),
    "twice": (twice, (4,)),
}


@pytest.mark.parametrize("method", ["kfac", "ekfac", "tkfac", "tekfac", "foof", "lngd", "nearest-kronecker"])
@pytest.mark.parametrize("name", LAST)
def test_a_last_layer_under_a_gaussian_is_a_kronecker_product(name, method):
    make, shape = LAST[name]
    inputs = numbers(*shape)
    model = nn.Sequential(make(), nn.Flatten())
    outputs = model.double()(inputs).detach()
    case = finished(model, inputs, likelihood="gaussian", targets=torch.zeros_like(outputs))
    found = both(case, method)
    assert len(found) == 1
    for _, F, operator in found:
        assert distance(operator.dense(), F.dense()) < 1e-10


def chain(kind: str, end: str) -> Case:
    """Linear layers whose outputs all depend on one position alone, or on all positions alike."""
    layers, inputs = {
        "convolutions of width 1": ((nn.Conv2d(2, 3, 1), nn.Conv2d(3, 4, 1)), numbers(2, 2, 3)),
        "grouped convolutions": ((nn.Conv1d(4, 4, 1, groups=2), nn.Conv1d(4, 3, 1)), numbers(4, 3)),
        "circular convolutions": (
            (
                nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"),
                nn.Conv2d(3, 2, (1, 3), padding="same", padding_mode="circular"),
            ),
            numbers(2, 3, 4),
        ),
        "embedding": ((nn.Embedding(5, 3), nn.Linear(3, 2)), tokens(4, 5)),
    }[kind]
    last = total(-1 if kind == "embedding" else 1) if end == "sum" else nn.Flatten()
    model = nn.Sequential(*layers, last).double()
    return finished(model, inputs, likelihood="gaussian", targets=torch.zeros_like(model(inputs).detach()))


CHAINS = ("convolutions of width 1", "grouped convolutions", "embedding")


@pytest.mark.parametrize("method", ["kfac", "ekfac"])
@pytest.mark.parametrize(
    ("kind", "end"),
    [*itertools.product(CHAINS, ("keep", "sum")), ("circular convolutions", "sum")],
)
def test_each_sharing_is_exact_in_its_own_setting(kind, end, method):
    case = chain(kind, end)
    right, wrong = ("reduce", "expand") if end == "sum" else ("expand", "reduce")
    for (layer, F, good), (_, _, bad) in zip(
        both(case, method, sharing=right), both(case, method, sharing=wrong), strict=True
    ):
        assert distance(good.dense(), F.dense()) < 1e-10, layer
        assert distance(bad.dense(), F.dense()) > 1e-2, layer


@pytest.mark.parametrize("method", ["tkfac", "tekfac", "nearest-kronecker"])
@pytest.mark.parametrize(
    ("kind", "end"),
    [*itertools.product(CHAINS, ("keep", "sum")), ("circular convolutions", "sum")],
)
def test_exact_partial_traces_are_exact_in_both_settings(kind, end, method):
    for layer, F, operator in both(chain(kind, end), method):
        assert distance(operator.dense(), F.dense()) < 1e-8, layer


# --- 3: drawn labels ------------------------------------------------------------------------------------

SOME = ("conv2d grouped", "transposed 2d", "embedding", "attention causal", "tied", "language model")


@pytest.mark.parametrize("name", SOME)
def test_monte_carlo_approaches_predictive_like_one_over_the_root_of_k(name):
    case = zoo(name)
    F = {layer: operator.dense() for layer, operator in case.exact().items()}
    mean = {}
    for draws in (30, 480):
        found = [case.exact(kind="monte-carlo", draws=draws, generator=seed(number)) for number in range(4)]
        mean[draws] = sum(distance(one[layer].dense(), F[layer]) for one in found for layer in F)
    assert 0.15 < mean[480] / mean[30] < 0.4


# --- 5: traces ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ZOO)
def test_traces_are_those_of_the_fisher(name):
    case = zoo(name)
    F = case.exact(layers=layers_of(case))
    for method, found in case.several(*EXACT_TRACE, layers=layers_of(case)).items():
        for layer, operator in found.items():
            assert operator.trace() == pytest.approx(float(F[layer].trace()), rel=1e-10), (method, layer)


@pytest.mark.parametrize("name", ZOO)
def test_traces_of_lngd_are_those_of_the_layerwise_fisher(name):
    case = zoo(name)
    F = case.exact(kind="layerwise", layers=layers_of(case))
    for layer, operator in case.approximate("lngd", layers=layers_of(case)).items():
        assert operator.trace() == pytest.approx(float(F[layer].trace()), rel=1e-12)


@pytest.mark.parametrize("name", ZOO)
def test_partial_traces_of_tkfac_are_those_of_the_fisher(name):
    case = zoo(name)
    blocks = {block.name: block for block in factored(case)}
    for layer, F, operator in both(case, "tkfac"):
        groups = groups_of(case, blocks[layer])
        m, d = F.outputs, F.inputs
        one, other = (X.dense().view(d, groups, m // groups, d, groups, m // groups) for X in (F, operator))
        for pattern in ("igjkgj->gik", "igjigl->gjl"):
            assert distance(torch.einsum(pattern, other), torch.einsum(pattern, one)) < 1e-10


# --- 6: orders ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ZOO)
def test_the_best_diagonal_is_never_worse(name):
    case = zoo(name)
    F = case.exact(layers=layers_of(case))
    found = case.several("ekfac", "kfac", "tekfac", "tkfac", layers=layers_of(case))
    for better, worse in (("ekfac", "kfac"), ("tekfac", "tkfac")):
        pairs = [
            (metrics.relative_error(F[n], found[better][n]), metrics.relative_error(F[n], found[worse][n]))
            for n in F
        ]
        assert all(high <= low * (1 + 1e-9) + 1e-12 for high, low in pairs)
        assert any(high < 0.9999 * low for high, low in pairs)


@pytest.mark.parametrize("name", ZOO)
def test_the_nearest_kronecker_product_is_never_worse(name):
    case = zoo(name)
    F = case.exact(layers=layers_of(case))
    nearest = case.approximate("nearest-kronecker", layers=layers_of(case))
    least = {n: metrics.relative_error(F[n], nearest[n]) for n in F}
    for found in case.several(*KRONECKER, layers=layers_of(case)).values():
        errors = {n: metrics.scaled_error(F[n], found[n]).error for n in F}
        assert all(least[n] <= errors[n] * (1 + 1e-9) + 1e-9 for n in F)
        assert any(least[n] < 0.98 * errors[n] for n in F)


# --- 8: the Gram form -----------------------------------------------------------------------------------


def numbers_between(F: LinearOperator, operator: LinearOperator) -> list[float]:
    gradient = torch.linspace(-1, 1, F.shape[0], dtype=F.dtype).view(F.outputs, F.inputs)
    return [
        metrics.relative_error(F, operator),
        *metrics.scaled_error(F, operator),
        metrics.cosine(F, operator),
        metrics.trace_ratio(F, operator),
        metrics.diagonal_error(F, operator),
        *metrics.direction(F, operator, gradient, 0.1 * metrics.mean_eigenvalue(F)),
    ]


@pytest.mark.parametrize("name", ZOO)
def test_numbers_of_the_gram_form_are_those_of_the_dense_block(name):
    case = zoo(name)
    layers = layers_of(case)
    dense, gram = (case.exact(layers=layers, method=method) for method in ("per-sample", "gram"))
    for method, approximations in case.several("kfac", "ekfac", "diagonal", layers=layers).items():
        for layer, operator in approximations.items():
            found, right = (numbers_between(F[layer], operator) for F in (gram, dense))
            assert found == pytest.approx(right, rel=1e-8, abs=1e-9), (layer, method)


@pytest.mark.parametrize("name", ["conv2d grouped", "transposed 2d", "embedding padded", "encoder"])
def test_the_gram_form_has_the_spectrum_of_the_dense_block(name):
    case = zoo(name)
    dense, gram = (case.exact(method=method) for method in ("per-sample", "gram"))
    for layer, F in dense.items():
        values = F.eigenvalues().flip(0)
        found = gram[layer].eigenvalues().flip(0)
        k = min(len(values), len(found))
        assert torch.linalg.norm(found[:k] - values[:k]) < 1e-10 * values[0]
        assert found[k:].abs().sum() + values[k:].abs().sum() < 1e-10 * values[0]


WIDE = {
    "conv2d": (nn.Conv2d(4, 12, 3, padding=1), (4, 3, 3)),
    "grouped": (nn.Conv2d(8, 24, 3, groups=2), (8, 4, 4)),
    "transposed": (nn.ConvTranspose2d(8, 12, 3, stride=2), (8, 2, 2)),
}


def wide(layer: nn.Module) -> Net:
    head = nn.Linear(layer.out_channels, 3)
    return Net(lambda net, x: net.head(net.layer(x).tanh().flatten(2).mean(2)), layer=layer, head=head)


@pytest.mark.parametrize("name", WIDE)
def test_a_comparison_under_a_small_limit_has_the_numbers_of_a_large_one(name):
    layer, shape = WIDE[name]
    case = finished(wide(layer), numbers(*shape, samples=10))
    options = {"approximations": ("kfac", "ekfac", "tkfac", "lngd"), "spectra": False, "layers": "layer"}
    small, large = (
        fl.compare(case.model, case.data, memory=memory, **options).records.set_index(
            ["layer", "approximation", "target"]
        )
        for memory in ("2MiB", "1GiB")
    )
    small, large = (x.xs("predictive", level="target") for x in (small, large))
    assert set(small["method"]) == {"gram"}
    assert set(large["method"]) == {"per-sample"}
    for number in ("relative_error", "scaled_error", "trace_exact", "trace_ratio", "diagonal_error"):
        assert list(small[number]) == pytest.approx(list(large[number]), rel=1e-8), number
    for number in ("direction_cosine", "decrease_share", "population_error"):
        assert list(small[number]) == pytest.approx(list(large[number]), rel=1e-6), number


# --- comparisons ----------------------------------------------------------------------------------------


COMPARED = (
    "conv2d grouped",
    "transposed grouped",
    "sequence",
    "embedding padded",
    "batch norm 2d",
    "layer norm",
    "attention kdim",
    "recurrent",
    "two inputs",
    "language model",
)


@pytest.mark.parametrize("name", COMPARED)
def test_records_hold_the_numbers_of_the_reference(name):
    case = zoo(name)
    methods = ("diagonal", "kfac", *(["ekfac"] if name in ONE_BASIS else []), "lngd")
    compared = fl.compare(case.model, case.data, methods, case.likelihood, spectra=False)
    found = case.several(*methods, layers=layers_of(case))
    records = compared.records.set_index(["layer", "approximation", "target"]).sort_index()
    for block in factored(case):
        F = exact_block(gradient_matrices(case, block, seen(name)), groups_of(case, block))
        if float(F.trace()) < 1e-20:
            continue
        for method in methods:
            row = records.loc[(block.name, method, "predictive")]
            dense = found[method][block.name].dense()
            assert row["relative_error"] == pytest.approx(distance(dense, F), rel=1e-6, abs=1e-9)
            assert row["trace_exact"] == pytest.approx(float(F.trace()), rel=1e-10)
            assert row["groups"] == groups_of(case, block)
            if name != "embedding padded":
                uses = [use for module in block.modules for use in seen(name)[0].uses[module]]
                assert row["positions"] == sum(len(use.s) for use in uses)
    for block in blocks_of(case):
        assert (block.name, "diagonal", "predictive") in records.index


# --- 9: draws of layer-wise sampling ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["conv2d grouped", "transposed 2d", "embedding", "recurrent", "tied"])
def test_draws_approach_the_closed_form_like_one_over_the_root_of_k(name):
    case = zoo(name)
    layers = layers_of(case)
    closed = {layer: x.dense() for layer, x in case.approximate("lngd", layers=layers).items()}
    mean = {}
    for draws in (20, 320):
        found = [
            case.approximate("lngd", layers=layers, sampling=draws, generator=seed(number))
            for number in range(4)
        ]
        mean[draws] = sum(distance(one[layer].dense(), closed[layer]) for one in found for layer in layers)
    assert 0.15 < mean[320] / mean[20] < 0.4
