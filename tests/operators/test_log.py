"""Logarithms of singular operators, and other functions, beside those of the dense matrix."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from operator_cases import positive, tensor

from fisherlab.damping import Clip, Pi
from fisherlab.errors import NotSupportedError, NumericalError
from fisherlab.operators import (
    DenseOperator,
    DiagonalOperator,
    EigenKroneckerOperator,
    GramOperator,
    KroneckerOperator,
    UnitBlockOperator,
    joined,
)

M, D, DAMPING = 3, 4, 0.3
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def thin(rng, k, rank):
    root = rng.standard_normal((k, rank))
    return tensor(root @ root.T)


def basis(rng, k):
    return tensor(np.linalg.qr(rng.standard_normal((k, k)))[0])


def gram(rng, samples, positions=2):
    a = tensor(rng.standard_normal((samples, positions, D)))
    return GramOperator(a, tensor(rng.standard_normal((1, samples, positions, M))))


def zeroed(rng):
    S = rng.uniform(0.1, 2.0, (M, D))
    S[1, 2] = S[0, 0] = 0.0
    return tensor(S)


SINGULAR = {
    "dense": lambda rng: DenseOperator(thin(rng, M * D, 7), M, D),
    "diagonal": lambda rng: DiagonalOperator(zeroed(rng)),
    "kronecker": lambda rng: KroneckerOperator(thin(rng, D, 2), thin(rng, M, 2)),
    "kronecker, a dead input": lambda rng: KroneckerOperator(
        tensor(np.array([1.0, 0.0, 2.0, 3.0])), thin(rng, M, 3)
    ),
    "eigenkronecker": lambda rng: EigenKroneckerOperator(basis(rng, D), basis(rng, M), zeroed(rng)),
    "unit blocks": lambda rng: UnitBlockOperator(torch.stack([thin(rng, D, r) for r in (1, 2, 4)])),
    "gram": lambda rng: gram(rng, 5),
    "gram of one position": lambda rng: gram(rng, 5, 1),
    "gram with more columns than D": lambda rng: gram(rng, 30),
    "a dead gram": lambda rng: GramOperator(
        torch.zeros(2, 1, D, dtype=torch.float64), tensor(np.ones((1, 2, 1, M)))
    ),
    "groups": lambda rng: joined([gram(rng, 3), KroneckerOperator(thin(rng, D, 2), thin(rng, M, 3))]),
}


@pytest.mark.parametrize("damping", [0.0, DAMPING])
@pytest.mark.parametrize("name", SINGULAR)
def test_the_logarithm_is_zero_on_the_kernel(name, damping, rng):
    F = SINGULAR[name](rng)
    values, vectors = np.linalg.eigh(F.dense().numpy())
    inside = values > 1e-10 * max(values.max(), 1.0)
    damped = np.where(inside, values, 0.0) + damping
    logarithms = np.log(np.where(damped > 0, damped, 1.0))
    found = F.log(damping)
    assert_allclose(found.dense(), (vectors * logarithms) @ vectors.T, **CLOSE)
    assert_allclose(found.diagonal(), found.dense().diagonal(), **CLOSE)
    assert_allclose(found.trace(), logarithms.sum(), **CLOSE)
    assert_allclose((2.5 * found).dense(), 2.5 * found.dense(), **CLOSE)
    twice = F.scaled(2.0).log(2 * damping).trace()
    assert_allclose(twice, found.trace() + np.log(2) * (damped > 0).sum(), **CLOSE)


@pytest.mark.parametrize("p", [0.5, 2, -0.5, -1])
def test_a_gram_operator_has_powers_and_a_determinant(p, rng):
    F = gram(rng, 5)
    values, vectors = np.linalg.eigh(F.dense().numpy())
    damped = values.clip(0) + DAMPING
    assert_allclose(F.power(p, DAMPING).dense(), (vectors * damped**p) @ vectors.T, **CLOSE)
    assert_allclose(F.logdet(DAMPING), np.log(damped).sum(), **CLOSE)
    for singular in (lambda: F.logdet(), lambda: F.power(-0.5)):
        with pytest.raises(NumericalError, match="damping"):
            singular()


def test_factored_damping_is_of_the_factors(rng):
    F = KroneckerOperator(tensor(positive(rng, D)), tensor(positive(rng, M)))
    for damping in (Pi(0.2), Clip(1e-3, 1.0)):
        exponential = torch.linalg.matrix_exp(F.log(damping).dense())
        assert_allclose(exponential, F.damped(damping).dense(), **CLOSE)
        assert_allclose(joined([F, F]).log(damping).trace(), 2 * F.log(damping).trace(), **CLOSE)
    with pytest.raises(NotSupportedError, match="give a number"):
        DenseOperator(F.dense(), M, D).log(Pi(0.2))


def test_negative_eigenvalues_have_no_logarithm(rng):
    F = DiagonalOperator(tensor(np.array([[1.0, -0.5]])))
    with pytest.raises(NumericalError, match="negative"):
        F.log()
    assert_allclose(F.log(0.75).dense().diagonal(), np.log([1.75, 0.25]))
    rounding = DiagonalOperator(tensor(np.array([[1.0, -1e-8]])))
    assert_allclose(rounding.log().dense(), np.zeros((2, 2)))
