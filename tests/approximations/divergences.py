"""Divergences of dense matrices in float64, and blocks of random gradients: by hand, for the theorems."""

import torch
from torch import Tensor

from fisherlab.operators import DenseOperator, LinearOperator


def gradients(samples: int, m: int, d: int, seed: int = 0) -> Tensor:
    """V [samples, m, d]: correlated within both sides, and of very different sizes."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    sizes = normal(samples, 1, 1).exp()
    mixed = normal(m, m) @ normal(samples, m, d) @ normal(d, d) * sizes
    return mixed + 2 * normal(samples, m, 1) * normal(samples, 1, d)


def block(V: Tensor) -> DenseOperator:
    """E[vec(V) vec(V)ᵀ]."""
    J = V.mT.flatten(1)
    return DenseOperator(J.T @ J / len(V), V.shape[1], V.shape[2])


def floored(F: LinearOperator, floor: float) -> Tensor:
    """X = F + δI, δ = floor · tr F/D."""
    X = F.dense().double()
    return X + floor * X.trace() / len(X) * torch.eye(len(X), dtype=X.dtype)


def logdet_divergence(X: Tensor, Y: Tensor) -> float:
    """tr(X Y⁻¹) − log det(X Y⁻¹) − D."""
    logdets = torch.linalg.slogdet(X)[1] - torch.linalg.slogdet(Y)[1]
    return float(torch.linalg.solve(Y, X).trace() - logdets - len(X))


def best_logdet_divergence(X: Tensor, Y: Tensor) -> float:
    """The same of c Y with the best c = tr(X Y⁻¹)/D."""
    return logdet_divergence(X, Y * (torch.linalg.solve(Y, X).trace() / len(X)))


def von_neumann_divergence(X: Tensor, Y: Tensor) -> float:
    """tr(X log X − X log Y − X + Y)/tr X, 0 log 0 = 0; infinite where Y is zero inside the range of X."""
    values, vectors = torch.linalg.eigh(Y)
    inside = (vectors * (X @ vectors)).sum(0)
    seen = values > 1e-12 * values[-1]
    if float(inside[~seen].clamp(min=0).sum()) > 1e-9 * float(X.trace()):
        return float("inf")
    own = torch.linalg.eigvalsh(X).clamp(min=0)
    found = torch.xlogy(own, own).sum() - (inside[seen] * values[seen].log()).sum()
    return float((found - own.sum() + Y.trace()) / own.sum())


def frobenius_error(X: Tensor, Y: Tensor) -> float:
    """‖X − Y‖/‖X‖."""
    return float(torch.linalg.norm(X - Y) / torch.linalg.norm(X))


def perturbed(factor: Tensor, size: float, seed: int) -> Tensor:
    """A symmetric factor F^{1/2} exp(size·E) F^{1/2}, positive definite where F is."""
    generator = torch.Generator().manual_seed(seed)
    E = torch.randn(factor.shape, generator=generator, dtype=factor.dtype)
    values, vectors = torch.linalg.eigh(factor)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.mT
    return root @ torch.linalg.matrix_exp(size * (E + E.mT) / 2) @ root
