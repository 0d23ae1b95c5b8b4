"""What an optimizer says once, as a warning, of settings with which its steps are not what they should be."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fisherlab.likelihoods import Bernoulli, Categorical, Likelihood, TokenCategorical
from fisherlab.operators import EigenKroneckerOperator, KroneckerOperator, LinearOperator, blocks_of
from fisherlab.optim.gradients import numbers_in
from fisherlab.optim.settings import Options
from fisherlab.optim.turn import Turn

_APART = 1e-2  # of the entries of an output gradient from those that labels give it: a choice
_FAR = 9.9  # times the likelihood's own loss, or a part of it: where LNGD's steps are others by far
_NO_DIGIT = 0.1  # ε times a condition number that leaves not one digit
_FEWEST = 2  # samples, of which training goes nowhere though a clip bounds it: as the next
_FEW = 4  # samples a step: measured, docs/results/kl_clip.md
_LOST = 1e-3  # of μ: rates of smaller ⟨D, ∇ℓ_n⟩² are μ's alone


class Cautions:
    """Says each of its sentences once in an optimizer's life, and none that follows from a scaled loss.

    Args:
        bounded: whether the KL-clip bounds steps on the scale of F: there is one, and neither F̂ nor the rates
            have a scale of their own.
    """

    def __init__(self, *, bounded: bool) -> None:
        self._said: set[str] = set()
        self._bounded = bounded

    def first_step(
        self,
        turn: Turn,
        options: Options,
        total: int,
        squares: Mapping[str, Tensor],
        settings: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """Of what makes a first step, and those that follow.

        Args:
            turn: what came for it.
            options: of the optimizer.
            total: the samples of all processes.
            squares: by layer (1/N) Σ_n ⟨D, ∇ℓ_n⟩², where rates are layer-wise.
            settings: by layer those of its group.
        """
        if turn.loss is not None:
            factor, samples, labels = turn.loss
            parts = turn.samples / max(1, samples)  # micro-batches
            self.loss(factor, [turn.samples, parts * labels] if options.of_mean else [1])
        if 0 < total <= (_FEWEST if self._bounded else _FEW):
            self.few_samples(total)
        read = zip(squares, numbers_in(list(squares.values())), strict=True)
        self.rate_damping([(square, settings[name]["rate_damping"]) for name, square in read])

    def loss(self, factor: float, denominators: Sequence[float]) -> None:
        """Of a loss that is a multiple of the likelihood's.

        Args:
            factor: of the gradient at the outputs, over that of one sample's −log p.
            denominators: what a mean may be over.
        """
        relative = min((factor * count for count in denominators), key=lambda one: abs(math.log(one)))
        if 1 / _FAR < relative < _FAR:
            return
        self._say(
            "loss",
            f"the loss is {relative:.3g} times the mean of the likelihood's −log p(y | f), which F̂ and the "
            "rates do not follow: take the mean itself (in micro-batches divided by their number), set lr",
        )

    def few_samples(self, total: int) -> None:
        """Of a step that so few samples make."""
        self._say(
            "samples",
            f"a step is made of {total} sample{'s' * (total > 1)}, and may change the outputs far more than "
            "they ask for: use larger batches, accumulate gradients, or lower lr and kl_clip",
        )

    def rate_damping(self, squares: Sequence[tuple[float, float]]) -> None:
        """Of layer-wise rates that are μ's alone, from (1/N) Σ_n ⟨D, ∇ℓ_n⟩² and μ of all layers."""
        known = [(square, damping) for square, damping in squares if square > 0]
        if not known or any(square > _LOST * damping for square, damping in known):
            return
        most, damping = max(known)
        self._say(
            "rate_damping",
            f"rate_damping is {damping:g} where the largest mean of ⟨D, ∇ℓ_n⟩² of a layer is {most:.2g}, so "
            "that the layers hardly move: give a smaller one, about a hundredth of that, or rate='fixed'",
        )

    def damping(self, layer: str, value: object) -> None:
        """Of an inverse without correct digits."""
        self._say(
            "damping",
            f"damping is {value!r}, too small for layer {layer!r}: its F̂ is singular to rounding, and the "
            "inverse has no correct digits; give a larger damping, or the model in float64",
        )

    def _say(self, about: str, text: str) -> None:
        if not self._said & {about, "loss"}:
            self._said.add(about)
            warnings.warn(text, stacklevel=2)


def loss_factor(likelihood: Likelihood, outputs: Tensor, gradient: Tensor) -> float | None:
    """The factor c of a gradient at the outputs that is c (p − y), for classes or zeros and ones y.

    The labels need not be known: (p − y) is negative where y is 1 and nowhere else. None: it is no such
    gradient (smoothed or soft labels, weights of samples), or the likelihood has no such labels.

    Args:
        likelihood: what the outputs mean.
        outputs: f [n, …].
        gradient: of the loss in f.
    """
    f, g = outputs.double(), gradient.double()
    if isinstance(likelihood, Categorical | TokenCategorical):
        rows = g.flatten(0, -2)
        kept = rows.any(-1)  # tokens that do not count have none
        rows, p = rows[kept], torch.softmax(f, -1).flatten(0, -2)[kept]
        y = torch.nn.functional.one_hot(rows.argmin(-1), rows.shape[-1]) if len(rows) else rows
    elif isinstance(likelihood, Bernoulli):
        rows, p = g, torch.sigmoid(f)
        y = (g < 0).double()
    else:
        return None
    residual = p - y
    size = residual.abs().sum()
    if not bool(size > 0) or not bool(rows.isfinite().all()):
        return None
    factor = rows.abs().sum() / size
    fits = factor > 0 and ((rows - factor * residual).abs() < _APART * factor).all()
    return float(factor) if bool(fits) else None


def lost(operator: LinearOperator, inverse: LinearOperator) -> bool:
    """Whether an inverse has no correct digits: max F · max (F + λI)⁻¹ ≥ 0.1/ε, in diagonal entries.

    They are at most the largest eigenvalues, so that the condition number is larger still. Diagonal matrices
    and factors are inverted to rounding, whatever their condition.
    """
    products = []
    for one, other in zip(blocks_of(operator), blocks_of(inverse), strict=True):
        if isinstance(one, KroneckerOperator) and isinstance(other, KroneckerOperator):
            factors = [(F, G) for F, G in ((one.A, other.A), (one.B, other.B)) if F.ndim > 1]
            products += [F.diagonal().max() * G.diagonal().max() for F, G in factors]
        elif isinstance(one, EigenKroneckerOperator) and isinstance(other, EigenKroneckerOperator):
            products.append(one.S.max() * other.S.max())
    return (
        bool(products) and float(torch.stack(products).max()) * torch.finfo(operator.dtype).eps >= _NO_DIGIT
    )
