"""Every approximation of every kind of layer from its formula, by plain loops over samples."""

from collections.abc import Callable

import pytest
import torch
from layers_zoo import ONE_BASIS, ZOO, finished, numbers, seen, zoo
from model_cases import Net
from reference import rearranged
from torch import Tensor, nn
from zoo_reference import (
    Case,
    Rows,
    blocks_of,
    direct_sum,
    distance,
    exact_block,
    factored,
    gradient_matrices,
    rows_of,
    samples_of,
)

import fisherlab as fl
from fisherlab.errors import InputError
from fisherlab.operators import LinearOperator

FORMULAS: dict[str, Callable[[Rows], Tensor]] = {}


def formula(name: str) -> Callable:
    def keep(function: Callable[[Rows], Tensor]) -> Callable[[Rows], Tensor]:
        FORMULAS[name] = function
        return function

    return keep


# --- the formulas of one group of one block ---------------------------------------------------------------


def total(terms) -> Tensor:
    return torch.stack(list(terms)).sum(0)


def input_covariance(rows: Rows) -> Tensor:
    """A = (1/N) Σ_n Σ_t a aᵀ."""
    return total(one.T @ one for one in rows.a) / len(rows.a)


def output_covariance(rows: Rows) -> Tensor:
    """B = (1/(N·T)) Σ_n Σ_c Σ_t g gᵀ, N·T the number of all positions."""
    positions = sum(len(one) for one in rows.a)
    return total(column.T @ column for one in rows.g for column in one) / positions


@formula("kfac")
def kfac(rows: Rows) -> Tensor:
    return torch.kron(input_covariance(rows), output_covariance(rows))


@formula("foof")
def foof(rows: Rows) -> Tensor:
    A = input_covariance(rows)
    return torch.kron(A, torch.eye(rows.V[0].shape[1], dtype=A.dtype))


@formula("kfac reduce")
def kfac_reduce(rows: Rows) -> Tensor:
    means = [one.mean(0) for one in rows.a]
    sums = [column.sum(0) for one in rows.g for column in one]
    A, B = total(torch.outer(a, a) for a in means), total(torch.outer(g, g) for g in sums)
    return torch.kron(A, B) / len(rows.a) ** 2


def partial_traces(rows: Rows) -> tuple[Tensor, Tensor]:
    every = [V for one in rows.V for V in one]
    return total(V.T @ V for V in every) / len(rows.V), total(V @ V.T for V in every) / len(rows.V)


@formula("tkfac")
def tkfac(rows: Rows) -> Tensor:
    P, Q = partial_traces(rows)
    return torch.kron(P, Q) / Q.trace()


@formula("tkfac independent")
def tkfac_independent(rows: Rows) -> Tensor:
    P, Q = _position_by_position(rows, rows.g)
    return torch.kron(P, Q) / Q.trace()


@formula("lngd-lr")
def lngd_lr(rows: Rows) -> Tensor:
    P, Q = _position_by_position(rows, rows.g)
    return torch.kron(P, torch.diag(Q.diagonal() / P.trace()))


@formula("lngd")
def lngd(rows: Rows) -> Tensor:
    P, Q = _position_by_position(rows, [slope.unsqueeze(0) for slope in rows.slope])
    return torch.kron(P, torch.diag(Q.diagonal() / P.trace()))


