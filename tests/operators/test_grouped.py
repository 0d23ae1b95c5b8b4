"""Groups with several units, and their own inputs."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from operator_cases import CLOSE, column_vec, positive, tensor

from fisherlab.damping import Clip, Pi
from fisherlab.errors import InputError
from fisherlab.operators import GramOperator, GroupedOperator, KroneckerOperator, OneHot, joined

G, M, D = 3, 2, 4


@pytest.fixture
def products(rng):
    return [KroneckerOperator(tensor(positive(rng, D)), tensor(positive(rng, M))) for _ in range(G)]


def whole(blocks):
    """The dense matrix [d, G·m, d, G·m] of blocks, by loops over groups."""
    matrix = np.zeros((D, G * M, D, G * M))
    for k, block in enumerate(blocks):
        rows = slice(k * M, (k + 1) * M)
        matrix[:, rows, :, rows] = block.dense().numpy().reshape(D, M, D, M)
    return matrix.reshape(G * M * D, G * M * D)


def test_the_rows_of_a_weight_belong_to_the_groups_in_order(rng, products):
    X = rng.standard_normal((G * M, D))
    matrix = whole(products)
    op = GroupedOperator(products)
    assert (op.outputs, op.inputs) == (G * M, D)
    assert_allclose(op.dense(), matrix, **CLOSE)
    assert_allclose(column_vec(op.apply(tensor(X)).numpy()), matrix @ column_vec(X), **CLOSE)
    assert_allclose(op.eigenvalues(), np.linalg.eigvalsh(matrix), **CLOSE)
    U_A, U_B = rng.standard_normal((D, D)), rng.standard_normal((G * M, G * M))
    U = np.kron(U_A, U_B)
    expected = np.diag(U.T @ matrix @ U).reshape(D, G * M).T
    assert_allclose(op.diagonal_in_basis(tensor(U_A), tensor(U_B)), expected, **CLOSE)


def test_every_sample_gives_its_groups_own_gradients(rng, products):
    a, g = rng.standard_normal((5, 3, G * D)), rng.standard_normal((2, 5, 3, G * M))
    rows = [
        [
            column_vec(
                np.concatenate(
                    [g[c, n, :, k * M : k * M + M].T @ a[n, :, k * D : k * D + D] for k in range(G)]
                )
            )
            for n in range(5)
        ]
        for c in range(2)
    ]
    expected = np.einsum("cnx,xy,cny->n", rows, whole(products), rows)
    op = GroupedOperator(products)
    assert_allclose(op.quadratics(tensor(a), tensor(g)), expected, **CLOSE)
    grams = [
        GramOperator(tensor(a[..., k * D : k * D + D]), tensor(g[..., k * M : k * M + M])) for k in range(G)
    ]
    exact = GroupedOperator(grams)
    assert_allclose(exact.inner(op), expected.mean(), **CLOSE)
    assert_allclose(exact.difference_norm(op), np.linalg.norm(whole(grams) - whole(products)), **CLOSE)


@pytest.mark.parametrize("damping", [0.3, Pi(0.3), Clip(0.1, 0.5)])
def test_damping_is_that_of_each_group(rng, products, damping):
    op = GroupedOperator(products)
    gradient = tensor(rng.standard_normal((G * M, D)))
    solved = [block.solve(gradient[k * M : k * M + M], damping) for k, block in enumerate(products)]
    assert_allclose(op.solve(gradient, damping), torch.cat(solved), **CLOSE)
    assert_allclose(op.inverse(damping).apply(gradient), torch.cat(solved), **CLOSE)
    assert_allclose(op.logdet(damping), sum(block.logdet(damping) for block in products), **CLOSE)


def test_blocks_and_inputs_that_do_not_fit_are_refused(rng, products):
    with pytest.raises(InputError, match="block"):
        GroupedOperator([])
    other = KroneckerOperator(torch.eye(3).double(), torch.eye(2).double())
    with pytest.raises(InputError, match="one size"):
        GroupedOperator([products[0], other])
    op, g = GroupedOperator(products), torch.ones(1, 2, 1, G * M).double()
    for a in (torch.ones(2, 1, D + 1).double(), OneHot(torch.zeros(2, 1).long(), G * D, torch.float64)):
        with pytest.raises(InputError, match="groups"):
            op.quadratics(a, g)


def test_groups_of_another_number_are_compared_as_matrices(products):
    op = GroupedOperator(products)
    others = [KroneckerOperator(block.A, block.B[:1, :1]) for block in products for _ in range(M)]
    other = GroupedOperator(others)
    expected = op.dense() - other.dense()
    assert_allclose(op.difference_norm(other), np.linalg.norm(expected), **CLOSE)
    assert_allclose(op.inner(other), (op.dense() * other.dense()).sum(), **CLOSE)


def test_what_the_groups_remarks_have_in_common_is_said_once(products):
    for rounds, one in enumerate(products):
        one.remark = f"V: gradients of samples; {rounds} rounds"
    assert joined(products).remark == "V: gradients of samples; 0 rounds; 1 rounds; 2 rounds"
