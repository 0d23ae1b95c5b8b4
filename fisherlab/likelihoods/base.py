"""A distribution p(y | f), its draws, a root of its output Hessian; and the columns sent backwards for it."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from fisherlab.errors import InputError, InputTypeError, known_name

KINDS = ("predictive", "monte-carlo", "empirical", "layerwise")
_ALIASES = {"type-2": "predictive", "mc": "monte-carlo"}


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
    """Refuses outputs and targets that are no tensors (`InputTypeError`)."""
    for what, values in (("outputs", outputs), ("targets", targets)):
        if not isinstance(values, Tensor):
            raise InputTypeError(f"the {what} must be a torch tensor, not {type(values).__name__}")


def check_kind(kind: str) -> str:
    """The full name of a kind of Fisher; `type-2` and `mc` are aliases."""
    full = _ALIASES.get(kind, kind) if isinstance(kind, str) else kind
    return known_name("kind", full, KINDS)


def label_columns(
    likelihood: Likelihood,
    kind: str,
    outputs: Tensor,
    targets: Tensor | None,
    draws: int = 1,
    generator: torch.Generator | None = None,
    part: slice | None = None,
) -> Tensor:
    """The columns [c, n, …] whose backward passes give the g of a kind of Fisher.

    `predictive`: the root of the output Hessian. `monte-carlo`: residuals of `draws` labels drawn
    from the model, over √draws. `empirical`: the residual of the data's own label. Where targets are
    given, positions that their mask leaves out are zero in every kind.

    Args:
        likelihood: what the outputs mean.
        kind: `predictive`, `monte-carlo` or `empirical`.
        outputs: the network's outputs [n, …].
        targets: the data's labels; only `empirical` needs them.
        draws: labels a sample for `monte-carlo`.
        generator: source of the drawn labels.
        part: which of the columns to make (a slice without a step); None: all. Labels are drawn as for
            all: parts belong together where the generator starts from one state for each.

    Raises:
        InputError: for the empirical kind without targets.
    """
    part = slice(None) if part is None else part
    if kind == "empirical":
        if targets is None:
            raise InputError("the empirical kind needs targets; give (inputs, targets) or another kind")
        return likelihood.residual(outputs, targets).unsqueeze(0)[part]
    if kind == "predictive":
        start, stop, _ = part.indices(likelihood.count(outputs))
        columns = likelihood.columns_between(outputs, start, stop)
    else:
        labels = likelihood.draw(outputs, draws, generator)[part]
        columns = torch.stack([likelihood.drawn_residual(outputs, label) for label in labels]) / draws**0.5
    mask = None if targets is None else likelihood.mask(targets)
    if mask is None:
        return columns
    missing = columns.dim() - 1 - mask.dim()
    return columns.masked_fill(~mask.reshape(*mask.shape, *[1] * missing), 0.0)
