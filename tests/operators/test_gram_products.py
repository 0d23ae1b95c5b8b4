"""J F Jᵀ/N by structure, against the product of dense matrices."""

import numpy as np
import pytest
import torch
from operator_cases import BUILDERS, column_vec
from torch.testing import assert_close

from fisherlab.operators import GramOperator


@pytest.mark.parametrize("name", sorted(BUILDERS))
@pytest.mark.parametrize("positions", [1, 3])
def test_products_of_columns(name, positions):
    rng = np.random.default_rng(5)
    m, d, classes, samples = 3, 4, 2, 5
    a, g = rng.standard_normal((samples, positions, d)), rng.standard_normal((classes, samples, positions, m))
    rows = [column_vec(g[c, n].T @ a[n]) for c in range(classes) for n in range(samples)]
    J = np.stack(rows)
    case = BUILDERS[name](rng, m, d, torch.float64)
    expected = J @ case.matrix @ J.T / samples
    gram = GramOperator(torch.from_numpy(a), torch.from_numpy(g))
    assert_close(case.operator.gram_products(gram), torch.from_numpy(expected), rtol=1e-10, atol=1e-12)
