"""Fishers from their definitions alone (autograd of the whole network), and short calls of fisherlab."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev, vmap
from torch.nn import functional

import fisherlab as fl
from fisherlab.operators import LinearOperator

NLL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "categorical": functional.cross_entropy,
    "bernoulli": lambda f, y: functional.binary_cross_entropy_with_logits(f, y, reduction="sum"),
    "gaussian": lambda f, y: 0.5 * (f - y).square().sum(),
}
"""−log p(y | f) of one sample, f [K], up to a constant."""


@dataclass(frozen=True)
class Case:
    model: nn.Module
    inputs: Tensor
    targets: Tensor
    likelihood: str

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        return self.inputs, self.targets

    def take(self, samples: slice | Tensor) -> "Case":
        return replace(self, inputs=self.inputs[samples], targets=self.targets[samples])

    def batches(self, *sizes: int) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.inputs.split(sizes), self.targets.split(sizes), strict=True))


def exact(case: Case, **options) -> dict[str, LinearOperator]:
    return fl.exact_fisher(case.model, case.data, case.likelihood, **options)


def approximate(name: str, case: Case, **options) -> dict[str, LinearOperator]:
    return fl.approximate(name, case.model, case.data, case.likelihood, **options)


def seed(value: int) -> torch.Generator:
    return torch.Generator().manual_seed(value)


def names_of(module_name: str, model: nn.Module, bias: str = "joint") -> tuple[str, ...]:
    """The parameters of a Linear's block, weight first."""
    module = model.get_submodule(module_name)
    both = [f"{module_name}.weight"]
    if module.bias is not None and bias == "joint":
        both.append(f"{module_name}.bias")
    return tuple(both)


def jacobian(model: nn.Module, inputs: Tensor, names: tuple[str, ...]) -> Tensor:
    """df/dvec(W) of every sample, [n, K, D] in column-vec order, a bias as the last column of W."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    block = {name: parameters[name] for name in names}

    def output(block: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, {**parameters, **block}, (x.unsqueeze(0),)).flatten()

    found = [jacrev(output)(block, x) for x in inputs]
    return torch.stack([_joined(one, names) for one in found])


def gradients(case: Case, names: tuple[str, ...]) -> Tensor:
    """Each sample's gradient of −log p(y | x) with the data's own labels, [n, D]."""
    J = jacobian(case.model, case.inputs, names)
    outputs = case.model(case.inputs).detach()
    residuals = torch.stack(
        [grad(NLL[case.likelihood])(f, y) for f, y in zip(outputs, case.targets, strict=True)]
    )
    return torch.einsum("nkd,nk->nd", J, residuals)


def output_hessians(likelihood: str, outputs: Tensor, targets: Tensor) -> Tensor:
    """The Hessian of −log p(y | f) in f for every sample, [n, K, K], by autograd."""
    return vmap(hessian(NLL[likelihood]))(outputs.detach(), targets)


def ggn(case: Case, names: tuple[str, ...]) -> Tensor:
    """(1/N) Σ_n Jᵀ H J [D, D], column-vec order: the predictive Fisher of the block."""
    J = jacobian(case.model, case.inputs, names)
    H = output_hessians(case.likelihood, case.model(case.inputs), case.targets)
    return torch.einsum("nkd,nkl,nle->de", J, H, J) / len(J)


def layerwise(up_to: nn.Module, inputs: Tensor, names: tuple[str, ...]) -> Tensor:
    """(1/N) Σ_n JᵀJ of the network cut after the layer's activation: labels y ~ N(φ(s), I)."""
    J = jacobian(up_to, inputs, names)
    return torch.einsum("nkd,nke->de", J, J) / len(J)


def rearranged(F: Tensor, outputs: int, inputs: int) -> Tensor:
    """R(F) [d², m²]: of rank one for a Kronecker product (Van Loan and Pitsianis 1993)."""
    by_entry = F.reshape(inputs, outputs, inputs, outputs)
    return by_entry.permute(0, 2, 1, 3).reshape(inputs**2, outputs**2)


def partial_traces(operator: LinearOperator) -> tuple[Tensor, Tensor]:
    """The trace of a block over outputs, [d, d], and over inputs, [m, m]."""
    m, d = operator.outputs, operator.inputs
    block = operator.dense().reshape(d, m, d, m)
    return torch.einsum("ijkj->ik", block), torch.einsum("ijil->jl", block)


def relative(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖."""
    return float(torch.linalg.norm(found - expected) / torch.linalg.norm(expected))


def _joined(found: dict[str, Tensor], names: tuple[str, ...]) -> Tensor:
    parts = [found[names[0]], *(found[name].unsqueeze(-1) for name in names[1:])]
    return torch.cat(parts, -1).transpose(-1, -2).flatten(1)
