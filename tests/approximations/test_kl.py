"""KL-Kronecker: the best A ⊗ B in log-det divergence, by a flip-flop that never goes up."""

import pytest
import torch
from approximations.divergences import (
    best_logdet_divergence,
    block,
    floored,
    gradients,
    logdet_divergence,
    perturbed,
)
from torch import Tensor, nn

import fisherlab as fl
from fisherlab.approximations import KLKronecker, build_from_block, create, flip_flop, kl
from fisherlab.collect.layer_batch import LayerBatch
from fisherlab.errors import InputError, NumericalError
from fisherlab.exact.fisher import gram_block
from fisherlab.operators import DenseOperator, GramOperator, LinearOperator, PackedOperator
from fisherlab.statistics import moments

SHAPES = [(300, 6, 8), (300, 9, 4), (60, 5, 5), (12, 4, 20), (40, 1, 7), (40, 7, 1)]


def softmax(samples: int, m: int, d: int, seed: int = 0) -> Tensor:
    """V of a last layer: the output gradients sum to zero, so that B has rank m − 1."""
    generator = torch.Generator().manual_seed(seed)
    g = torch.randn(samples, m, generator=generator, dtype=torch.float64) * torch.arange(1, m + 1)
    a = torch.randn(samples, d, generator=generator, dtype=torch.float64).clamp(min=0)
    return torch.einsum("nj,ni->nji", g - g.mean(1, keepdim=True), a)


def product(F: LinearOperator, floor: float = kl.FLOOR) -> Tensor:
    return KLKronecker(floor).from_block(F).dense()


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_best_product_in_logdet_divergence(shape):
    F = block(gradients(*shape))
    X, found = floored(F, 1e-6), flip_flop(F)
    best = logdet_divergence(X, torch.kron(found.A, found.B))
    others = {
        "nearest": create("nearest-kronecker"),
        "tkfac": create("shampoo", power="1/2"),
        "shampoo": create("shampoo"),
    }
    for name, method in others.items():
        A, B = method.from_block(F).factors
        A, B = (M + 1e-6 * M.trace() / len(M) * torch.eye(len(M), dtype=M.dtype) for M in (A, B))
        assert best < best_logdet_divergence(X, torch.kron(A, B)) + 1e-9 * len(X), name
    for seed in range(20):
        size = 10.0 ** -(seed % 4)
        A, B = perturbed(found.A, size, seed), perturbed(found.B, size, 100 + seed)
        assert best <= logdet_divergence(X, torch.kron(A, B)) + 1e-10 * len(X)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_round_lowers_the_divergence_to_a_fixed_point(shape):
    F = block(gradients(*shape))
    m, d = shape[1:]
    X, found = floored(F, 1e-6), flip_flop(F)
    steps = torch.tensor(found.logdets, dtype=torch.float64)
    assert (steps.diff() <= 1e-12 * len(X)).all()
    Y = torch.kron(found.A, found.B)
    own = float(torch.linalg.slogdet(X)[1])
    assert logdet_divergence(X, Y) == pytest.approx(found.logdets[-1] - own, abs=1e-8 * len(X))
    XX = DenseOperator(X, m, d)
    A = XX.contract_output(torch.linalg.inv(found.B)) / m
    B = XX.contract_input(torch.linalg.inv(found.A)) / d
    assert torch.linalg.norm(A - found.A) < 1e-8 * torch.linalg.norm(A)
    assert torch.linalg.norm(B - found.B) < 1e-8 * torch.linalg.norm(B)


@pytest.mark.parametrize("V", [gradients(300, 6, 8), gradients(60, 9, 4), softmax(50, 3, 5)])
def test_it_does_not_depend_on_the_start(V):
    F = block(V)
    found, k = flip_flop(F), min(V.shape[1:])
    other = perturbed(torch.eye(k, dtype=torch.float64), 1.0, 3)
    again = flip_flop(F, start=other)
    Y, Z = torch.kron(found.A, found.B), torch.kron(again.A, again.B)
    assert torch.linalg.norm(Y - Z) < 1e-8 * torch.linalg.norm(Y)
    assert again.products < 60
    assert found.products < 30


