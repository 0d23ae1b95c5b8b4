"""Numbers between two operators: how far F̂ is from F, and what its inverse does to a gradient.

F is the exact block, F̂ the approximation; both of dimension D = m·d. All products are summed in float64.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fisherlab.arguments import Finite, NotNegative, Positive, checked
from fisherlab.divergences import LARGEST_DENSE, Block, check_spectrum, compared
from fisherlab.divergences import calibration as calibration
from fisherlab.divergences import logdet_divergence as logdet_divergence
from fisherlab.divergences import logdet_divergence_scaled as logdet_divergence_scaled
from fisherlab.divergences import matching_scale as matching_scale
from fisherlab.divergences import von_neumann_divergence as von_neumann_divergence
from fisherlab.errors import InputError, NotSupportedError, NumericalError
from fisherlab.linalg.arguments import real_tensor
from fisherlab.operators import (
    EigenKroneckerOperator,
    GramOperator,
    GroupedOperator,
    LinearOperator,
    blocks_of,
)

# Derived from some 10¹⁰ operations a second in float64, for each is done once a row: seconds.
_MOST_OPERATIONS = 2e10
_MOST_ITERATED = 5e6  # D·(m + d), half a product of F̂ with a vector; hundreds of them are made
_RESTARTS = 40  # a choice: where eigenvalues are nearly equal it is refused after these


class ScaledError(NamedTuple):
    """The least relative error over all scales of F̂, and the scale that reaches it."""

    error: float
    scale: float


class Direction(NamedTuple):
    """How good F̂'s damped natural gradient is (see `direction`)."""

    cosine: float
    decrease_share: float


class Spectrum(NamedTuple):
    """Eigenvalues in ascending order, with two summaries.

    Attributes:
        eigenvalues: [D], or the non-zero ones of a Gram operator.
        effective_rank: exp(−Σ q log q) of the eigenvalues' shares q (Roy and Vetterli 2007).
        condition: (λ_max + damping)/(λ_min + damping).
    """

    eigenvalues: Tensor
    effective_rank: float
    condition: float


@checked
def relative_error(F: Block, approximation: Block) -> float:
    """‖F − F̂‖_F / ‖F‖_F.

    Raises:
        NumericalError: where F is zero or not finite.
    """
    F, approximation = compared(F, approximation)
    return float(F.difference_norm(approximation)) / _norm(F)


@checked
def scaled_error(F: Block, approximation: Block) -> ScaledError:
    """Min over c > 0 of ‖F − c F̂‖_F / ‖F‖_F, and the minimising c = ⟨F, F̂⟩/‖F̂‖².

    An F̂ without common scale with F (LNGD, FOOF, NG+) can only be judged so.
    """
    F, approximation = compared(F, approximation)
    squared = float(approximation.frobenius_norm()) ** 2
    if squared == 0:
        return ScaledError(1.0, 0.0)
    scale = max(0.0, float(F.inner(approximation)) / squared)
    return ScaledError(relative_error(F, approximation * scale), scale)


class Errors(NamedTuple):
    """`relative_error` and `scaled_error` of one approximation."""

    relative: float
    scaled: float
    scale: float


@checked
def errors(F: Block, approximation: Block, norm: float | None = None) -> Errors:
    """Both errors; where F is in Gram form from one inner product.

    ‖F − F̂‖² = ‖F‖² − 2⟨F, F̂⟩ + ‖F̂‖² and ‖F − cF̂‖² = ‖F‖² − ⟨F, F̂⟩²/‖F̂‖², all in float64: relative errors
    below about 1e-7 are lost in rounding.

    Args:
        F: the exact block.
        approximation: F̂.
        norm: ‖F‖, where it is known.

    Raises:
        NumericalError: where F is zero or not finite.
    """
    F, approximation = compared(F, approximation)
    if F.shape[0] <= LARGEST_DENSE or not is_gram(F):
        scaled, scale = scaled_error(F, approximation)
        return Errors(relative_error(F, approximation), scaled, scale)
    own = _norm(F, norm)
    other, product = float(approximation.frobenius_norm()), float(F.inner(approximation))
    relative = max(0.0, own**2 - 2 * product + other**2) ** 0.5 / own
    if other == 0:
        return Errors(relative, 1.0, 0.0)
    product = max(0.0, product)
    return Errors(relative, max(0.0, own**2 - (product / other) ** 2) ** 0.5 / own, product / other**2)


