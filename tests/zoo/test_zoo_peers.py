"""Two other libraries compute the same matrices of convolutions, sequences, embeddings and norms."""

import pytest
import torch
from layers_zoo import ZOO, finished, numbers, zoo
from reference import relative
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from zoo_reference import Block, Case, as_matrix, blocks_of, factored, groups_of, is_norm

import fisherlab as fl


def order_of(case: Case, block: Block) -> Tensor:
    """Where each entry of a block in column-vec order stands in `[weight.flatten(), bias]`."""
    module = case.plain.get_submodule(block.modules[0])
    count = module.weight.numel()
    places = torch.arange(count).view_as(module.weight)
    matrix = places.view(-1, 1) if is_norm(case, block) else as_matrix(module, places)
    offset = count + torch.arange(module.bias.numel()) if block.bias else torch.arange(0)
    return torch.cat([matrix.T.flatten(), offset])


def parameters(case: Case, block: Block) -> list[nn.Parameter]:
    return list(case.plain.get_submodule(block.modules[0]).parameters())


# --- curvlinops -----------------------------------------------------------------------------------------

OTHER = (
    "two inputs",
    "attention cross",
    "attention kdim",
    "language model",
    "embedding padded",
    "tied weights",
)
"""Several inputs, another loss, a row that backward alone leaves out, biases of several modules."""

ONE_INPUT = [name for name in ZOO if name not in OTHER]


def dense(operator) -> Tensor:
    return operator @ torch.eye(operator.shape[0], dtype=torch.float64)


@pytest.mark.parametrize("name", ONE_INPUT)
def test_the_blocks_of_the_gauss_newton_matrix(name):
    curvlinops = pytest.importorskip("curvlinops")
    case = zoo(name)
    F = case.exact()
    for block in blocks_of(case):
        if groups_of(case, block) > 1:
            continue
        G = curvlinops.GGNLinearOperator(
            case.plain, nn.CrossEntropyLoss(), parameters(case, block), [case.data]
        )
        order = order_of(case, block)
        assert relative(F[block.name].dense(), dense(G)[order][:, order]) < 1e-10


KNOWN = ("conv2d zeros", "conv2d strided", "conv2d whole", "sequence", "grid")
"""Convolutions of two dimensions with zeros around, and Linear layers."""


@pytest.mark.parametrize("method", ["kfac", "ekfac"])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("name", KNOWN)
def test_kfac_and_ekfac_of_curvlinops(name, method, sharing):
    curvlinops = pytest.importorskip("curvlinops")
    if (method, sharing) == ("ekfac", "reduce") and name in ("conv2d zeros", "conv2d strided"):
        pytest.skip("a mean patch a sample leaves inputs whose basis is arbitrary")
    case = zoo(name)
    found = case.approximate(method, sharing=sharing)
    for block in factored(case):
        peer = getattr(curvlinops, f"{method.upper()}LinearOperator")(
            case.plain,
            nn.CrossEntropyLoss(),
            parameters(case, block),
            case.cut(5),
            fisher_type="type-2",
            kfac_approx=sharing,
            separate_weight_and_bias=False,
        )
        order = order_of(case, block)
        assert relative(found[block.name].dense(), dense(peer)[order][:, order]) < 1e-10


@pytest.mark.parametrize("name", KNOWN)
def test_empirical_kfac_of_curvlinops(name):
    curvlinops = pytest.importorskip("curvlinops")
    case = zoo(name)
    found = case.approximate("kfac", kind="empirical")
    for block in factored(case):
        peer = curvlinops.KFACLinearOperator(
            case.plain,
            nn.CrossEntropyLoss(),
            parameters(case, block),
            [case.data],
            fisher_type="empirical",
            separate_weight_and_bias=False,
        )
        order = order_of(case, block)
        assert relative(found[block.name].dense(), dense(peer)[order][:, order]) < 1e-10


# --- nngeometry -----------------------------------------------------------------------------------------


def nngeometry_matrix(case: Case, representation: str):
    pytest.importorskip("nngeometry")
    from nngeometry.metrics import FIM
    from nngeometry.object import pspace

    loader = DataLoader(TensorDataset(*case.data), batch_size=4)
    return FIM(case.model, loader, getattr(pspace, representation), variant="classif_logits")


def by_layer(data: dict) -> dict[str, object]:
    return {layer_id.split(".")[0]: value for layer_id, value in data.items()}


GEOMETRY = ("conv2d zeros", "conv2d whole", "conv1d plain", "transposed plain", "group norm", "batch norm 2d")


def geometry_case(name: str) -> Case:
    if name == "conv1d plain":
        model = nn.Sequential(nn.Conv1d(3, 4, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3))
        return finished(model, numbers(3, 7))
    if name == "transposed plain":
        model = nn.Sequential(
            nn.ConvTranspose2d(2, 3, 2, stride=2, bias=False), nn.Tanh(), nn.Flatten(), nn.Linear(24, 3)
        )
        return finished(model, numbers(2, 2, 1))
    return zoo(name)


@pytest.mark.parametrize("name", GEOMETRY)
def test_the_blocks_of_nngeometry(double, name):
    case = geometry_case(name)
    blocks = by_layer(nngeometry_matrix(case, "PMatBlockDiag").data)
    F = case.exact()
    for block in blocks_of(case):
        order = order_of(case, block)
        assert relative(F[block.name].dense(), blocks[block.name][order][:, order]) < 1e-10, block


@pytest.mark.parametrize("name", ["conv2d zeros", "conv2d whole"])
def test_kfac_of_nngeometry(double, name):
    case = geometry_case(name)
    factors = by_layer(nngeometry_matrix(case, "PMatKFAC").data)
    for layer, operator in case.approximate("kfac").items():
        a, g = factors[layer]
        assert relative(operator.dense(), torch.kron(a, g)) < 1e-10


@pytest.mark.parametrize("name", ["conv2d zeros", "conv2d whole"])
def test_ekfac_of_nngeometry(double, name):
    case = geometry_case(name)
    matrix = nngeometry_matrix(case, "PMatEKFAC")
    # Its diagonal starts as KFAC's and is made EKFAC's by a second pass.
    matrix.update_diag(DataLoader(TensorDataset(*case.data), batch_size=4))
    vectors, diagonals = (by_layer(part) for part in matrix.data)
    for layer, operator in case.approximate("ekfac").items():
        basis = torch.kron(*vectors[layer])
        S = diagonals[layer].reshape(operator.outputs, operator.inputs)
        expected = basis @ torch.diag(S.T.flatten()) @ basis.T
        assert relative(operator.dense(), expected) < 1e-9


def test_a_diagonal_of_nngeometry(double):
    case = geometry_case("transposed plain")
    values = by_layer(nngeometry_matrix(case, "PMatBlockDiag").data)
    for layer, operator in fl.approximate("diagonal", case.model, case.data).items():
        (block,) = (b for b in blocks_of(case) if b.name == layer)
        order = order_of(case, block)
        assert relative(operator.diagonal(), values[layer].diagonal()[order]) < 1e-10
