"""The exact block of every kind of layer against autograd of the whole network; and no side effects."""

import copy

import pytest
import torch
from layers_zoo import ZOO, seen, zoo
from model_cases import assert_same, state_of
from zoo_reference import (
    as_matrix,
    blocks_of,
    distance,
    exact_block,
    factored,
    gradient_matrices,
    groups_of,
    is_norm,
    rows_of,
    samples_of,
)

import fisherlab as fl

KINDS = ("predictive", "empirical")


def expected(name: str, kind: str = "predictive", bias: str = "joint") -> dict[str, torch.Tensor]:
    case = zoo(name)
    return {
        block.name: exact_block(gradient_matrices(case, block, seen(name, kind)), groups_of(case, block))
        for block in blocks_of(case, bias)
    }


def by_themselves(name: str) -> set[str]:
    """Parameters that no layer has, which `tests/exact/test_parameters.py` looks at."""
    return {layer for layer, view in fl.find_layers(zoo(name).model).items() if view.family == "Parameter"}


def one_position(name: str) -> list[str]:
    case = zoo(name)
    return [
        block.name
        for block in factored(case)
        if not fl.find_layers(case.model)[block.name].one_hot
        and all(sum(len(u.s) for m in block.modules for u in s.uses[m]) == 1 for s in seen(name))
    ]


# --- the reference itself -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ZOO)
def test_the_reference_has_the_networks_outputs(name):
    case = zoo(name)
    with torch.no_grad():
        assert distance(case.plain(*case.inputs), case.model(*case.inputs)) < 1e-13


@pytest.mark.parametrize("name", ZOO)
def test_gradients_of_the_reference_are_sums_over_positions(name):
    case = zoo(name)
    for block in factored(case):
        for rows in rows_of(case, block, seen(name)):
            for V, a, g in zip(rows.V, rows.a, rows.g, strict=True):
                assert torch.linalg.norm(V - torch.einsum("ctm,td->cmd", g, a)) < 1e-12 * max(1, V.norm())


@pytest.mark.parametrize("name", [n for n in ZOO if n.startswith("attention")])
def test_projections_of_the_reference_are_those_of_the_attention(name):
    case = zoo(name)
    names = [n for n, _ in case.model.named_parameters()]
    f = case.model(*case.inputs).flatten()[1]
    found = dict(zip(names, torch.autograd.grad(f, list(case.model.parameters())), strict=True))
    plain = dict(case.plain.named_parameters())
    f = case.plain(*case.inputs).flatten()[1]
    own = dict(zip(plain, torch.autograd.grad(f, list(plain.values())), strict=True))
    own = {key.removeprefix("attention."): value for key, value in own.items()}
    if "attention.in_proj_weight" in found:
        joined = torch.cat([own[f"{p}.weight"] for p in "qkv"])
        assert distance(joined, found["attention.in_proj_weight"]) < 1e-12
    else:
        for p in "qkv":
            assert distance(own[f"{p}.weight"], found[f"attention.{p}_proj_weight"]) < 1e-12
    assert distance(own["out_proj.weight"], found["attention.out_proj.weight"]) < 1e-12


# --- exact blocks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "kind"),
    [(m, "predictive") for m in ("auto", "gram", "per-sample")]
    + [(m, "empirical") for m in ("auto", "gram")],
)
@pytest.mark.parametrize("name", ZOO)
def test_exact_blocks(name, method, kind):
    found, right = zoo(name).exact(kind=kind, method=method), expected(name, kind)
    assert set(found) == set(right) | by_themselves(name)
    for layer, block in right.items():
        assert found[layer].shape == block.shape
        assert distance(found[layer].dense(), block) < 1e-10, layer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ZOO)
def test_kronecker_accumulation_of_layers_with_one_position(name, kind):
    layers = one_position(name)
    if not layers:
        pytest.skip("no layer with one position")
    right = expected(name, kind)
    found = zoo(name).exact(kind=kind, method="kronecker", layers=layers)
    assert list(found) == layers
    for layer, operator in found.items():
        assert distance(operator.dense(), right[layer]) < 1e-10, layer


@pytest.mark.parametrize("name", ["conv2d whole", "two inputs", "batch norm 1d"])
def test_layers_with_one_position_are_known(name):
    assert len(one_position(name)) >= 2


@pytest.mark.parametrize(
    ("bias", "method"), [("separate", "auto"), ("separate", "per-sample"), ("ignore", "gram")]
)
@pytest.mark.parametrize("name", ZOO)
def test_modes_of_the_bias(name, bias, method):
    found, right = zoo(name).exact(bias=bias, method=method), expected(name, bias=bias)
    assert set(found) == set(right) | by_themselves(name)
    for layer, block in right.items():
        assert distance(found[layer].dense(), block) < 1e-10, layer


@pytest.mark.parametrize("name", ZOO)
def test_shapes_of_the_blocks(name):
    case = zoo(name)
    found = case.exact()
    for block in blocks_of(case):
        m, d = gradient_matrices(case, block, seen(name)[:1])[0].shape[1:]
        assert (found[block.name].outputs, found[block.name].inputs) == (m, d)


