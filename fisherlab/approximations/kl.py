"""KL-Kronecker: the A ⊗ B that is nearest to F in log-det divergence, the fixed point of the flip-flop."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fisherlab.approximations.base import Approximation, register_approximation
from fisherlab.approximations.batches import batch_size, remark_of
from fisherlab.arguments import NotNegative, checked
from fisherlab.errors import NumericalError
from fisherlab.layers import BlockShape
from fisherlab.linalg.numerics import symmetric_eigh, symmetrised
from fisherlab.operators import KroneckerOperator, LinearOperator
from fisherlab.statistics import LayerSums, Statistic

FLOOR = 1e-6
"""δ by the mean eigenvalue of F, by default."""

_CONVERGED = 1e-10  # change of a round, by the factor's own size in every direction
_ROUNDS = 500  # a choice: networks' blocks take about ten, blocks of fewer samples than sides hundreds
_HISTORY = 10  # rounds that the next one is extrapolated from: a choice, twice as many are no faster
_UNSEEN = 1e-14  # of a round's log-determinant by D: below it a rise is rounding
_SINGULAR = 1e-4  # of a logarithm's rounding, a choice: a condition number of 5e11 in float64
_DEPENDENT = 1e-12  # singular values of the history by the largest: smaller ones are left out
_FLOORS = (FLOOR, 1e-4, 1e-2)  # tried where a floor is too low, to say which works


class FlipFlop(NamedTuple):
    """The fixed point, and the way to it.

    Attributes:
        A: input factor [d, d].
        B: output factor [m, m].
        logdets: log det(A ⊗ B) after every round, in nats: the log-det divergence between X and A ⊗ B is
            this less log det X, for tr(X (A ⊗ B)⁻¹) = D at A's optimum; it never rises.
        products: contractions of X with both factors, those of rounds that were taken back included.
    """

    A: Tensor
    B: Tensor
    logdets: tuple[float, ...]
    products: int


@register_approximation
class KLKronecker(Approximation):
    """argmin over A, B of tr(X (A ⊗ B)⁻¹) + log det(A ⊗ B), X = F + δI.

    The matrix normal's maximum likelihood, by A ← E[VᵀB⁻¹V]/m and B ← E[V A⁻¹Vᵀ]/d ("flip-flop"), which is
    KL-Shampoo's estimate. Lin et al. 2025 (arXiv 2509.03378); Dutilleul 1999.

    Args:
        floor: δ over the mean eigenvalue of F: X must have full rank.
        gradients: `sample`, or `batch:B`.
    """

    name: ClassVar[str] = "kl-kronecker"
    label: ClassVar[str] = "KL A⊗B"
    colour: ClassVar[str | None] = "#1b6d3a"
    formula: ClassVar[str] = "A ⊗ B, A = E[VᵀB⁻¹V]/m, B = E[V A⁻¹Vᵀ]/d of F + δI"
    source: ClassVar[str] = "Lin et al. 2025, arXiv 2509.03378 (KL-Shampoo)"
    from_exact = True

    @checked
    def __init__(self, floor: NotNegative = FLOOR, gradients: str = "sample") -> None:
        self.floor, self.batch = float(floor), batch_size(gradients)

    def statistics(self, layer: BlockShape, kind: str) -> tuple[Statistic, ...]:
        """None: it is made from a block."""
        return ()

    def build(self, layer: BlockShape, sums: LayerSums, kind: str) -> LinearOperator:
        """Not possible from sums; see `from_block`."""
        raise NotImplementedError("kl-kronecker is made from the exact block")

    def from_block(self, exact: LinearOperator) -> KroneckerOperator:
        """The fixed point; its remark says the rounds."""
        found = flip_flop(exact, self.floor)
        operator = KroneckerOperator(found.A, found.B)
        operator.remark = f"{remark_of(self.batch)}; {len(found.logdets)} rounds"
        return operator


def flip_flop(F: LinearOperator, floor: float = FLOOR, start: Tensor | None = None) -> FlipFlop:
    """The best A ⊗ B for X = F + δI in log-det divergence; it is one up to the scale of A by that of B.

    A round makes the larger factor of the smaller one, and that anew of the larger. Rounds are extrapolated
    in the logarithm of the smaller factor (Anderson's acceleration); an extrapolation that raises the
    divergence is taken back.

    In the kernels of E[VᵀV] and E[V Vᵀ] the factors are what δ makes them, without rounding.

    Args:
        F: the block, of which only contractions are taken.
        floor: δ by the mean eigenvalue of F.
        start: the smaller factor to begin from (the output's where m ≤ d), positive definite; None: TKFAC's.

    Raises:
        NumericalError: where it does not converge, as where the rank is too low for the floor; says on which
            side, and the floor that works.
    """
    unit = float(F.trace()) / F.shape[0]
    if not unit > 0:
        outputs = torch.eye(F.outputs, dtype=F.dtype, device=F.device)
        return FlipFlop(outputs.new_zeros(F.inputs, F.inputs), outputs, (), 0)
    rounds = _Rounds(F, unit)
    found = rounds.run(floor, start)
    if found is not None:
        return found
    outcome, weak = rounds.outcome, rounds.weak
    higher = next((value for value in _FLOORS if value > floor and rounds.run(value) is not None), None)
    way_out = "take more samples" if higher is None else f"give floor={higher:g}"
    raise NumericalError(f"kl-kronecker {outcome} at floor={floor:g}: {weak}; {way_out}")


class _Rounds:
    """The flip-flop of one block, in units of its mean eigenvalue.

    Attributes:
        outcome: what became of the latest run that did not converge, in words.
        weak: why, in words.
    """

    def __init__(self, F: LinearOperator, unit: float) -> None:
        self.outcome = self.weak = ""
        self._unit = unit
        self._k, self._l = sorted((F.outputs, F.inputs))
        self._sides = ("output", "input") if F.outputs <= F.inputs else ("input", "output")
        self._to_large: Callable[[Tensor], Tensor] = F.contract_output
        self._to_small: Callable[[Tensor], Tensor] = F.contract_input
        if F.outputs > F.inputs:
            self._to_large, self._to_small = self._to_small, self._to_large
        self._small_eye = torch.eye(self._k, dtype=F.dtype, device=F.device)
        self._large_eye = torch.eye(self._l, dtype=F.dtype, device=F.device)
        self._mean = symmetrised(self._to_small(self._large_eye)) / (unit * self._l)
        self._on_small = _range(self._mean, F.rounding)
        mean = symmetrised(self._to_large(self._small_eye)) / (unit * self._k)
        self._on_large = _range(mean, F.rounding)

    def run(self, floor: float, start: Tensor | None = None) -> FlipFlop | None:
        """The fixed point of X = F + δI; None where it does not converge."""
        self.outcome = "did not converge"
        for basis, side in zip((self._on_small, self._on_large), self._sides, strict=True):
            if basis is not None and floor == 0:
                self.outcome = "has no fixed point"
                self.weak = f"its {side} side has rank {basis.shape[1]} of {len(basis)}"
                return None
        S = _logarithm(self._mean + floor * self._small_eye if start is None else start)
        best, logdets, history = math.inf, list[float](), list[tuple[Tensor, Tensor]]()
        for products in range(1, _ROUNDS + 1):
            found = self._round(S, floor)
            worse = found is None or found[0] > best + self._k * self._l * max(_UNSEEN, found[3])
            if worse and len(history) > 1:  # it was extrapolated; a round by itself rises by rounding alone
                S = history[-1][0] + history[-1][1]
                history.clear()
                continue
            if found is None:
                return None
            best, large, following, rounding, weaker = found
            logdets.append(found[0] + self._k * self._l * math.log(self._unit))
            change = following - S
            if float(torch.linalg.norm(change)) <= self._k**0.5 * max(_CONVERGED, rounding):
                return self._found(large, S, logdets, products)
            history = [*history[-_HISTORY:], (S, change)]
            S = _extrapolated(history)
        self.outcome = f"did not converge in {_ROUNDS} rounds"
        self.weak = f"its {weaker} factor goes on shrinking"
        return None

    def _round(self, S: Tensor, floor: float) -> tuple[float, Tensor, Tensor, float, str] | None:
        """One round from the smaller factor's logarithm S; None where a factor is singular.

        F sees of an inverse what lies in its range alone; the rest, as large as 1/δ, would leave rounding.

        Returns:
            log det(A ⊗ B); the larger factor; the logarithm of the next smaller one; the rounding of both
            logarithms; and the side of the larger condition number.
        """
        values, vectors = torch.linalg.eigh(S)
        inverse = (vectors * values.neg().exp()) @ vectors.mT
        seen = _within(self._on_small, inverse)
        mean = _within(self._on_large, symmetrised(self._to_large(seen)) / self._unit)
        large = (mean + floor * inverse.trace() * self._large_eye) / self._k
        root, failed = torch.linalg.cholesky_ex(large)
        if bool(failed) or not bool(root.isfinite().all()):
            self.weak = f"its {self._sides[1]} factor is singular to rounding"
            return None
        logdet = 2 * self._k * root.diagonal().log().sum() + self._l * values.sum()
        inverse = torch.cholesky_inverse(root)
        seen = _within(self._on_large, inverse)
        mean = _within(self._on_small, symmetrised(self._to_small(seen)) / self._unit)
        small = (mean + floor * inverse.trace() * self._small_eye) / self._l
        spreads = (values[-1] - values[0]).exp(), (root.diagonal().max() / root.diagonal().min()).square()
        rounding = torch.finfo(S.dtype).eps * float(max(spreads))  # of logarithms, by the condition numbers
        weaker = self._sides[int(spreads[1] > spreads[0])]
        if not rounding < _SINGULAR:
            self.weak = f"its {weaker} factor is singular to rounding"
            return None
        return float(logdet), large, _logarithm(small), rounding, weaker

    def _found(self, large: Tensor, S: Tensor, logdets: list[float], products: int) -> FlipFlop:
        values, vectors = torch.linalg.eigh(S)
        large, small = large * self._unit, (vectors * values.exp()) @ vectors.mT
        A, B = (large, small) if self._sides[0] == "output" else (small, large)
        return FlipFlop(A, B, tuple(logdets), products)


def _range(mean: Tensor, rounding: float) -> Tensor | None:
    """An orthonormal basis [k, r] of the range of a partial trace; None where it has full rank.

    What the rounding of sums leaves in its kernel was 0.01 to 0.3 ε of the largest eigenvalue, whatever k.
    """
    values, vectors = symmetric_eigh(mean)
    seen = values > rounding * values[-1].clamp(min=0)
    return None if bool(seen.all()) else vectors[:, seen]


def _within(basis: Tensor | None, matrix: Tensor) -> Tensor:
    """A matrix without what rounding leaves outside its range."""
    return matrix if basis is None else symmetrised(basis @ (basis.mT @ matrix @ basis) @ basis.mT)


def _logarithm(matrix: Tensor) -> Tensor:
    """Of a positive definite matrix, less the mean eigenvalue: the scale is the other factor's.

    Eigenvalues that are zero to rounding count as the smallest number: the next round sees a singular factor.
    """
    values, vectors = torch.linalg.eigh(matrix)
    logs = values.clamp(min=float(values[-1]) * torch.finfo(values.dtype).eps).log()
    return (vectors * (logs - logs.mean())) @ vectors.mT


def _extrapolated(history: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Where the changes of the latest rounds, combined linearly, would vanish."""
    S, change = history[-1]
    if len(history) == 1:
        return S + change
    pairs = list(pairwise(history))
    places = torch.stack([(later[0] - earlier[0]).flatten() for earlier, later in pairs], 1)
    changes = torch.stack([(later[1] - earlier[1]).flatten() for earlier, later in pairs], 1)
    weights = torch.linalg.pinv(changes, rtol=_DEPENDENT) @ change.flatten()
    return symmetrised(S + change - ((places + changes) @ weights).view_as(S))
