"""Shampoo, SOAP, Adam and Adafactor: what they equal, their theorems, and gradients of batches."""

import pytest
import torch
from approximations.divergences import (
    block,
    floored,
    frobenius_error,
    gradients,
    logdet_divergence,
    perturbed,
    von_neumann_divergence,
)
from torch import Tensor, nn
from torch.nn import functional

import fisherlab as fl
from fisherlab.approximations import create, flip_flop
from fisherlab.errors import InputError
from fisherlab.operators import LinearOperator

OF_TODAY = ("shampoo", "soap", "adam", "adafactor", "kl-kronecker")


def trained() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A small network after a short training, in float64."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 4)).double()
    x = torch.randn(150, 9, dtype=torch.float64)
    y = (x[:, :4] + 0.3 * torch.randn(150, 4, dtype=torch.float64)).argmax(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for _ in range(100):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, (x, y)


@pytest.fixture(scope="module")
def network() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    return trained()


@pytest.fixture(scope="module")
def blocks(network) -> dict[str, LinearOperator]:
    """Exact blocks of the trained network, and of gradients by hand, wide and tall."""
    found = dict(fl.exact_fisher(*network))
    found |= {f"{m}x{d}": block(gradients(200, m, d, seed=m)) for m, d in ((4, 7), (8, 3))}
    return found


def of_block(name: str, F: LinearOperator, **options) -> LinearOperator:
    """F̂ from the block itself."""
    return create(name, **options).from_block(F)


# --- identities ---------------------------------------------------------------------------------------------


def assert_same(found: dict[str, LinearOperator], expected: dict[str, LinearOperator], within=1e-12) -> None:
    assert found.keys() == expected.keys()
    for name, operator in expected.items():
        X, Y = operator.dense(), found[name].dense()
        assert torch.linalg.norm(X - Y) <= within * torch.linalg.norm(X), name


@pytest.mark.parametrize("kind", ["predictive", "empirical"])
def test_what_equals_what(network, kind):
    def made(name: str, **options):
        return fl.approximate(name, *network, kind=kind, **options)

    assert_same(made("shampoo", power="1/2"), made("tkfac"))
    assert_same(made("soap"), made("tekfac"))
    assert_same(made("adam"), made("diagonal"))
    exact = fl.exact_fisher(*network, kind=kind)
    for name in ("shampoo", "soap", "adam", "adafactor"):  # sums over samples, and contractions of the block
        assert_same(made(name), {n: of_block(name, F) for n, F in exact.items()}, 1e-9)


def test_shampoo_is_the_product_of_the_roots(network):
    exact = fl.exact_fisher(*network)
    for name, operator in fl.approximate("shampoo", *network).items():
        F = exact[name]
        R, L = F.contract_output(torch.ones(F.outputs)), F.contract_input(torch.ones(F.inputs))
        A, B = operator.factors
        assert torch.linalg.norm(A @ A - R) < 1e-12 * torch.linalg.norm(R)
        assert torch.linalg.norm(B @ B - L) < 1e-12 * torch.linalg.norm(L)


def test_the_root_step_of_shampoo_is_the_published_one():
    F = block(gradients(100, 3, 5))
    operator = of_block("shampoo", F)
    R, L = F.contract_output(torch.ones(3)), F.contract_input(torch.ones(5))
    M = torch.arange(15.0, dtype=torch.float64).view(3, 5)

    def fourth(X: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(X)
        return (vectors * values**-0.25) @ vectors.mT

    expected = fourth(L) @ M @ fourth(R)
    torch.testing.assert_close(operator.power(-0.5, 0.0).apply(M), expected, rtol=1e-9, atol=0)


# --- theorems -----------------------------------------------------------------------------------------------


def test_partial_traces_are_best_in_von_neumann_divergence(blocks):
    for name, F in blocks.items():
        X, best = F.dense(), of_block("shampoo", F, power="1/2")
        least = von_neumann_divergence(X, best.dense())
        others = {"nearest": of_block("nearest-kronecker", F), "kl": of_block("kl-kronecker", F)}
        others["shampoo"] = of_block("shampoo", F) * float(F.trace() / of_block("shampoo", F).trace())
        for other, operator in others.items():
            assert least <= von_neumann_divergence(X, operator.dense()) + 1e-12, (name, other)
        for seed in range(8):
            A, B = (perturbed(M, 10.0 ** -(seed % 4), seed + side) for side, M in enumerate(best.factors))
            assert least <= von_neumann_divergence(X, torch.kron(A, B)) + 1e-12, name
        for scale in (0.9, 0.999, 1.001, 1.1):
            assert least < von_neumann_divergence(X, scale * best.dense()), name


def test_orders_that_are_theorems(blocks):
    for name, F in blocks.items():
        X = F.dense()
        found = {
            "nearest": of_block("nearest-kronecker", F),
            "tkfac": of_block("shampoo", F, power="1/2"),
            "kl": of_block("kl-kronecker", F),
            "soap": of_block("soap", F),
            "kl-soap": of_block("soap", F, basis="kl"),
            "diagonal": of_block("adam", F),
            "adafactor": of_block("adafactor", F),
        }
        dense = {key: operator.dense() for key, operator in found.items()}
        frobenius = {key: frobenius_error(X, Y) for key, Y in dense.items()}
        entropy = {key: von_neumann_divergence(X, Y) for key, Y in dense.items()}
        for key in ("tkfac", "kl"):
            assert frobenius["nearest"] <= frobenius[key] + 1e-12, name
        for better, worse in (("soap", "tkfac"), ("kl-soap", "kl"), ("diagonal", "adafactor")):
            assert frobenius[better] <= frobenius[worse] + 1e-12, (name, better)
            assert entropy[better] <= entropy[worse] + 1e-12, (name, better)


def test_the_best_diagonal_in_a_basis_is_best_in_logdet_divergence_too(blocks):
    for name, F in blocks.items():
        X, kl = floored(F, 1e-6), of_block("kl-kronecker", F)
        own = of_block("soap", F, basis="kl")
        floor = 1e-6 * float(F.trace()) / len(X)
        S = own.S + floor  # the diagonal of X = F + δI in the same basis
        basis = torch.kron(own.U_A, own.U_B)
        least = logdet_divergence(X, (basis * S.T.flatten()) @ basis.mT)
        assert least <= logdet_divergence(X, kl.dense()) + 1e-8 * len(X), name
        for seed in range(6):
            generator = torch.Generator().manual_seed(seed)
            noise = torch.randn(S.shape, generator=generator, dtype=S.dtype).mul(0.1).exp()
            assert least < logdet_divergence(X, (basis * (S * noise).T.flatten()) @ basis.mT), name


def test_adafactor_is_the_best_rank_one_in_generalised_kl(blocks):
    def kl(P: Tensor, Q: Tensor) -> float:
        return float((torch.xlogy(P, P / Q.clamp(min=1e-300)) - P + Q).sum())

    for name, F in blocks.items():
        S, best = F.diagonal_matrix(), of_block("adafactor", F).matrix
        assert torch.linalg.matrix_rank(best) == 1
        assert float(best.min()) >= 0
        least, (u, v) = kl(S, best), (best.sum(1), best.sum(0) / best.sum())
        for seed in range(12):
            generator = torch.Generator().manual_seed(seed)
            size = 10.0 ** -(seed % 3)
            noise = [torch.randn(n, generator=generator, dtype=S.dtype).mul(size).exp() for n in S.shape]
            assert least < kl(S, torch.outer(u * noise[0], v * noise[1])), name


def test_three_divergences_prefer_three_products():
    """On random gradient matrices each of nearest, TKFAC and KL wins in its own divergence, and strictly."""
    F = block(gradients(500, 5, 6))
    X, names = F.dense(), ("nearest-kronecker", "shampoo", "kl-kronecker")
    found = [of_block(name, F, **({"power": "1/2"} if name == "shampoo" else {})) for name in names]
    measures = (frobenius_error, von_neumann_divergence, logdet_divergence)
    for place, measure in enumerate(measures):
        values = [measure(X, operator.dense()) for operator in found]
        assert min(range(3), key=values.__getitem__) == place
        assert sorted(values)[1] > 1.01 * min(values)


# --- gradients of batches -----------------------------------------------------------------------------------


def batch_block(model: nn.Module, data: tuple[Tensor, Tensor], size: int, name: str) -> Tensor:
    """E[vec(V) vec(V)ᵀ] of √B × the mean gradient of consecutive batches, by autograd."""
    x, y = data
    layer, rows = model.get_submodule(name), []
    for start in range(0, len(x) - size + 1, size):
        model.zero_grad()
        part = slice(start, start + size)
        functional.cross_entropy(model(x[part]), y[part]).backward()
        V = torch.cat([layer.weight.grad, layer.bias.grad[:, None]], 1) * size**0.5
        rows.append(V.mT.flatten().clone())
    model.zero_grad()
    J = torch.stack(rows)
    return J.T @ J / len(J)


@pytest.mark.parametrize("size", [1, 7, 32, 150])
def test_gradients_of_batches_are_those_of_autograd(network, size):
    """Of data in pieces that are no multiples of B; 150 samples leave a rest of 3 and of 22."""
    model, (x, y) = network
    pieces = list(zip(x.split((40, 13, 97)), y.split((40, 13, 97)), strict=True))
    for name in OF_TODAY:
        floor = {"floor": 1e-2} if name == "kl-kronecker" else {}
        found = fl.approximate(create(name, gradients=f"batch:{size}", **floor), model, pieces)
        for layer, operator in found.items():
            X = batch_block(model, (x, y), size, layer)
            F = fl.operators.DenseOperator(X, operator.outputs, operator.inputs)
            expected = of_block(name, F, **floor).dense()
            near = torch.linalg.norm(operator.dense() - expected) / torch.linalg.norm(expected)
            assert near < 1e-6, (name, layer)  # roots of what is zero but for rounding
            assert f"batches of {size} samples" in operator.remark


def test_batches_of_one_sample_are_the_empirical_fisher(network):
    found = fl.approximate("soap", *network, gradients="batch:1")
    assert_same(found, fl.approximate("soap", *network, kind="empirical"), 1e-8)


def test_gradients_of_batches_of_convolutions_embeddings_and_groups():
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 6, 2, groups=2), nn.Flatten(), nn.Linear(24, 3)
    ).double()
    x, y = torch.randn(20, 2, 5, 5, dtype=torch.float64), torch.arange(20) % 3
    found = fl.approximate("adam", model, (x, y), gradients="batch:4")
    squares = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for start in range(0, 20, 4):
        model.zero_grad()
        functional.cross_entropy(model(x[start : start + 4]), y[start : start + 4]).backward()
        for name, p in model.named_parameters():
            squares[name] += 4 * p.grad.square() / 5
    for layer, operator in found.items():
        S = torch.cat([squares[f"{layer}.weight"].flatten(1), squares[f"{layer}.bias"][:, None]], 1)
        torch.testing.assert_close(operator.diagonal_matrix(), S)


