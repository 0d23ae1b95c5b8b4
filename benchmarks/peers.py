"""The same quantities by other people's software, each in the way its documentation suggests."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.utils.data import DataLoader, TensorDataset

Blocks = dict[str, Tensor]
Factors = dict[str, tuple[Tensor, Tensor]]


class Loader(DataLoader):
    """A loader that every peer understands, without the cost of collating samples one by one."""

    def __init__(self, inputs: Tensor, targets: Tensor, batch: int):
        super().__init__(TensorDataset(inputs, targets), batch_size=batch)
        self._pairs = list(zip(inputs.split(batch), targets.split(batch), strict=True))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self._pairs)


def torch_func_blocks(model: nn.Module, layers: list[str], loader: Loader) -> Blocks:
    """Per-sample gradients of the C columns √p_c (e_c − p) by vmap, and one product a batch and layer."""
    everything = {name: p.detach() for name, p in model.named_parameters()}
    own = {f"{layer}.weight": everything[f"{layer}.weight"] for layer in layers}
    blocks = dict.fromkeys(layers, 0.0)

    def rows(x: Tensor, u: Tensor) -> dict[str, Tensor]:
        pull = vjp(lambda p: functional_call(model, {**everything, **p}, (x[None],))[0], own)[1]
        return vmap(pull)(u)[0]

    for x, _ in loader:
        p = model(x).detach().softmax(-1)
        u = p.sqrt().diag_embed() - p[:, None] * p.sqrt()[..., None]
        found = vmap(rows)(x, u)
        for layer in layers:
            J = found[f"{layer}.weight"].flatten(0, 1).flatten(1)
            blocks[layer] = blocks[layer] + J.T @ J
    return {layer: block / len(loader.dataset) for layer, block in blocks.items()}


def curvlinops_blocks(model: nn.Module, layers: list[str], loader: Loader) -> Blocks:
    """GGNLinearOperator of each layer's weight, multiplied with the identity."""
    from curvlinops import GGNLinearOperator

    blocks = {}
    for layer in layers:
        weight = model.get_submodule(layer).weight
        operator = GGNLinearOperator(
            model,
            nn.CrossEntropyLoss(),
            [weight],
            loader,
            check_deterministic=False,
            num_data=len(loader.dataset),
        )
        blocks[layer] = operator @ torch.eye(weight.numel(), dtype=weight.dtype)
    return blocks


def nngeometry_blocks(model: nn.Module, layers: list[str], loader: Loader) -> Blocks:
    """FIM as PMatBlockDiag over the layers."""
    from nngeometry.object.pspace import PMatBlockDiag

    matrix = _nngeometry(PMatBlockDiag, model, layers, loader)
    return {layer: matrix.data[layer] for layer in layers}


def backpack_blocks(model: nn.Module, layers: list[str], loader: Loader) -> Blocks:
    """SqrtGGNExact, and one product a batch and layer."""
    from backpack import backpack
    from backpack.extensions import SqrtGGNExact

    extended, loss = _backpack(model)
    blocks = dict.fromkeys(layers, 0.0)
    for x, y in loader:
        with backpack(SqrtGGNExact()):
            loss(extended(x), y).backward()
        for layer in layers:
            V = extended.get_submodule(layer).weight.sqrt_ggn_exact.flatten(0, 1).flatten(1)
            blocks[layer] = blocks[layer] + V.T @ V
    return {layer: block / len(loader.dataset) for layer, block in blocks.items()}


def hook_factors(model: nn.Module, layers: list[str], loader: Loader) -> Factors:
    """Plain hooks, C backward passes and two products a layer: the floor."""
    kept: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str):
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            kept[name] = (args[0], output)

        return hook

    modules = {layer: model.get_submodule(layer) for layer in layers}
    handles = [module.register_forward_hook(keep(layer)) for layer, module in modules.items()]
    sums = {layer: [0.0, 0.0] for layer in layers}
    for x, _ in loader:
        f = model(x)
        p = f.detach().softmax(-1)
        for c in range(f.shape[1]):
            u = -p * p[:, c : c + 1].sqrt()
            u[:, c] += p[:, c].sqrt()
            outputs = [kept[layer][1] for layer in layers]
            for layer, g in zip(layers, torch.autograd.grad(f, outputs, u, retain_graph=True), strict=True):
                sums[layer][1] = sums[layer][1] + g.T @ g
        for layer in layers:
            a = kept[layer][0].detach()
            sums[layer][0] = sums[layer][0] + a.T @ a
    for handle in handles:
        handle.remove()
    n = len(loader.dataset)
    return {layer: (A / n, B / n) for layer, (A, B) in sums.items()}


