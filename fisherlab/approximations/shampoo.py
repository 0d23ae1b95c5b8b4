"""Shampoo and SOAP: roots of the partial traces, and the best diagonal in their eigenbasis."""

from typing import Annotated, ClassVar

from torch import Tensor

from fisherlab.approximations.base import Approximation, register_approximation
from fisherlab.approximations.batches import batch_size, remark_of
from fisherlab.approximations.ekfac import Rescaled
from fisherlab.approximations.kl import FLOOR, flip_flop
from fisherlab.approximations.tkfac import TKFAC, normalised
from fisherlab.arguments import NotNegative, OneOf, checked
from fisherlab.layers import BlockShape
from fisherlab.linalg.numerics import damped_power, symmetric_eigh, symmetrised
from fisherlab.operators import EigenKroneckerOperator, KroneckerOperator, LinearOperator
from fisherlab.statistics import Basis, LayerSums, Statistic


@register_approximation
class Shampoo(Approximation):
    """R^{1/2} ⊗ L^{1/2}, R = E[VᵀV] and L = E[V Vᵀ]; with `power="1/2"` R ⊗ L/tr F, which is TKFAC.

    Gupta et al. 2018 (arXiv 1802.09568): its step L^{-1/4} ∇h R^{-1/4} is F̂^{-1/2}∇h. With the power 1/2, or
    "Shampoo²" (Morwani et al. 2024, arXiv 2406.17748), the step L^{-1/2} ∇h R^{-1/2} is that of R ⊗ L/tr F up
    to its scale.

    Args:
        power: of the published step, `1/4` or `1/2`.
        gradients: `sample`, or `batch:B`.
    """

    name: ClassVar[str] = "shampoo"
    label: ClassVar[str] = "Shampoo"
    colour: ClassVar[str | None] = "#8a1c4a"
    own_scale: ClassVar[bool] = True
    formula: ClassVar[str] = "R^{1/2} ⊗ L^{1/2}, R = E[VᵀV], L = E[V Vᵀ]"
    source: ClassVar[str] = "Gupta et al. 2018, arXiv 1802.09568"
    of_gradients = True

    @checked
    def __init__(
        self, power: Annotated[str, OneOf(("1/4", "1/2"))] = "1/4", gradients: str = "sample"
    ) -> None:
        self.power, self.batch = power, batch_size(gradients)
        self.from_exact = self.batch is not None

    def statistics(self, layer: BlockShape, kind: str) -> tuple[Statistic, ...]:
        """The two partial traces."""
        return () if self.from_exact else TKFAC().statistics(layer, kind)

    def build(self, layer: BlockShape, sums: LayerSums, kind: str) -> KroneckerOperator:
        """F̂ from the partial traces."""
        inputs, outputs = self.statistics(layer, kind)
        return self._of(sums.mean(inputs), sums.mean(outputs))

    def from_block(self, exact: LinearOperator) -> KroneckerOperator:
        """F̂ from the block's partial traces."""
        return self._of(*partial_traces(exact))

    def _of(self, R: Tensor, L: Tensor) -> KroneckerOperator:
        factors = normalised(R, L) if self.power == "1/2" else (_root(R), _root(L))
        operator = KroneckerOperator(*factors)
        operator.remark = remark_of(self.batch)
        return operator


@register_approximation
class SOAP(Rescaled):
    """(U_R ⊗ U_L) S (U_R ⊗ U_L)ᵀ, S = diag((U_R ⊗ U_L)ᵀ F (U_R ⊗ U_L)): Adam in Shampoo's eigenbasis.

    Vyas et al. 2024 (arXiv 2409.11321). It is TEKFAC with exact positions. With `basis="kl"` the basis is
    that of kl-kronecker's factors (KL-SOAP, Lin et al. 2025, arXiv 2509.03378).

    Args:
        basis: `shampoo` or `kl`.
        gradients: `sample`, or `batch:B`.
        floor: of the basis `kl`, as for kl-kronecker.
    """

    name: ClassVar[str] = "soap"
    label: ClassVar[str] = "SOAP"
    colour: ClassVar[str | None] = "#3f51b5"
    formula: ClassVar[str] = "(U_R ⊗ U_L) S (U_R ⊗ U_L)ᵀ, S = E[Σ_c (U_Lᵀ V U_R)∘²]"
    source: ClassVar[str] = "Vyas et al. 2024, arXiv 2409.11321"
    of_gradients = True

    @checked
    def __init__(
        self,
        basis: Annotated[str, OneOf(("shampoo", "kl"))] = "shampoo",
        gradients: str = "sample",
        floor: NotNegative = FLOOR,
    ) -> None:
        self.eigenbasis, self.batch, self.floor = basis, batch_size(gradients), float(floor)
        self.from_exact = basis == "kl" or self.batch is not None
        self._factored = TKFAC()

    @property
    def two_pass(self) -> bool:
        """From a block the second moments are had at once."""
        return not self.from_exact

    def statistics(self, layer: BlockShape, kind: str) -> tuple[Statistic, ...]:
        """The two partial traces."""
        return () if self.from_exact else super().statistics(layer, kind)

    def build(self, layer: BlockShape, sums: LayerSums, kind: str) -> EigenKroneckerOperator:
        """From the basis and the second pass."""
        operator = super().build(layer, sums, kind)
        operator.remark = remark_of(self.batch)
        return operator

    def from_block(self, exact: LinearOperator) -> EigenKroneckerOperator:
        """The block's diagonal in the basis."""
        remark = remark_of(self.batch)
        if self.eigenbasis == "kl":
            found = flip_flop(exact, self.floor)
            A, B, remark = found.A, found.B, f"{remark}; basis: kl-kronecker, {len(found.logdets)} rounds"
        else:
            A, B = partial_traces(exact)
        basis: Basis = symmetric_eigh(A)[1], symmetric_eigh(B)[1]
        operator = EigenKroneckerOperator(*basis, exact.diagonal_in_basis(*basis))
        operator.remark = remark
        return operator


def partial_traces(block: LinearOperator) -> tuple[Tensor, Tensor]:
    """R = E[VᵀV] [d, d] and L = E[V Vᵀ] [m, m] of a block."""
    ones = block.diagonal().new_ones
    return (
        symmetrised(block.contract_output(ones(block.outputs))),
        symmetrised(block.contract_input(ones(block.inputs))),
    )


def _root(factor: Tensor) -> Tensor:
    """The square root of a partial trace; of a diagonal one that of its entries."""
    if factor.dim() == 1:
        return damped_power(factor, 0.0, 0.5)
    values, vectors = symmetric_eigh(factor)
    return (vectors * damped_power(values, 0.0, 0.5)) @ vectors.mT