def test_a_comparison_says_which_gradients(network):
    model, data = network
    methods = [create(name, gradients="batch:10") for name in OF_TODAY]
    notes = fl.compare(model, data, methods).records["note"]
    assert notes.str.contains("√10 × the mean gradient of batches of 10 samples").all()
    notes = fl.compare(model, data, OF_TODAY).records["note"]
    assert notes.str.contains("V: gradients of samples").all()


def test_more_samples_a_batch_than_there_are(network):
    model, (x, y) = network
    method = create("shampoo", gradients="batch:151")
    for call in (fl.compare, lambda *given: fl.approximate(given[2], *given[:2])):
        with pytest.raises(
            InputError, match="gradients='batch:151' needs at least 151 samples, and there are 150"
        ):
            call(model, (x, y), method)
    with pytest.raises(InputError, match="shampoo needs targets"):
        fl.compare(model, (x, None), create("shampoo", gradients="batch:4"))


@pytest.mark.parametrize("name", OF_TODAY)
@pytest.mark.parametrize(
    "given", ["batch", "batch:", "batch:0", "batch:-1", "batch:2.5", "Batch:4", "samples"]
)
def test_wrong_gradients(name, given):
    with pytest.raises(InputError, match="give 'sample', or 'batch:B'"):
        create(name, gradients=given)


def test_rounds_of_the_kl_basis_are_said():
    F = block(gradients(100, 4, 6))
    rounds = len(flip_flop(F).logdets)
    assert f"basis: kl-kronecker, {rounds} rounds" in of_block("soap", F, basis="kl").remark