def curvlinops_factors(model: nn.Module, layers: list[str], loader: Loader) -> Factors:
    """KFACLinearOperator, fisher_type="type-2"."""
    from curvlinops import KFACLinearOperator

    operator = _curvlinops(KFACLinearOperator, model, layers, loader)
    operator.compute_kronecker_factors()
    return {x: (operator._input_covariances[x], operator._gradient_covariances[x]) for x in layers}


def nngeometry_factors(model: nn.Module, layers: list[str], loader: Loader) -> Factors:
    """FIM as PMatKFAC."""
    from nngeometry.object.pspace import PMatKFAC

    return dict(_nngeometry(PMatKFAC, model, layers, loader).data)


def backpack_factors(model: nn.Module, layers: list[str], loader: Loader) -> Factors:
    """KFLR, whose output factor is exact; its factors are (B, A) of the batch's mean."""
    from backpack import backpack
    from backpack.extensions import KFLR

    extended, loss = _backpack(model, "mean")
    sums = {layer: [0.0, 0.0] for layer in layers}
    n = len(loader.dataset)
    for x, y in loader:
        with backpack(KFLR()):
            loss(extended(x), y).backward()
        for layer in layers:
            B, A = extended.get_submodule(layer).weight.kflr
            sums[layer][0] = sums[layer][0] + A * (len(x) / n)
            sums[layer][1] = sums[layer][1] + B * (len(x) / n)
    return {layer: (A, B) for layer, (A, B) in sums.items()}


def curvlinops_ekfac(model: nn.Module, layers: list[str], loader: Loader) -> Blocks:
    """EKFACLinearOperator: the corrected eigenvalues, sorted."""
    from curvlinops import EKFACLinearOperator

    operator = _curvlinops(EKFACLinearOperator, model, layers, loader)
    operator.compute_kronecker_factors()
    operator.compute_eigenvalue_correction()
    found = operator._corrected_eigenvalues
    return {layer: _sorted(found[layer]) for layer in layers}


def nngeometry_ekfac(model: nn.Module, layers: list[str], loader: Loader) -> Blocks:
    """FIM as PMatEKFAC with its diagonal updated: the eigenvalues, sorted."""
    from nngeometry.object.pspace import PMatEKFAC

    matrix = _nngeometry(PMatEKFAC, model, layers, loader)
    with _default_dtype(next(model.parameters()).dtype):
        matrix.update_diag(loader)
    return {layer: _sorted(matrix.data[1][layer]) for layer in layers}


def _sorted(values: object) -> Tensor:
    if isinstance(values, dict):
        values = next(iter(values.values()))
    assert isinstance(values, Tensor)
    return values.flatten().sort().values


def _curvlinops(kind: type, model: nn.Module, layers: list[str], loader: Loader):
    return kind(
        model,
        nn.CrossEntropyLoss(),
        [parameter for layer in layers for parameter in model.get_submodule(layer).parameters()],
        loader,
        fisher_type="type-2",
        kfac_approx="expand",
        separate_weight_and_bias=False,
        check_deterministic=False,
        num_per_example_loss_terms=1,
        num_data=len(loader.dataset),
    )


def _nngeometry(kind: type, model: nn.Module, layers: list[str], loader: Loader):
    from nngeometry.layercollection import LayerCollection
    from nngeometry.metrics import FIM

    collection = LayerCollection()
    for layer in layers:
        collection.add_layer_from_model(model, model.get_submodule(layer))
    with _default_dtype(next(model.parameters()).dtype):
        return FIM(model, loader, kind, variant="classif_logits", layer_collection=collection)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """nngeometry makes some tensors in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _backpack(model: nn.Module, reduction: str = "sum"):
    import copy

    from backpack import extend

    return extend(copy.deepcopy(model)), extend(nn.CrossEntropyLoss(reduction=reduction))
