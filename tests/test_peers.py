"""Two other libraries compute the same matrices."""

import pytest
import torch
from reference import Case, relative
from torch import Tensor, nn

import fisherlab as fl
from fisherlab.operators import LinearOperator

LOSSES = {"categorical": nn.CrossEntropyLoss, "bernoulli": nn.BCEWithLogitsLoss, "gaussian": nn.MSELoss}
MEAN_TO_SUM = {"categorical": 1.0, "bernoulli": 3.0, "gaussian": 1.5}
"""Both of the last two losses take a mean over the K = 3 outputs; MSE has no ½."""


def flat(operator: LinearOperator, bias: bool) -> Tensor:
    """The dense block in the order of `[weight.flatten(), bias]`."""
    m, d = operator.outputs, operator.inputs
    places = torch.arange(m * d).reshape(d, m).T
    order = torch.cat([places[:, :-1].flatten(), places[:, -1]]) if bias else places.flatten()
    return operator.dense()[order][:, order]


def has_bias(case: Case, layer: str) -> bool:
    return case.model.get_submodule(layer).bias is not None


def parameters(case: Case, layer: str) -> list[nn.Parameter]:
    return list(case.model.get_submodule(layer).parameters())


# --- curvlinops -----------------------------------------------------------------------------------------


@pytest.fixture(params=["vectors", "sequences"])
def any_case(request, trained, sequences) -> Case:
    return trained if request.param == "vectors" else sequences


def dense(operator) -> Tensor:
    return operator @ torch.eye(operator.shape[0], dtype=torch.float64)


@pytest.mark.parametrize("method", ["per-sample", "auto"])
def test_the_block_of_the_gauss_newton_matrix(any_case, method):
    curvlinops = pytest.importorskip("curvlinops")
    F = fl.exact_fisher(any_case.model, any_case.data, any_case.likelihood, method=method)
    for layer, operator in F.items():
        G = curvlinops.GGNLinearOperator(
            any_case.model, LOSSES[any_case.likelihood](), parameters(any_case, layer), [any_case.data]
        )
        expected = dense(G) * MEAN_TO_SUM[any_case.likelihood]
        assert relative(flat(operator, has_bias(any_case, layer)), expected) < 1e-10


@pytest.mark.parametrize(("name", "cls"), [("kfac", "KFACLinearOperator"), ("ekfac", "EKFACLinearOperator")])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_kfac_and_ekfac_of_curvlinops(any_case, name, cls, sharing):
    curvlinops = pytest.importorskip("curvlinops")
    found = fl.approximate(name, any_case.model, any_case.data, any_case.likelihood, sharing=sharing)
    for layer, operator in found.items():
        peer = getattr(curvlinops, cls)(
            any_case.model,
            LOSSES[any_case.likelihood](),
            parameters(any_case, layer),
            any_case.batches(10, len(any_case.inputs) - 10),
            fisher_type="type-2",
            kfac_approx=sharing,
            separate_weight_and_bias=False,
        )
        expected = dense(peer) * MEAN_TO_SUM[any_case.likelihood]
        assert relative(flat(operator, has_bias(any_case, layer)), expected) < 1e-10


def test_empirical_kfac_of_curvlinops(trained):
    curvlinops = pytest.importorskip("curvlinops")
    if trained.likelihood != "categorical":
        pytest.skip("one label a sample")
    found = fl.approximate("kfac", trained.model, trained.data, kind="empirical")
    for layer, operator in found.items():
        peer = curvlinops.KFACLinearOperator(
            trained.model,
            nn.CrossEntropyLoss(),
            parameters(trained, layer),
            [trained.data],
            fisher_type="empirical",
            separate_weight_and_bias=False,
        )
        assert relative(flat(operator, has_bias(trained, layer)), dense(peer)) < 1e-10


# --- nngeometry -----------------------------------------------------------------------------------------


def nngeometry_matrix(case: Case, representation: str):
    """Its matrix of a copy whose activations are not in place: its hooks do not allow them."""
    pytest.importorskip("nngeometry")
    from nngeometry.metrics import FIM
    from nngeometry.object import pspace
    from torch.utils.data import DataLoader, TensorDataset

    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4, bias=False), nn.LeakyReLU(0.2))
    model.append(nn.Linear(4, 3))
    model.load_state_dict(case.model.state_dict())
    variant = {"categorical": "classif_logits", "gaussian": "regression"}[case.likelihood]
    loader = DataLoader(TensorDataset(*case.data), batch_size=20)
    return FIM(model, loader, getattr(pspace, representation), variant=variant)


def by_layer(data: dict) -> dict[str, object]:
    return {layer_id.split(".")[0]: value for layer_id, value in data.items()}


@pytest.fixture
def vectors(trained, double) -> Case:
    if trained.likelihood == "bernoulli":
        pytest.skip("one logit only")
    return trained


def test_the_blocks_of_nngeometry(vectors):
    blocks = by_layer(nngeometry_matrix(vectors, "PMatBlockDiag").data)
    F = fl.exact_fisher(vectors.model, vectors.data, vectors.likelihood)
    for layer, operator in F.items():
        assert relative(flat(operator, has_bias(vectors, layer)), blocks[layer]) < 1e-10


def test_kfac_of_nngeometry(vectors):
    factors = by_layer(nngeometry_matrix(vectors, "PMatKFAC").data)
    for layer, operator in fl.approximate("kfac", vectors.model, vectors.data, vectors.likelihood).items():
        a, g = factors[layer]
        assert relative(operator.dense(), torch.kron(a, g)) < 1e-10


def test_ekfac_of_nngeometry(vectors):
    matrix = nngeometry_matrix(vectors, "PMatEKFAC")
    evecs, diagonals = matrix.data
    assert len(evecs) == 3
    # Its diagonal starts as KFAC's and is made EKFAC's by a second pass.
    matrix.update_diag(_loader(vectors))
    evecs, diagonals = (by_layer(part) for part in matrix.data)
    for layer, operator in fl.approximate("ekfac", vectors.model, vectors.data, vectors.likelihood).items():
        U_A, U_B = evecs[layer]
        S = diagonals[layer].reshape(operator.outputs, operator.inputs)
        basis = torch.kron(U_A, U_B)
        expected = basis @ torch.diag(S.T.flatten()) @ basis.T
        assert relative(operator.dense(), expected) < 1e-9


def _loader(case: Case):
    from torch.utils.data import DataLoader, TensorDataset

    return DataLoader(TensorDataset(*case.data), batch_size=20)