@pytest.mark.parametrize("name", ["conv2d grouped", "conv2d depthwise", "transposed grouped"])
def test_entries_between_groups_are_left_out(name):
    case = zoo(name)
    found = case.exact()
    for block in (b for b in factored(case) if groups_of(case, b) > 1):
        V = gradient_matrices(case, block, seen(name))
        full = exact_block(V)
        assert distance(full, exact_block(V, groups_of(case, block))) > 0.01
        assert found[block.name].trace() == pytest.approx(float(full.trace()), rel=1e-12)


@pytest.mark.parametrize("name", ["conv2d zeros", "transposed 2d", "embedding padded", "language model"])
def test_empirical_blocks_do_not_depend_on_batches(name):
    case, right = zoo(name), expected(name, "empirical")
    found = fl.exact_fisher(case.model, case.cut(3), case.likelihood, "empirical")
    for layer, operator in found.items():
        assert distance(operator.dense(), right[layer]) < 1e-10


def test_a_padding_word_has_no_gradient():
    case = zoo("embedding padded")
    F = case.exact()["0"].dense().view(5, 3, 5, 3)
    assert F[0].abs().max() == 0
    assert F[1].abs().max() > 0


def test_ignored_tokens_leave_the_fisher():
    case = zoo("language model")
    targets = case.targets.clone()
    targets[1, 2], targets[3], targets[4, 0] = -100, torch.tensor([-100, 1, -100, 2]), -100
    masked = type(case)(case.model, case.inputs, targets, case.likelihood)
    for kind in KINDS:
        samples = samples_of(masked, kind)
        found = masked.exact(kind=kind)
        for block in blocks_of(masked):
            right = exact_block(gradient_matrices(masked, block, samples))
            assert distance(found[block.name].dense(), right) < 1e-10


def test_the_ignored_index_can_be_named():
    case = zoo("language model")
    minus = case.targets.masked_fill(case.targets == 1, -100)
    expected = fl.exact_fisher(case.model, (case.inputs[0], minus), "token-categorical")
    likelihood = fl.likelihoods.TokenCategorical(ignore_index=1)
    for layer, operator in fl.exact_fisher(case.model, case.data, likelihood).items():
        assert distance(operator.dense(), expected[layer].dense()) < 1e-12


def test_one_block_for_a_shared_weight():
    assert set(zoo("tied").exact()) == {"first", "head"}
    assert set(zoo("tied weights").exact()) == {"first", "first.bias", "second.bias", "head"}
    assert set(zoo("recurrent").exact()) == {"read", "step", "head"}


def test_the_matrix_of_a_transposed_convolution():
    """[in, out, k] becomes [out, in·k]: the columns of one input channel stand together."""
    module = torch.nn.ConvTranspose1d(2, 3, 2)
    weight = torch.arange(12.0).view(2, 3, 2)
    assert torch.equal(as_matrix(module, weight), weight.transpose(0, 1).flatten(1))


# --- no side effects ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [n for n in ZOO if "norm" in n or n in ("attention", "attention extra", "attention kdim", "encoder")],
)
def test_nothing_is_left_changed(name):
    case = zoo(name)
    model = copy.deepcopy(case.model)
    outputs = model(*case.inputs).detach()
    model.train()
    before = state_of(model)
    fl.exact_fisher(model, case.data)
    fl.exact_fisher(model, case.data, method="per-sample")
    fl.approximate("diagonal", model, case.data)
    fl.compare(model, case.data, "kfac", spectra=False)
    assert_same(before, state_of(model))
    assert torch.equal(model.eval()(*case.inputs), outputs)


@pytest.mark.parametrize("name", ["attention", "attention causal", "attention kdim", "encoder"])
def test_attention_is_restored_after_an_error(name):
    case = zoo(name)
    before = state_of(case.model), case.model(*case.inputs).detach()
    wrong = torch.full_like(case.targets, 99)
    inputs = case.data[0]
    with pytest.raises(fl.FisherlabError):
        fl.exact_fisher(case.model, (inputs, wrong))
    assert_same(before[0], state_of(case.model))
    assert torch.equal(case.model(*case.inputs), before[1])


def test_norms_are_analysed_in_evaluation_mode():
    case = zoo("batch norm 2d")
    found = fl.exact_fisher(copy.deepcopy(case.model).train(), case.data)
    for layer, block in expected("batch norm 2d").items():
        assert distance(found[layer].dense(), block) < 1e-10


@pytest.mark.parametrize("name", ["layer norm", "language model", "encoder"])
def test_norms_have_exact_blocks_and_a_diagonal(name):
    case = zoo(name)
    norms = [block.name for block in blocks_of(case) if is_norm(case, block)]
    assert norms
    found = case.approximate("diagonal")
    for layer in norms:
        assert distance(found[layer].diagonal(), expected(name)[layer].diagonal()) < 1e-10