def _position_by_position(rows: Rows, g: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(1/N) Σ ‖g_t‖² a_t a_tᵀ and (1/N) Σ ‖a_t‖² g_t g_tᵀ."""
    pairs = list(zip(rows.a, g, strict=True))
    P = total(torch.einsum("ctm,ti,tj->ij", G.square(), A, A) for A, G in pairs)
    Q = total(torch.einsum("ti,ctm,ctl->ml", A.square(), G, G) for A, G in pairs)
    return P / len(rows.a), Q / len(rows.a)


def layerwise(rows: Rows) -> Tensor:
    """(1/N) Σ_n Σ_t (a aᵀ) ⊗ diag(φ'(s)²)."""
    return total(
        torch.kron(torch.outer(a, a), torch.diag(slope.square()))
        for A, S in zip(rows.a, rows.slope, strict=True)
        for a, slope in zip(A, S, strict=True)
    ) / len(rows.a)


@formula("ekfac")
def ekfac(rows: Rows) -> Tensor:
    return _rescaled(rows, input_covariance(rows), output_covariance(rows))


@formula("tekfac")
def tekfac(rows: Rows) -> Tensor:
    return _rescaled(rows, *partial_traces(rows))


def _rescaled(rows: Rows, A: Tensor, B: Tensor) -> Tensor:
    """U diag(Uᵀ F U) Uᵀ in the eigenvectors of A ⊗ B; those of a diagonal matrix are the axes."""
    diagonal = torch.equal(A, torch.diag(A.diagonal()))
    U_A = torch.eye(len(A), dtype=A.dtype) if diagonal else torch.linalg.eigh(A).eigenvectors.contiguous()
    U = torch.kron(U_A, torch.linalg.eigh(B).eigenvectors.contiguous())
    F = exact_block(rows.V)
    return U @ torch.diag((U.T @ F @ U).diagonal()) @ U.T


@formula("nearest-kronecker")
def nearest(rows: Rows) -> Tensor:
    m, d = rows.V[0].shape[1:]
    U, S, W = torch.linalg.svd(rearranged(exact_block(rows.V), m, d))
    return torch.kron(S[0] * U[:, 0].view(d, d), W[0].view(m, m))


# --- the comparison ---------------------------------------------------------------------------------------

OPTIONS = {
    "kfac": ("kfac", {}),
    "kfac reduce": ("kfac", {"sharing": "reduce"}),
    "tkfac": ("tkfac", {}),
    "tkfac independent": ("tkfac", {"positions": "independent"}),
    "ekfac": ("ekfac", {}),
    "tekfac": ("tekfac", {}),
    "lngd": ("lngd", {}),
    "lngd-lr": ("lngd-lr", {}),
    "foof": ("foof", {}),
    "nearest-kronecker": ("nearest-kronecker", {}),
}
LOOSE = {"ekfac": 1e-7, "tekfac": 1e-7, "nearest-kronecker": 1e-6}
"""Their eigenvectors and singular vectors are found less sharply where values lie close together."""

WITHOUT_PADDING = [name for name in ZOO if name != "embedding padded"]


def approximations(case: Case, method: str, **options) -> dict[str, LinearOperator]:
    name, own = OPTIONS[method]
    layers = [block.name for block in factored(case, options.get("bias", "joint"))]
    return case.approximate(name, layers=layers, **own, **options)


def compare_all(name: str, method: str, kind: str = "predictive", bias: str = "joint") -> None:
    case = zoo(name)
    found = approximations(case, method, kind=kind, bias=bias)
    blocks = factored(case, bias)
    assert set(found) == {block.name for block in blocks}
    for block in blocks:
        parts = [FORMULAS[method](rows) for rows in rows_of(case, block, seen(name, kind))]
        right = direct_sum(parts, found[block.name].outputs)
        assert distance(found[block.name].dense(), right) < LOOSE.get(method, 1e-10), block.name


@pytest.mark.parametrize("method", [m for m in OPTIONS if m not in ("kfac reduce", "ekfac")])
@pytest.mark.parametrize("name", ZOO)
def test_methods(name, method):
    compare_all(name, method)


@pytest.mark.parametrize("name", ONE_BASIS)
def test_ekfac(name):
    compare_all(name, "ekfac")


def test_ekfac_keeps_the_diagonal_in_a_basis_of_equal_eigenvalues():
    case = zoo("transposed 3d")
    A, B = case.approximate("kfac", layers="0")["0"].factors
    operator = case.approximate("ekfac", layers="0")["0"]
    for factor, vectors in ((A, operator.U_A), (B, operator.U_B)):
        rotated = vectors.T @ factor @ vectors
        assert distance(torch.diag(rotated.diagonal()), rotated) < 1e-12
    U = torch.kron(operator.U_A, operator.U_B)
    (block, _) = factored(case)
    F = exact_block(gradient_matrices(case, block, seen("transposed 3d")))
    assert distance(operator.dense(), U @ torch.diag((U.T @ F @ U).diagonal()) @ U.T) < 1e-10


@pytest.mark.parametrize("name", WITHOUT_PADDING)
def test_kfac_reduce(name):
    compare_all(name, "kfac reduce")


@pytest.mark.parametrize("method", ["kfac", "tkfac", "lngd-lr"])
@pytest.mark.parametrize(
    "name",
    ["conv2d grouped", "transposed 2d", "embedding", "attention", "recurrent", "tied", "language model"],
)
def test_methods_with_the_datas_labels(name, method):
    compare_all(name, method, kind="empirical")


@pytest.mark.parametrize("method", ["kfac", "tkfac", "ekfac", "lngd"])
@pytest.mark.parametrize("bias", ["separate", "ignore"])
@pytest.mark.parametrize("name", ["conv2d zeros", "transposed 2d", "attention", "tied weights", "recurrent"])
def test_methods_with_other_modes_of_the_bias(name, bias, method):
    compare_all(name, method, bias=bias)


@pytest.mark.parametrize("name", ZOO)
def test_the_diagonal(name):
    case = zoo(name)
    found = case.approximate("diagonal")
    for block in blocks_of(case):
        diagonal = exact_block(gradient_matrices(case, block, seen(name))).diagonal()
        assert distance(found[block.name].diagonal(), diagonal) < 1e-10


@pytest.mark.parametrize("name", ZOO)
def test_the_layerwise_fisher(name):
    case = zoo(name)
    found = case.exact(kind="layerwise", layers=[block.name for block in factored(case)])
    for block in factored(case):
        parts = [layerwise(rows) for rows in rows_of(case, block, seen(name))]
        assert distance(found[block.name].dense(), direct_sum(parts, found[block.name].outputs)) < 1e-10


@pytest.mark.parametrize("name", ["embedding", "embedding padded", "embedding one", "language model"])
def test_the_input_factor_of_an_embedding_holds_counts(name):
    case = zoo(name)
    layer = next(b.name for b in factored(case))
    A = case.approximate("kfac", layers=[layer])[layer].factors[0]
    words = case.inputs[0].flatten()
    counts = torch.bincount(words, minlength=len(A)).double() / len(case.targets)
    if name == "embedding padded":
        counts[0] = 0
    assert torch.equal(A if A.dim() == 1 else A.diagonal(), counts)


# --- masks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["kfac", "ekfac", "tkfac", "lngd"])
def test_ignored_tokens_are_positions_all_the_same(method):
    """Other tokens attend to them, so their gradients are not zero."""
    whole = zoo("language model")
    targets = whole.targets.clone()
    targets[1, 2], targets[3], targets[4, 0] = -100, torch.tensor([-100, 1, -100, 2]), -100
    case = Case(whole.model, whole.inputs, targets, whole.likelihood, whole.activations)
    samples = samples_of(case)
    found = approximations(case, method)
    for block in factored(case):
        (rows,) = rows_of(case, block, samples)
        right = FORMULAS[method](rows)
        assert distance(found[block.name].dense(), right) < LOOSE.get(method, 1e-10), block.name


def positive(x: Tensor) -> Tensor:
    """Some of the positions of [n, t, d], the first one always."""
    return (x[..., 0] > 0) | (torch.arange(x.shape[1]) == 0)


def mean_of_some() -> Case:
    def forward(net: Net, x: Tensor) -> Tensor:
        weights = positive(x).to(x.dtype).unsqueeze(-1)
        return net.head((net.layer(x).tanh() * weights).sum(1) / weights.sum(1))

    model = Net(forward, layer=nn.Linear(3, 4), head=nn.Linear(4, 3))
    return finished(model, numbers(3, 3), activations={"layer": torch.tanh})


@pytest.mark.parametrize("method", ["kfac", "ekfac", "tkfac", "lngd", "lngd-lr"])
def test_masked_positions_leave_the_factors(method):
    case = mean_of_some()
    layers = fl.find_layers(case.model, masks={"layer": positive})
    found = case.approximate(method, layers=layers)["layer"]
    (block,) = (b for b in factored(case) if b.name == "layer")
    (rows,) = rows_of(case, block, samples_of(case))
    valid = positive(case.inputs[0])
    assert distance(found.dense(), FORMULAS[method](rows)) > (0.01 if method in ("kfac", "lngd") else -1)
    for values in (rows.a, rows.slope):
        values[:] = [one[keep] for one, keep in zip(values, valid, strict=True)]
    rows.g[:] = [one[:, keep] for one, keep in zip(rows.g, valid, strict=True)]
    assert distance(found.dense(), FORMULAS[method](rows)) < LOOSE.get(method, 1e-10)
    F = exact_block(rows.V)
    for way in ("auto", "gram"):
        assert distance(case.exact(layers=layers, method=way)["layer"].dense(), F) < 1e-10


def test_reduced_means_are_over_the_positions_that_count():
    case = mean_of_some()
    layers = fl.find_layers(case.model, masks={"layer": positive})
    A, B = case.approximate("kfac", layers=layers, sharing="reduce")["layer"].factors
    (block,) = (b for b in factored(case) if b.name == "layer")
    (rows,) = rows_of(case, block, samples_of(case))
    means = [a[keep].mean(0) for a, keep in zip(rows.a, positive(case.inputs[0]), strict=True)]
    assert distance(A, sum(torch.outer(x, x) for x in means) / len(means)) < 1e-12
    whole = case.approximate("kfac", sharing="reduce")["layer"].factors
    assert distance(B, whole[1]) < 1e-12
    assert distance(A, whole[0]) > 0.01


def test_a_mask_that_hides_what_the_loss_sees_is_refused():
    case = zoo("sequence")
    layers = fl.find_layers(case.model, masks={"0": lambda x: torch.arange(5).expand(len(x), 5) < 4})
    with pytest.raises(InputError, match="'0' hides positions"):
        case.approximate("kfac", layers=layers)


# --- batches ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ONE_BASIS)
def test_one_batch_of_six_is_six_of_one(name):
    case, methods = zoo(name), ("kfac", "ekfac", "tkfac", "lngd", "lngd-lr")
    layers = [block.name for block in factored(case)]
    whole, parts = (case.several(*methods, data=case.cut(size), layers=layers) for size in (6, 1))
    for method in methods:
        for layer, operator in parts[method].items():
            assert distance(operator.dense(), whole[method][layer].dense()) < 1e-10, (method, layer)


@pytest.mark.parametrize("name", ["conv2d grouped", "attention kdim", "recurrent", "language model"])
def test_uneven_batches_do_not_matter_for_kfac_reduce(name):
    case = zoo(name)
    layers = [block.name for block in factored(case)]
    whole = approximations(case, "kfac reduce")
    parts = fl.approximate("kfac", case.model, case.cut(4), case.likelihood, layers=layers, sharing="reduce")
    for layer, operator in parts.items():
        assert distance(operator.dense(), whole[layer].dense()) < 1e-10


@pytest.mark.parametrize("method", ["kfac", "tkfac", "lngd"])
@pytest.mark.parametrize("name", ["conv2d grouped", "embedding", "attention causal", "recurrent"])
def test_statistics_merge_and_return_from_a_file(name, method, tmp_path):
    case = zoo(name)
    whole = approximations(case, method)
    layers = list(whole)
    halves = [
        fl.collect_statistics(part.model, part.data, part.likelihood, layers=layers, approximations=(method,))
        for part in (case.take(slice(0, 3)), case.take(slice(3, 6)))
    ]
    merged = halves[0] + halves[1]
    merged.save(tmp_path / "sums.safetensors")
    for statistics in (merged, fl.load_statistics(tmp_path / "sums.safetensors")):
        for layer, operator in statistics.build(method).items():
            assert distance(operator.dense(), whole[layer].dense()) < 1e-10


def test_a_frozen_weight_or_a_subset_leaves_the_other_blocks():
    case = zoo("language model")
    whole = case.approximate("tkfac", layers=["token", "attention.v", "up"])
    some = case.approximate("tkfac", layers=["attention.v"])
    assert distance(some["attention.v"].dense(), whole["attention.v"].dense()) < 1e-12
    case.model.token.weight.requires_grad_(False)
    try:
        others = case.approximate("tkfac", layers=["attention.v", "up"])
        assert "token" not in fl.find_layers(case.model)
    finally:
        case.model.token.weight.requires_grad_(True)
    for layer, operator in others.items():
        assert distance(operator.dense(), whole[layer].dense()) < 1e-12


def test_named_activations_reach_every_use():
    case = zoo("tied")
    found = case.approximate("lngd", activations={"first": "relu"})["first"]
    named = type(case)(
        case.model, case.inputs, case.targets, activations=dict.fromkeys(("first", "second"), torch.relu)
    )
    (block,) = (b for b in factored(named) if b.name == "first")
    (rows,) = rows_of(named, block, samples_of(named))
    assert distance(found.dense(), lngd(rows)) < 1e-10
