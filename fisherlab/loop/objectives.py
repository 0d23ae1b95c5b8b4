"""What is minimised and what is reported, by likelihood."""

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fisherlab.errors import InputError, NotSupportedError
from fisherlab.likelihoods import (
    Bernoulli,
    Categorical,
    Gaussian,
    Likelihood,
    TokenCategorical,
    as_likelihood,
)


class Objective(ABC):
    """The loss h = Σ ℓ / count, with ℓ the negative log-likelihood, and a metric.

    Args:
        likelihood: what the outputs mean.
        smoothing: of labels, for classes only: the target is (1 − s) e_y + s / C.

    Attributes:
        metric: its name.
        higher_is_better: for the metric.
    """

    metric: str
    higher_is_better = False

    def __init__(self, likelihood: Any, smoothing: float = 0.0) -> None:
        self.likelihood, self.smoothing = likelihood, smoothing
        if smoothing and not isinstance(likelihood, Categorical | TokenCategorical):
            raise InputError(
                f"label smoothing is for classes, not for a {likelihood.name} likelihood; leave it out"
            )

    @abstractmethod
    def total(self, outputs: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        """Σ ℓ over what counts, 0-d."""

    def count(self, targets: Tensor) -> int:
        """How many terms count."""
        return len(targets)

    @abstractmethod
    def points(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The sum over samples that the metric is made of, 0-d."""

    def value(self, total: float, points: float, count: int) -> float:
        """The metric from these sums."""
        return points / count


class _Classes(Objective):
    metric, higher_is_better = "accuracy", True

    def total(self, outputs: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        """Softmax cross-entropy."""
        return functional.cross_entropy(outputs, targets, reduction="sum", label_smoothing=smoothing)

    def points(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Samples whose largest output is their class."""
        return (outputs.argmax(-1) == targets).sum()


class _Tokens(Objective):
    metric = "perplexity"

    def total(self, outputs: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        """Softmax cross-entropy of the tokens that count."""
        return functional.cross_entropy(
            outputs.flatten(0, 1),
            targets.flatten(),
            reduction="sum",
            ignore_index=self.likelihood.ignore_index,
            label_smoothing=smoothing,
        )

    def count(self, targets: Tensor) -> int:
        """Tokens that are not ignored."""
        return int((targets != self.likelihood.ignore_index).sum())

    def points(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Nothing: perplexity is exp(h)."""
        return outputs.new_zeros(())

    def value(self, total: float, points: float, count: int) -> float:
        """The exponential of the mean loss a token."""
        return math.exp(total / count) if total / count < 700 else math.inf  # e^710 overflows float64


class _Pixels(Objective):
    metric = "reconstruction_error"

    def total(self, outputs: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        """Binary cross-entropy, summed over the entries of a sample."""
        return functional.binary_cross_entropy_with_logits(outputs, targets.to(outputs), reduction="sum")

    def points(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Σ ‖σ(f) − y‖²."""
        return (torch.sigmoid(outputs) - targets).square().sum()


class _Numbers(Objective):
    metric = "squared_error"

    def total(self, outputs: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        """½‖y − f‖², summed over the entries of a sample."""
        return 0.5 * self.points(outputs, targets)

    def points(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Σ ‖f − y‖²."""
        return (outputs - targets).square().sum()


_OBJECTIVES: dict[type[Likelihood], type[Objective]] = {
    Categorical: _Classes,
    TokenCategorical: _Tokens,
    Bernoulli: _Pixels,
    Gaussian: _Numbers,
}


def objective(likelihood: "str | Likelihood", smoothing: float = 0.0) -> Objective:
    """The loss and the metric of a likelihood.

    Raises:
        InputError: for label smoothing without classes.
        NotSupportedError: for a likelihood of the user's own, whose value is not known.
    """
    known = as_likelihood(likelihood)
    if type(known) not in _OBJECTIVES:
        raise NotSupportedError(
            f"train knows no loss for the likelihood {known.name!r}; use one of "
            f"{', '.join(one.name for one in _OBJECTIVES)}"
        )
    return _OBJECTIVES[type(known)](known, smoothing)
