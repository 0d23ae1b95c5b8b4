"""Every sum of moments.py beside a loop over samples, columns and positions."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import relative
from torch import Tensor

from fisherlab.linalg.packing import svec
from fisherlab.operators import OneHot
from fisherlab.statistics import moments

sizes = st.tuples(*[st.integers(1, 4)] * 5)  # n, t, d, m, c


def data(n: int, t: int, d: int, m: int, c: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n + 10 * t + 100 * d + 1000 * m + 10000 * c)
    a = torch.randn(n, t, d, generator=generator, dtype=torch.float64)
    return a, torch.randn(c, n, t, m, generator=generator, dtype=torch.float64)


def each(a: Tensor, g: Tensor):
    """(V, a [t, d], g [t, m]) of every column and sample."""
    for k, i in itertools.product(range(len(g)), range(len(a))):
        yield sum(torch.outer(g[k, i, t], a[i, t]) for t in range(a.shape[1])), a[i], g[k, i]


def each_input(a: Tensor, g: Tensor):
    yield from a


def unit_block(a: Tensor, g: Tensor) -> Tensor:
    """Σ_t g_tj² a_t a_tᵀ for every unit, packed."""
    return svec(torch.einsum("tj,ti,tk->jik", g.square(), a, a))


LOOPS = {
    "output_moment": lambda a, g: sum(y.T @ y for _, _, y in each(a, g)),
    "output_moment_reduced": lambda a, g: sum(torch.outer(y.sum(0), y.sum(0)) for _, _, y in each(a, g)),
    "input_trace": lambda a, g: sum(V.T @ V for V, _, _ in each(a, g)),
    "output_trace": lambda a, g: sum(V @ V.T for V, _, _ in each(a, g)),
    "input_trace_independent": lambda a, g: sum(
        y[t].square().sum() * torch.outer(x[t], x[t]) for _, x, y in each(a, g) for t in range(len(x))
    ),
    "output_trace_independent": lambda a, g: sum(
        x[t].square().sum() * torch.outer(y[t], y[t]) for _, x, y in each(a, g) for t in range(len(x))
    ),
    "output_trace_diagonal": lambda a, g: sum(
        x[t].square().sum() * y[t].square() for _, x, y in each(a, g) for t in range(len(x))
    ),
    "output_squares": lambda a, g: sum((V @ V.T).diagonal() for V, _, _ in each(a, g)),
    "squared_gradient": lambda a, g: sum(V.square() for V, _, _ in each(a, g)),
    "gradient_sum": lambda a, g: sum(V for V, _, _ in each(a, g)),
    "dense_block": lambda a, g: sum(torch.outer(V.T.flatten(), V.T.flatten()) for V, _, _ in each(a, g)),
    "unit_blocks": lambda a, g: sum(unit_block(x, y) for _, x, y in each(a, g)),
}


@pytest.mark.parametrize("name", LOOPS)
@settings(max_examples=15)
@given(shape=sizes)
def test_sums_are_those_of_a_loop(name, shape):
    a, g = data(*shape)
    found, expected = getattr(moments, name)(a, g), LOOPS[name](a, g)
    assert found.shape == expected.shape
    assert relative(found, expected) < 1e-12


@settings(max_examples=15)
@given(shape=sizes)
def test_sums_of_the_inputs_alone(shape):
    a, _ = data(*shape)
    assert relative(moments.input_moment(a, None), sum(x.T @ x for x in a)) < 1e-12
    reduced = sum(torch.outer(x.mean(0), x.mean(0)) for x in a)
    assert relative(moments.input_moment_reduced(a, None), reduced) < 1e-12


@settings(max_examples=15)
@given(shape=sizes)
def test_rotated_squares(shape):
    a, g = data(*shape)
    U_A, U_B = (torch.linalg.qr(torch.randn(k, k).double()).Q for k in (a.shape[-1], g.shape[-1]))
    expected = sum((U_B.T @ V @ U_A).square() for V, _, _ in each(a, g))
    assert relative(moments.rotated_square(a, g, U_A, U_B), expected) < 1e-12


@settings(max_examples=15)
@given(shape=sizes)
def test_the_packed_block_is_an_isometric_image_of_the_dense_one(shape):
    n, _, d, m, c = shape
    a, g = data(n, 1, d, m, c)
    M, F = moments.packed_block(a, g), moments.dense_block(a, g)
    assert torch.linalg.norm(M) == pytest.approx(float(torch.linalg.norm(F)), rel=1e-12)
    A, B = torch.randn(d, d).double(), torch.randn(m, m).double()
    A, B = A + A.T, B + B.T
    assert svec(A) @ M @ svec(B) == pytest.approx(float((F * torch.kron(A, B)).sum()), rel=1e-9, abs=1e-9)


CHUNKED = ["squared_gradient", "dense_block", "unit_blocks", "packed_block", "input_trace", "output_trace"]


@pytest.mark.parametrize("name", [*CHUNKED, "output_squares"])
@pytest.mark.parametrize("positions", [3, 30])
def test_small_chunks_give_the_same_sum(name, positions, monkeypatch):
    a, g = data(4, 1 if name == "packed_block" else positions, 3, 2, 2)
    whole = getattr(moments, name)(a, g)
    monkeypatch.setattr(moments, "_CHUNK_BYTES", 1)
    monkeypatch.setattr("fisherlab.gradients.contractions._VECTOR_BYTES", 1)
    monkeypatch.setattr("fisherlab.gradients.contractions._PAIR_BYTES", 1)
    monkeypatch.setattr("fisherlab.linalg.numerics.CHUNK_BYTES", 1)
    assert relative(getattr(moments, name)(a, g), whole) < 1e-13


@pytest.mark.parametrize("entry_cost", [0.0, 1e9])
@pytest.mark.parametrize("shape", [(3, 2, 5, 4, 3), (3, 9, 2, 3, 2), (2, 40, 3, 2, 1)])
def test_every_way_gives_the_same_sum(shape, entry_cost, monkeypatch):
    """The cost of an entry decides between the ways: free V against V that are never made."""
    monkeypatch.setattr("fisherlab.gradients.contractions.ENTRY_COST", entry_cost)
    a, g = data(*shape)
    for name in ("squared_gradient", "input_trace", "output_trace", "output_squares"):
        assert relative(getattr(moments, name)(a, g), LOOPS[name](a, g)) < 1e-12


DIAGONAL = ("input_moment", "input_trace_independent")
NAMES = [*LOOPS, "input_moment", "input_moment_reduced", "gradients"]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15)
@given(shape=sizes)
def test_one_hot_inputs_are_those_of_the_dense_rows(name, shape):
    n, t, d, _, _ = shape
    _, g = data(*shape)
    a = OneHot(torch.randint(-1, d, (n, t)), d, torch.float64)
    second = a.indices >= 0 if name == "input_moment_reduced" else g
    found, expected = getattr(moments, name)(a, second), getattr(moments, name)(a.dense(), second)
    if name in DIAGONAL:
        assert found.shape == (d,)
        found = torch.diag(found)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sides", ["", "A", "B", "AB"])
@pytest.mark.parametrize("one_hot", [False, True])
def test_rotated_squares_without_a_basis(sides, one_hot):
    a, g = data(4, 3, 4, 3, 2)
    if one_hot:
        a = OneHot(torch.randint(-1, 4, (4, 3)), 4, torch.float64)
    U_A, U_B = (torch.linalg.qr(torch.randn(k, k).double()).Q for k in (4, 3))
    plain = moments.rotated_square(a, g, None if "A" in sides else U_A, None if "B" in sides else U_B)
    rows = a.dense() if one_hot else a
    identity = torch.eye(4).double(), torch.eye(3).double()
    expected = moments.rotated_square(
        rows, g, identity[0] if "A" in sides else U_A, identity[1] if "B" in sides else U_B
    )
    assert relative(plain, expected) < 1e-12


def test_one_hot_packed_block_is_that_of_the_dense_rows():
    _, g = data(6, 1, 3, 2, 2)
    a = OneHot(torch.tensor([[0], [2], [2], [-1], [1], [0]]), 3, torch.float64)
    assert relative(moments.packed_block(a, g), moments.packed_block(a.dense(), g)) < 1e-13


def test_single_precision_chunks_are_added_in_double(monkeypatch):
    """256 equal chunks: sums in float32 would drift."""
    a, g = torch.full((256, 3, 2), 0.1), torch.full((1, 256, 3, 2), 0.7)
    one = moments.dense_block(a[:1], g[:, :1]).double()
    monkeypatch.setattr("fisherlab.gradients.contractions._VECTOR_BYTES", 1)
    monkeypatch.setattr("fisherlab.gradients.contractions._PAIR_BYTES", 1)
    assert relative(moments.dense_block(a, g), 256 * one) < 1e-12
    assert moments.squared_gradient(a, g).dtype == torch.float32


@settings(max_examples=20)
@given(shape=sizes, cut=st.integers(0, 4))
def test_sums_over_parts_add_up(shape, cut):
    a, g = data(*shape)
    cut = min(cut, len(a))
    for name in LOOPS:
        function = getattr(moments, name)
        parts = function(a[:cut], g[:, :cut]) + function(a[cut:], g[:, cut:])
        assert torch.allclose(parts, function(a, g), rtol=1e-11, atol=1e-11)