def test_dense_packed_and_gram_blocks_give_the_same():
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(50, 1, 6, generator=generator, dtype=torch.float64)
    g = torch.randn(3, 50, 1, 4, generator=generator, dtype=torch.float64)
    gram = GramOperator(a, g)
    packed = PackedOperator(moments.packed_block(a, g).double() / 50, 4, 6)
    dense = DenseOperator(gram.dense(), 4, 6)
    expected = product(dense)
    for F in (gram, packed):
        assert torch.linalg.norm(product(F) - expected) < 1e-9 * torch.linalg.norm(expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("samples", [12, 60])
def test_every_form_of_a_block_takes_few_rounds(samples, dtype):
    """Fewer samples than inputs and a softmax: both kernels are of what rounding leaves in sums."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 80), nn.Tanh(), nn.Linear(80, 5), nn.Tanh(), nn.Linear(5, 3))
    model, x = model.double(), torch.randn(samples, 20, dtype=torch.float64).to(dtype)
    found, expected = {}, {}
    for name, F in fl.exact_fisher(model, (x.double(), None), "categorical", layers=["2", "4"]).items():
        expected[name] = flip_flop(F).logdets[-1] / F.shape[0]
    model = model.to(dtype)
    for form in ("kronecker", "per-sample", "gram"):
        blocks = fl.exact_fisher(model, (x, None), "categorical", layers=["2", "4"], method=form)
        for name, F in blocks.items():
            found[form, name] = flip_flop(F)
            dense = DenseOperator(F.dense(), F.outputs, F.inputs)
            dense.rounding = F.rounding
            found[f"{form}, dense", name] = flip_flop(dense)
    for (form, name), one in found.items():
        assert one.products <= 20, (form, name)
        # What float32 leaves of ‖F‖ in sums, 1e-8, is up to 1e-3 of δ in directions that no sample reaches.
        bound = 1e-8 if dtype == torch.float64 else 1e-3
        each = one.logdets[-1] / (405 if name == "2" else 18)
        assert each == pytest.approx(expected[name], abs=bound), (form, name)


def test_rounds_that_are_not_enough_are_said_as_such(monkeypatch):
    monkeypatch.setattr(kl, "_ROUNDS", 3)
    with pytest.raises(NumericalError, match=r"did not converge in 3 rounds at floor=1e-06: its \w+ factor"):
        flip_flop(block(gradients(60, 5, 5)))


def test_each_group_has_its_own():
    generator = torch.Generator().manual_seed(2)
    a = torch.randn(40, 2, 8, generator=generator, dtype=torch.float64)
    g = torch.randn(1, 40, 2, 6, generator=generator, dtype=torch.float64)
    kept = LayerBatch(0, a, {"empirical": g}, groups=2)
    whole = gram_block(kept, "empirical")
    found = build_from_block(KLKronecker(), whole)
    parts = [KLKronecker().from_block(GramOperator(p.a, p.g["empirical"])) for p in kept.parts]
    expected = torch.block_diag(*(part.dense("row") for part in parts))
    assert torch.linalg.norm(found.dense("row") - expected) < 1e-12 * torch.linalg.norm(expected)
    assert found.remark.count("V: gradients of samples") == 1
    assert "rounds" in found.remark


@pytest.mark.parametrize("shape", [(50, 3, 5), (200, 10, 20), (200, 10, 64)])
def test_a_kernel_by_structure_takes_few_rounds(shape):
    """A softmax's last layer, and inputs that are always zero."""
    V = softmax(*shape)
    V[:, :, 0] = 0
    F = block(V)
    found = flip_flop(F)
    assert found.products <= 40
    X = floored(F, 1e-6)
    tr = torch.linalg.solve(torch.kron(found.A, found.B), X).trace()
    assert float(tr) == pytest.approx(len(X), rel=1e-8)


def test_a_rank_that_is_too_low_is_named_with_the_floor_that_works():
    F = block(softmax(50, 3, 5))
    with pytest.raises(NumericalError, match=r"its output side has rank 2 of 3; give floor=1e-06"):
        flip_flop(F, 0.0)
    V = gradients(60, 3, 5)
    V[:, :, 2] = 0
    with pytest.raises(NumericalError, match=r"its input side has rank 4 of 5; give floor=1e-06"):
        flip_flop(block(V), 0.0)
    with pytest.raises(NumericalError, match=r"at floor=1e-15: its (in|out)put factor is singular"):
        flip_flop(F, 1e-15)
    few = block(gradients(2, 8, 9))  # both sides have full rank, and there is no best product
    with pytest.raises(NumericalError, match=r"floor=0: its input factor .*; give floor=1e-06"):
        flip_flop(few, 0.0)
    flip_flop(few, 1e-6)


def test_full_rank_needs_no_floor():
    F = block(gradients(200, 4, 6))
    near, without = product(F, 1e-10), product(F, 0.0)
    assert torch.linalg.norm(near - without) < 1e-7 * torch.linalg.norm(without)


@pytest.mark.parametrize("scale", [1e-60, 1.0, 1e60])
def test_it_scales_with_the_block(scale):
    F = block(gradients(100, 4, 6))
    found, expected = product(DenseOperator(F.dense() * scale, 4, 6)), product(F) * scale
    assert torch.linalg.norm(found - expected) < 1e-8 * torch.linalg.norm(expected)


def test_a_block_of_zeros_gives_zeros():
    found = KLKronecker().from_block(DenseOperator(torch.zeros(12, 12, dtype=torch.float64), 3, 4))
    assert float(found.frobenius_norm()) == 0


def test_options():
    with pytest.raises(InputError, match="floor"):
        KLKronecker(floor=-1.0)
    with pytest.raises(InputError, match="give 'sample', or 'batch:B'"):
        KLKronecker(gradients="batch:0")
    with pytest.raises(InputError, match="give 'sample', or 'batch:B'"):
        KLKronecker(gradients="batch:٣")
    assert KLKronecker(gradients="batch:16").batch == 16


def test_the_basis_of_soap_takes_the_floor_that_works():
    few = block(gradients(2, 8, 9))
    with pytest.raises(NumericalError, match="give floor=1e-06"):
        create("soap", basis="kl", floor=0.0).from_block(few)
    rotated, F = create("soap", basis="kl", floor=1e-2).from_block(few), flip_flop(few, 1e-2)
    U = torch.kron(torch.linalg.eigh(F.A)[1], torch.linalg.eigh(F.B)[1])
    expected = (U * (U.T @ few.dense() @ U).diagonal()) @ U.T
    assert torch.linalg.norm(rotated.dense() - expected) < 1e-9 * torch.linalg.norm(expected)
