"""EKFAC and TEKFAC: the best diagonal in the eigenbasis of KFAC's, or TKFAC's, factors."""

from typing import ClassVar

from torch import Tensor

from fisherlab.approximations.base import Approximation, register_approximation
from fisherlab.approximations.kfac import KFAC
from fisherlab.approximations.tkfac import TKFAC
from fisherlab.layers import BlockShape
from fisherlab.linalg.numerics import symmetric_eigh
from fisherlab.operators import EigenKroneckerOperator
from fisherlab.statistics import Basis, LayerSums, Statistic


class Rescaled(Approximation):
    """(U_A ⊗ U_B) S (U_A ⊗ U_B)ᵀ, S the second moments of the rotated gradients."""

    _factored: KFAC | TKFAC

    def statistics(self, layer: BlockShape, kind: str) -> tuple[Statistic, ...]:
        """Those of the factors whose eigenvectors are the basis."""
        return self._factored.statistics(layer, kind)

    def basis(self, layer: BlockShape, sums: LayerSums, kind: str) -> Basis:
        """Eigenvectors of the two factors; None, the identity, for a diagonal one."""
        A, B = self._factored.factors(layer, sums, kind)
        return _eigenvectors(A), _eigenvectors(B)

    def build(self, layer: BlockShape, sums: LayerSums, kind: str) -> EigenKroneckerOperator:
        """The operator, from the basis and the second pass."""
        U_A, U_B = sums.bases[self.name]
        return EigenKroneckerOperator(U_A, U_B, sums.mean(sums.rotated(self.name, kind)))


def _eigenvectors(factor: Tensor) -> Tensor | None:
    return None if factor.dim() == 1 else symmetric_eigh(factor)[1]


@register_approximation
class EKFAC(Rescaled):
    """(U_A ⊗ U_B) S (U_A ⊗ U_B)ᵀ, S = E[Σ_c (U_Bᵀ V U_A)∘²], U the eigenvectors of KFAC's factors.

    George et al. 2018 (arXiv 1806.03884), eq. 9. S is the best diagonal in that basis, so the Frobenius
    error never exceeds KFAC's, and tr F̂ = tr F.

    Args:
        sharing: as for KFAC.
    """

    name: ClassVar[str] = "ekfac"
    label: ClassVar[str] = "EKFAC"
    colour: ClassVar[str | None] = "#009e73"
    formula: ClassVar[str] = "(U_A ⊗ U_B) S (U_A ⊗ U_B)ᵀ, S = E[Σ_c (U_Bᵀ V U_A)∘²]"
    source: ClassVar[str] = "George et al. 2018, arXiv 1806.03884, eq. 9"

    def __init__(self, sharing: str = "expand") -> None:
        self._factored = KFAC(sharing)


@register_approximation
class TEKFAC(Rescaled):
    """EKFAC's rescaling in the eigenbasis of TKFAC's factors.

    Gao et al. 2020 (arXiv 2011.13609). The Frobenius error never exceeds TKFAC's, and tr F̂ = tr F.

    Args:
        positions: as for TKFAC.
    """

    name: ClassVar[str] = "tekfac"
    label: ClassVar[str] = "TEKFAC"
    colour: ClassVar[str | None] = "#cc79a7"
    formula: ClassVar[str] = "(U_P ⊗ U_Q) S (U_P ⊗ U_Q)ᵀ, S = E[Σ_c (U_Qᵀ V U_P)∘²]"
    source: ClassVar[str] = "Gao et al. 2020, arXiv 2011.13609"

    def __init__(self, positions: str = "exact") -> None:
        self._factored = TKFAC(positions)