@checked
def is_gram(F: Block) -> bool:
    """Whether F, or every group of it, is in Gram form."""
    return all(isinstance(block, GramOperator) for block in blocks_of(F))


@checked
def cosine(F: Block, approximation: Block) -> float:
    """⟨F, F̂⟩ / (‖F‖_F ‖F̂‖_F)."""
    F, approximation = compared(F, approximation)
    return float(F.inner(approximation)) / (_norm(F) * _norm(approximation))


@checked
def trace_ratio(F: Block, approximation: Block) -> float:
    """Tr F̂ / tr F."""
    F, approximation = compared(F, approximation)
    return quotient_of_traces(float(F.trace()), float(approximation.trace()))


@checked
def quotient_of_traces(exact: float, approximate: float) -> float:
    """`trace_ratio` of traces that are known."""
    if exact == 0:
        raise NumericalError("the block is zero: its trace ratio is not defined")
    return approximate / exact


@checked
def diagonal_error(F: Block | Tensor, approximation: Block, scaled: bool = False) -> float:
    """‖diag F − c diag F̂‖₂ / ‖diag F‖₂ with c = 1, or the best c where `scaled`.

    Args:
        F: the exact block, or its diagonal [D] where that is known.
        approximation: F̂.
        scaled: whether F̂ is scaled first.
    """
    if not isinstance(F, Tensor):
        F, approximation = compared(F, approximation)
    other = approximation.diagonal().double()
    own = (real_tensor("the diagonal of the block", F) if isinstance(F, Tensor) else F.diagonal()).double()
    if own.shape != other.shape:
        raise InputError(f"a diagonal of the block has shape {list(other.shape)}, not {list(own.shape)}")
    if scaled:
        other = other * ((own @ other).clamp(min=0) / (other @ other).clamp(min=1e-300))
    norm = float(torch.linalg.norm(own))
    if norm == 0:
        raise NumericalError("the block's diagonal is zero: its error is not defined")
    return float(torch.linalg.norm(own - other)) / norm


@checked
def trace_matched(F: Block, approximation: Block) -> LinearOperator:
    """F̂ · tr F / tr F̂.

    Raises:
        NumericalError: where tr F̂ is not positive.
    """
    F, approximation = compared(F, approximation)
    return approximation * matching_scale(float(F.trace()), float(approximation.trace()))


@checked
def mean_eigenvalue(F: Block) -> float:
    """Tr F / D: the unit in which dampings are given."""
    return float(F.trace()) / F.shape[0]


@checked
def direction(F: Block, approximation: Block, gradient: Tensor, damping: Positive) -> Direction:
    """How F̂'s step compares with F's: Δ = F̂_λ⁻¹ ∇h against F_λ⁻¹ ∇h, F̂ trace-matched to F.

    cosine = cos(F̂_λ⁻¹ ∇h, F_λ⁻¹ ∇h); with γ(Δ) = √(Δᵀ(F + λI)Δ)/|Δᵀ∇h| (Wu et al. 2024, arXiv 2406.06420)
    the decrease share is (γ(F_λ⁻¹∇h)/γ(Δ))² in [0, 1]: the part of the best decrease of the damped
    quadratic model that a step along Δ of the best length reaches.

    Args:
        F: the exact block.
        approximation: F̂.
        gradient: ∇h [m, d].
        damping: λ > 0, the same in both.
    """
    F, approximation = compared(F, approximation)
    (best,) = exact_steps(F, gradient, [damping])
    step = trace_matched(F, approximation).solve(gradient.to(approximation.dtype), damping)
    return step_quality(F.quadratic(step.to(F.dtype)), best, step, gradient, damping)


