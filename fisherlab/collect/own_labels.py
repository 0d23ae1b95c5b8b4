"""Labels within a batch (`labels`, `label`): how the model that they are made for reads them.

By the convention of transformers a model that is given `labels` returns its own loss. A causal language model's
labels are its tokens, and the label of a position is the next token; others' are those of the position itself; an
encoder-decoder makes its decoder's inputs of them. Which it is, the gradient of the loss tells.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fisherlab.collect.forms import ModelInputs
from fisherlab.errors import InputError
from fisherlab.likelihoods import Likelihood, TokenCategorical

NAMES = ("labels", "label")
IGNORED = -100
"""The target of a position without a token; the default `ignore_index` of the token likelihood."""


@dataclass(frozen=True)
class OwnLabels:
    """How the labels within a batch are read.

    Attributes:
        shifted: whether the label of a position is that of the next one, and the last has none.
        kept: whether the model is called with them.
    """

    shifted: bool = False
    kept: bool = False

    def split(self, inputs: ModelInputs) -> tuple[ModelInputs, Tensor | None]:
        """The inputs of a model, and the targets that stand among them."""
        name = name_of(inputs)
        if name is None or not isinstance(inputs, dict):
            return inputs, None
        targets = inputs[name]
        if not self.kept:
            inputs = {key: value for key, value in inputs.items() if key != name}
        if self.shifted:
            targets = torch.cat([targets[:, 1:], torch.full_like(targets[:, :1], IGNORED)], 1)
        return inputs, targets


def name_of(inputs: Any) -> str | None:
    """Under which name labels stand in a batch; None: under none, or beside nothing."""
    if not isinstance(inputs, Mapping):
        return None
    found = [name for name in NAMES if isinstance(inputs.get(name), Tensor)]
    return found[0] if found and len(inputs) > 1 else None


def read_by(loss: Tensor, outputs: Tensor, labels: Tensor, likelihood: Likelihood, *, kept: bool) -> OwnLabels:
    """How a model's own loss reads labels, by the gradient that it gives the outputs.

    Args:
        loss: the model's own.
        outputs: those that it was made of, with their graph.
        labels: of the batch.
        likelihood: what the outputs mean.
        kept: whether the model is called with them.

    Raises:
        InputError: where tokens are read in neither of the two ways.
    """
    if not isinstance(likelihood, TokenCategorical) or labels.dim() < 2 or not outputs.requires_grad:
        return OwnLabels(kept=kept)
    (own,) = torch.autograd.grad(loss, outputs, allow_unused=True)
    for shifted in (False, True) if own is not None else ():
        found = OwnLabels(shifted, kept)
        _, targets = found.split({"labels": labels, "": None})
        assert targets is not None
        likelihood.check(outputs.detach(), targets)
        if _is_multiple(own, likelihood.residual(outputs.detach(), targets)):
            return found
    raise InputError(
        "the model's own loss reads its labels neither as those of the positions nor as those of the next ones; "
        "give targets of the outputs' positions, as a pair (inputs, targets)"
    )


def _is_multiple(own: Tensor, residual: Tensor) -> bool:
    """Whether a gradient is a positive multiple of another, but for rounding."""
    own, residual = own.double().flatten(), residual.double().flatten()
    norms = torch.linalg.vector_norm(own) * torch.linalg.vector_norm(residual)
    return bool(own.isfinite().all() and norms > 0 and 1 - own @ residual / norms < 1e-4)
