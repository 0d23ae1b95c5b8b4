"""One-hot inputs against the tensors that they stand for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from fisherlab.errors import InputError
from fisherlab.gradients import inputs as functions
from fisherlab.operators import OneHot

shapes = st.tuples(*[st.integers(1, 5)] * 5)  # n, t, d, m, c


def one_hot(n, t, d, seed=0):
    generator = torch.Generator().manual_seed(seed + n + 10 * t + 100 * d)
    return OneHot(torch.randint(-1, d, (n, t), generator=generator), d, torch.float64)


def test_it_looks_like_the_tensor():
    a = OneHot(torch.tensor([[0, 2], [-1, 1], [2, 2]]), 3, torch.float32)
    dense = a.dense()
    assert dense.tolist() == [[[1, 0, 0], [0, 0, 1]], [[0, 0, 0], [0, 1, 0]], [[0, 0, 1], [0, 0, 1]]]
    assert (a.shape, a.ndim, len(a), a.dtype, a.device) == (dense.shape, 3, 3, dense.dtype, dense.device)
    assert_close(a[1:].dense(), dense[1:])
    assert_close(a[torch.tensor([2, 0])].dense(), dense[[2, 0]])
    assert_close(a[torch.tensor([True, False, True])].dense(), dense[[0, 2]])
    assert_close(a.double().dense(), dense.double())
    assert a.to("cpu").dtype == torch.float32
    assert_close(functions.cat([a, a[:1]]).dense(), torch.cat([dense, dense[:1]]))
    assert_close(functions.cat([dense, dense[:1]]), torch.cat([dense, dense[:1]]))
    copy = a.clone()
    a.indices[0, 0] = 1
    assert_close(copy.dense(), dense)


@pytest.mark.parametrize(
    "indices",
    [torch.zeros(3, dtype=torch.int64), torch.zeros(2, 2), torch.tensor([[-2]]), torch.tensor([[3]])],
)
def test_impossible_indices_are_refused(indices):
    with pytest.raises(InputError, match="ind"):
        OneHot(indices, 3, torch.float64)


@settings(max_examples=40)
@given(shape=shapes)
def test_every_function_is_that_of_the_dense_rows(shape):
    n, t, d, m, c = shape
    a, b = one_hot(n, t, d), one_hot(m, c, d, seed=1)
    dense, other = a.dense(), b.dense()
    weights, pairs = torch.rand(n, t).double(), torch.rand(n, t, t).double()
    A, X, s = torch.randn(d, d).double(), torch.randn(c, m, d).double(), torch.randn(c, n, t, m).double()
    assert_close(functions.squared_norms(a), functions.squared_norms(dense))
    for left, right in ((a, b), (a, other), (dense, b)):
        assert_close(functions.inner_products(left, right), functions.inner_products(dense, other))
    for factor in (None, A, A[0]):
        assert_close(functions.position_products(a, factor), functions.position_products(dense, factor))
    assert_close(functions.rotated(a, A), dense @ A)
    assert_close(torch.diag(functions.second_moment(a)), functions.second_moment(dense))
    assert_close(torch.diag(functions.second_moment(a, weights)), functions.second_moment(dense, weights))
    assert_close(functions.pair_moment(a, pairs), functions.pair_moment(dense, pairs))
    assert_close(functions.layer_outputs(a, X), torch.einsum("ntd,bmd->bntm", dense, X))
    assert_close(functions.weighted_sum(s, a), torch.einsum("bntm,ntd->bmd", s, dense))
    expected = torch.einsum("cntm,ntd->ncmd", s, dense)
    assert_close(functions.sample_gradients(a, s), expected)
    assert_close(functions.sample_gradients(dense, s), expected)
    assert_close(functions.sample_gradients(dense, s, expected.new_empty(expected.numel() + 3)), expected)


@settings(max_examples=40)
@given(shape=shapes)
def test_merged_positions_are_distinct_and_give_the_same_gradients(shape):
    n, t, d, m, c = shape
    a, g = one_hot(n, t, d), torch.randn(c, n, t, m).double()
    merged, summed = a.merged(g)
    for row in merged.indices.tolist():
        found = [index for index in row if index >= 0]
        assert len(found) == len(set(found))
    assert_close(functions.sample_gradients(merged, summed), functions.sample_gradients(a, g))


def test_compact_keeps_inner_products():
    a = OneHot(torch.tensor([[7, -1, 900], [7, 3, 900]]), 1000, torch.float64)
    small = a.compact()
    assert small.size == 3
    assert_close(functions.inner_products(small, small), functions.inner_products(a, a))