@checked
def exact_steps(F: Block, gradient: Tensor, dampings: Sequence[Positive]) -> list[Tensor]:
    """(F + λI)⁻¹ ∇h [m, d] for each damping."""
    gradient, F = real_tensor("the gradient", gradient), _widened(F)
    if gradient.shape != (F.outputs, F.inputs):
        raise InputError(
            f"the gradient has shape {list(gradient.shape)}; the block's is [{F.outputs}, {F.inputs}]"
        )
    return list(F.solves(gradient.to(F.dtype), dampings))


@checked
def step_quality(
    curvature: Tensor, best: Tensor, step: Tensor, gradient: Tensor, damping: float
) -> Direction:
    """`direction` of what is known: best = (F + λI)⁻¹ ∇h, step = (F̂ + λI)⁻¹ ∇h, curvature = stepᵀ F step."""
    best, step, gradient = best.double(), step.double(), gradient.double()
    norms = torch.linalg.norm(best) * torch.linalg.norm(step)
    if not float(norms) > 0:
        raise NumericalError("the gradient is zero: directions are not defined")
    damped = curvature.double() + damping * step.square().sum()
    gained = (step * gradient).sum().square() / damped
    return Direction(float((best * step).sum() / norms), float(gained / (best * gradient).sum()))


@checked
def spectrum(F: Block, damping: Finite = 0.0) -> Spectrum:
    """Eigenvalues, effective rank, and condition number at a damping.

    Raises:
        NotSupportedError: where the block is too large for an eigendecomposition here.
    """
    F = _widened(F)
    check_spectrum(F)
    values = F.eigenvalues().double()
    positive = values.clamp(min=0)
    shares = positive / positive.sum().clamp(min=1e-300)
    entropy = -(torch.special.xlogy(shares, shares)).sum()
    smallest = 0.0 if len(values) < F.shape[0] else float(values[0])
    low = smallest + damping
    condition = (float(values[-1]) + damping) / low if low > 0 else float("inf")
    return Spectrum(values, float(torch.exp(entropy)), condition)


@checked
def preconditioned_spectrum(F: Block, approximation: Block, damping: NotNegative) -> Tensor:
    """The non-zero eigenvalues of F̂_λ⁻¹ F, ascending.

    From J F̂_λ⁻¹ Jᵀ/N for a Gram operator, else from F̂_λ^{-1/2} F F̂_λ^{-1/2}. Values below D·ε times the
    largest count as zero.

    Raises:
        NotSupportedError: where the work or the block is too large.
    """
    F, approximation = compared(F, approximation)
    if isinstance(F, GroupedOperator):
        if not isinstance(approximation, GroupedOperator):
            raise InputError("a block of groups is compared with an approximation of as many groups")
        parts = zip(F.blocks, approximation.blocks, strict=True)
        return torch.cat([preconditioned_spectrum(*part, damping) for part in parts]).sort().values
    if isinstance(F, GramOperator):
        matrix = _gram_preconditioned(F, approximation, damping)
    else:
        matrix = _sandwich(F, approximation, damping)
    values = torch.linalg.eigvalsh(matrix)
    return values[values > len(values) * torch.finfo(values.dtype).eps * values[-1]]


@checked
def preconditioned_condition(
    F: Block, approximation: Block, damping: Positive, inverse: Block | None = None
) -> float:
    """The condition number of F̂_λ⁻¹ F_λ, both damped: 1 where F̂ = F.

    (Of F̂_λ⁻¹ F alone it would be set by the smallest eigenvalue of F above rounding, and be far from 1 even
    for F̂ = F.) The largest eigenvalues of F̂_λ^{-1/2} F_λ F̂_λ^{-1/2} and of its inverse, by Lanczos' method.

    Args:
        F: the exact block.
        approximation: F̂.
        damping: λ > 0.
        inverse: (F + λI)⁻¹, where it is known.

    Raises:
        NotSupportedError: where D·(m + d) is above 5·10⁶.
        NumericalError: where the iteration does not converge.
    """
    F, approximation = compared(F, approximation)
    if F.shape[0] * (F.outputs + F.inputs) > _MOST_ITERATED:
        raise NotSupportedError(
            f"the preconditioned condition of a block of size {F.shape[0]} is not computed: its products "
            "would take minutes"
        )
    inverse = F.inverse(damping) if inverse is None else inverse
    root, back = approximation.power(-0.5, damping), approximation.power(0.5, damping)

    def forward(X: Tensor) -> Tensor:
        half = root.apply(X)
        return root.apply(F.apply(half) + damping * half)

    def backward(X: Tensor) -> Tensor:
        return back.apply(inverse.apply(back.apply(X)))

    return _largest_eigenvalue(forward, F) * _largest_eigenvalue(backward, F)


