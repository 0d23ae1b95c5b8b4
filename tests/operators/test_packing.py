import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from operator_cases import loop_svec

from fisherlab.errors import InputError
from fisherlab.linalg.packing import outer_rows, project, unpack
from fisherlab.operators import packed_size, smat, svec, svec_gram, svec_outer

sizes = st.integers(1, 7)
seeds = st.integers(0, 2**16)


def random(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def symmetric(*batch, k, seed=0):
    X = random(*batch, k, k, seed=seed)
    return X + X.mT


@settings(max_examples=30)
@given(k=sizes, seed=seeds)
def test_svec_is_the_scaled_upper_triangle(k, seed):
    S = symmetric(k=k, seed=seed)
    assert svec(S).shape == (packed_size(k),)
    assert_allclose(svec(S), loop_svec(S.numpy()), rtol=1e-15)


@settings(max_examples=30)
@given(k=sizes, seed=seeds)
def test_svec_keeps_inner_products_and_smat_inverts_it(k, seed):
    X, Y = symmetric(3, k=k, seed=seed), symmetric(3, k=k, seed=seed + 1)
    assert_allclose((svec(X) * svec(Y)).sum(-1), (X * Y).sum((-2, -1)), rtol=1e-12, atol=1e-12)
    assert_allclose(smat(svec(X), k), X, rtol=1e-14)


@settings(max_examples=30)
@given(k=sizes, seed=seeds)
def test_svec_of_outer_products(k, seed):
    a, g = random(5, k, seed=seed), random(3, 5, k, seed=seed + 1)
    assert_allclose(svec_outer(a), svec(a[:, :, None] * a[:, None, :]), rtol=1e-14)
    expected = svec(torch.einsum("cni,cnj->nij", g, g))
    assert_allclose(svec_gram(g), expected, rtol=1e-12, atol=1e-12)
    assert_allclose(svec_gram(g[:1]), svec_outer(g[0]), rtol=1e-14)


def test_other_precisions_and_no_graph():
    a = random(1, 4).float().requires_grad_()
    packed = svec_outer(a)
    assert packed.dtype == torch.float32
    assert not packed.requires_grad
    assert_allclose(smat(packed[0], 4), torch.outer(a[0], a[0]).detach(), rtol=1e-6)


def test_outer_products_lie_sample_by_sample():
    assert svec_outer(random(7, 3)).T.is_contiguous()


def test_strided_matrices_are_read_correctly():
    S = symmetric(6, k=4)
    assert_allclose(svec(S.transpose(0, 1)[1:3].transpose(0, 1)[:2, :, :2]), svec(S[:2, 1:3, :2]))


def test_outer_rows_and_project():
    U, M = random(5, 3), random(packed_size(5), 4, seed=1)
    R = svec_outer(U.T).T
    assert_allclose(outer_rows(U, slice(2, 9)), R[2:9], rtol=1e-14)
    assert_allclose(project(U, M), R.T @ M, rtol=1e-12)


@pytest.mark.parametrize(("m", "d"), [(1, 1), (1, 4), (4, 1), (3, 5), (6, 2)])
def test_unpack_is_the_sum_of_kronecker_products(m, d):
    a, g = random(7, d), random(7, m, seed=1)
    M = svec_outer(a).T @ svec_outer(g)
    expected = sum(torch.kron(torch.outer(x, x), torch.outer(y, y)) for x, y in zip(a, g, strict=True))
    assert_allclose(unpack(M, m, d), expected, rtol=1e-12, atol=1e-12)


def test_a_wrong_length_is_refused():
    with pytest.raises(InputError, match="6 entries"):
        smat(torch.ones(5), 3)


def test_index_tensors_made_in_inference_mode_serve_autograd():
    with torch.inference_mode():
        svec(torch.eye(11))
    S = torch.eye(11, requires_grad=True)
    (S.flatten() * 1.0).sum().backward()
    S.grad = None
    svec(S * 1.0).sum().backward()
    assert_allclose(S.grad.diagonal(), 1.0)
