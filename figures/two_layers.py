"""The network of theorem 2, the method that the theorem is about, and LNGD on the same network."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fisherlab.optim import LNGD


@dataclass
class TwoLayers:
    """v(x) = Σ_r b_r relu(w_rᵀ x), b_r = ±1/√width fixed, w_r ~ N(0, I); inputs X [n, d] of length 1, y [n].

    Liu et al. 2024, appendix D. The theorem's method is W ← W − α Ψ⁺ ∇ Φ⁺ with ∇ = Σ_n (v_n − y_n) s_n x_nᵀ,
    Φ = XᵀX and the full Gram matrix Ψ = SᵀS of S_nr = b_r 1(w_rᵀ x_n > 0). Its bound for a wide layer and
    independent inputs: ‖y − v_k‖² ≤ (1 − α)^k ‖y − v_0‖².
    """

    samples: int
    inputs: int
    width: int
    seed: int

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.W = draw(self.width, self.inputs)
        self.b = draw(self.width).sign() / self.width**0.5
        self.X = nn.functional.normalize(draw(self.samples, self.inputs))
        self.y = draw(self.samples)

    def residual(self, W: Tensor) -> Tensor:
        """The difference v − y, [n]."""
        return (self.X @ W.T).relu() @ self.b - self.y

    def signals(self, W: Tensor) -> Tensor:
        """S [n, width]; the Jacobian of the outputs in W has the rows s_n ⊗ x_n."""
        return (self.X @ W.T > 0) * self.b

    def direction(self, W: Tensor) -> Tensor:
        """Ψ⁺ ∇ Φ⁺ [width, d], with Ψ⁺ Sᵀ = S⁺ and Φ⁺ = X⁺ X⁺ᵀ."""
        inverse = torch.linalg.pinv(self.X)
        gradient = self.residual(W)[:, None] * self.X
        return torch.linalg.pinv(self.signals(W)) @ gradient @ inverse @ inverse.T

    def errors(self, alpha: float, steps: int) -> Tensor:
        """‖y − v_k‖² for k = 0 to steps of the theorem's method, [steps + 1]."""
        W, found = self.W, []
        for _ in range(steps + 1):
            found.append(self.residual(W).square().sum())
            W = W - alpha * self.direction(W)
        return torch.stack(found)

    def lngd_errors(self, alpha: float, steps: int, rate: str) -> Tensor:
        """The same for LNGD with the learning rate α, the whole batch, no momentum and no decay.

        Args:
            alpha: the learning rate.
            steps: how many.
            rate: `layerwise`, or `fixed` for α_l = 1.
        """
        first, last = nn.Linear(self.inputs, self.width, False), nn.Linear(self.width, 1, False)
        model = nn.Sequential(first, nn.ReLU(), last).double()
        with torch.no_grad():
            first.weight.copy_(self.W)
            last.weight.copy_(self.b[None])
        last.requires_grad_(False)
        optimizer = LNGD(
            model,
            alpha,
            momentum=0.0,
            weight_decay=0.0,
            statistics_every=1,
            inverse_every=1,
            kl_clip=None,
            rate=rate,
            likelihood="gaussian",
            exclude=["2"],
        )
        found = []
        for _ in range(steps + 1):
            optimizer.zero_grad()
            squares = (model(self.X) - self.y[:, None]).square().sum()
            found.append(squares.detach())
            (squares / (2 * self.samples)).backward()
            optimizer.step()
        return torch.stack(found)