def _largest_eigenvalue(apply: Callable[[Tensor], Tensor], F: LinearOperator) -> float:
    """Of a symmetric map of matrices [m, d], to six digits."""
    from scipy.sparse.linalg import ArpackError, eigsh
    from scipy.sparse.linalg import LinearOperator as ScipyOperator

    size = F.shape[0]
    if size == 1:
        return float(apply(torch.ones(1, 1, dtype=F.dtype, device=F.device)))

    def product(v: np.ndarray) -> np.ndarray:
        X = torch.as_tensor(v, dtype=F.dtype, device=F.device).reshape(F.outputs, F.inputs)
        return apply(X).flatten().cpu().numpy()

    operator = ScipyOperator((size, size), matvec=product, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(size)
    try:
        values = eigsh(
            operator, k=1, which="LA", v0=start, tol=1e-6, maxiter=_RESTARTS, return_eigenvectors=False
        )
        return float(values[0])
    except ArpackError as error:
        raise NumericalError(f"the condition number did not converge ({error})") from error


def _sandwich(F: LinearOperator, approximation: LinearOperator, damping: float) -> Tensor:
    """F̂_λ^{-1/2} F F̂_λ^{-1/2} [D, D]; its eigenvalues are those of any rotation of it."""
    check_spectrum(F)
    root = approximation.power(-0.5, damping)
    if isinstance(root, EigenKroneckerOperator):
        return _scaled_rotation(F, root)
    half = root @ F.dense()
    matrix = root @ half.T
    return (matrix + matrix.T) / 2


def _scaled_rotation(F: LinearOperator, root: EigenKroneckerOperator) -> Tensor:
    """diag(s) Uᵀ F U diag(s) for root = U diag(s) Uᵀ: half the products of root F root."""
    d, m, size = F.inputs, F.outputs, F.shape[0]
    rows = _rotated(root.U_B, _rotated(root.U_A, F.dense().view(d, m * size)).view(d, m, size))
    columns = rows.view(size, d, m)
    columns = columns if root.U_B is None else columns @ root.U_B
    matrix = _rotated(root.U_A, columns).reshape(size, size).clone()
    scale = root.S.T.flatten()
    matrix *= scale[:, None]
    matrix *= scale
    return matrix


def _rotated(U: Tensor | None, X: Tensor) -> Tensor:
    """Uᵀ X; None is the identity."""
    return X if U is None else U.T @ X


def _gram_preconditioned(F: GramOperator, approximation: LinearOperator, damping: float) -> Tensor:
    operations = 2.0 * F.columns * F.shape[0] * (F.columns + 2 * (F.outputs + F.inputs))
    if operations > _MOST_OPERATIONS:
        raise NotSupportedError(
            f"the preconditioned spectrum would take {operations:.1g} operations; use fewer samples"
        )
    matrix = approximation.inverse(damping).gram_products(F)
    return (matrix + matrix.T) / 2


def _widened(F: LinearOperator) -> LinearOperator:
    return F.widened(torch.float32)  # of a half type no matrix can be factored


def _norm(F: LinearOperator, known: float | None = None) -> float:
    norm = float(F.frobenius_norm()) if known is None else known
    if not norm > 0 or norm == float("inf"):
        raise NumericalError("the block is zero or not finite, so errors relative to it are not defined")
    return norm
