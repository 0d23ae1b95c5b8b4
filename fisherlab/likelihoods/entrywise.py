"""Independent entries: zeros and ones, or numbers with unit variance."""

from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn import functional

from fisherlab.errors import InputError
from fisherlab.likelihoods.base import InParts, check_tensors
from fisherlab.likelihoods.draws import normal, uniform


class _Independent(InParts):
    """Independent entries, K in all, in outputs [n, …]: H is diagonal, the columns √H_kk e_k."""

    @abstractmethod
    def _root(self, outputs: Tensor) -> Tensor:
        """√H_kk for every entry, shaped as the outputs."""

    def _make(self, outputs: Tensor, start: int, stop: int) -> Tensor:
        roots = self._root(outputs).flatten(1)
        columns = roots.new_zeros(stop - start, *roots.shape)
        columns[:, :, start:stop].diagonal(dim1=0, dim2=2).copy_(roots[:, start:stop])
        return columns.unflatten(-1, outputs.shape[1:])

    def count(self, outputs: Tensor) -> int:
        """K, the entries of a sample."""
        self._check_outputs(outputs)
        return outputs[0].numel()

    def coordinates(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """w_k = residual_k / √H_kk."""
        return (self.residual(outputs, targets) / self._root(outputs)).flatten(1).T

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Numbers shaped as the outputs."""
        check_tensors(outputs, targets)
        self._check_outputs(outputs)
        if targets.shape != outputs.shape:
            raise InputError(
                f"a {self.name} likelihood needs targets of the outputs' shape {list(outputs.shape)}; got "
                f"{list(targets.shape)}"
            )
        if targets.is_complex():
            raise InputError(f"a {self.name} likelihood needs real targets; got {targets.dtype}")

    def _check_outputs(self, outputs: Tensor) -> None:
        if outputs.dim() < 2:
            raise InputError(
                f"a {self.name} likelihood needs outputs of shape [samples, K], or with more dimensions; "
                f"the model gave {list(outputs.shape)}"
            )


class Bernoulli(_Independent):
    """Binary cross-entropy with logits, every entry of [n, …] on its own: H = diag(p(1 − p))."""

    name = "bernoulli"

    def residual(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """σ(f) − y as (1 − y) σ(f) − y σ(−f): where the network is sure the difference would be rounding."""
        y = targets.to(outputs.dtype)
        return (1 - y) * torch.sigmoid(outputs) - y * torch.sigmoid(-outputs)

    def draw(self, outputs: Tensor, draws: int, generator: torch.Generator | None) -> Tensor:
        """Zeros and ones [draws, n, …]."""
        numbers = uniform(outputs, draws, tuple(outputs.shape[1:]), generator)
        return (numbers < torch.sigmoid(outputs.double())).to(outputs.dtype)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Values in [0, 1], shaped as the outputs."""
        super().check(outputs, targets)
        if not bool(((targets >= 0) & (targets <= 1)).all()):
            raise InputError("a Bernoulli likelihood needs targets between 0 and 1")

    def _root(self, outputs: Tensor) -> Tensor:
        half = 0.5 * (functional.logsigmoid(outputs) + functional.logsigmoid(-outputs))
        return torch.exp(half)


class Gaussian(_Independent):
    """Unit variance, ℓ = ½‖y − f‖² over all entries of [n, …]: H = I.

    `nn.MSELoss()` over K outputs is 2/K times this.
    """

    name = "gaussian"

    def residual(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The difference f − y."""
        return outputs - targets.to(outputs.dtype)

    def draw(self, outputs: Tensor, draws: int, generator: torch.Generator | None) -> Tensor:
        """The outputs with noise, f + ε, [draws, n, …]."""
        return outputs + normal(outputs, draws, tuple(outputs.shape[1:]), generator)

    def _root(self, outputs: Tensor) -> Tensor:
        return torch.ones_like(outputs)
