"""Damping as an object: one λ for the whole matrix, or one for each Kronecker factor."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from fisherlab.errors import InputError, InputTypeError

_PI_BOUNDS = (1e-2, 1e2)


@dataclass(frozen=True)
class Constant:
    """F + λI with one λ for the whole matrix.

    Args:
        value: λ ≥ 0, in the units of the eigenvalues of F.

    Raises:
        InputError: λ is negative or not finite.
    """

    value: float

    def __post_init__(self) -> None:
        _check_value("damping", self.value)


class FactoredDamping(ABC):
    """Damping of each factor of A ⊗ B: (A + λ_A I) ⊗ (B + λ_B I), which is not A ⊗ B + λI."""

    @abstractmethod
    def factors(self, trace_A: Tensor, d: int, trace_B: Tensor, m: int) -> tuple[Tensor, Tensor]:
        """The two damping values.

        Args:
            trace_A: tr A, 0-d, of the input factor A [d, d].
            d: the size of A.
            trace_B: tr B, 0-d, of the output factor B [m, m].
            m: the size of B.

        Returns:
            (λ_A, λ_B), 0-d tensors.
        """


@dataclass(frozen=True)
class Pi(FactoredDamping):
    """KFAC's factored damping: λ_A = π√λ, λ_B = √λ/π with π² = (tr A/d)/(tr B/m).

    Unchanged under A → cA, B → B/c up to the same scaling. Where a trace is zero π has no meaning;
    it is kept in [1e-2, 1e2].
    Source: Martens and Grosse 2015 (arXiv 1503.05671), section 6.3.

    Args:
        value: λ ≥ 0, in the units of the eigenvalues of A ⊗ B.

    Raises:
        InputError: λ is negative or not finite.
    """

    value: float

    def __post_init__(self) -> None:
        _check_value("damping", self.value)

    def factors(self, trace_A: Tensor, d: int, trace_B: Tensor, m: int) -> tuple[Tensor, Tensor]:
        """(π√λ, √λ/π); see the class."""
        mean_A, mean_B = trace_A / d, trace_B / m
        pi = (mean_A / mean_B).sqrt()
        both_positive = (mean_A > 0) & (mean_B > 0)
        pi = pi.where(both_positive, pi.nan_to_num(nan=1.0).clamp(*_PI_BOUNDS))
        root = math.sqrt(self.value)
        return pi * root, root / pi


@dataclass(frozen=True)
class Clip(FactoredDamping):
    """LNGD's damping: each factor's mean eigenvalue, clipped to [ν₁, ν₂].

    λ_A = clip(tr A/d, ν₁, ν₂) and λ_B = clip(tr B/m, ν₁, ν₂).
    Source: Liu et al. 2024 (the LNGD paper), section 3.1.

    Args:
        low: ν₁ ≥ 0.
        high: ν₂ ≥ ν₁.
        output: (ν₁, ν₂) of the output factor B; None: the same as for the input factor A.

    Raises:
        InputError: a bound is negative or not finite, or the bounds are reversed.
    """

    low: float = 1e-5
    high: float = 1e-2
    output: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for low, high in ((self.low, self.high), self._output_bounds):
            _check_value("lower damping bound", low)
            _check_value("upper damping bound", high)
            if low > high:
                raise InputError(
                    f"the damping bounds ({low}, {high}) are reversed; give the lower one first."
                )

    @property
    def _output_bounds(self) -> tuple[float, float]:
        return (self.low, self.high) if self.output is None else self.output

    def factors(self, trace_A: Tensor, d: int, trace_B: Tensor, m: int) -> tuple[Tensor, Tensor]:
        """(clip(tr A/d), clip(tr B/m)); see the class."""
        return (
            (trace_A / d).clamp(self.low, self.high),
            (trace_B / m).clamp(*self._output_bounds),
        )


@dataclass(frozen=True)
class Shift(FactoredDamping):
    """Fixed λ_A and λ_B: with an identity as one factor, (0, λ) or (λ, 0) is λ of the whole matrix.

    Args:
        input: λ_A ≥ 0.
        output: λ_B ≥ 0.

    Raises:
        InputError: one is negative or not finite.
    """

    input: float
    output: float

    def __post_init__(self) -> None:
        _check_value("damping of the input factor", self.input)
        _check_value("damping of the output factor", self.output)

    def factors(self, trace_A: Tensor, d: int, trace_B: Tensor, m: int) -> tuple[Tensor, Tensor]:
        """(λ_A, λ_B)."""
        return torch.full_like(trace_A, self.input), torch.full_like(trace_B, self.output)


Damping = Constant | FactoredDamping
DampingLike = float | Damping


def as_damping(damping: DampingLike) -> Damping:
    """A damping object from a number (a `Constant`) or from a damping object (itself).

    Raises:
        InputError: the number is negative or not finite.
        InputTypeError: it is neither a number nor a damping object.
    """
    if isinstance(damping, (Constant, FactoredDamping)):
        return damping
    if isinstance(damping, bool) or not isinstance(damping, (int, float)):
        raise InputTypeError(f"damping must be a number or a damping object, not {type(damping).__name__}.")
    return Constant(float(damping))


def _check_value(what: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise InputError(f"the {what} is {value}; it must be a finite number, zero or larger.")
