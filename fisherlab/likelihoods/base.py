"""A distribution p(y | f): its draws, and a root of its output Hessian."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from fisherlab.errors import InputError, InputTypeError


class Likelihood(ABC):
    """A distribution p(y | f) of a target y given a network output f of shape [n, …].

    A likelihood of one's own gives the five abstract methods; all others have a default. Draws that are
    made sample after sample do not depend on how the data are cut into batches::

        class Poisson(Likelihood):  # y ~ Poisson(exp f): ℓ = exp f − y f + log y!, H = diag(exp f)
            name = "poisson"

            def columns(self, outputs):
                return torch.diag_embed(torch.exp(outputs / 2)).transpose(0, 1)

            def count(self, outputs):
                return outputs.shape[1]

            def residual(self, outputs, targets):
                return torch.exp(outputs) - targets

            def draw(self, outputs, draws, generator):
                rates = torch.exp(outputs).cpu().unsqueeze(1).repeat(1, draws, 1)
                return torch.poisson(rates, generator).transpose(0, 1).to(outputs.device)

            def check(self, outputs, targets):
                if targets.shape != outputs.shape or bool((targets < 0).any()):
                    raise InputError("a Poisson likelihood needs counts, shaped as the outputs")
    """

    name: str

    @abstractmethod
    def columns(self, outputs: Tensor) -> Tensor:
        """Columns u [c, n, …] with Σ_c u_c u_cᵀ = H, the Hessian of −log p(y | f) in f."""

    @abstractmethod
    def count(self, outputs: Tensor) -> int:
        """How many columns `columns` gives for these outputs."""

    @abstractmethod
    def residual(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The gradient [n, …] of −log p(y | f) in f; zero where the mask of the targets is False."""

    @abstractmethod
    def draw(self, outputs: Tensor, draws: int, generator: torch.Generator | None) -> Tensor:
        """Targets [draws, n, …] from p(y | f), for every position."""

    @abstractmethod
    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raises `InputError` where the targets are not values of y, or do not fit the outputs."""

    def mask(self, targets: Tensor) -> Tensor | None:
        """Which positions count: a bool [n, T] for outputs [n, T, …]; None: all.

        Positions must be independent given f, and one that does not count has no part in ℓ: its rows and
        columns of H are zero. `label_columns` sees to that for the columns and for draws.
        """
        return None

    def columns_between(self, outputs: Tensor, start: int, stop: int) -> Tensor:
        """`columns(outputs)[start:stop]`; a likelihood of many columns makes no others."""
        return self.columns(outputs)[start:stop]

    def drawn_residual(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """`residual` for labels [n, …] that `draw` gave: every position counts."""
        return self.residual(outputs, labels)

    def coordinates(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Weights w [c, n] with Σ_c w_c u_c = residual(f, y): the gradient in terms of the columns."""
        columns = self.columns(outputs).flatten(2).permute(1, 2, 0).double()
        residual = self.residual(outputs, targets).flatten(1).double().unsqueeze(-1)
        return (torch.linalg.pinv(columns) @ residual).squeeze(-1).T.to(outputs.dtype)


class InParts(Likelihood):
    """A likelihood that makes any of its columns without the others."""

    @abstractmethod
    def _make(self, outputs: Tensor, start: int, stop: int) -> Tensor:
        """Columns start, …, stop − 1."""

    def columns(self, outputs: Tensor) -> Tensor:
        """All columns of the class docstring, [c, n, …]."""
        return self._make(outputs, 0, self.count(outputs))

    def columns_between(self, outputs: Tensor, start: int, stop: int) -> Tensor:
        """Columns start, …, stop − 1 alone; a subclass with `columns` of its own has those cut."""
        if type(self).columns is InParts.columns:
            return self._make(outputs, start, stop)
        return super().columns_between(outputs, start, stop)


def check_tensors(outputs: Tensor, targets: Tensor) -> None:
    """Refuses outputs and targets that are no tensors of numbers.

    Raises:
        InputTypeError: for anything but dense tensors that hold numbers, the outputs' real ones.
        InputError: for outputs without numbers.
    """
    check_outputs(outputs)
    _check_dense("targets", targets)


def check_outputs(outputs: Tensor) -> None:
    """`check_tensors` for outputs alone."""
    _check_dense("outputs", outputs)
    if not outputs.is_floating_point():
        raise InputTypeError(
            f"the outputs must be real numbers, not {outputs.dtype}; convert them with .float()"
        )
    if not outputs.numel():
        raise InputError(f"the outputs have shape {list(outputs.shape)}, which holds no numbers")


def _check_dense(what: str, values: Tensor) -> None:
    if not isinstance(values, Tensor):
        raise InputTypeError(f"the {what} must be a torch tensor, not {type(values).__name__}")
    if values.is_nested or values.is_meta or values.layout != torch.strided:
        kind = "nested" if values.is_nested else "meta" if values.is_meta else str(values.layout)
        raise InputTypeError(f"the {what} must be a dense tensor that holds numbers, not a {kind} one")
